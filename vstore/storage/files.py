"""Plain files made durable: writing, syncing and reading them, and what their errors mean.

What `local`, `staged` and `maps` share. A file's bytes are durable after `sync_file`, its name only after
`sync_directory` of the folder that holds it. Above: `vstore.storage.local`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from io import FileIO

from vstore.errors import (
    AccessDeniedError,
    CorruptionError,
    ObjectNotFoundError,
    OutOfSpaceError,
    StorageError,
    UnsafeStorageError,
)
from vstore.ids import BytesLike

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAX_BUFFERS = 1024
"""The most buffers that one pwritev takes on Linux and macOS (IOV_MAX)."""

_PACKS = "packs"
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
SURELY_NOT_DONE = FULL | _DENIED | {errno.EXDEV, errno.ENOTDIR, errno.EMLINK, errno.EEXIST}
"""After a failed link or rename with one of these nothing has changed; after another (EIO, or ENOENT and ESTALE,
by which NFS reports the repeat of a request whose first reply was lost) it may have."""


def storage_error(error: OSError, attempt: str, path: str) -> StorageError:
    """Return what to raise for `error`, met when `path` was to be `attempt`ed ("write", "sync the folder")."""
    found = f"could not {attempt} {path!r}: {error.strerror or error}"
    if error.errno in FULL:
        return OutOfSpaceError(f"{found}. Free some space or raise the quota, then try again.")
    if error.errno in _DENIED:
        return AccessDeniedError(
            f"{found}. Check the permissions of the file and its folder for user id {_user_id()}, and whether "
            "the file system is mounted read-only."
        )
    if error.errno in _ABSENT:
        return ObjectNotFoundError(f"{found}. Check that the repository was not moved or removed.")
    if error.errno in _TOO_MANY_FILES:
        return StorageError(f"{found}. Raise the limit of open files (`ulimit -n`), then try again.")
    return StorageError(f"{found}. Check the disk and the system's log, then try again.")


def _user_id() -> object:
    return os.geteuid() if hasattr(os, "geteuid") else "unknown"


def require_posix() -> None:
    """Refuse to write where files can't be locked and folders can't be synced."""
    if fcntl is None:
        raise UnsafeStorageError(
            "local writing needs Linux or macOS: this system can't lock files and sync folders as commits need "
            "it. Write from one of these (WSL will do), or to an object store."
        )


def close_quietly(fd: int) -> None:
    """Close a file of which nothing more is wanted: a failing disk has no more to say than was heard before."""
    with contextlib.suppress(OSError):
        os.close(fd)


def sync_file(fd: int) -> None:
    """Make a file durable: its bytes and its size."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        # On macOS fsync stops at the drive's cache. Some file systems there only know fsync.
        try:
            fcntl.fcntl(fd, full_sync)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(fd)


