"""A directory as storage: plain files, read by mmap, durable before a write returns.

A file appears under its name whole or not at all: it is written and synced as `staging/<32 hex>`, then linked
(create) or renamed (write, seal), then the folder is synced. What a crash leaves is therefore always in `staging/`,
where gc looks. Neighbours: `files` does the system calls, `maps` keeps packs open, `staged` is a pack being
written; `location` makes the storage from what a user gives.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import TypeAlias, TypeVar

from vstore.errors import (
    CorruptionError,
    InvalidInputError,
    ObjectExistsError,
    OutcomeUnknownError,
    UnsafeStorageError,
)
from vstore.ids import PackId, new_nonce, new_pack_id
from vstore.keys.objects import (
    PACK_PREFIX,
    STAGING_PREFIX,
    check_object_name,
    is_object_folder,
    pack_name,
    staging_name,
)
from vstore.storage.base import ObjectInfo, PackPolicy
from vstore.storage.files import (
    SURELY_NOT_DONE,
    Descriptor,
    Folders,
    close_quietly,
    is_locked,
    lock_file,
    open_folder,
    open_regular,
    pwrite_all,
    read_up_to,
    require_posix,
    storage_error,
    sync_directory,
    sync_file,
    sync_names_above,
)
from vstore.storage.maps import KeptPacks, too_short
from vstore.storage.names import check_prefix, check_range, is_object_name
from vstore.storage.staged import StagedPack

T = TypeVar("T")
Names: TypeAlias = list[str]

LOCAL_PACKS = PackPolicy(
    target_bytes=128 * 1024 * 1024,
    buffer_bytes=1024 * 1024,
    direct_bytes=1024 * 1024 + 1,
    writes_behind=True,
)

_STALE_TRIES = 3
_STAGING_FOLDER = STAGING_PREFIX.rstrip("/")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}


class LocalStorage:
    """A `Storage` below the absolute path `root`.

    `mapped` chooses between mmap and pread for packs; by default the mount table decides. Works after `os.fork`.
    """

    is_local = True
    pack_policy = LOCAL_PACKS

    def __init__(self, root: str | os.PathLike[str], *, mapped: bool | None = None) -> None:
        self.root = os.fspath(root)
        if not os.path.isabs(self.root) or "\0" in self.root:
            raise InvalidInputError(
                f"{self.root!r} is not an absolute path. open_storage() accepts relative ones."
            )
        self.url = Path(self.root).as_uri()
        self._folders = Folders(self.root)
        self._doubtful: set[str] = set()
        self._packs = KeptPacks(self.root, mapped=mapped)

    def __repr__(self) -> str:
        return f"LocalStorage({self.root!r})"

    def __reduce__(self) -> tuple[type[LocalStorage], tuple[str]]:
        # Whether to map is for the machine that unpickles to find out.
        return LocalStorage, (self.root,)

    def make_root(self) -> None:
        """Make the root directory and those above it where they are missing, durably."""
        require_posix()
        missing = [self.root]
        while not os.path.isdir(missing[-1]) and os.path.dirname(missing[-1]) != missing[-1]:
            missing.append(os.path.dirname(missing[-1]))
        # Whoever made those that are there, a moment ago perhaps, need not have synced them.
        sync_names_above(missing[-1])
        for path in reversed(missing[:-1]):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path)
                sync_directory(os.path.dirname(path))
            except OSError as error:
                raise storage_error(error, "make the directory", path) from error
            if not os.path.isdir(path):
                raise InvalidInputError(f"{path!r} is a file; a repository needs a directory.")

    # Reading

    def read(self, name: str, offset: int, length: int) -> memoryview:
        pack = self._packs.get(name)
        if pack is not None:
            view = pack.view(offset, length)
            if view is not None:
                pack.used = True
                return view
        check_object_name(name)
        check_range(offset, length)
        if name.startswith(PACK_PREFIX):
            return self._read_pack(name, offset, length)
        return memoryview(self._with_file(name, lambda file: _read_exactly(file, offset, length)))

    def read_tail(self, name: str, length: int) -> tuple[memoryview, int]:
        check_range(0, length)

        def read(file: FileIO) -> tuple[memoryview, int]:
            size = os.fstat(file.fileno()).st_size
            wanted = min(length, size)
            return memoryview(_read_exactly(file, size - wanted, wanted)), size

        return self._with_file(name, read)

    def read_whole(self, name: str, limit: int) -> bytes:
        def read(file: FileIO) -> bytes:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CorruptionError(
                    f"{self._path(name)!r} holds {size} bytes where at most {limit} are expected. Run fsck."
                )
            return _read_exactly(file, 0, size)

        if self._doubtful:
            self._settle(os.path.dirname(self._path(name)))
        return self._with_file(name, read)

    def size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            return os.stat(path).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, "look up", path) from error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._list(check_prefix(prefix).rstrip("/"))

    def is_held(self, name: str) -> bool:
        path = self._path(name)
        if not name.startswith(STAGING_PREFIX):
            return False
        try:
            fd = open_regular(path)
            try:
                return is_locked(fd)
            finally:
                close_quietly(fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, "test the lock of", path) from error

    # Writing

    def create(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = self._write_temporary(data)
        try:
            self._ensure_folder_of(name)
            os.link(temporary, path)
        except FileExistsError:
            raise ObjectExistsError(f"{path!r} exists already; read it back to see whose it is.") from None
        except OSError as error:
            if error.errno not in SURELY_NOT_DONE:
                self._doubtful.add(os.path.dirname(path))
            raise _create_error(error, path) from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        try:
            sync_directory(os.path.dirname(path))
        except OSError as error:
            self._doubtful.add(os.path.dirname(path))
            raise OutcomeUnknownError(
                f"{path!r} was made, but its folder can't be synced ({error.strerror}): whether it would survive "
                "a power cut is unknown. Read it back."
            ) from error

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        path = self._path(name)
        temporary = self._write_temporary(data, durable=durable)
        try:
            self._ensure_folder_of(name)
            os.rename(temporary, path)
        except OSError as error:
            raise storage_error(error, "write", path) from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if not durable:
            return
        try:
            sync_directory(os.path.dirname(path))
        except OSError as error:
            raise storage_error(error, "sync the folder of", path) from error

    def delete(self, names: Sequence[str]) -> None:
        folders: dict[str, Names] = {}
        for name in map(check_object_name, names):
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        require_posix()
        for folder, within in folders.items():
            self._delete_in(folder, within)

    def _delete_in(self, folder: str, names: Names) -> None:
        # By the open folder: a link in its place, also one that is put there now, must not lead elsewhere.
        try:
            fd = open_folder(self.root, folder)
        except (FileNotFoundError, NotADirectoryError):
            fd = None
        except OSError as error:
            raise storage_error(error, "open the folder", os.path.join(self.root, folder)) from error
        try:
            for name in names:
                if fd is not None:
                    self._unlink(fd, name)
                self._packs.drop(name)
            if fd is not None:
                sync_file(fd)
        except OSError as error:
            raise storage_error(error, "sync the folder", os.path.join(self.root, folder)) from error
        finally:
            if fd is not None:
                close_quietly(fd)

    def _unlink(self, folder: int, name: str) -> None:
        try:
            os.unlink(name.rpartition("/")[2], dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise storage_error(error, "delete", self._path(name)) from error

    def open_pack(self, pack: PackId) -> StagedPack:
        return self._stage(pack, pack)

    def replace_damaged_pack(self, pack: PackId) -> StagedPack:
        # Staged under another id: gc would take a needed pack's staged file, left by a crash, for needed too.
        return self._stage(pack, new_pack_id())

    def _stage(self, pack: PackId, staged_as: PackId) -> StagedPack:
        name = pack_name(pack)
        path = self._path(staging_name(staged_as))
        descriptor = Descriptor(self._open_staged(path, os.O_RDWR))
        try:
            lock_file(descriptor.fd, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return StagedPack(
            pack,
            descriptor,
            (path, self._path(name)),
            lambda: self._ensure_folder_of(name),
            lambda offset, length: self.read(name, offset, length),
            lambda: self._packs.drop(name),
        )

    def close(self) -> None:
        self._packs.clear()

    # Parts of the above

    def _path(self, name: str) -> str:
        return os.path.join(self.root, check_object_name(name))

    def _settle(self, folder: str) -> None:
        """Make durable what a create may have left in `folder`: who reads it back takes it for durable."""
        if folder not in self._doubtful:
            return
        try:
            sync_directory(folder)
        except FileNotFoundError:
            # Then there is nothing in it.
            pass
        except OSError as error:
            raise storage_error(error, "sync the folder", folder) from error
        self._doubtful.discard(folder)

    def _read_pack(self, name: str, offset: int, length: int) -> memoryview:
        path = self._path(name)
        view = self._again_if_stale(
            path, lambda: self._packs.open(name, path, offset + length).read(offset, length)
        )
        if view is None:
            raise CorruptionError(too_short(path, offset + length, self.size(name) or 0))
        return view

    def _with_file(self, name: str, read: Callable[[FileIO], T]) -> T:
        path = self._path(name)

        def open_and_read() -> T:
            with FileIO(path, opener=lambda path, _: open_regular(path)) as file:
                return read(file)

        return self._again_if_stale(path, open_and_read)

    def _again_if_stale(self, path: str, read: Callable[[], T]) -> T:
        """Read; on NFS a file that is replaced or removed just then fails once: opened anew it is there, or gone."""
        for tries_left in reversed(range(_STALE_TRIES)):
            try:
                return read()
            except OSError as error:
                if error.errno != errno.ESTALE or not tries_left:
                    raise storage_error(error, "read", path) from error
        raise AssertionError("unreachable")

    def _list(self, folder: str) -> Iterator[ObjectInfo]:
        path = os.path.join(self.root, folder) if folder else self.root
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    yield from self._list_entry(f"{folder}/{entry.name}" if folder else entry.name, entry)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise storage_error(error, "list", path) from error

    def _list_entry(self, name: str, entry: os.DirEntry[str]) -> Iterator[ObjectInfo]:
        try:
            if not is_object_name(name):
                if is_object_folder(name) and entry.is_dir():
                    yield from self._list(name)
            elif entry.is_file():
                found = entry.stat()
                yield ObjectInfo(name, found.st_size, found.st_mtime_ns // 1000)
        except FileNotFoundError:
            # Removed since its name was read.
            return
        except OSError as error:
            # A link that leads to itself is no object.
            if error.errno != errno.ELOOP:
                raise

    def _ensure_folder_of(self, name: str) -> None:
        folder = name.rpartition("/")[0]
        if folder:
            try:
                self._folders.ensure(folder)
            except OSError as error:
                raise storage_error(error, "make the folder", os.path.join(self.root, folder)) from error

    def _open_staged(self, path: str, access: int) -> int:
        require_posix()
        flags = access | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._folders.check(_STAGING_FOLDER)
        try:
            try:
                return os.open(path, flags, 0o666)
            except FileNotFoundError:
                # The staging folder needs no sync: what a power cut takes from it no one misses.
                self._folders.forget()
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.dirname(path))
                return os.open(path, flags, 0o666)
        except FileExistsError:
            raise ObjectExistsError(
                f"{path!r} exists already: a pack's id must never be used twice."
            ) from None
        except OSError as error:
            raise storage_error(error, "create", path) from error

    def _write_temporary(self, data: bytes, *, durable: bool = True) -> str:
        path = self._path(f"{STAGING_PREFIX}{new_nonce().hex()}")
        fd = self._open_staged(path, os.O_WRONLY)
        try:
            try:
                pwrite_all(fd, 0, [data])
                if durable:
                    sync_file(fd)
            finally:
                # Where a file system that is mounted over a network tells of writes that failed, if nothing was synced.
                os.close(fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise storage_error(error, "write", path) from error
        return path


def _read_exactly(file: FileIO, offset: int, length: int) -> bytes:
    data = read_up_to(file, offset, length)
    size = os.fstat(file.fileno()).st_size
    if len(data) != length or offset > size:
        raise CorruptionError(too_short(str(file.name), offset + length, size))
    return data


def _create_error(error: OSError, path: str) -> Exception:
    if error.errno in _NO_LINKS:
        return UnsafeStorageError(
            f"{path!r} can't be created atomically: linking from the folder `staging` failed ({error.strerror}). "
            "The whole repository must be on one file system, and that must allow hard links."
        )
    if error.errno in SURELY_NOT_DONE:
        return storage_error(error, "create", path)
    return OutcomeUnknownError(
        f"{path!r} may or may not have been created: {error.strerror or error}. Read it back to find out."
    )
