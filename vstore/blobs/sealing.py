"""Seals a session's full packs ahead of its commit, in threads, and tries again what could not be sealed.

A pack's name is put only once, so that after any doubt its blobs, verified, go to a pack of another name; how often
and how soon is the business of `uploads`. `slots` learns where the blobs are then. Above: `writer`, which decides when
a pack is full.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from vstore.blobs.packing import NO_SLOT, OpenPack, Packed
from vstore.blobs.slots import SlotTable
from vstore.blobs.uploads import UploadTries
from vstore.clock import Clock
from vstore.errors import StorageError
from vstore.storage.base import Storage

MAX_SEALS_UNDER_WAY = 4


class PackSealer:
    """The packs of one session that are on their way, and those that failed. Thread-safe, with the lock of `slots`.

    `before_first` is called once, before the first pack is sealed.
    """

    def __init__(
        self, storage: Storage, slots: SlotTable, before_first: Callable[[], None], clock: Clock
    ) -> None:
        self._storage = storage
        self._slots = slots
        self._lock = slots.lock
        self._before_first = before_first
        self._clock = clock
        self._announced = False
        self._announcing = threading.Lock()
        self._retrying = threading.Lock()
        self._seals: list[Future[None]] = []
        self._handed_over: set[int] = set()
        self._failed: list[OpenPack] = []
        self._pool: ThreadPoolExecutor | None = None

    def start(self, pack: OpenPack) -> Future[None] | None:
        """Begin to seal a pack; return the seal to wait for if too many are under way. The caller holds the lock.

        `retry_failed` is to be called afterwards, without it.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(MAX_SEALS_UNDER_WAY, thread_name_prefix="vstore-seal")
        under_way = [seal for seal in self._seals if not seal.done()]
        self._handed_over.add(pack.number)
        try:
            self._seals.append(self._pool.submit(self._seal_handed_over, pack))
        except RuntimeError:
            # No thread is to be had, or the interpreter is ending: the caller seals it when he retries. The pool may
            # have kept the pack, and come to it.
            self._handed_over.remove(pack.number)
            self._failed.append(pack)
        return under_way[0] if len(under_way) >= MAX_SEALS_UNDER_WAY else None

    def _seal_handed_over(self, pack: OpenPack) -> None:
        with self._lock:
            if pack.number not in self._handed_over:
                return
            self._handed_over.remove(pack.number)
        self.seal(pack)

    def seal(self, pack: OpenPack) -> None:
        """Seal a pack; while the outcome is in doubt, its blobs go to another one.

        A pack that can't be sealed now is kept for `retry_failed`.
        """
        try:
            with self._announcing:
                if not self._announced:
                    self._before_first()
                    self._announced = True
            tries = UploadTries(self._storage, self._clock)
            while True:
                try:
                    pack.seal()
                    break
                except StorageError:
                    if not tries.wait():
                        raise
                    pack = self.renewed(pack)
        except BaseException:
            self.keep(pack)
            raise
        with self._lock:
            del self._slots.unsealed[pack.number]

    def keep(self, pack: OpenPack) -> None:
        """Keep a pack for `retry_failed`."""
        with self._lock:
            self._failed.append(pack)

    def renewed(self, pack: OpenPack) -> OpenPack:
        """Return a pack with the same blobs that can still be sealed: `pack` itself unless it is doubtful."""
        return self.move_to_new_pack(pack) if pack.is_doubtful else pack

    def move_to_new_pack(self, old: OpenPack) -> OpenPack:
        """Copy a pack's blobs, verified, to a new pack."""
        with self._lock:
            new = self._slots.add_pack()
        try:
            moved = [(blob.slot, _copy_blob(old, new, blob)) for blob in old.iter_blobs()]
        except BaseException:
            with self._lock:
                del self._slots.unsealed[new.number]
            new.discard()
            raise
        data = [(slot, offset) for slot, offset in moved if slot != NO_SLOT]
        with self._lock:
            self._slots.settle(new, (slot for slot, _ in data), (offset for _, offset in data))
            del self._slots.unsealed[old.number]
        old.discard()
        return new

    def retry_failed(self) -> None:
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
                pack = self.renewed(self._failed[0])
                with self._lock:
                    del self._failed[0]
                self.seal(pack)

    def finish(self) -> None:
        """Wait for what is under way, and seal all that failed."""
        with self._lock:
            seals = list(self._seals)
        for seal in seals:
            seal.exception()
        self.retry_failed()

    def take_pool(self) -> ThreadPoolExecutor | None:
        """Return the threads, if there are any, for the caller to end. He holds the lock."""
        pool, self._pool = self._pool, None
        return pool


def _copy_blob(old: OpenPack, new: OpenPack, blob: Packed) -> int:
    """Write a blob of `old`, verified, to `new`, and return its offset there."""
    data = old.read_verified(blob)
    offset = new.place(blob.slot, blob.kind, blob.digest, blob.length)
    new.write(offset, (data,))
    return offset
