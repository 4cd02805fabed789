"""A storage that fails on demand, to stop an operation at its k-th request and look at what is left.

A test first runs the operation on a `FaultPlan` without faults and counts `len(plan.requests)`; then, for each k and
each `Fault`, on a fresh storage, it runs it again with `plan.inject(k, fault)`. Requests are numbered from 0 in the
order in which they are made, over all storages, packs and other wrapped parts that share the plan; with one thread
the order is always the same. `FaultPlan.run` is the seam: a wrapper of another part (a catalog, say) calls it too.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from typing import NamedTuple, TypeVar

from vstore.errors import (
    CorruptionError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    StorageError,
    VStoreError,
)
from vstore.ids import BytesLike, PackId
from vstore.keys.objects import pack_name
from vstore.storage.base import ObjectInfo, PackSink, Storage

T = TypeVar("T")


class Fault(Enum):
    """What happens at a request, "not applied" or "applied" to the storage; what raises leaves the process alive."""

    NOT_APPLIED = "not applied, StorageError"
    LOST = "not applied, OutcomeUnknownError (StorageError unless the request makes something)"
    APPLIED = "applied, but the reply is lost: OutcomeUnknownError (StorageError unless it makes something)"
    LATE = "as LOST, but applied later, by FaultPlan.land()"
    CRASH_BEFORE = "not applied, SimulatedCrash"
    CRASH_AFTER = "applied, SimulatedCrash"
    CORRUPT = "a read returns the bytes with one bit flipped"
    TRUNCATE = "a read meets the object cut to half its size"


class SimulatedCrash(BaseException):
    """The process stops here: nothing of the operation may run after it, not even what handles errors."""


class Request(NamedTuple):
    """A request: the method's name ("create", "seal" ...) and the object's name, or the prefix of a listing."""

    method: str
    name: str


class FaultPlan:
    """Numbers requests and decides their fate. After a crash every further request crashes as well."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.crashed = False
        self._faults: dict[int, Fault] = {}
        self._late: list[Callable[[], object]] = []
        self._packs: weakref.WeakSet[FaultyPack] = weakref.WeakSet()
        self._lock = threading.Lock()

    def inject(self, number: int, fault: Fault) -> FaultPlan:
        """Let request `number` meet `fault`; return the plan."""
        self._faults[number] = fault
        return self

    def disarm(self) -> None:
        """Forget the faults that no request has met yet."""
        self._faults.clear()

    def reset(self) -> None:
        """Forget requests, faults, the crash and what is late."""
        self.requests.clear()
        self._faults.clear()
        self._late.clear()
        self.crashed = False

    def land(self) -> int:
        """Apply what is late, as far as the storage still takes it; return how many requests that were."""
        late, self._late = self._late, []
        for act in late:
            with suppress(VStoreError):
                act()
        return len(late)

    def run(
        self,
        method: str,
        name: str,
        act: Callable[[], T],
        *,
        makes: bool = False,
        corrupt: Callable[[], T] | None = None,
        truncate: Callable[[], T] | None = None,
        late: Callable[[], Callable[[], object]] | None = None,
    ) -> T:
        """Do a request by `act`, or what its fault says.

        `makes` if an unclear error is `OutcomeUnknownError`; `corrupt` and `truncate` are what a damaged read does,
        `late` returns what lands late if that is not `act`.
        """
        fault = self._count(method, name)
        if fault in (None, Fault.CORRUPT, Fault.TRUNCATE):
            damaged = {Fault.CORRUPT: corrupt, Fault.TRUNCATE: truncate}.get(fault) if fault else None
            return (damaged or act)()
        if fault in (Fault.APPLIED, Fault.CRASH_AFTER):
            with suppress(ObjectNotFoundError):  # an answer, too, and lost
                act()
        if fault is Fault.LATE:
            self._late.append(late() if late else act)
        if fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            self._crash()
            raise SimulatedCrash(f"crash at {method} {name!r}")
        unclear = makes and fault is not Fault.NOT_APPLIED
        raise (OutcomeUnknownError if unclear else StorageError)(f"injected at {method} {name!r}: {fault}")

    def watch(self, pack: FaultyPack) -> None:
        """Have `pack` abandoned at the crash."""
        self._packs.add(pack)

    def _crash(self) -> None:
        self.crashed = True
        for pack in list(self._packs):
            pack.abandon()

    def _count(self, method: str, name: str) -> Fault | None:
        with self._lock:
            if self.crashed:
                raise SimulatedCrash(f"{method} {name!r} was asked for after the crash")
            self.requests.append(Request(method, name))
            return self._faults.get(len(self.requests) - 1)


