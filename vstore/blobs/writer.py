"""Appends a session's blobs to packs.

A blob gets its slot when it is put (`slots` knows where the bytes of each are). Blobs wait in memory, so that one that
is overwritten soon is never written; on a local disk what waited is written by a thread behind the caller, who goes on
meanwhile, and the largest ones go straight to the staged file. A pack that is full goes to `sealing`; the last one also
takes the commit's metadata, which makes a small commit exactly one pack.

No lock is held across I/O. Above: `worktree` puts chunks here, `commit` finishes the packs.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.buffers import give_back, take_buffer
from vstore.blobs.metadata import MetadataBatch
from vstore.blobs.packing import OpenPack
from vstore.blobs.sealing import PackSealer
from vstore.blobs.slots import NO_ORDER, Order, SlotTable, Waiting
from vstore.clock import SYSTEM_CLOCK, Clock
from vstore.errors import ForkedProcessError, SessionStateError
from vstore.format.envelope import BlobKind
from vstore.ids import BytesLike, Digest, SessionId
from vstore.storage.base import Storage

REMEMBERED_DIGESTS = 262_144
"""How many of a session's newest blobs are remembered for storing equal bytes once; bounds the memory for it."""
MAX_BATCHES_BEHIND = 2
"""Batches of blobs that wait for, or are in, their write on a local disk; a put that would add one more waits."""
_HELD_METADATA_BYTES = 4 * 1024 * 1024


class _Batch(NamedTuple):
    """Blobs, by slot, that are on their way to a pack, and the buffer that some of them are in."""

    blobs: dict[int, Waiting]
    buffer: memoryview | None


