"""Several writers on one storage, one request at a time, in an order and with faults that a test chooses.

Every worker runs in a thread of its own, but only between two of its requests, and never two at once: a run is decided
by what `choose` returns, so the same choices give the same run. A create may fail in each of the ways that real stores
know (`Fate`), and a worker may stop for ever at any request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import TypeVar

from vstore.catalog.base import Catalog, CatalogView, Identity, Outcome, Transaction
from vstore.errors import ObjectExistsError, OutcomeUnknownError, StorageError, VStoreError
from vstore.ids import BytesLike, PackId
from vstore.keys.objects import pack_name
from vstore.storage.base import ObjectInfo, PackSink, Storage
from vstore.testing.faults import SimulatedCrash

T = TypeVar("T")
Choose = Callable[[int], int]
"""Returns a number from 0 to its argument, exclusive."""


class Fate(Enum):
    """What becomes of a create."""

    DONE = "done"
    LOST = "not applied, no reply"
    APPLIED = "applied, no reply"
    OWN_EXISTS = "applied, reported as existing: the client repeated it"
    FALSE_EXISTS = "not applied, reported as existing: a conflict with another request under way"
    LATE = "no reply, applied at some later time"
    REFUSED = "not applied, a clear error"


class Interleaving:
    """Decides who goes on. Workers' storages come from `storage`."""

    def __init__(self, choose: Choose, *, fates: Sequence[Fate] = (Fate.DONE,), crashes: int = 0) -> None:
        self.choose = choose
        self.fates = fates
        self.crashes = crashes
        self.late: list[Callable[[], None]] = []
        self.requests: list[tuple[int, str, str]] = []
        self._turn = threading.Condition()
        self._waiting: set[int] = set()
        self._granted: int | None = None
        self._live = 0
        self._worker = threading.local()

    def storage(self, inner: Storage) -> InterleavedStorage:
        """Return `inner` with its requests under this schedule; outside `run` they go straight through."""
        return InterleavedStorage(inner, self)

    def run(self, *workers: Callable[[], object]) -> list[object]:
        """Run the workers to their ends; return what each returned, or the exception that ended it."""
        results: list[object] = [None] * len(workers)
        self._live = len(workers)

        def work(number: int) -> None:
            self._worker.number = number
            try:
                results[number] = workers[number]()
            except (VStoreError, SimulatedCrash, AssertionError) as error:
                results[number] = error
            finally:
                with self._turn:
                    self._live -= 1
                    self._turn.notify_all()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(workers))]
        for thread in threads:
            thread.start()
        while self._grant():
            pass
        for thread in threads:
            thread.join()
        return results

    def _grant(self) -> bool:
        """Let one worker make its request, once all stand before one; return False when none is left."""
        with self._turn:
            self._turn.wait_for(lambda: self._granted is None and len(self._waiting) == self._live)
            if not self._waiting:
                return False
            options = len(self._waiting) + bool(self.late)
            chosen = self.choose(options)
            if chosen < len(self._waiting):
                self._granted = sorted(self._waiting)[chosen]
                self._waiting.discard(self._granted)
                self._turn.notify_all()
                return True
        self.land_one()
        return True

    def land_one(self) -> None:
        """Apply one of the late creates."""
        self.late.pop(self.choose(len(self.late)))()

    def land_all(self) -> None:
        """Apply all late creates."""
        while self.late:
            self.land_one()

    def request(self, method: str, name: str, act: Callable[[], T]) -> T:
        """Make a request when it is this worker's turn."""
        number = getattr(self._worker, "number", None)
        if number is None:
            return act()
        with self._turn:
            self._waiting.add(number)
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._granted == number)
            # Until the next request of this worker nobody else runs: all are waiting.
            self._granted = None
            self.requests.append((number, method, name))
            if self.crashes and self.choose(25) == 0:
                self.crashes -= 1
                raise SimulatedCrash(f"worker {number} stops at {method} {name!r}")
            return act()

    def fate(self) -> Fate:
        """Return what becomes of a create; outside of workers it is done."""
        if getattr(self._worker, "number", None) is None:
            return Fate.DONE
        return self.fates[self.choose(len(self.fates))]