def sync_data(fd: int) -> None:
    """Start early on what `sync_file` will have to do."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_directory(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        sync_file(fd)
    finally:
        close_quietly(fd)


def sync_names_above(path: str) -> None:
    """Make the names of the directory `path`, and of those above it on its disk, durable as far as this user may.

    The user's program may have made them a moment ago; syncing a folder that did not change costs next to nothing.
    """
    path = os.path.realpath(path)
    try:
        device = os.stat(path).st_dev
        while path != (above := os.path.dirname(path)) and os.stat(above).st_dev == device:
            sync_directory(above)
            path = above
    except OSError as error:
        if error.errno not in _DENIED | {errno.EINVAL}:
            raise storage_error(error, "sync the folder above", path) from error


def open_regular(path: str) -> int:
    """Open a file for reading; `CorruptionError` if it is a pipe, a device, a folder or the like."""
    # Without waiting: opening a pipe would, for a writer.
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        close_quietly(fd)
        raise
    if not is_regular:
        close_quietly(fd)
        raise CorruptionError(
            f"{path!r} is not a regular file, as vstore's objects are. Look at what put it there, and remove it or "
            "restore the file from a copy."
        )
    return fd


def open_folder(root: str, folder: str) -> int:
    """Open a folder below `root`, and refuse to go through symbolic links: what lies behind one is elsewhere."""
    fd = os.open(root, _FOLDER_FLAGS)
    for part in filter(None, folder.split("/")):
        above = fd
        try:
            fd = os.open(part, _FOLDER_FLAGS | getattr(os, "O_NOFOLLOW", 0), dir_fd=above)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                _refuse_link(os.path.join(root, folder), os.stat(part, dir_fd=above, follow_symlinks=False))
            raise
        finally:
            close_quietly(above)
    return fd


def _refuse_link(path: str, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeStorageError(
            f"{path!r} is, or lies behind, a symbolic link: nothing is written or deleted there, as it is outside the "
            "repository. Put a folder in the link's place; only a repository as a whole may be linked to."
        )


def pwrite_all(fd: int, offset: int, buffers: Sequence[BytesLike]) -> int:
    """Write `buffers` end to end from `offset`, however short the single writes are; return their size."""
    views = [buffer for buffer in buffers if len(buffer)]
    size = sum(map(len, views))
    if len(views) == 1 or not hasattr(os, "pwritev"):
        for view in views:
            offset = _pwrite(fd, offset, view)
        return size
    first = 0
    while first < len(views):
        several = views[first : first + MAX_BUFFERS]
        done = os.pwritev(fd, several, offset)
        offset += done
        if done == sum(map(len, several)):
            first += len(several)
            continue
        while first < len(views) and done >= len(views[first]):
            done -= len(views[first])
            first += 1
        if done:
            views[first] = memoryview(views[first])[done:]
    return size


def _pwrite(fd: int, offset: int, buffer: BytesLike) -> int:
    view = memoryview(buffer)
    while view:
        done = os.pwrite(fd, view, offset)
        offset += done
        view = view[done:]
    return offset


def pread_up_to(fd: int, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset`, or fewer where the file ends."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    # One pread returns at most 2 GiB.
    parts = [data]
    while length > (got := sum(map(len, parts))) and (data := os.pread(fd, length - got, offset + got)):
        parts.append(data)
    return b"".join(parts)


def read_up_to(file: FileIO, offset: int, length: int) -> bytes:
    """Do what `pread_up_to` does, on any system; moves the file's position."""
    file.seek(offset)
    parts: list[bytes] = []
    while length and (data := file.read(length)):
        parts.append(data)
        length -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def lock_file(fd: int, path: str) -> None:
    """Show other processes, gc above all, that a living writer holds the file `path`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(f"{path!r} was locked by another process. Try again with a new pack.") from error
    except OSError as error:
        raise UnsafeStorageError(
            f"{path!r} can't be locked ({error.strerror}): gc on another machine could not tell that it is in use. "
            "Mount the file system with locks (for Lustre: -o flock), or choose another location."
        ) from error


def is_locked(fd: int) -> bool:
    """Tell whether another descriptor of the file holds the lock of `lock_file`."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


class Descriptor:
    """An open file, closed when the last user lets go of it.

    Threads read from it while another drops it: an explicit close could hand its number to a file opened
    meanwhile, whose bytes the reader would then get.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        # Whatever must be durable was synced before.
        close_quietly(self.fd)

    def sync_data(self) -> None:
        sync_data(self.fd)


class Folders:
    """Makes the folders below `root`, each durable before anything in it is."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._durable: set[str] = set()
        self._real: set[str] = set()

    def check(self, folder: str) -> None:
        """Refuse a folder that is a symbolic link; one that is not there is none.

        Only `packs` may be one, for an owner who puts the packs on another disk: packs have new names, so that nothing
        that lies there is written over, and nothing is ever deleted behind a link.
        """
        if folder in self._real or folder == _PACKS:
            return
        path = os.path.join(self._root, folder)
        with contextlib.suppress(FileNotFoundError):
            _refuse_link(path, os.lstat(path))
            self._real.add(folder)

    def ensure(self, folder: str) -> None:
        """Make `folder` ("packs/ab") and those above it, below the root."""
        if folder in self._durable:
            return
        parent = folder.rpartition("/")[0]
        if parent:
            self.ensure(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(self._root, folder))
        self.check(folder)
        above = os.path.join(self._root, parent)
        # What others made is durable by the same sync; else a process would sync once for each of 256 folders.
        present = _real_folders(above) if parent else []
        # Also if it was there: whoever made it may not have come to this line yet.
        sync_directory(above)
        self._durable.add(folder)
        self._durable.update(f"{parent}/{name}" for name in present)

    def forget(self) -> None:
        """Look anew: the folders may have been removed."""
        self._durable.clear()
        self._real.clear()


def _real_folders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
