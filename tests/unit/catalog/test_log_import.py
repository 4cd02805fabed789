"""Logs that begin, or go on, at a high number: jumps, and records that hold a whole state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from obstore.store import MemoryStore

from vstore.blobs.spill import PackSpill
from vstore.catalog.base import AddSnapshot, Applied, SetRef, SetValue, Transaction
from vstore.catalog.exported import Exported, fillers
from vstore.catalog.log import LogCatalog
from vstore.catalog.log_head import LogReader
from vstore.catalog.log_import import build_record, next_number, publish_record
from vstore.catalog.state import Space
from vstore.clock import SYSTEM_CLOCK
from vstore.errors import RepositoryExistsError, RepositoryNotFoundError, StorageError
from vstore.format.log_record import LogRecord, Tombstone, encode_record, encode_tombstone
from vstore.format.record import OperationKind, RefKind
from vstore.ids import new_nonce, new_transaction_id
from vstore.keys.objects import LATEST, REPO, log_name
from vstore.storage.objects import ObjectStorage
from vstore.testing.catalog_contract import IDENTITY, MAIN, commit_on, first_transaction
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage, SimulatedCrash


def memory() -> ObjectStorage:
    return ObjectStorage(MemoryStore())


def log_of(commits: int, storage: ObjectStorage | None = None) -> LogCatalog:
    storage = storage or memory()
    catalog = LogCatalog.create(storage, IDENTITY, first_transaction(), PackSpill(storage))
    for number in range(commits):
        commit_on(catalog, MAIN, f"commit {number}")
    return catalog


def state_of(catalog: Any) -> dict[str, Any]:
    with catalog.reading() as view:
        spaces = {space: list(view.iter_space(space)) for space in Space}
        operations = list(view.iter_operations())
        found = [view.find_transaction(each.transaction, -1) for each in operations]
        assert found == operations
        return {"sequence": view.sequence, "epoch": view.epoch, "spaces": spaces, "operations": operations}


def carry(source: LogCatalog, storage: Any, after: int = -1) -> LogCatalog:
    with source.reading() as view:
        record = build_record(Exported(view), PackSpill(storage))
    publish_record(storage, record, after, SYSTEM_CLOCK)
    return LogCatalog.open(storage, PackSpill(storage))


@pytest.mark.parametrize("commits", [0, 1, 5, 30, 200])
def test_a_log_begins_with_the_state_of_another(commits: int) -> None:
    source, storage = log_of(commits), memory()
    made = carry(source, storage)
    assert state_of(made) == state_of(source)
    assert made.check() == []
    # Two records and the hint, however many operations there were.
    assert len(list(storage.list("log/"))) == (1 if commits == 0 else 2)
    for number in range(20):
        commit_on(made, MAIN, f"more {number}")
    assert made.check() == []
    storage.delete([LATEST])
    again = LogCatalog.open(storage, PackSpill(storage))
    assert state_of(again) == state_of(made)
    assert again.write_tombstones(5) > 0
    assert again.write_tombstones(2) > 0
    assert again.check() == []
    assert state_of(LogCatalog.open(storage, PackSpill(storage))) == state_of(made)


def test_many_refs_and_a_large_value_leave_room_in_the_record() -> None:
    source = log_of(3)
    with source.reading() as view:
        head = view.ref(RefKind.BRANCH, "main")
    assert head is not None
    refs = tuple(SetRef(RefKind.TAG, f"tag-{number:05d}", head) for number in range(3000))
    value = SetValue("metadata", b'"' + bytes(200_000).hex().encode() + b'"')
    for updates in (refs, (value,)):
        transaction = Transaction(new_transaction_id(), 0, OperationKind.CREATE_TAG, 1, "", (), updates, {})
        assert isinstance(source.update(transaction), Applied)
    made = carry(source, memory())
    assert state_of(made) == state_of(source)
    commit_on(made, MAIN, "more")
    assert made.check() == []


def test_pages_are_written_once_each_and_hold_all() -> None:
    source = log_of(200)
    storage = memory()
    with source.reading() as view:
        record = build_record(Exported(view), PackSpill(storage))
    assert len(encode_record(record)) < 16 * 1024
    assert record.root is not None
    spilled = sum(len(list(source_keys)) for source_keys in state_of(source)["spaces"].values())
    assert record.root.entries + len(record.entries) == spilled


def test_a_copy_goes_on_behind_a_jump() -> None:
    source, storage = log_of(5), memory()
    copy = carry(source, storage)
    for number in range(7):
        commit_on(source, MAIN, f"later {number}")
    again = carry(source, storage, after=5)
    assert state_of(again) == state_of(source)
    # A handle of before follows, and so does who starts from an old hint.
    assert state_of(copy) == state_of(source)
    commit_on(copy, MAIN, "own")
    assert copy.check() == []
    storage.delete([LATEST])
    assert state_of(LogCatalog.open(storage, PackSpill(storage))) == state_of(copy)


def test_fillers_take_numbers() -> None:
    source, storage = log_of(2), memory()
    with source.reading() as view:
        record = build_record(Exported(view, more=fillers(3, 9, 1, "ada"), epoch=4), PackSpill(storage))
    publish_record(storage, record, -1, SYSTEM_CLOCK)
    made = LogCatalog.open(storage, PackSpill(storage))
    with made.reading() as view:
        assert (view.sequence, view.epoch) == (9, 4)
    assert made.check() == []


def unfinished(storage: ObjectStorage, number: int, target: int) -> None:
    storage.create(log_name(number), encode_tombstone(Tombstone(number, target)))


def test_a_jump_without_its_record_is_no_repository() -> None:
    storage = memory()
    unfinished(storage, 0, 7)
    with pytest.raises(RepositoryNotFoundError, match="no repository"):
        LogCatalog.open(storage, PackSpill(storage))
    storage.create(REPO, b"x")
    with pytest.raises(RepositoryNotFoundError, match="not finished"):
        LogCatalog.open(storage, PackSpill(storage))
    assert next_number(storage, -1, 0) == 7


def test_until_the_record_is_there_the_state_before_the_jump_holds() -> None:
    storage = memory()
    catalog = log_of(3, storage)
    before = state_of(catalog)
    unfinished(storage, 4, 11)
    for reader in (catalog, LogCatalog.open(storage, PackSpill(storage))):
        assert state_of(reader) == before
        assert reader.check() == []
        with pytest.raises(StorageError, match="brought up to date"):
            commit_on(reader, MAIN, "in between")
    storage.delete([LATEST])
    assert state_of(LogCatalog.open(storage, PackSpill(storage))) == before


@pytest.mark.parametrize("commits", [1, 2, 3, 6, 9, 20])
@pytest.mark.parametrize("target", [22, 24, 40])
def test_an_unfinished_chain_of_jumps_is_passed_over_without_the_hint(commits: int, target: int) -> None:
    storage = memory()
    before = state_of(log_of(commits, storage))
    storage.delete([LATEST])
    unfinished(storage, commits + 1, target)
    unfinished(storage, target, target + 5)
    assert state_of(LogCatalog.open(storage, PackSpill(storage))) == before


def test_a_later_state_goes_on_from_an_unfinished_jump() -> None:
    source, storage = log_of(9), memory()
    unfinished(storage, 0, 4)
    made = carry(source, storage)
    assert state_of(made) == state_of(source)
    assert made.check() == []


def test_an_earlier_state_does_not_go_before_an_unfinished_jump() -> None:
    source, storage = log_of(2), memory()
    unfinished(storage, 0, 4)
    with pytest.raises(RepositoryExistsError):
        carry(source, storage)


def test_what_somebody_else_wrote_stays() -> None:
    source, storage = log_of(5), memory()
    carry(source, storage)
    with source.reading() as view:
        record = build_record(Exported(view), PackSpill(storage))
    for after in (-1, 4):
        with pytest.raises(RepositoryExistsError):
            publish_record(storage, record, after, SYSTEM_CLOCK)
    commit_on(LogCatalog.open(storage, PackSpill(storage)), MAIN, "own")
    later = msgspec.structs.replace(record, sequence=9, nonce=new_nonce())
    with pytest.raises(RepositoryExistsError):
        publish_record(storage, later, 5, SYSTEM_CLOCK)


def test_missing_records_are_still_noticed() -> None:
    storage = memory()
    catalog = carry(log_of(5), storage)
    for number in range(20):
        commit_on(catalog, MAIN, f"more {number}")
    for lost in (5, 9):
        kept = bytes(storage.read_whole(log_name(lost), 10**6))
        storage.delete([log_name(lost)])
        found = LogCatalog.open(storage, PackSpill(storage)).check()
        assert any(log_name(lost) in each for each in found), lost
        storage.create(log_name(lost), kept)
    assert catalog.check() == []
    catalog.write_tombstones(3)
    storage.delete([log_name(number) for number in range(8, 12)])
    assert LogCatalog.open(storage, PackSpill(storage)).check() != []


@pytest.mark.parametrize("fault", list(Fault)[:6], ids=lambda fault: fault.name)
def test_each_request_of_publishing_may_fail(fault: Fault) -> None:
    source = log_of(6)

    def start(storage: ObjectStorage) -> Callable[[], None]:
        with source.reading() as view:
            record: LogRecord = build_record(Exported(view), PackSpill(storage))
        return lambda: publish_record(faulty, record, -1, SYSTEM_CLOCK)

    faulty: Any = FaultyStorage(memory())
    start(faulty.inner)()
    for number in range(len(faulty.plan.requests)):
        bare = memory()
        faulty = FaultyStorage(bare, FaultPlan().inject(number, fault))
        act = start(bare)
        try:
            act()
        except (StorageError, SimulatedCrash):
            is_there = LogReader(bare).read(6) is not None
            with nullcontext() if is_there else pytest.raises(RepositoryNotFoundError):
                LogCatalog.open(bare, PackSpill(bare))
            faulty.plan.land()
            faulty.plan.reset()
            if LogReader(bare).read(6) is None:
                start(bare)()
        faulty.plan.land()
        made = LogCatalog.open(bare, PackSpill(bare))
        assert state_of(made) == state_of(source)
        assert [each for each in made.check() if REPO not in each] == []


def test_exported_values_take_the_place_of_the_views() -> None:
    source = log_of(1)
    transaction = Transaction(
        new_transaction_id(), 0, OperationKind.SET_STATUS, 1, "", (), (SetValue("status", b"{}"),)
    )
    source.update(transaction)
    with source.reading() as view:
        gone = Exported(view, values={"status": None})
        other = Exported(view, values={"status": b"1", "metadata": b"2"})
        assert dict(gone.iter_space(Space.VALUE)) == {
            key: value for key, value in view.iter_space(Space.VALUE) if key != b"status"
        }
        values = list(other.iter_space(Space.VALUE))
    assert values == sorted(values)
    assert dict(values) | {b"status": b"1", b"metadata": b"2"} == dict(values)


def test_adding_a_snapshot_after_all_is_as_ever() -> None:
    made = carry(log_of(40), memory())
    with made.reading() as view:
        entry = next(view.iter_snapshots())
    updates = (AddSnapshot(entry),)
    transaction = Transaction(new_transaction_id(), 0, OperationKind.COMMIT, 1, "", (), updates)
    assert isinstance(made.update(transaction), Applied)
    assert made.check() == []


def test_what_fails_after_the_record_is_there_is_not_told() -> None:
    class Deaf(FaultyStorage):
        def size(self, name: str) -> int | None:
            if name == REPO:
                raise StorageError("no answer")
            return super().size(name)

    source, storage = log_of(2), memory()
    with source.reading() as view:
        record = build_record(Exported(view), PackSpill(storage))
    publish_record(Deaf(storage), record, -1, SYSTEM_CLOCK)
    assert state_of(LogCatalog.open(storage, PackSpill(storage))) == state_of(source)


def test_a_jump_far_beyond_is_refused() -> None:
    storage = memory()
    unfinished(storage, 0, 5000)
    with pytest.raises(StorageError, match="far beyond"):
        next_number(storage, -1, 10)
