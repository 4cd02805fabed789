"""The storage contract: what the layers above may rely on, whatever holds the bytes.

Objects are immutable but for the one hint (`write`). Names are those of `vstore.keys.objects`; anything else is
refused with `InvalidInputError`. All calls are thread-safe and blocking.
Besides the errors named below, any call may raise `AccessDeniedError` or `StorageError`, and a remote storage
raises `ForkedProcessError` in a forked child. Every implementation passes `vstore.testing.storage_contract`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from vstore.errors import FormatError, ReadOnlyError
from vstore.ids import BytesLike, PackId

T = TypeVar("T")


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object in a listing; `modified_us` is by the storage's own clock, in microseconds since 1970 UTC."""

    name: str
    size: int
    modified_us: int


class PackPolicy(msgspec.Struct, frozen=True):
    """How packs are best written to a storage.

    A pack is sealed when it reaches `target_bytes`. Blobs are held in memory until `buffer_bytes` of them wait,
    so that a chunk that is overwritten soon is never written; a blob of at least `direct_bytes` does not wait
    (None: all wait). With `writes_behind` the buffer is written by a thread, while the caller goes on: worth it where
    a write takes the time of a system call and lets go of the interpreter's lock meanwhile.
    """

    target_bytes: int
    buffer_bytes: int
    direct_bytes: int | None
    writes_behind: bool = False


@runtime_checkable
class PackSink(Protocol):
    """A pack being written; it bears its final id from the start, and is invisible as a pack until sealed."""

    pack: PackId

    def write(self, offset: int, buffers: Sequence[BytesLike]) -> None:
        """Write `buffers` end to end from `offset`. Disjoint ranges may be written from several threads.

        The buffers may be reused after the call. Raises `OutOfSpaceError` or `StorageError`; a failed write may be
        tried again at the same offset, unless the error is a failed sync, which every later call repeats.
        `ForkedProcessError` in a forked child.
        """

    def read(self, offset: int, length: int) -> memoryview:
        """Return bytes written before; also after `seal`, failed or not, and in a forked child of a local one."""

    def seal(self, size: int) -> None:
        """Make the first `size` bytes durable under the pack's name; nothing may be written afterwards.

        On `OutcomeUnknownError`, or any other error, this pack id must never be used again: the caller writes
        what it holds to a new pack. A failed fsync is final for the file.
        """

    def discard(self) -> None:
        """Forget an unsealed pack; a sealed one stays. Never fails, may be called again."""


@runtime_checkable
class Storage(Protocol):
    """Bytes under names, below one location.

    `url` names the location in messages, without secrets. `is_local` promises that reads are quick enough to be
    made on an event loop. `pickle` of a storage reaches the same place from another process.
    """

    url: str
    is_local: bool
    pack_policy: PackPolicy

    def read(self, name: str, offset: int, length: int) -> memoryview:
        """Return exactly `length` bytes from `offset`, read-only.

        Raises `ObjectNotFoundError` if there is no such object, `CorruptionError` if it is shorter than that.
        """

    def read_tail(self, name: str, length: int) -> tuple[memoryview, int]:
        """Return the object's last bytes, `length` or all if it is shorter, and its whole size."""

    def read_whole(self, name: str, limit: int) -> bytes:
        """Return the object; `CorruptionError` if it is larger than `limit` bytes."""

    def size(self, name: str) -> int | None:
        """Return the object's size, or None if there is none of this name."""

    def create(self, name: str, data: bytes) -> None:
        """Create the object, durably, unless one of this name exists: of racing creates exactly one succeeds.

        Raises `ObjectExistsError` (which does not tell whose it is: a retried request may have met its own
        success; read it back) or `OutcomeUnknownError` (it may have landed, or still land later). After another
        error nothing was created. `UnsafeStorageError` if the storage can't make this promise.
        """

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Create or replace the object, whole or not at all for any reader. Only for hints, tombstones and probes.

        After an error it holds the old bytes or the new ones. If not `durable`, a power cut may leave anything in it.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects in the folder `prefix` ("packs/"; "" for all), at any depth, in any order, lazily.

        Names that vstore would not write are left out. Objects made or deleted meanwhile may or may not appear.
        """

    def is_held(self, name: str) -> bool:
        """Tell whether a living writer, of any process, holds the staged pack `name` ("staging/...").

        False where packs are not staged. Ask only of files older than gc's grace: the test itself holds the lock
        for a moment.
        """

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects; names that are absent are passed over. After an error some may be deleted."""

    def open_pack(self, pack: PackId) -> PackSink:
        """Start a new pack. `UnsafeStorageError` where packs can't be written safely."""

    def replace_damaged_pack(self, pack: PackId) -> PackSink:
        """Start a pack that takes the place of the one of this id, if there is one: for fsck's repair and nothing else.

        It must hold what the pack held, at the same places. Until it is sealed the old one is as it was; any reader
        sees the one or the other, whole. What was read or mapped before stays as it was read.
        """

    def close(self) -> None:
        """Let go of maps, handles and threads; what was read stays valid. May be used again afterwards."""


def read_twice(storage: Storage, read: Callable[[], T]) -> T:
    """Return what `read` makes of bytes in `storage`, which it checks.

    If it raises `FormatError`, and they came over a network, they may have been damaged on the way: it is done again.
    """
    try:
        return read()
    except FormatError:
        if storage.is_local:
            raise
    return read()


def reads_only(storage: Storage) -> bool:
    """Tell whether nobody can write through `storage`: a plain HTTP server has no safe way to."""
    return bool(getattr(storage, "reads_only", False))


def require_writable(storage: Storage) -> None:
    """Raise `ReadOnlyError` where nobody can write, before anything is asked of the storage."""
    if reads_only(storage):
        raise ReadOnlyError(
            f"{storage.url} can only be read: HTTP servers have no safe way to write. Open the repository where its "
            "files are, in a directory or an object store, to change it."
        )
