"""Sealed packs kept open for reading: as maps on a local disk, as descriptors elsewhere.

A map read costs 0.5 us, less than any call that copies. On a network file system a file removed or cut by another
machine would kill the process at the next touch of its map; there pread is used, which fails with an error. No
locks: single dict operations are atomic, so that a forked child can't inherit a held one.
"""

from __future__ import annotations

import mmap
import os
from typing import Protocol

from vstore.errors import CorruptionError
from vstore.storage.files import Descriptor, open_regular, pread_up_to
from vstore.storage.mounts import is_local_filesystem

MAX_OPEN_PACKS = 256
"""Each holds one descriptor; processes commonly may have 1,024."""
_TRUSTED_BYTES = 1024 * 1024
"""A read of more looks first whether the file has so much: the memory for it is taken before."""


class KeptPack(Protocol):
    """A pack that stays open; `used` is set when it is met again, and cleared by the search for one to drop."""

    used: bool

    def view(self, offset: int, length: int) -> memoryview | None:
        """Return these bytes, or None if the file does not hold them (any more), or can't be read."""

    def read(self, offset: int, length: int) -> memoryview | None:
        """Do the same, but raise what the system says if the file can't be read."""


class MappedPack:
    """A whole pack in memory's address space."""

    __slots__ = ("_bytes", "_map", "used")

    def __init__(self, mapped: mmap.mmap) -> None:
        self._map = mapped
        self._bytes = memoryview(mapped)
        self.used = False

    def view(self, offset: int, length: int) -> memoryview | None:
        end = offset + length
        # size() asks the system (0.35 us): touching a map behind the end of a file that was cut kills the process.
        if 0 <= offset <= end <= len(self._bytes) and end <= self._map.size():
            return self._bytes[offset:end]
        return None

    read = view


class DescribedPack:
    """A pack that is read by pread."""

    __slots__ = ("_descriptor", "used")

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self.used = False

    def view(self, offset: int, length: int) -> memoryview | None:
        try:
            return self.read(offset, length)
        except OSError:
            # NFS: the file was removed or replaced (ESTALE). Opening it again tells more.
            return None

    def read(self, offset: int, length: int) -> memoryview | None:
        if offset < 0 or length < 0:
            return None
        fd = self._descriptor.fd
        if (not length or length > _TRUSTED_BYTES) and offset + length > os.fstat(fd).st_size:
            return None
        if not length:
            return memoryview(b"")
        data = pread_up_to(fd, offset, length)
        return memoryview(data) if len(data) == length else None


class KeptPacks:
    """The packs that are open, by name: at most `limit`, give or take a thread's one.

    `mapped` chooses between mmap and pread; by default the file system of `root` decides. Dropping one closes
    nothing that a returned memoryview still shows: the last user does.
    """

    def __init__(self, root: str, *, mapped: bool | None = None, limit: int = MAX_OPEN_PACKS) -> None:
        self._root = root
        self._mapped = mapped
        self._limit = limit
        self._packs: dict[str, KeptPack] = {}
        self.get = self._packs.get

    def open(self, name: str, path: str, wanted: int) -> KeptPack:
        """Open the pack at `path` anew, to read up to byte `wanted`; `CorruptionError` if it is shorter."""
        self._packs.pop(name, None)
        fd = open_regular(path)
        descriptor = Descriptor(fd)
        size = os.fstat(fd).st_size
        if wanted > size:
            raise CorruptionError(too_short(path, wanted, size))
        pack: KeptPack
        if size and self._may_map():
            try:
                pack = MappedPack(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
            except ValueError:
                raise CorruptionError(too_short(path, wanted, os.fstat(fd).st_size)) from None
        else:
            pack = DescribedPack(descriptor)
        while len(self._packs) >= self._limit:
            self._drop_one()
        return self._packs.setdefault(name, pack)

    def drop(self, name: str) -> None:
        self._packs.pop(name, None)

    def clear(self) -> None:
        self._packs.clear()

    def __len__(self) -> int:
        return len(self._packs)

    def _may_map(self) -> bool:
        if self._mapped is None:
            self._mapped = is_local_filesystem(self._root) or not hasattr(os, "pread")
        return self._mapped

    def _drop_one(self) -> None:
        # The oldest that was not met again since the last search: one pass over many packs leaves the busy ones, and
        # nothing need be reordered on a read.
        packs = list(self._packs.items())
        for name, pack in packs:
            if not pack.used:
                self._packs.pop(name, None)
                return
            pack.used = False
        for name, _ in packs[:1]:
            self._packs.pop(name, None)


def too_short(path: str, wanted: int, size: int) -> str:
    return (
        f"{path!r} was cut: bytes up to {wanted} were wanted, it holds {size}. repo.fsck() tells what is affected; "
        "restore the file from a copy."
    )
