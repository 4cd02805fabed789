"""Where the bytes of a session's blobs are, and reading back those that are not sealed yet.

Every blob has a *slot*, a number that never changes; its bytes wait in memory, are on their way from there to a pack,
or lie in one, first unsealed and then sealed. `SlotTable` has all of that under one lock. `writer` and `sealing` change
it; `worktree` reads from it what a session wrote, and asks it for the places that a commit names.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.blobs.buffers import OverwrittenError
from vstore.blobs.packing import NO_SLOT, OpenPack
from vstore.blobs.uploads import REMOTE_TRIES
from vstore.errors import InternalError, SessionStateError, StorageError
from vstore.format.columns import U64
from vstore.format.envelope import BlobKind
from vstore.ids import BytesLike, Digest, PackId, SessionId, new_pack_id
from vstore.keys.objects import pack_name
from vstore.locks import ForkSafeLock
from vstore.storage.base import Storage

_READ_TRIES = REMOTE_TRIES + 1
"""Looks for a blob that goes from pack to pack while it is read."""
_IN_MEMORY = 0xFFFF_FFFF

Order: TypeAlias = tuple[str, bytes, int]
"""Where readers will look for a blob: the array, the tile, the position in it."""
NO_ORDER: Order = ("", b"", 0)


@dataclass(slots=True)
class Waiting:
    """A blob in memory: its bytes, and how many keys of the session hold it."""

    kind: BlobKind
    digest: Digest
    data: bytes | memoryview
    order: Order = NO_ORDER
    users: int = 1


@dataclass(frozen=True, slots=True)
class WriterState:
    """Where a writer's blobs are, for a reader in another process: the columns by slot, and what is in memory."""

    packs: array[int]
    offsets: array[int]
    pack_ids: list[PackId]
    in_memory: dict[int, bytes]


class SlotTable:
    """The slots of one session. What reads may be called by any thread; who changes anything holds `lock`, never long.

    A forked child reads the table as it was at the fork: changes are made in an order in which each blob is found in
    one place or in both.
    """

    def __init__(self, storage: Storage, session: SessionId | None) -> None:
        self._storage = storage
        self._session = session
        self.lock = ForkSafeLock(threading.Lock)
        # Columns by slot: the number of its pack, or _IN_MEMORY, and its offset there.
        self._pack_of = array("I")
        self._offset_of = array("Q")
        self.pack_ids: list[PackId] = []
        """The packs of the session by number."""
        self.unsealed: dict[int, OpenPack] = {}
        """Those that are not sealed yet, by number."""
        self.waiting: dict[int, Waiting] = {}
        """Blobs in memory that nobody is writing."""
        self.moving: dict[int, BytesLike] = {}
        """The bytes of blobs that are being written."""
        self.is_closed = False

    # --- changing, with the lock held ------------------------------------------------------------------------

    def add_slot(self) -> int:
        """Return a new slot, of a blob in memory."""
        self._pack_of.append(_IN_MEMORY)
        self._offset_of.append(0)
        return len(self._pack_of) - 1

    def add_pack(self) -> OpenPack:
        """Return a new pack, unsealed and empty."""
        pack = OpenPack(self._storage.open_pack(new_pack_id(self._session)), len(self.pack_ids))
        self.pack_ids.append(pack.pack)
        self.unsealed[pack.number] = pack
        return pack

    def settle(self, pack: OpenPack, slots: Iterable[int], offsets: Iterable[int]) -> None:
        """Say that blobs lie in a pack, whether they came from memory or from another pack."""
        number = pack.number
        for slot, offset in zip(slots, offsets, strict=True):
            self._pack_of[slot], self._offset_of[slot] = number, offset
            self.moving.pop(slot, None)

    # --- reading ---------------------------------------------------------------------------------------------

    def read(self, slot: int, length: int) -> memoryview:
        """Return the bytes of a blob of this session.

        Raises `OverwrittenError` if no key holds it any more, `SessionStateError` if it went with the session.
        """
        for tries_left in reversed(range(_READ_TRIES)):
            held = self.held(slot)
            if held is not None:
                return memoryview(held)
            with self.lock:
                number, offset = self._pack_of[slot], self._offset_of[slot]
                unsealed = self.unsealed.get(number)
                was_closed = self.is_closed
            if number == _IN_MEMORY:
                if was_closed:
                    break
                raise OverwrittenError("what was being read was overwritten meanwhile. Read it again.")
            try:
                if unsealed is not None:
                    return unsealed.read(offset, length)
                return self._storage.read(pack_name(self.pack_ids[number]), offset, length)
            except (StorageError, InternalError):
                # Perhaps it was sealed, its blobs were moved, or the session was closed, in between.
                if self.is_closed and self._storage.size(pack_name(self.pack_ids[number])) is None:
                    break
                if not tries_left or unsealed is None:
                    raise
        raise SessionStateError("this session was closed while it was being read. Open a new one.")

    def held(self, slot: int) -> bytes | None:
        """Return the bytes of a blob that is in memory, or None if it is in a pack, or was dropped."""
        with self.lock:
            waiting = self.waiting.get(slot)
            data = self.moving.get(slot) if waiting is None else waiting.data
            # Copied under the lock: a buffer is used again, and a caller's memory is his when `put` returns.
            return None if data is None else bytes(data)

    def are_sealed(self, slots: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which blobs lie in sealed packs: where they are now, they stay."""
        with self.lock:
            packs = np.frombuffer(self._pack_of, dtype=np.uint32)[slots]
            moving = [_IN_MEMORY, *self.unsealed]
        return ~np.isin(packs, np.array(moving, dtype=np.uint32))

    def locate(self, slots: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint32], U64]:
        """Return pack numbers (indices into `pack_ids`) and offsets of slots; only after the writer's `flush`."""
        with self.lock:
            # An array that is looked at can't grow: the views must be gone before the next put.
            packs = np.frombuffer(self._pack_of, dtype=np.uint32)[slots]
            offsets = np.frombuffer(self._offset_of, dtype=np.uint64)[slots]
        if len(packs) and int(np.max(packs)) == _IN_MEMORY:
            raise InternalError("a blob was located before it was placed in a pack")
        return packs, offsets

    def place_of(self, slot: int) -> tuple[PackId, int]:
        """Return the pack and the offset of one slot; only after the writer's `flush`."""
        with self.lock:
            number, offset = self._pack_of[slot], self._offset_of[slot]
        if number == _IN_MEMORY:
            raise InternalError("a blob was located before it was placed in a pack")
        return self.pack_ids[number], offset

    def state(self) -> WriterState:
        """Return where the blobs are now; a remote pack that is not up yet comes along as bytes."""
        with self.lock:
            in_memory = {slot: bytes(waiting.data) for slot, waiting in self.waiting.items()}
            in_memory.update((slot, bytes(data)) for slot, data in self.moving.items())
            unsealed = [] if self._storage.is_local else list(self.unsealed.values())
            state = WriterState(self._pack_of[:], self._offset_of[:], list(self.pack_ids), in_memory)
        for pack in unsealed:
            for blob in pack.iter_blobs():
                if blob.slot != NO_SLOT and blob.slot not in in_memory:
                    in_memory[blob.slot] = bytes(self.read(blob.slot, blob.length))
        return state
