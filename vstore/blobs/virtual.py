"""Reads virtual chunks: ranges of files that vstore does not own.

A location is a URL. It is read only if it starts with a prefix that the caller authorised when opening the
repository, and only if the file still matches the checksum taken when the reference was written (an int is its
modification time in microseconds, a str an etag). `file://` is read here; other schemes raise and say so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

import msgspec

from vstore.errors import (
    InvalidInputError,
    VirtualChunkError,
    VirtualChunkModifiedError,
    VirtualChunkUnauthorizedError,
)
from vstore.format.manifest import MAX_LOCATION_BYTES, Checksum
from vstore.storage.files import close_quietly

_FILE = "file"


class VirtualRange(msgspec.Struct, frozen=True):
    """A range of somebody else's file."""

    location: str
    offset: int
    length: int
    checksum: Checksum | None


class VirtualReader:
    """Reads virtual chunks below authorised URL prefixes. Thread-safe."""

    def __init__(self, authorized_prefixes: Iterable[str] = ()) -> None:
        self.authorized_prefixes = tuple(authorized_prefixes)
        self._folders = tuple(map(_prefix_folder, self.authorized_prefixes))

    def read(self, source: VirtualRange) -> bytes:
        """Return the source's bytes, all `length` of them."""
        path = self._authorized_path(source.location)
        try:
            # Without waiting: opening a pipe would, for a writer.
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise VirtualChunkError(
                f"the source {source.location} of a virtual chunk does not exist. Put the file back, or write the "
                "array's references again."
            ) from None
        except OSError as error:
            raise VirtualChunkError(
                f"the source {source.location} of a virtual chunk: {error.strerror}"
            ) from None
        try:
            _check_unchanged(source, os.fstat(handle))
            return _read_exactly(handle, source)
        except OSError as error:
            raise VirtualChunkError(
                f"the source {source.location} of a virtual chunk can't be read: {error.strerror or error}. Check the "
                "disk that it is on, then read again."
            ) from error
        finally:
            close_quietly(handle)

    def _authorized_path(self, location: str) -> str:
        path = file_path(location)
        if not any(path.startswith(folder) for folder in self._folders):
            folder = location.rpartition("/")[0] + "/"
            raise VirtualChunkUnauthorizedError(
                f"this repository has a virtual chunk in {location}, which was not authorised. If you trust it, open "
                f"the repository with authorize_virtual_chunk_access=[{folder!r}]."
            )
        return path


def file_path(location: str) -> str:
    """Return the path that a `file://` URL names, normalised, so that ".." can't climb out of a prefix.

    Raises `InvalidInputError` for anything else.
    """
    if not isinstance(location, str) or len(location.encode("utf-8", "replace")) > MAX_LOCATION_BYTES:
        raise InvalidInputError(f"{location!r:.80} is not a URL of up to {MAX_LOCATION_BYTES} bytes")
    try:
        location.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{location!r} is not valid Unicode") from None
    try:
        parts = urlsplit(location)
        path = unquote(parts.path, errors="surrogateescape")
    except ValueError as error:
        raise InvalidInputError(f"{location!r} is not a URL: {error}") from None
    if "?" in location or "#" in location:
        raise InvalidInputError(
            f"{location!r} has a '?' or '#': spell them %3F and %23 where they are part of a file's name."
        )
    if (
        parts.scheme != _FILE
        or parts.netloc not in ("", "localhost")
        or not path.startswith("/")
        or "\0" in path
    ):
        raise InvalidInputError(
            f"{location!r} can't hold virtual chunks: give an absolute file URL, for example "
            "'file:///data/model.nc'. Other schemes are not supported yet."
        )
    # POSIX lets two slashes at the start mean something else.
    return os.path.normpath("/" + path.lstrip("/"))


def _prefix_folder(prefix: str) -> str:
    """Return the folder that an authorised prefix names, with a slash at its end."""
    if not isinstance(prefix, str) or not prefix.endswith("/"):
        raise InvalidInputError(
            f"{prefix!r} can't authorise virtual chunks: a prefix is a URL that ends in '/'"
        )
    return file_path(prefix).rstrip("/") + "/"


def _check_unchanged(source: VirtualRange, status: os.stat_result) -> None:
    modified_us = status.st_mtime_ns // 1000
    if not stat.S_ISREG(status.st_mode):
        raise VirtualChunkError(
            f"the source {source.location} of a virtual chunk is not a regular file. Put the file back, or write the "
            "array's references again."
        )
    if isinstance(source.checksum, int) and modified_us > source.checksum:
        raise VirtualChunkModifiedError(
            f"{source.location} was modified after its references were written ({modified_us} > {source.checksum} "
            "microseconds since 1970). Write the array's references again."
        )
    if isinstance(source.checksum, str) and source.checksum.strip('"') != file_etag(status):
        raise VirtualChunkModifiedError(
            f"{source.location} has etag {file_etag(status)}, its references were written for {source.checksum}. "
            "Write the array's references again."
        )
    if source.offset + source.length > status.st_size:
        raise VirtualChunkError(
            f"{source.location} has {status.st_size} bytes; a virtual chunk ends at {source.offset + source.length}. "
            "The file was cut, or its references are wrong: write them again."
        )


def file_etag(status: os.stat_result) -> str:
    """Return a local file's etag (inode, modification time in microseconds, size, in hex), as obstore spells it."""
    return f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"


def _read_exactly(handle: int, source: VirtualRange) -> bytes:
    parts = []
    offset, left = source.offset, source.length
    while left:
        part = os.pread(handle, min(left, 1 << 30), offset)
        if not part:
            raise VirtualChunkError(f"{source.location} became shorter while it was read")
        parts.append(part)
        offset += len(part)
        left -= len(part)
    return b"".join(parts)
