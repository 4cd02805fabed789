"""Appends a session's blobs to packs.

Every blob gets a *slot*, a number that never changes; where the slot's bytes are (waiting in memory, in the pack
being written, in a sealed pack) does. Small blobs wait in memory, so that one that is overwritten soon is never
written; large ones go straight to the storage's staged file, where it has one. A pack is sealed when it is full, in
the background; the last one also takes the commit's metadata, which makes a small commit exactly one pack.

No lock is held across I/O. Above: `worktree` puts chunks here, `commit` finishes the packs.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vstore.blobs.packing import NO_SLOT, OpenPack, Packed
from vstore.blobs.reader import remember_page
from vstore.errors import ForkedProcessError, InternalError, SessionStateError, StorageError
from vstore.format.columns import U64
from vstore.format.envelope import BlobKind
from vstore.format.page import Page
from vstore.format.refs import BlobRef
from vstore.ids import BytesLike, Digest, PackId, SessionId, blake3_digest, new_pack_id
from vstore.keys.objects import pack_name
from vstore.locks import ForkSafeLock
from vstore.storage.base import Storage

REMEMBERED_DIGESTS = 262_144
"""How many of a session's newest blobs are remembered for storing equal bytes once; bounds the memory for it."""
MAX_SEALS_UNDER_WAY = 4
_SEAL_TRIES = 3
_IN_MEMORY = 0xFFFF_FFFF


@dataclass(slots=True)
class _Waiting:
    """A blob in memory: its bytes, and how many keys of the session hold it."""

    kind: BlobKind
    digest: Digest
    data: bytes
    users: int = 1