class FaultyStorage:
    """A `Storage` whose requests go through a `FaultPlan`.

    Not requests: `is_held`, `open_pack`, `PackSink.read`, `discard` and `close`. A crash leaves open packs as it would:
    neither sealed nor locked nor removed. Does not pickle.
    """

    def __init__(self, inner: Storage, plan: FaultPlan | None = None) -> None:
        self.inner = inner
        self.plan = plan if plan is not None else FaultPlan()
        self.url = inner.url
        self.is_local = inner.is_local
        self.pack_policy = inner.pack_policy

    def read(self, name: str, offset: int, length: int) -> memoryview:
        return self.plan.run(
            "read",
            name,
            lambda: self.inner.read(name, offset, length),
            corrupt=lambda: memoryview(_flip(self.inner.read(name, offset, length))),
            truncate=lambda: self._read_cut(name, offset, length),
        )

    def read_tail(self, name: str, length: int) -> tuple[memoryview, int]:
        def corrupt() -> tuple[memoryview, int]:
            tail, size = self.inner.read_tail(name, length)
            return memoryview(_flip(tail)), size

        def truncate() -> tuple[memoryview, int]:
            size = (self.inner.size(name) or 0) // 2
            wanted = min(length, size)
            return self.inner.read(name, size - wanted, wanted), size

        act = lambda: self.inner.read_tail(name, length)  # noqa: E731
        return self.plan.run("read_tail", name, act, corrupt=corrupt, truncate=truncate)

    def read_whole(self, name: str, limit: int) -> bytes:
        def truncate() -> bytes:
            whole = self.inner.read_whole(name, limit)
            return whole[: len(whole) // 2]

        return self.plan.run(
            "read_whole",
            name,
            lambda: self.inner.read_whole(name, limit),
            corrupt=lambda: _flip(self.inner.read_whole(name, limit)),
            truncate=truncate,
        )

    def size(self, name: str) -> int | None:
        def truncate() -> int | None:
            size = self.inner.size(name)
            return size // 2 if size else size

        return self.plan.run("size", name, lambda: self.inner.size(name), truncate=truncate)

    def create(self, name: str, data: bytes) -> None:
        self.plan.run("create", name, lambda: self.inner.create(name, data), makes=True)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        self.plan.run("write", name, lambda: self.inner.write(name, data, durable=durable))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.plan.run("list", prefix, lambda: self.inner.list(prefix))

    def is_held(self, name: str) -> bool:
        return self.inner.is_held(name)

    def delete(self, names: Sequence[str]) -> None:
        self.plan.run("delete", " ".join(names), lambda: self.inner.delete(names))

    def open_pack(self, pack: PackId) -> FaultyPack:
        return FaultyPack(self.inner, self.inner.open_pack(pack), self.plan)

    def replace_damaged_pack(self, pack: PackId) -> FaultyPack:
        return FaultyPack(self.inner, self.inner.replace_damaged_pack(pack), self.plan)

    def close(self) -> None:
        self.inner.close()

    def _read_cut(self, name: str, offset: int, length: int) -> memoryview:
        cut = (self.inner.size(name) or 0) // 2
        if offset + length > cut:
            raise CorruptionError(f"injected: {name!r} was cut to {cut} bytes, {offset + length} were wanted")
        return self.inner.read(name, offset, length)


class FaultyPack:
    """A `PackSink` of a `FaultyStorage`; each `write` and `seal` is a request under the pack's final name."""

    def __init__(self, storage: Storage, inner: PackSink, plan: FaultPlan) -> None:
        self.pack = inner.pack
        self._storage = storage
        self._inner = inner
        self._plan = plan
        self._name = pack_name(inner.pack)
        plan.watch(self)

    def write(self, offset: int, buffers: Sequence[BytesLike]) -> None:
        # Copied, because the caller may reuse them before a late write lands.
        copies = [bytes(buffer) for buffer in buffers]
        self._plan.run("write", self._name, lambda: self._inner.write(offset, copies))

    def read(self, offset: int, length: int) -> memoryview:
        return self._inner.read(offset, length)

    def seal(self, size: int) -> None:
        def late() -> Callable[[], None]:
            # An upload that lands late does so after the writer has given up and discarded the pack.
            content = bytes(self._inner.read(0, size))
            return lambda: self._storage.create(self._name, content)

        self._plan.run("seal", self._name, lambda: self._inner.seal(size), makes=True, late=late)

    def discard(self) -> None:
        if not self._plan.crashed:
            self._inner.discard()

    def abandon(self) -> None:
        """Let go of the pack as the system does when a process dies: files are closed, not removed."""
        abandon = getattr(self._inner, "abandon", None)
        if abandon is not None:
            abandon()


def _flip(data: BytesLike) -> bytes:
    """Return `data` with one bit in its middle flipped."""
    flipped = bytearray(data)
    if flipped:
        flipped[len(flipped) // 2] ^= 1
    return bytes(flipped)