class InterleavedStorage:
    """A `Storage` whose requests wait for their turn, but for reads and writes in packs: they do not race."""

    def __init__(self, inner: Storage, schedule: Interleaving) -> None:
        self.inner = inner
        self.schedule = schedule
        self.url = inner.url
        self.is_local = inner.is_local
        self.pack_policy = inner.pack_policy

    def read(self, name: str, offset: int, length: int) -> memoryview:
        return self.inner.read(name, offset, length)

    def read_tail(self, name: str, length: int) -> tuple[memoryview, int]:
        return self.inner.read_tail(name, length)

    def read_whole(self, name: str, limit: int) -> bytes:
        return self.schedule.request("read", name, lambda: self.inner.read_whole(name, limit))

    def size(self, name: str) -> int | None:
        return self.schedule.request("size", name, lambda: self.inner.size(name))

    def create(self, name: str, data: bytes) -> None:
        self.schedule.request("create", name, lambda: self._create(name, data))

    def _create(self, name: str, data: bytes) -> None:
        fate = self.schedule.fate()
        if fate in (Fate.DONE, Fate.APPLIED, Fate.OWN_EXISTS):
            self.inner.create(name, data)
        if fate is Fate.LATE:
            self.schedule.late.append(lambda: self._land(name, data))
        if fate in (Fate.OWN_EXISTS, Fate.FALSE_EXISTS):
            raise ObjectExistsError(f"injected: {name!r} {fate.value}")
        if fate is Fate.REFUSED:
            raise StorageError(f"injected: {name!r} {fate.value}")
        if fate is not Fate.DONE:
            raise OutcomeUnknownError(f"injected: {name!r} {fate.value}")

    def _land(self, name: str, data: bytes) -> None:
        try:
            self.inner.create(name, data)
        except ObjectExistsError:
            # Too late: the number was taken.
            return

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        self.schedule.request("write", name, lambda: self.inner.write(name, data, durable=durable))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.schedule.request("list", prefix, lambda: iter([*self.inner.list(prefix)]))

    def is_held(self, name: str) -> bool:
        return self.inner.is_held(name)

    def delete(self, names: Sequence[str]) -> None:
        for half in (names[: len(names) // 2], names[len(names) // 2 :]):
            if half:
                self.schedule.request("delete", " ".join(half), lambda half=half: self.inner.delete(half))  # type: ignore[misc]

    def open_pack(self, pack: PackId) -> PackSink:
        return InterleavedPack(self.inner.open_pack(pack), self.schedule)

    def replace_damaged_pack(self, pack: PackId) -> PackSink:
        return self.inner.replace_damaged_pack(pack)

    def close(self) -> None:
        self.inner.close()


class InterleavedPack:
    """A `PackSink` that waits for its turn to be sealed."""

    def __init__(self, inner: PackSink, schedule: Interleaving) -> None:
        self.inner = inner
        self.schedule = schedule
        self.pack = inner.pack

    def write(self, offset: int, buffers: Sequence[BytesLike]) -> None:
        self.inner.write(offset, buffers)

    def read(self, offset: int, length: int) -> memoryview:
        return self.inner.read(offset, length)

    def seal(self, size: int) -> None:
        self.schedule.request("seal", pack_name(self.pack), lambda: self.inner.seal(size))

    def discard(self) -> None:
        self.inner.discard()


class InterleavedCatalog:
    """A `Catalog` that keeps its state elsewhere than in the storage: each view and update waits for its turn."""

    def __init__(self, inner: Catalog, schedule: Interleaving) -> None:
        self.inner = inner
        self.schedule = schedule

    @property
    def identity(self) -> Identity:
        return self.inner.identity

    def reading(self) -> AbstractContextManager[CatalogView]:
        return self.schedule.request("reading", "catalog", self.inner.reading)

    def recall(self) -> CatalogView | None:
        return self.inner.recall()

    def confirm(self) -> bool:
        return self.inner.confirm()

    def check_writable(self) -> None:
        self.inner.check_writable()

    def update(self, transaction: Transaction) -> Outcome:
        return self.schedule.request("update", transaction.kind.name, lambda: self.inner.update(transaction))

    def check(self) -> list[str]:
        return self.inner.check()

    def tidy(self) -> None:
        self.schedule.request("tidy", "catalog", self.inner.tidy)

    def sweep(self) -> None:
        self.inner.sweep()

    def close(self) -> None:
        self.inner.close()


def chooser(seed: int) -> Choose:
    """Return choices that look random and are the same for the same seed (xorshift64*, S. Vigna 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + 1) % 2**64 or 1

    def choose(options: int) -> int:
        nonlocal state
        state ^= state >> 12
        state ^= state << 25 & 0xFFFF_FFFF_FFFF_FFFF
        state ^= state >> 27
        return (state * 0x2545F4914F6CDD1D % 2**64 >> 33) % options

    return choose