@dataclass(frozen=True, slots=True)
class WriterState:
    """Where a writer's blobs are, for a reader in another process: the columns by slot, and what is in memory."""

    packs: array[int]
    offsets: array[int]
    pack_ids: list[PackId]
    in_memory: dict[int, bytes]


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
    ) -> None:
        self._storage = storage
        self._session = session
        self._policy = storage.pack_policy
        self._before_early_seal = before_early_seal
        self._announced = False
        self._announcing = threading.Lock()
        self._retrying = threading.Lock()
        self._pid = os.getpid()
        self._lock = ForkSafeLock(threading.Lock)
        self._idle = threading.Condition(self._lock)  # type: ignore[arg-type]
        self._moves = 0
        # Columns by slot: the number of its pack, or _IN_MEMORY, and its offset there.
        self._pack_of = array("I")
        self._offset_of = array("Q")
        self._pack_ids: list[PackId] = []
        self._open: OpenPack | None = None
        self._unsealed: dict[int, OpenPack] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._waiting_bytes = 0
        self._moving: dict[int, BytesLike] = {}
        self._by_digest: OrderedDict[bytes, int] = OrderedDict()
        self._seals: list[Future[None]] = []
        self._failed: list[OpenPack] = []
        self._has_batch = False
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    # --- blobs -----------------------------------------------------------------------------------------------

    def put(self, data: BytesLike, digest: Digest, kind: BlobKind = BlobKind.CHUNK) -> int:
        """Take a blob and return its slot; equal bytes of one session share a slot.

        `data` is copied or written before this returns. Raises `OutOfSpaceError` or `StorageError`; all that was
        taken before is still held then.
        """
        self.check_usable()
        direct = self._policy.direct_bytes is not None and len(data) >= self._policy.direct_bytes
        batch = None
        with self._lock:
            # Metadata is placed behind all data: nothing may come in between.
            self._idle.wait_for(lambda: not self._has_batch)
            self.check_usable()
            known = self._known_slot(digest)
            if known is not None:
                return known
            slot = self._new_slot()
            if direct:
                pack = self._open_pack()
                offset = pack.place(slot, kind, digest, len(data))
                self._start_move({slot: data})
            else:
                self._waiting[slot] = _Waiting(kind, digest, bytes(data))
                self._waiting_bytes += len(data)
                self._remember(digest, slot)
                if self._waiting_bytes >= self._policy.buffer_bytes:
                    batch = self._take_waiting()
        if direct:
            self._write_direct(pack, slot, offset, digest, data)
        elif batch:
            self._write_batch(batch)
        self._seal_if_full()
        return slot

    def _known_slot(self, digest: Digest) -> int | None:
        slot = self._by_digest.get(digest)
        waiting = None if slot is None else self._waiting.get(slot)
        if waiting is not None:
            waiting.users += 1
        return slot

    def _new_slot(self) -> int:
        self._pack_of.append(_IN_MEMORY)
        self._offset_of.append(0)
        return len(self._pack_of) - 1

    def _remember(self, digest: Digest, slot: int) -> None:
        self._by_digest[digest] = slot
        if len(self._by_digest) > REMEMBERED_DIGESTS:
            self._by_digest.popitem(last=False)

    def _take_waiting(self) -> dict[int, _Waiting]:
        batch, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        self._start_move({slot: waiting.data for slot, waiting in batch.items()})
        return batch

    def _start_move(self, data: dict[int, BytesLike]) -> None:
        self._moving.update(data)
        self._moves += 1

    def _end_move(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._moving.pop(slot, None)
        self._moves -= 1
        self._idle.notify_all()

    def _write_direct(self, pack: OpenPack, slot: int, offset: int, digest: Digest, data: BytesLike) -> None:
        try:
            pack.write(offset, (data,))
        except BaseException:
            with self._lock:
                pack.forget(offset)
                self._end_move((slot,))
            raise
        with self._lock:
            self._pack_of[slot], self._offset_of[slot] = pack.number, offset
            # Only now may others share the slot: had the write failed, their chunks would be lost with it.
            self._remember(digest, slot)
            self._end_move((slot,))

    def _write_batch(self, batch: dict[int, _Waiting]) -> None:
        """Move blobs from memory to the open pack; if that fails they wait again."""
        offsets: list[int] = []
        try:
            with self._lock:
                pack = self._open_pack()
                start = pack.end
                offsets = [pack.place(slot, w.kind, w.digest, len(w.data)) for slot, w in batch.items()]
            pack.write(start, [waiting.data for waiting in batch.values()])
        except BaseException:
            with self._lock:
                for offset in offsets:
                    pack.forget(offset)
                self._waiting.update(batch)
                self._waiting_bytes += sum(len(waiting.data) for waiting in batch.values())
                self._end_move(batch)
            raise
        with self._lock:
            for slot, offset in zip(batch, offsets, strict=True):
                self._pack_of[slot], self._offset_of[slot] = pack.number, offset
            self._end_move(batch)

    def retain(self, slot: int) -> None:
        """Say that one more key holds this blob."""
        with self._lock:
            waiting = self._waiting.get(slot)
            if waiting is not None:
                waiting.users += 1

    def release(self, slot: int) -> None:
        """Say that one key no longer holds this blob: if it waits in memory and no key holds it, it is dropped."""
        with self._lock:
            waiting = self._waiting.get(slot)
            if waiting is None:
                return
            waiting.users -= 1
            if waiting.users == 0:
                del self._waiting[slot]
                self._waiting_bytes -= len(waiting.data)
                if self._by_digest.get(waiting.digest) == slot:
                    del self._by_digest[waiting.digest]

    def read(self, slot: int, length: int) -> memoryview:
        """Return the bytes of a blob of this session."""
        with self._lock:
            waiting = self._waiting.get(slot)
            if waiting is not None:
                return memoryview(waiting.data)
            if slot in self._moving:
                # Copied under the lock: the memory is its owner's again when the owner's `put` returns.
                return memoryview(bytes(self._moving[slot]))
            number, offset = self._pack_of[slot], self._offset_of[slot]
            unsealed = self._unsealed.get(number)
        if unsealed is not None:
            try:
                return unsealed.read(offset, length)
            except StorageError:
                # It was sealed, or its blobs were moved, in between.
                number, offset = self._pack_of[slot], self._offset_of[slot]
        return self._storage.read(pack_name(self._pack_ids[number]), offset, length)

    def locate(self, slots: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint32], U64]:
        """Return pack numbers (indices into `pack_ids`) and offsets of slots; only after `flush`."""
        with self._lock:
            # An array that is looked at can't grow: the views must be gone before the next put.
            packs = np.frombuffer(self._pack_of, dtype=np.uint32)[slots]
            offsets = np.frombuffer(self._offset_of, dtype=np.uint64)[slots]
        if len(packs) and int(np.max(packs)) == _IN_MEMORY:
            raise InternalError("a blob was located before it was placed in a pack")
        return packs, offsets

    def state(self) -> WriterState:
        """Return where the blobs are now; a remote pack that is not up yet comes along as bytes."""
        with self._lock:
            in_memory = {slot: waiting.data for slot, waiting in self._waiting.items()}
            in_memory.update((slot, bytes(data)) for slot, data in self._moving.items())
            unsealed = [] if self._storage.is_local else list(self._unsealed.values())
            state = WriterState(self._pack_of[:], self._offset_of[:], list(self._pack_ids), in_memory)
        for pack in unsealed:
            for blob in pack.iter_blobs():
                if blob.slot != NO_SLOT and blob.slot not in in_memory:
                    in_memory[blob.slot] = bytes(self.read(blob.slot, blob.length))
        return state

    @property
    def pack_ids(self) -> list[PackId]:
        """The packs of this session by number."""
        return self._pack_ids

    # --- packs -----------------------------------------------------------------------------------------------

    def _open_pack(self) -> OpenPack:
        if self._open is None:
            self._open = self._new_pack()
        return self._open

    def _new_pack(self) -> OpenPack:
        pack = OpenPack(self._storage.open_pack(new_pack_id(self._session)), len(self._pack_ids))
        self._pack_ids.append(pack.pack)
        self._unsealed[pack.number] = pack
        return pack

    def _seal_if_full(self) -> None:
        """Hand a full pack to the background; waits while too many are on their way, which bounds the memory."""
        with self._lock:
            pack = self._open
            if pack is None or (pack.end < self._policy.target_bytes and not pack.is_full_of_blobs):
                return
            self._open = None
            # Writes into it that began before it was full must have ended.
            self._idle.wait_for(lambda: self._moves == 0)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(MAX_SEALS_UNDER_WAY, thread_name_prefix="vstore-seal")
            under_way = [seal for seal in self._seals if not seal.done()]
            self._seals.append(self._pool.submit(self._seal_early, pack))
        if len(under_way) >= MAX_SEALS_UNDER_WAY:
            under_way[0].exception()
        self._retry_failed()

    def _seal_early(self, pack: OpenPack) -> None:
        try:
            with self._announcing:
                if not self._announced:
                    self._before_early_seal()
                    self._announced = True
        except BaseException:
            with self._lock:
                self._failed.append(pack)
            raise
        self._seal(pack)

    def _seal(self, pack: OpenPack) -> None:
        """Seal a pack; while the outcome is in doubt, its blobs go to another one, for a name is put only once.

        A pack that can't be sealed now is kept for `flush` to try again.
        """
        try:
            for tries_left in reversed(range(_SEAL_TRIES)):
                try:
                    pack.seal()
                    break
                except StorageError:
                    if not tries_left:
                        raise
                    pack = self._renewed(pack)
        except BaseException:
            with self._lock:
                self._failed.append(pack)
            raise
        with self._lock:
            del self._unsealed[pack.number]

    def _renewed(self, pack: OpenPack) -> OpenPack:
        """Return a pack with the same blobs that can still be sealed: `pack` itself unless it is doubtful."""
        return self._move_to_new_pack(pack) if pack.is_doubtful else pack

    def _move_to_new_pack(self, old: OpenPack) -> OpenPack:
        """Copy a pack's blobs, verified, to a new pack."""
        with self._lock:
            new = self._new_pack()
        try:
            moved = [(blob.slot, _copy_blob(old, new, blob)) for blob in old.iter_blobs()]
        except BaseException:
            with self._lock:
                del self._unsealed[new.number]
            new.discard()
            raise
        with self._lock:
            for slot, offset in moved:
                if slot != NO_SLOT:
                    self._pack_of[slot], self._offset_of[slot] = new.number, offset
            del self._unsealed[old.number]
        old.discard()
        return new

    def _retry_failed(self) -> None:
        """Try again, in full view of the caller, to seal what the background could not."""
        with self._lock:
            ended = [seal for seal in self._seals if seal.done()]
            self._seals = [seal for seal in self._seals if not seal.done()]
        for seal in ended:
            error = seal.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
        with self._retrying:
            while self._failed:
                pack = self._renewed(self._failed[0])
                with self._lock:
                    del self._failed[0]
                self._seal_early(pack)

    def flush(self) -> None:
        """Place every blob in a pack, and seal all packs but the one that is open."""
        self.check_usable()
        with self._lock:
            self._idle.wait_for(lambda: self._moves == 0)
            pack = self._open
        if pack is not None and pack.is_doubtful:
            self._open = self._renewed(pack)
        with self._lock:
            batch = self._take_waiting() if self._waiting else None
        if batch:
            self._write_batch(batch)
        self._seal_if_full()
        with self._lock:
            seals = list(self._seals)
        for seal in seals:
            seal.exception()
        self._retry_failed()

    def begin_metadata(self) -> MetadataBatch:
        """Return a batch whose blobs will follow the data in the open pack; puts wait until it is over."""
        with self._lock:
            self._idle.wait_for(lambda: self._moves == 0 and not self._has_batch)
            batch = MetadataBatch(self._open_pack())
            self._has_batch = True
            return batch

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
            del self._unsealed[batch.pack.number]
            self._end_batch()

    def close(self) -> None:
        """Discard what was not sealed; nothing can be put afterwards. May be called again."""
        with self._lock:
            self._closed = True
            if os.getpid() == self._pid:
                self._idle.wait_for(lambda: self._moves == 0)
            unsealed, self._unsealed, self._open = dict(self._unsealed), {}, None
            self._waiting.clear()
            self._waiting_bytes = 0
            pool, self._pool = self._pool, None
        if os.getpid() != self._pid:
            return
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        for pack in unsealed.values():
            pack.discard()

    def check_usable(self) -> None:
        """Raise `ForkedProcessError` in a forked child, `SessionStateError` after closing."""
        if os.getpid() != self._pid:
            raise ForkedProcessError(
                "this session belongs to the process that opened it; a forked child can only read through it. "
                "Open the repository and a writable session in the child itself."
            )
        if self._closed:
            raise SessionStateError("this session is closed. Open a new writable session.")


