from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from vstore.errors import CorruptionError, OutcomeUnknownError, StorageError
from vstore.ids import PackId
from vstore.keys.objects import LATEST, REPO, log_name, pack_name, staging_name
from vstore.storage.base import PackSink, Storage
from vstore.storage.local import LocalStorage
from vstore.storage.objects import ObjectStorage
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage, Request, SimulatedCrash

PACK = PackId(bytes(16))


@pytest.fixture(params=["local", "remote"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> FaultyStorage:
    return FaultyStorage(LocalStorage(tmp_path) if request.param == "local" else ObjectStorage(MemoryStore()))


def write_something(storage: Storage) -> PackSink:
    """An operation of five requests."""
    sink = storage.open_pack(PACK)
    try:
        sink.write(0, [b"abcd"])
        sink.seal(4)
    finally:
        sink.discard()
    storage.create(REPO, b"repo")
    storage.write(LATEST, b"hint")
    storage.delete([LATEST])
    return sink


def test_requests_are_counted_in_order(storage: FaultyStorage) -> None:
    write_something(storage)
    list(storage.list("log/"))
    storage.read(REPO, 0, 1)
    name = pack_name(PACK)
    expected = [("write", name), ("seal", name), ("create", REPO), ("write", LATEST), ("delete", LATEST)]
    assert storage.plan.requests == [*expected, ("list", "log/"), ("read", REPO)]
    assert storage.plan.requests[0] == Request("write", name)
    storage.plan.reset()
    assert storage.plan.requests == []


MAKING = {1, 2}  # seal and create
PRESENT_AFTER = {
    0: set(),
    1: {pack_name(PACK)},
    2: {pack_name(PACK), REPO},
    3: {pack_name(PACK), REPO, LATEST},
}
PRESENT_AFTER[4] = PRESENT_AFTER[2]


def present(storage: FaultyStorage) -> set[str]:
    return {info.name for info in storage.inner.list("") if not info.name.startswith("staging/")}


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("fault", [Fault.NOT_APPLIED, Fault.LOST, Fault.APPLIED])
def test_errors_at_each_request(storage: FaultyStorage, number: int, fault: Fault) -> None:
    storage.plan.inject(number, fault)
    unclear = number in MAKING and fault is not Fault.NOT_APPLIED
    with pytest.raises(StorageError) as caught:
        write_something(storage)
    assert type(caught.value) is (OutcomeUnknownError if unclear else StorageError)
    done = number if fault is Fault.APPLIED else number - 1
    assert present(storage) == PRESENT_AFTER.get(done, set())
    assert not storage.plan.crashed
    storage.size(REPO)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
def test_crashes_at_each_request(storage: FaultyStorage, number: int, fault: Fault) -> None:
    storage.plan.inject(number, fault)
    with pytest.raises(SimulatedCrash):
        write_something(storage)
    gc.collect()
    done = number if fault is Fault.CRASH_AFTER else number - 1
    assert present(storage) == PRESENT_AFTER.get(done, set())
    staged = staging_name(PACK)
    if storage.is_local:
        left = [info.name for info in storage.inner.list("staging/")]
        assert left == ([staged] if done < 1 else []), "a dead process removes nothing"
    assert not storage.inner.is_held(staged)
    for call in (lambda: storage.size(REPO), lambda: storage.create(log_name(0), b"")):
        with pytest.raises(SimulatedCrash):
            call()
    storage.plan.reset()
    assert storage.size(log_name(0)) is None


def test_a_crash_is_no_exception() -> None:
    assert not issubclass(SimulatedCrash, Exception)


def test_late_requests_land_when_they_are_told_to(storage: FaultyStorage) -> None:
    storage.plan.inject(1, Fault.LATE).inject(2, Fault.LATE).inject(3, Fault.LATE)
    sink = storage.open_pack(PACK)
    sink.write(0, [b"abcd"])
    with pytest.raises(OutcomeUnknownError):
        sink.seal(4)
    sink.discard()
    for k in range(2):
        with pytest.raises(OutcomeUnknownError):
            storage.create(log_name(k), b"late")
    storage.create(log_name(1), b"in between")
    assert present(storage) == {log_name(1)}
    assert storage.plan.land() == 3
    assert storage.read_whole(pack_name(PACK), 4) == b"abcd"
    assert storage.read_whole(log_name(0), 10) == b"late"
    assert storage.read_whole(log_name(1), 10) == b"in between"
    assert storage.plan.land() == 0


def _plain(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview) else value


def damaged(storage: FaultyStorage, fault: Fault, read: Callable[[], object]) -> object:
    storage.plan.reset()
    storage.plan.inject(0, fault)
    return read()


def test_damaged_reads(storage: FaultyStorage) -> None:
    storage.create(REPO, b"12345678")
    flip = Fault.CORRUPT
    assert damaged(storage, flip, lambda: bytes(storage.read(REPO, 0, 4))) == b"1224"
    assert damaged(storage, flip, lambda: storage.read_whole(REPO, 8)) == b"12344678"
    assert damaged(storage, flip, lambda: bytes(storage.read_tail(REPO, 2)[0])) == b"79"
    cut = Fault.TRUNCATE
    assert damaged(storage, cut, lambda: bytes(storage.read(REPO, 0, 4))) == b"1234"
    assert damaged(storage, cut, lambda: storage.read_whole(REPO, 8)) == b"1234"
    assert damaged(storage, cut, lambda: storage.size(REPO)) == 4
    assert damaged(storage, cut, lambda: tuple(map(_plain, storage.read_tail(REPO, 2)))) == (b"34", 4)
    with pytest.raises(CorruptionError):
        damaged(storage, cut, lambda: storage.read(REPO, 1, 4))
    storage.plan.reset()
    assert bytes(storage.read(REPO, 0, 8)) == b"12345678"


def test_one_plan_counts_over_several_parts(tmp_path: Path) -> None:
    plan = FaultPlan().inject(1, Fault.APPLIED)
    storage = FaultyStorage(LocalStorage(tmp_path), plan)
    applied: list[int] = []
    storage.size(REPO)
    with pytest.raises(OutcomeUnknownError):
        plan.run("update", "catalog", lambda: applied.append(1), makes=True)
    assert applied == [1]
    assert plan.requests == [("size", REPO), ("update", "catalog")]