class BlobWriter:
    """The packs of one session. Thread-safe; only for the process that made it.

    `before_early_seal` is called once, before a pack is sealed ahead of the commit: it registers the session in the
    catalog, so that gc leaves such packs alone; it knows them by the `session` in their ids.
    """

    def __init__(
        self,
        storage: Storage,
        before_early_seal: Callable[[], None] = lambda: None,
        session: SessionId | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._policy = storage.pack_policy
        self._pid = os.getpid()
        self.slots = SlotTable(storage, session)
        self._sealer = PackSealer(storage, self.slots, before_early_seal, clock)
        self._lock = self.slots.lock
        self._idle = threading.Condition(self._lock)  # type: ignore[arg-type]
        self._moves = 0
        self._open: OpenPack | None = None
        self._waiting_bytes = 0
        self._buffer: memoryview | None = None
        self._filled = 0
        self._by_digest: OrderedDict[bytes, int] = OrderedDict()
        self._has_batch = False
        # One thread writes behind the callers: two would only wait for each other at the file.
        self._behind: ThreadPoolExecutor | None = None
        self._batches_behind = 0
        self._failed_behind = False

    # --- blobs -----------------------------------------------------------------------------------------------

    def put(
        self, data: BytesLike, digest: Digest, kind: BlobKind = BlobKind.CHUNK, order: Order = NO_ORDER
    ) -> int:
        """Take a blob and return its slot; equal bytes of one session share a slot.

        In a pack of an object store, blobs that were put at about the same time lie by `order`.

        `data` is copied or written before this returns. Raises `OutOfSpaceError` or `StorageError`, which may be about
        blobs that were taken earlier; all that was taken before is still held then.
        """
        self.check_usable()
        slots = self.slots
        size = len(data)
        is_direct = self._policy.direct_bytes is not None and size >= self._policy.direct_bytes
        while True:
            with self._lock:
                # Metadata is placed behind all data: nothing may come in between.
                while self._has_batch:
                    self._idle.wait()
                if slots.is_closed:
                    self.check_usable()
                known = self._known_slot(digest)
                if known is not None:
                    return known
                if is_direct:
                    slot = slots.add_slot()
                    pack = self._open_pack()
                    offset = pack.place(slot, kind, digest, size)
                    pack.writes += 1
                    self._start_move({slot: data})
                    break
                held = self._hold(data, size)
                if held is not None:
                    slot = slots.add_slot()
                    slots.waiting[slot] = Waiting(kind, digest, held, order)
                    self._waiting_bytes += size
                    self._remember(digest, slot)
                    if self._policy.writes_behind or self._waiting_bytes < self._policy.buffer_bytes:
                        return slot
                    batch: _Batch | None = self._take_waiting()
                else:
                    batch = self._hand_over()
            if batch is not None:
                self._write_here(batch)
            if held is not None:
                return slot
        self._write_direct(pack, slot, offset, digest, data)
        return slot

    def put_many(self, blobs: Sequence[BytesLike], digests: Sequence[Digest]) -> list[int]:
        """Take chunks and return their slots, as `put` does for each; on an error none of them is kept for this."""
        slots: list[int] = []
        try:
            for blob, digest in zip(blobs, digests, strict=True):
                slots.append(self.put(blob, digest))
        except BaseException:
            for slot in slots:
                self.release(slot)
            raise
        return slots

    def _hold(self, data: BytesLike, size: int) -> bytes | memoryview | None:
        """Copy a blob to where it waits; None if what waits must be written first. The caller holds the lock."""
        if not self._policy.writes_behind:
            return bytes(data)
        if self._failed_behind:
            return None
        if self._buffer is None:
            self._buffer = take_buffer(self._policy.buffer_bytes)
            self._filled = 0
        start = self._filled
        end = start + size
        if end > len(self._buffer):
            return None
        held = self._buffer[start:end]
        held[:] = data
        self._filled = end
        return held

    def _hand_over(self) -> _Batch | None:
        """Give what waits to the thread behind; what is returned, the caller must write. The caller holds the lock."""
        if self._failed_behind:
            return self._take_waiting()
        if self._batches_behind >= MAX_BATCHES_BEHIND:
            self._idle.wait()
            # Much may have changed meanwhile.
            return None
        batch = self._take_waiting()
        try:
            if self._behind is None:
                self._behind = ThreadPoolExecutor(1, thread_name_prefix="vstore-write")
            self._behind.submit(self._write_behind, batch)
        except RuntimeError:
            # No thread is to be had, or the interpreter is ending: the caller writes. The pool may hold the batch.
            self._behind = None
            return batch
        self._batches_behind += 1
        return None

    def _write_behind(self, batch: _Batch) -> None:
        """Write a batch in the thread behind; after an error its blobs wait again, and a caller will meet the error."""
        try:
            self._write_batch(batch)
            self._seal_if_full()
        except BaseException:
            self._failed_behind = True
            raise
        finally:
            with self._lock:
                self._batches_behind -= 1
                self._end_batch_move(batch)

    def _write_here(self, batch: _Batch) -> None:
        """Write a batch in full view of the caller."""
        try:
            self._write_batch(batch)
            if self._failed_behind:
                self._sealer.retry_failed()
                self._failed_behind = False
            self._seal_if_full()
        finally:
            with self._lock:
                self._end_batch_move(batch)

    def _known_slot(self, digest: Digest) -> int | None:
        slot = self._by_digest.get(digest)
        waiting = None if slot is None else self.slots.waiting.get(slot)
        if waiting is not None:
            waiting.users += 1
        return slot

    def _remember(self, digest: Digest, slot: int) -> None:
        self._by_digest[digest] = slot
        if len(self._by_digest) > REMEMBERED_DIGESTS:
            self._by_digest.popitem(last=False)

    def _take_waiting(self) -> _Batch:
        batch = _Batch(self.slots.waiting, self._buffer)
        # First, so that a child forked by another thread just now finds each blob in one place or in both.
        self._start_move({slot: waiting.data for slot, waiting in batch.blobs.items()})
        self.slots.waiting, self._waiting_bytes, self._buffer = {}, 0, None
        return batch

    def _start_move(self, data: dict[int, BytesLike]) -> None:
        self.slots.moving.update(data)
        self._moves += 1

    def _end_move(self, slots: Collection[int]) -> None:
        """Say that a move is over, and all that followed from it: `flush` waits for this."""
        for slot in slots if self.slots.moving else ():
            self.slots.moving.pop(slot, None)
        self._moves -= 1
        self._idle.notify_all()

    def _end_batch_move(self, batch: _Batch) -> None:
        self._end_move(batch.blobs)
        if batch.buffer is not None:
            give_back(batch.buffer)

    def _write_direct(self, pack: OpenPack, slot: int, offset: int, digest: Digest, data: BytesLike) -> None:
        """Write a blob from where its owner has it into the room that was reserved for it."""
        try:
            try:
                pack.write(offset, (data,))
            except BaseException:
                with self._lock:
                    pack.forget((offset,))
                    self._end_write(pack)
                raise
            with self._lock:
                # The data is the caller's again after this.
                self.slots.settle(pack, (slot,), (offset,))
                # Only now may others share the slot: had the write failed, their chunks would be lost with it.
                self._remember(digest, slot)
                self._end_write(pack)
            self._seal_if_full()
        finally:
            with self._lock:
                self._end_move((slot,))

    def _write_batch(self, batch: _Batch) -> None:
        """Move blobs from memory to the open pack; if that fails they wait again."""
        batch = self._in_order(batch)
        waiting = batch.blobs.values()
        blobs = [blob.data for blob in waiting]
        pack: OpenPack | None = None
        offsets: list[int] = []
        try:
            with self._lock:
                pack = self._open_pack()
                pack.writes += 1
                start = pack.end
                kinds, digests = [blob.kind for blob in waiting], [blob.digest for blob in waiting]
                offsets = pack.place_all(batch.blobs, kinds, digests, list(map(len, blobs)))
            pack.write(start, blobs)
        except BaseException:
            with self._lock:
                if pack is not None:
                    pack.forget(offsets)
                    self._end_write(pack)
                for blob in waiting:
                    # Their buffer will be another's.
                    blob.data = bytes(blob.data)
                self.slots.waiting.update(batch.blobs)
                self._waiting_bytes += sum(map(len, blobs))
            raise
        with self._lock:
            self.slots.settle(pack, batch.blobs, offsets)
            self._end_write(pack)

    def _in_order(self, batch: _Batch) -> _Batch:
        """Return the blobs as readers will want them, whichever thread was first, unless a buffer has placed them."""
        if self._policy.writes_behind:
            return batch
        blobs = sorted(batch.blobs.items(), key=lambda item: item[1].order)
        return batch._replace(blobs=dict(blobs))

    def _end_write(self, pack: OpenPack) -> None:
        pack.writes -= 1
        self._idle.notify_all()

    def retain(self, slot: int) -> None:
        """Say that one more key holds this blob."""
        with self._lock:
            waiting = self.slots.waiting.get(slot)
            if waiting is not None:
                waiting.users += 1

    def release(self, slot: int) -> None:
        """Say that one key no longer holds this blob: if it waits in memory and no key holds it, it is dropped."""
        with self._lock:
            waiting = self.slots.waiting.get(slot)
            if waiting is None:
                return
            waiting.users -= 1
            if waiting.users == 0:
                del self.slots.waiting[slot]
                self._waiting_bytes -= len(waiting.data)
                if self._by_digest.get(waiting.digest) == slot:
                    del self._by_digest[waiting.digest]
                if not self.slots.waiting:
                    self._filled = 0

    def release_many(self, slots: npt.NDArray[np.uint64]) -> None:
        """Release blobs, once for each time that they are named; costs little where most of them are in packs."""
        with self._lock:
            waiting = np.fromiter(self.slots.waiting, dtype=np.uint64, count=len(self.slots.waiting))
        for slot in slots[np.isin(slots, waiting)].tolist():
            self.release(slot)

    def read(self, slot: int, length: int) -> memoryview:
        """Return the bytes of a blob of this session, as `SlotTable.read` does."""
        return self.slots.read(slot, length)

    @property
    def has_waiting_blobs(self) -> bool:
        """Whether any blob waits in memory, so that releasing it would save writing it."""
        return bool(self.slots.waiting)

    # --- packs -----------------------------------------------------------------------------------------------

    def _open_pack(self) -> OpenPack:
        if self._open is None:
            self._open = self.slots.add_pack()
        return self._open

    def _seal_if_full(self) -> None:
        """Hand a full pack to the background; waits while too many are on their way, which bounds the memory."""
        with self._lock:
            pack = self._open
            if pack is None or self._has_batch:
                return
            if pack.end < self._policy.target_bytes and not pack.is_full_of_blobs:
                return
            self._open = None
            # Writes into it that began before it was full must have ended.
            self._idle.wait_for(lambda: pack.writes == 0)
            oldest = self._sealer.start(pack)
        if oldest is not None:
            oldest.exception()
        self._sealer.retry_failed()

    def flush(self) -> None:
        """Place every blob in a pack, and seal all packs but the one that is open."""
        self.check_usable()
        self._renew_open()
        with self._lock:
            batch = self._take_waiting() if self.slots.waiting else None
        if batch:
            self._write_here(batch)
        self._seal_if_full()
        self._sealer.finish()

    def _renew_open(self) -> None:
        """Take what is in the open pack to another, if it can't be trusted; what is put meanwhile goes elsewhere."""
        with self._lock:
            self._idle.wait_for(lambda: self._moves == 0)
            pack = self._open
            if pack is None or not pack.is_doubtful:
                return
            self._open = None
        try:
            pack = self._sealer.renewed(pack)
        finally:
            with self._lock:
                is_only_one = self._open is None
                if is_only_one:
                    self._open = pack
            if not is_only_one:
                self._sealer.keep(pack)

    def begin_metadata(self) -> MetadataBatch:
        """Return a batch whose blobs will follow the data in the open pack; puts wait until it is over.

        All other packs are sealed then. Raises `StorageError` if one can't be.
        """
        with self._lock:
            self._idle.wait_for(lambda: self._moves == 0 and not self._has_batch)
            self._has_batch = True
        try:
            # What other threads put since `flush` may have filled the pack with the data that is committed.
            self._sealer.finish()
            with self._lock:
                is_staged = self._policy.direct_bytes is not None
                return MetadataBatch(self._open_pack(), _HELD_METADATA_BYTES if is_staged else None)
        except BaseException:
            with self._lock:
                self._end_batch()
            raise

    def drop_metadata(self, batch: MetadataBatch) -> None:
        """Take the blobs of a batch back: the commit did not come about."""
        with self._lock:
            batch.drop()
            self._end_batch()

    def _end_batch(self) -> None:
        self._has_batch = False
        self._idle.notify_all()

    def finish(self, batch: MetadataBatch) -> None:
        """Write `batch` and seal its pack.

        On an error the batch is void, and the session still holds its data: after `flush`, which may place it in a
        new pack, the metadata can be encoded again.
        """
        try:
            batch.pack.seal(batch.blobs)
        except BaseException:
            self.drop_metadata(batch)
            raise
        with self._lock:
            self._open = None
            del self.slots.unsealed[batch.pack.number]
            self._end_batch()

    def close(self) -> None:
        """Discard what was not sealed; nothing can be put afterwards. May be called again."""
        with self._lock:
            self.slots.is_closed = True
            if os.getpid() == self._pid:
                self._idle.wait_for(lambda: self._moves == 0)
            unsealed, self.slots.unsealed, self._open = dict(self.slots.unsealed), {}, None
            self.slots.waiting.clear()
            self._waiting_bytes = 0
            if self._buffer is not None:
                give_back(self._buffer)
                self._buffer = None
            pool = self._sealer.take_pool()
            behind, self._behind = self._behind, None
        if os.getpid() != self._pid:
            return
        for threads in (pool, behind):
            if threads is not None:
                threads.shutdown(wait=True, cancel_futures=True)
        for pack in unsealed.values():
            pack.discard()

    def check_usable(self) -> None:
        """Raise `ForkedProcessError` in a forked child, `SessionStateError` after closing."""
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                "this session belongs to the process that opened it; a forked child can only read through it. "
                "Open the repository and a writable session in the child itself."
            )
        if self.slots.is_closed:
            raise SessionStateError("this session is closed. Open a new writable session.")