def _copy_blob(old: OpenPack, new: OpenPack, blob: Packed) -> int:
    """Write a blob of `old`, verified, to `new`, and return its offset there."""
    data = old.read_verified(blob)
    offset = new.place(blob.slot, blob.kind, blob.digest, blob.length)
    new.write(offset, (data,))
    return offset


class MetadataBatch:
    """Metadata blobs of one commit, in memory, with their places at the end of a pack already known."""

    def __init__(self, pack: OpenPack) -> None:
        self.pack = pack
        self.start = pack.end
        self.blobs: list[bytes] = []

    def add(self, kind: BlobKind, data: bytes) -> BlobRef:
        """Append a blob and return its ref."""
        digest = blake3_digest(data)
        offset = self.pack.place(NO_SLOT, kind, digest, len(data))
        self.blobs.append(data)
        return BlobRef(digest, self.pack.pack, offset, len(data))

    def add_page(self, data: bytes, page: Page) -> BlobRef:
        """Append a page: what `vstore.tree` asks of a page sink. The next commit of this process starts from it."""
        ref = self.add(BlobKind.PAGE, data)
        remember_page(ref.digest, page)
        return ref

    @property
    def length(self) -> int:
        """The bytes from the first metadata blob to the end of the last."""
        return self.pack.end - self.start

    def drop(self) -> None:
        """Take the blobs back: the commit did not come about."""
        self.pack.drop_from(self.start)
        self.blobs = []
