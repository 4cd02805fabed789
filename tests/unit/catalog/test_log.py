"""The log catalog: its rules L1 to L4 under faults, finding the head, spilling, tombstones, and what it costs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace
from obstore.store import MemoryStore

from vstore.blobs.cache import CACHE
from vstore.blobs.spill import PackSpill
from vstore.catalog import log_patience
from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    AddSnapshot,
    Applied,
    DropRef,
    DropSnapshots,
    EpochIs,
    Identity,
    Outcome,
    RefIs,
    Refused,
    SetRef,
    SetValue,
    Transaction,
)
from vstore.catalog.log import LogCatalog
from vstore.catalog.log_head import Head, LogReader, Newest
from vstore.catalog.log_probe import RACERS as PROBERS
from vstore.catalog.log_probe import probe
from vstore.catalog.log_state import INLINE_BYTES
from vstore.catalog.state import encode_identity
from vstore.clock import SYSTEM_CLOCK
from vstore.errors import (
    AccessDeniedError,
    CommitOutcomeUnknownError,
    CorruptionError,
    ObjectExistsError,
    OutcomeUnknownError,
    OutOfSpaceError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    StorageError,
    UnsafeStorageError,
    UnsupportedFormatError,
)
from vstore.format.log_record import LogRecord, Tombstone, decode_log_object, encode_record
from vstore.format.record import OperationKind
from vstore.ids import RepositoryId, SnapshotId, new_nonce
from vstore.keys.objects import LATEST, LOG_PREFIX, REPO, log_name, pack_name
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.storage.objects import ObjectStorage
from vstore.testing.catalog_contract import (
    BRANCH,
    IDENTITY,
    MAIN,
    ROOT,
    TAG,
    apply,
    check_history,
    commit_on,
    entry_of,
    expired_of,
    first_transaction,
    transaction_of,
)
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage, Request, SimulatedCrash
from vstore.testing.interleave import Fate, InterleavedStorage, Interleaving, chooser


class StoppedClock:
    """Waits take no time; they are added up."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def now_us(self) -> int:
        return 1_764_000_000_000_000

    def monotonic_s(self) -> float:
        return sum(self.slept_s)

    def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)


@pytest.fixture
def storage() -> ObjectStorage:
    return ObjectStorage(MemoryStore())


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


def create(storage: Storage, clock: StoppedClock | None = None) -> LogCatalog:
    return LogCatalog.create(
        storage, IDENTITY, first_transaction(), PackSpill(storage), clock=clock or StoppedClock()
    )


def open_log(storage: Storage, clock: StoppedClock | None = None) -> LogCatalog:
    return LogCatalog.open(storage, PackSpill(storage), clock=clock or StoppedClock())


def tag(name: str, *, given_absent: bool = True) -> Transaction:
    return transaction_of([SetRef(TAG, name, ROOT.id)], [RefIs(TAG, name, ABSENT)] if given_absent else [])


def sequence_of(catalog: LogCatalog) -> int:
    with catalog.reading() as view:
        return view.sequence


def records(storage: Storage) -> dict[int, LogRecord | Tombstone]:
    """Return what is stored under every number."""
    names = sorted(info.name for info in storage.list(LOG_PREFIX))
    return {int(name[4:]): decode_log_object(storage.read_whole(name, 2**20)) for name in names}


def record_at(storage: Storage, sequence: int) -> LogRecord:
    found = decode_log_object(storage.read_whole(log_name(sequence), 2**20))
    assert isinstance(found, LogRecord)
    return found


# --- what a commit costs ---------------------------------------------------------------------------------------


def test_a_small_commit_by_a_warm_handle_is_one_record_and_one_hint(storage):
    faulty = FaultyStorage(storage)
    catalog = create(faulty)
    commit_on(catalog, MAIN, "first")
    faulty.plan.reset()
    commit_on(catalog, MAIN, "second")
    assert faulty.plan.requests == [
        Request("read_whole", log_name(2)),
        Request("read_whole", log_name(2)),
        Request("create", log_name(2)),
        Request("write", LATEST),
    ]


def test_opening_is_the_hint_and_one_look_beyond_it(storage):
    commit_on(create(storage), MAIN, "first")
    faulty = FaultyStorage(storage)
    catalog = open_log(faulty)
    assert faulty.plan.requests == [Request("read_whole", LATEST), Request("read_whole", log_name(2))]
    assert catalog.identity == IDENTITY
    assert len(faulty.plan.requests) == 2


def test_records_stay_small_and_spills_are_batches(storage):
    catalog = create(storage)
    spills = []
    for number in range(600):
        before = sum(1 for _ in storage.list("packs/"))
        commit_on(catalog, MAIN, f"commit {number}")
        apply(catalog, SetRef(TAG, f"tag-{number}", ROOT.id))
        if sum(1 for _ in storage.list("packs/")) > before:
            spills.append(number)
    sizes = [len(storage.read_whole(log_name(number), 2**20)) for number in range(1201)]
    assert max(sizes) <= 16 * 1024
    assert sizes[1] < 1024
    # Not once per commit, nor two packs at once.
    assert 10 < len(spills) < 100
    assert sum(1 for _ in storage.list("packs/")) <= len(spills) + len(spills) // 5
    newest = record_at(storage, 1200)
    assert len(newest.txids) == 256 * 16
    assert sum(map(len, newest.entries)) < INLINE_BYTES
    with catalog.reading() as view:
        pages = set(view.iter_pages())
    assert pages
    # What commits ask for needs no page, however long the log is.
    faulty = FaultyStorage(storage)
    commit_on(open_log(faulty), MAIN, "another")
    assert {request.method for request in faulty.plan.requests} == {"read_whole", "create", "write"}


def test_a_deletion_leaves_nothing_behind_unless_it_hides_what_was_spilled(storage):
    catalog = create(storage)
    apply(catalog, SetRef(TAG, "v1", ROOT.id))
    apply(catalog, DropRef(TAG, "v1"))
    assert None not in record_at(storage, 2).entries.values()


def test_recent_transactions_are_told_apart_without_pages(storage):
    catalog = create(storage)
    done = [apply(catalog, SetValue(CONFIG, b"{}")) for _ in range(350)]
    faulty = FaultyStorage(storage)
    with open_log(faulty).reading() as view:
        assert view.find_transaction(new_nonce(), 100) is None
        assert {request.method for request in faulty.plan.requests} == {"read_whole"}
        for operation in done[::20]:
            assert view.find_transaction(operation.transaction, 0) == operation
        assert view.find_transaction(new_nonce(), 0) is None


# --- finding the head ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", ["absent", "garbage", "old", "oldest", "cut", "tombstone", "newest"])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 31, 100])
def test_the_head_is_found_whatever_the_hint_says(storage, hint, length):
    catalog = create(storage)
    for number in range(length):
        apply(catalog, SetRef(TAG, f"v{number}", ROOT.id))
    give_hint(storage, hint, length)
    faulty = FaultyStorage(storage)
    assert sequence_of(open_log(faulty)) == length
    assert len(faulty.plan.requests) <= 40
    apply(open_log(storage), SetRef(TAG, "last", ROOT.id))
    assert sequence_of(catalog) == length + 1


def give_hint(storage: ObjectStorage, hint: str, length: int) -> None:
    newest = storage.read_whole(log_name(length), 2**20)
    match hint:
        case "absent":
            storage.delete([LATEST])
        case "garbage":
            storage.write(LATEST, b"garbage")
        case "cut":
            storage.write(LATEST, newest[:-1])
        case "old":
            storage.write(LATEST, storage.read_whole(log_name(length // 2), 2**20))
        case "oldest":
            storage.write(LATEST, storage.read_whole(log_name(0), 2**20))
        case "tombstone":
            storage.write(LATEST, b"VSLT" + newest[4:])
        case "newest":
            storage.write(LATEST, newest)


def test_a_handle_left_far_behind_catches_up_in_few_requests(storage):
    create(storage)
    faulty = FaultyStorage(storage)
    behind = open_log(faulty)
    ahead = open_log(storage)
    for number in range(500):
        apply(ahead, SetValue(CONFIG, b"%d" % number))
    faulty.plan.reset()
    assert sequence_of(behind) == 500
    assert len(faulty.plan.requests) <= 12
    storage.delete([LATEST])
    faulty.plan.reset()
    fresh = LogReader(faulty)
    found = fresh.resolve(Head(record_at(storage, 3), b"", True))
    assert found.sequence == 500
    assert len(faulty.plan.requests) <= 50


FOREIGN = IDENTITY._replace(repository=RepositoryId(b"another repo ..."))


@pytest.mark.parametrize("sequence", [0, 1, 2, 3, 1000, 2**62])
@pytest.mark.parametrize("identity", [IDENTITY, FOREIGN])
def test_a_hint_that_lies_is_not_believed_by_who_writes(storage, identity: Identity, sequence: int):
    """It is of another copy of the repository or of another one, stands before, at or behind the log's end."""
    catalog = create(storage)
    for name in ("v1", "v2"):
        apply(catalog, SetRef(TAG, name, ROOT.id))
    lie = replace(
        record_at(storage, 0), sequence=sequence, nonce=new_nonce(), identity=encode_identity(identity)
    )
    storage.write(LATEST, encode_record(lie))
    found = open_log(storage).check()
    assert [text for text in found if "latest" in text]
    assert sorted(records(storage)) == [0, 1, 2]
    handle = open_log(storage)
    outcome = handle.update(tag("v3"))
    assert isinstance(outcome, Applied)
    assert outcome.operation.sequence == 3
    with handle.reading() as view:
        assert [name for name, _ in view.iter_refs(TAG)] == ["v1", "v2", "v3"]
    # It is replaced by the truth.
    assert open_log(storage).check() == []
    check_history(open_log(storage), [])


def test_a_refusal_on_the_word_of_a_hint_that_lies_is_looked_into(storage):
    catalog = create(storage)
    lie = replace(record_at(storage, 0), sequence=7, nonce=new_nonce())
    apply(catalog, SetRef(TAG, "v1", ROOT.id))
    storage.write(LATEST, encode_record(lie))
    assert isinstance(open_log(storage).update(tag("v1")), Refused)
    assert sorted(records(storage)) == [0, 1]


@pytest.mark.parametrize("fault", [Fault.CORRUPT, Fault.TRUNCATE])
def test_what_was_damaged_on_the_way_is_read_again(storage, fault: Fault):
    create(storage)

    def update(faulty: FaultyStorage) -> Applied:
        handle = open_log(faulty)
        handle._is_probed = True
        outcome = handle.update(tag("v1", given_absent=False))
        assert isinstance(outcome, Applied)
        return outcome

    clean = FaultyStorage(storage)
    update(clean)
    reads = [number for number, each in enumerate(clean.plan.requests) if each.method == "read_whole"]
    assert len(reads) == 4
    for number in reads:
        outcome = update(FaultyStorage(storage, FaultPlan().inject(number, fault)))
        assert outcome.operation.sequence == max(records(storage))
    # What is damaged for good is read three times.
    storage.write(log_name(outcome.operation.sequence), b"garbage")
    faulty = FaultyStorage(storage)
    with pytest.raises(CorruptionError):
        LogReader(faulty).read(outcome.operation.sequence)
    assert [each.method for each in faulty.plan.requests].count("read_whole") == 3


def test_no_handle_goes_backwards_with_its_pickle(tmp_path):
    """L4"""
    storage = LocalStorage(tmp_path)
    catalog = create(storage)
    commit_on(catalog, MAIN, "first")
    copy = pickle.loads(pickle.dumps(catalog))
    # What would be needed to see number 1 is gone: only the handle knows it.
    (tmp_path / LATEST).unlink()
    (tmp_path / log_name(1)).rename(tmp_path / "hidden")
    assert sequence_of(copy) == 1
    assert sequence_of(open_log(storage)) == 0


def test_what_a_handle_has_seen_only_moves_forward(storage):
    """L4, where a slow look ends after a quick one."""
    catalog = create(storage)
    apply(catalog, SetRef(TAG, "v1", ROOT.id))
    heads = [Head(record_at(storage, number), b"", True) for number in (0, 1)]
    newest = Newest()
    assert newest.advance(heads[1]) == heads[1]
    assert newest.advance(heads[0]) == heads[1]
    assert newest.advance(heads[1]._replace(is_confirmed=False)) == heads[1]
    assert newest.get() == heads[1]


def test_there_is_no_repository_without_a_log(storage):
    assert not LogCatalog.exists(storage)
    with pytest.raises(RepositoryNotFoundError, match="memory"):
        open_log(storage)


def test_a_damaged_record_is_named(storage):
    catalog = create(storage)
    apply(catalog, SetRef(TAG, "v1", ROOT.id))
    data = storage.read_whole(log_name(1), 2**20)
    storage.write(log_name(1), data[:-1] + b"x")
    storage.delete([LATEST])
    with pytest.raises(CorruptionError, match=log_name(1)):
        open_log(storage)
    storage.write(LATEST, data)
    found = open_log(storage).check()
    assert found
    assert log_name(1) in found[0]


def test_damaged_pages_never_make_an_expired_snapshot_unknown(storage):
    catalog = create(storage)
    entries = [entry_of(f"snapshot {number}") for number in range(300)]
    apply(catalog, *map(AddSnapshot, entries))
    apply(catalog, DropSnapshots(tuple(entry.id for entry in entries)))
    with catalog.reading() as view:
        pages = list(view.iter_pages())
    assert len(pages) > 5
    noticed = listings = 0
    for page in pages:
        name = pack_name(page.pack)
        whole = storage.read_whole(name, 2**24)
        damaged = bytearray(whole)
        damaged[page.offset + page.length // 2] ^= 1
        storage.write(name, bytes(damaged))
        CACHE.clear()
        with open_log(storage).reading() as view:
            for entry in entries[::7]:
                try:
                    assert view.expired(entry.id) == expired_of(entry)
                except CorruptionError:
                    noticed += 1
            try:
                assert sorted(view.iter_expired()) == sorted(map(expired_of, entries))
            except CorruptionError:
                listings += 1
        assert open_log(storage).check()
        storage.write(name, whole)
    assert noticed > len(pages) - 3 < 2 * listings


def test_a_record_under_another_number_is_damage(storage):
    create(storage)
    storage.create(log_name(1), storage.read_whole(log_name(0), 2**20))
    with pytest.raises(CorruptionError, match="number 0"):
        open_log(storage)


def test_check_finds_gaps_but_not_that_the_identity_was_not_made_yet(storage):
    catalog = create(storage)
    for number in range(5):
        apply(catalog, SetRef(TAG, f"v{number}", ROOT.id))
    assert catalog.check() == []
    storage.delete([log_name(2)])
    storage.delete([REPO])
    found = catalog.check()
    assert len(found) == 2
    assert log_name(2) in found[0]
    # The next writer makes it again.
    open_log(storage).check_writable()
    assert storage.size(REPO)


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (IDENTITY._replace(format_version=2), "version 2"),
        (IDENTITY._replace(required_features=("sealed",)), "sealed"),
    ],
)
def test_what_a_newer_vstore_wrote_is_refused_by_name(storage, identity: Identity, named: str):
    catalog = create(storage)
    newer = replace(record_at(storage, 0), sequence=1, identity=encode_identity(identity))
    storage.create(log_name(1), encode_record(newer))
    for act in (lambda: open_log(storage), lambda: sequence_of(catalog), lambda: catalog.update(tag("v1"))):
        with pytest.raises(UnsupportedFormatError, match=named):
            act()


def test_fields_of_a_newer_vstore_are_kept(storage):
    catalog = create(storage)
    newer = replace(record_at(storage, 0), sequence=1, nonce=new_nonce(), extra={"later": b"\x2a"})
    storage.create(log_name(1), encode_record(newer))
    apply(catalog, SetRef(TAG, "v1", ROOT.id))
    assert record_at(storage, 2).extra == {"later": b"\x2a"}


# --- tombstones ------------------------------------------------------------------------------------------------


def test_tombstones_replace_old_records_and_lead_to_the_head(storage):
    catalog = create(storage)
    stale = open_log(storage)
    done = [apply(catalog, SetRef(TAG, f"v{number}", ROOT.id)) for number in range(40)]
    assert catalog.write_tombstones(keep=10) == 31
    assert catalog.write_tombstones(keep=10) == 0
    found = records(storage)
    assert sorted(found) == list(range(41))  # L1: no number is freed
    assert [number for number, record in found.items() if isinstance(record, Tombstone)] == list(range(31))
    assert all(len(storage.read_whole(log_name(number), 200)) <= 100 for number in range(31))
    apply(catalog, SetRef(TAG, "last", ROOT.id))
    for hint in ("kept", "absent"):
        if hint == "absent":
            storage.delete([LATEST])
        assert sequence_of(open_log(storage)) == 41
    assert sequence_of(stale) == 41
    assert catalog.write_tombstones(keep=5) == 6
    with open_log(storage).reading() as view:
        assert [operation.sequence for operation in view.iter_operations()] == list(range(41, -1, -1))
        assert view.find_transaction(done[0].transaction, 0) == done[0]
    # With number 0 a tombstone it is still there.
    assert LogCatalog.exists(storage)
    with pytest.raises(RepositoryExistsError):
        create(storage)
    assert catalog.check() == []


def test_the_head_is_never_replaced(storage):
    catalog = create(storage)
    apply(catalog, SetRef(TAG, "v1", ROOT.id))
    assert catalog.write_tombstones(keep=0) == 1
    assert sequence_of(open_log(storage)) == 1


def test_a_late_reply_may_meet_a_tombstone(storage):
    """L2: the transaction is found in the head, although its own record is gone."""
    catalog, other = create(storage), open_log(storage)
    wanted = tag("v1")
    lost = replying(storage, log_name(1), lambda act: lost_after(act, lambda: bury(other)))
    outcome = open_log(lost).update(wanted)
    assert isinstance(outcome, Applied)
    assert outcome.operation.sequence == 1
    assert isinstance(records(storage)[1], Tombstone)
    check_history(catalog, [])


def lost_after(act: Callable[[], None], then: Callable[[], object]) -> None:
    act()
    then()
    raise OutcomeUnknownError("injected: no reply")


def bury(catalog: LogCatalog) -> None:
    for number in range(5):
        apply(catalog, SetRef(TAG, f"other{number}", ROOT.id))
    catalog.write_tombstones(keep=1)


def replying(
    storage: Storage, name: str, reply: Callable[[Callable[[], None]], None], times: int = 1
) -> FaultyStorage:
    """Return `storage` with the first creates of `name` done by `reply`."""

    class Replying(FaultyStorage):
        left = times

        def create(self, wanted: str, data: bytes) -> None:
            if wanted == name and self.left:
                self.left -= 1
                reply(lambda: self.inner.create(wanted, data))
            else:
                self.inner.create(wanted, data)

    return Replying(storage)


# --- replies that do not tell ----------------------------------------------------------------------------------


def raising(error: Exception) -> Callable[[Callable[[], None]], None]:
    def reply(act: Callable[[], None]) -> None:
        raise error

    return reply


def applied_but(error: Exception) -> Callable[[Callable[[], None]], None]:
    def reply(act: Callable[[], None]) -> None:
        act()
        raise error

    return reply


@pytest.mark.parametrize("error", [ObjectExistsError("injected"), OutcomeUnknownError("injected")])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("applied", [True, False])
def test_an_unclear_reply_is_settled_by_reading_back(storage, clock, error, times, applied):
    create(storage)
    reply = applied_but(error) if applied else raising(error)
    handle = open_log(replying(storage, log_name(1), reply, times), clock)
    outcome = handle.update(tag("v1"))
    assert isinstance(outcome, Applied)
    assert sorted(records(storage)) == [0, 1]
    assert len(clock.slept_s) == (0 if applied else times)
    assert sequence_of(open_log(storage)) == 1


def test_a_clear_failure_is_tried_again_a_few_times(storage, clock):
    create(storage)
    handle = open_log(replying(storage, log_name(1), raising(StorageError("slow down")), 5), clock)
    assert isinstance(handle.update(tag("v1")), Applied)
    handle = open_log(replying(storage, log_name(2), raising(StorageError("slow down")), 99), clock)
    with pytest.raises(StorageError, match="slow down") as caught:
        handle.update(tag("v2"))
    assert not isinstance(caught.value, CommitOutcomeUnknownError)
    assert sum(clock.slept_s) < 60


@pytest.mark.parametrize(
    "error", [AccessDeniedError("denied"), OutOfSpaceError("full"), UnsafeStorageError("bad")]
)
def test_a_failure_that_lasts_is_raised_at_once(storage, clock, error):
    create(storage)
    handle = open_log(replying(storage, log_name(1), raising(error), 99), clock)
    with pytest.raises(type(error), match=str(error)):
        handle.update(tag("v1"))
    assert clock.slept_s == []
    assert sequence_of(handle) == 0


def test_numbers_lost_to_others_change_nothing_for_sure(storage, clock, monkeypatch):
    monkeypatch.setattr(log_patience, "MAX_LOSSES", 5)
    busy = create(storage)

    class Overtaken(FaultyStorage):
        def create(self, name: str, data: bytes) -> None:
            apply(busy, SetValue(CONFIG, b"{}"))
            self.inner.create(name, data)

    handle = open_log(Overtaken(storage), clock)
    with pytest.raises(StorageError, match="5 numbers lost") as caught:
        handle.update(tag("v1"))
    assert not isinstance(caught.value, CommitOutcomeUnknownError)
    assert sequence_of(handle) == 5
    assert 0 < sum(clock.slept_s) < 2
    assert all(wait > 0 for wait in clock.slept_s)


def test_a_hint_that_can_not_be_written_does_not_matter(storage):
    create(storage)

    class NoHints(FaultyStorage):
        def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
            raise AccessDeniedError("injected")

    assert isinstance(open_log(NoHints(storage)).update(tag("v1")), Applied)
    assert sequence_of(open_log(storage)) == 1


def test_an_unreachable_storage_leaves_the_outcome_unknown_until_it_is_asked_again(storage, clock):
    """L2: at most once, whatever became of the first try."""
    create(storage)
    for number, applied in enumerate([True, False], start=1):
        plan = FaultPlan()
        faulty = FaultyStorage(storage, plan)
        handle = open_log(faulty, clock)
        wanted = tag(f"v{number}")
        # A look beyond the head, at first one at the head itself; then the create's reply is lost, and no more comes.
        create_number = len(plan.requests) + (2 if number == 1 else 1)
        plan.inject(create_number, Fault.APPLIED if applied else Fault.LOST)
        for request in range(create_number + 1, create_number + 60):
            plan.inject(request, Fault.NOT_APPLIED)
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            handle.update(wanted)
        assert caught.value.transaction_id == wanted.transaction.hex()
        assert plan.requests[create_number].method == "create"
        plan.reset()
        outcome = handle.update(wanted)
        assert isinstance(outcome, Applied)
        assert outcome.operation.sequence == number
        assert open_log(storage).update(wanted) == outcome
    check_history(open_log(storage), [])


def test_a_refusal_waits_until_every_earlier_try_is_settled(storage, monkeypatch):
    """Rule 3: without it the refused transaction would land after it was reported as refused."""
    monkeypatch.setattr(log_patience, "MAX_TROUBLES", 1)
    create(storage)
    late: list[Callable[[], None]] = []

    def reply(act: Callable[[], None]) -> None:
        late.append(act)
        raise OutcomeUnknownError("injected: no reply")

    handle = open_log(replying(storage, log_name(1), reply))
    wanted = tag("v1")
    with pytest.raises(CommitOutcomeUnknownError):
        handle.update(wanted)
    stricter = replace(wanted, preconditions=(EpochIs(7),))
    assert isinstance(handle.update(stricter), Refused)
    with pytest.raises(ObjectExistsError):
        late[0]()
    with open_log(storage).reading() as view:
        assert view.ref(TAG, "v1") is None
        assert [operation.kind for operation in view.iter_operations()] == [
            OperationKind.NO_OPERATION,
            OperationKind.CREATE_REPOSITORY,
        ]


def test_a_try_that_lands_before_the_number_is_taken_is_found(storage, monkeypatch):
    monkeypatch.setattr(log_patience, "MAX_TROUBLES", 1)
    create(storage)
    late: list[Callable[[], None]] = []

    def reply(act: Callable[[], None]) -> None:
        late.append(act)
        raise OutcomeUnknownError("injected: no reply")

    handle = open_log(replying(storage, log_name(1), reply))
    wanted = tag("v1")
    with pytest.raises(CommitOutcomeUnknownError):
        handle.update(wanted)
    late[0]()
    outcome = handle.update(replace(wanted, preconditions=(EpochIs(7),)))
    assert isinstance(outcome, Applied)
    assert outcome.operation.sequence == 1


def test_a_clean_refusal_appends_nothing(storage):
    catalog = create(storage)
    assert isinstance(catalog.update(tag("v1")), Applied)
    assert isinstance(catalog.update(tag("v1")), Refused)
    assert sorted(records(storage)) == [0, 1]


def test_pages_whose_pack_is_in_doubt_are_written_again(storage):
    faulty = FaultyStorage(storage)
    catalog = create(faulty)
    while not any(each.method == "seal" for each in faulty.plan.requests):
        faulty.plan.requests.clear()
        spilling = max(records(storage)) + 1
        apply(catalog, SetRef(TAG, f"{spilling:0>200}", ROOT.id))
    seal = next(number for number, each in enumerate(faulty.plan.requests) if each.method == "seal")
    for number in range(spilling, 2 * spilling):
        faulty.plan.reset()
        faulty.plan.inject(seal, Fault.APPLIED)
        apply(catalog, SetRef(TAG, f"w{number:0>199}", ROOT.id))
    assert open_log(storage).check() == []


def test_trouble_that_lasts_a_minute_is_enough(clock):
    """The storage repeats reads itself; eight of them, each until its time is up, would be most of an hour."""
    patience = log_patience.Patience(clock)
    patience.note_trouble(StorageError("x"))
    clock.sleep(61)
    assert not patience.is_spent, "it was asked for once"
    patience.note_trouble(StorageError("x"))
    assert patience.is_spent


# --- creating --------------------------------------------------------------------------------------------------


def test_creating_probes_and_leaves_no_scratch(storage):
    faulty = FaultyStorage(storage)
    create(faulty)
    names = sorted(info.name for info in storage.list(""))
    assert names == sorted([LATEST, log_name(0), REPO])
    assert sum(request.method == "create" for request in faulty.plan.requests) == 2 * (PROBERS + 1) + 2


def test_of_racing_creators_one_succeeds(tmp_path):
    for number in range(10):
        storage = LocalStorage(tmp_path / str(number))
        storage.make_root()

        def act(creator: int, storage: Storage = storage) -> bool:
            identity = IDENTITY._replace(created_us=creator)
            try:
                made = LogCatalog.create(storage, identity, first_transaction(), PackSpill(storage))
            except RepositoryExistsError:
                return False
            assert made.identity == identity
            return True

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(act, range(4)))
        assert results.count(True) == 1
        catalog = open_log(storage)
        assert catalog.identity.created_us == results.index(True)
        assert catalog.check() == []


def test_creating_stopped_at_any_request_leaves_a_whole_log_or_none(storage):
    count = len(create_counting(storage).requests)
    for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
        for number in range(count):
            inner = ObjectStorage(MemoryStore())
            plan = FaultPlan().inject(number, fault)
            with pytest.raises(SimulatedCrash):
                create_after_probe(FaultyStorage(inner, plan))
            if LogCatalog.exists(inner):
                catalog = open_log(inner)
                assert sequence_of(catalog) == 0
                catalog.check_writable()
            else:
                catalog = create(inner)
            commit_on(catalog, MAIN, "first")
            assert open_log(inner).check() == []


def create_counting(storage: Storage) -> FaultPlan:
    plan = FaultPlan()
    create_after_probe(FaultyStorage(storage, plan))
    return plan


def create_after_probe(storage: FaultyStorage) -> LogCatalog:
    """Create without the probe, whose racing threads make the order of requests a matter of chance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vstore.catalog.log.probe", lambda storage: None)
        return create(storage)


@pytest.mark.parametrize("fault", [Fault.APPLIED, Fault.LOST, Fault.NOT_APPLIED])
def test_creating_survives_lost_replies(storage, fault):
    plan = FaultPlan().inject(1, fault)
    catalog = create_after_probe(FaultyStorage(storage, plan))
    assert plan.requests[1].method == "create"
    assert sequence_of(catalog) == 0
    assert open_log(storage).check() == []


def test_an_update_stopped_at_any_request_is_applied_or_not(storage):
    def run(plan: FaultPlan) -> tuple[ObjectStorage, Transaction]:
        inner = ObjectStorage(MemoryStore())
        catalog = create(inner)
        for number in range(40):
            commit_on(catalog, MAIN, f"commit {number}")
        wanted = tag("v1")
        with suppress(SimulatedCrash):
            open_log(FaultyStorage(inner, plan)).update(wanted)
        return inner, wanted

    plan = FaultPlan()
    run(plan)
    for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
        for number in range(len(plan.requests)):
            inner, wanted = run(FaultPlan().inject(number, fault))
            catalog = open_log(inner)
            assert catalog.check() == []
            assert sequence_of(catalog) in (40, 41)
            outcome = catalog.update(wanted)
            assert isinstance(outcome, Applied)
            assert outcome.operation.sequence == 41
            check_history(open_log(inner), range(1, 41))


# --- the probe -------------------------------------------------------------------------------------------------


class Overwriting(FaultyStorage):
    """Accepts the condition and ignores it, as s3rver and rclone do."""

    def create(self, name: str, data: bytes) -> None:
        self.inner.write(name, data)


class OnlyLaterRefused(FaultyStorage):
    """Refuses what exists when it looks, but looks before it writes."""

    def create(self, name: str, data: bytes) -> None:
        if self.inner.size(name) is not None:
            raise ObjectExistsError(name)
        SYSTEM_CLOCK.sleep(0.05)
        self.inner.write(name, data)


class NeverCreates(FaultyStorage):
    """Reports every create as existing."""

    def create(self, name: str, data: bytes) -> None:
        self.inner.write(name, b"other")
        raise ObjectExistsError(name)


@pytest.mark.parametrize("unsafe", [Overwriting, OnlyLaterRefused, NeverCreates])
def test_a_storage_that_ignores_the_condition_is_refused(storage, unsafe):
    with pytest.raises(UnsafeStorageError, match="conditional"):
        probe(unsafe(storage))
    assert list(storage.list("")) == []
    with pytest.raises(UnsafeStorageError):
        create(unsafe(storage))
    assert not LogCatalog.exists(storage)
    create(storage)
    with pytest.raises(UnsafeStorageError):
        open_log(unsafe(storage)).check_writable()


def test_the_probe_is_repeated_when_replies_are_lost(storage):
    plan = FaultPlan().inject(1, Fault.APPLIED).inject(9, Fault.LOST)
    probe(FaultyStorage(storage, plan))
    plan.reset()
    for number in range(200):
        plan.inject(number, Fault.APPLIED)
    with pytest.raises(StorageError):
        probe(FaultyStorage(storage, plan))


class TellsTheWinnerThatItLost(FaultyStorage):
    """The first create is applied, and reported as existing: something on the way repeated it."""

    lies = 1

    def create(self, name: str, data: bytes) -> None:
        super().create(name, data)
        if self.lies:
            self.lies -= 1
            raise ObjectExistsError(name)


def test_a_winner_that_is_told_that_it_lost_does_not_make_a_storage_unsafe(storage):
    faulty = TellsTheWinnerThatItLost(storage)
    probe(faulty)
    assert sum(each.method == "create" for each in faulty.plan.requests) == 3 * (PROBERS + 1)


def test_a_reply_that_was_damaged_on_the_way_does_not_make_a_storage_unsafe(storage):
    faulty = FaultyStorage(storage)
    probe(faulty)
    read = next(number for number, each in enumerate(faulty.plan.requests) if each.method == "read_whole")
    for fault in (Fault.CORRUPT, Fault.TRUNCATE):
        probe(FaultyStorage(storage, FaultPlan().inject(read, fault)))


# --- L1 to L4 under any interleaving and fault -----------------------------------------------------------------

FATES = [Fate.DONE, Fate.DONE, *Fate]


def run_writers(seed: int, crashes: int) -> None:
    """Let two writers commit to one branch; afterwards compare what they were told with what is there."""
    choose = chooser(seed)
    inner = ObjectStorage(MemoryStore())
    create(inner)
    schedule = Interleaving(choose, fates=FATES, crashes=crashes)
    told: dict[str, Outcome | None] = {}
    wanted: dict[str, Transaction] = {}
    order: list[list[int]] = [[], []]

    def writer(number: int) -> Callable[[], object]:
        def work() -> None:
            storage = schedule.storage(inner)
            catalog = open_log(storage)
            for round_ in range(3):
                write(catalog, f"{number}-{round_}", number)

        return work

    def write(catalog: LogCatalog, name: str, number: int) -> None:
        with catalog.reading() as view:
            parent, since = view.ref(BRANCH, MAIN), view.sequence
        assert isinstance(parent, bytes)
        new = entry_of(name, SnapshotId(parent))
        transaction = transaction_of(
            (AddSnapshot(new), SetRef(BRANCH, MAIN, new.id)),
            (RefIs(BRANCH, MAIN, SnapshotId(parent)),),
            since=since,
            details={"name": name},
        )
        wanted[name], told[name] = transaction, None
        for _ in range(6):
            try:
                outcome = told[name] = catalog.update(transaction)
            except CommitOutcomeUnknownError:
                # As a commit that finds an epoch moved: the same transaction, under stricter conditions.
                if choose(3) == 0:
                    transaction = replace(transaction, preconditions=(EpochIs(99),))
                continue
            except StorageError:
                continue
            if isinstance(outcome, Applied):
                order[number].append(outcome.operation.sequence)
            return

    results = schedule.run(writer(0), writer(1))
    assert all(result is None or isinstance(result, SimulatedCrash | StorageError) for result in results), (
        results
    )
    schedule.land_all()
    for hint in ("kept", "absent"):
        if hint == "absent" and inner.size(LATEST) is not None:
            inner.delete([LATEST])
        compare(inner, told, wanted, order)


def compare(
    storage: Storage,
    told: dict[str, Outcome | None],
    wanted: dict[str, Transaction],
    order: list[list[int]],
) -> None:
    catalog = open_log(storage)
    found = records(storage)
    assert sorted(found) == list(range(len(found)))  # L1: dense
    with catalog.reading() as view:
        assert view.sequence == len(found) - 1
        operations = {operation.details.get("name"): operation for operation in view.iter_operations()}
        count = sum("name" in operation.details for operation in view.iter_operations())
    assert count == len(operations) - (None in operations)  # L2: at most once
    for name, outcome in told.items():
        if isinstance(outcome, Applied):
            assert operations[name] == outcome.operation  # L2, L3: exactly once, where it was said to be
        if isinstance(outcome, Refused):
            assert name not in operations
    assert all(numbers == sorted(numbers) for numbers in order)  # L4
    for number, record in found.items():
        assert isinstance(record, LogRecord)
        assert record.sequence == number
    check_history(catalog, [number for numbers in order for number in numbers])


@pytest.fixture
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_patience, "MAX_TROUBLES", 2)


@pytest.mark.usefixtures("_little_patience")
@pytest.mark.parametrize("crashes", [0, 1])
@pytest.mark.parametrize("batch", range(4))
def test_racing_writers_with_faults(batch, crashes):
    for seed in range(batch * 25, batch * 25 + 25):
        run_writers(seed, crashes)


@pytest.mark.deep
@pytest.mark.usefixtures("_little_patience")
@pytest.mark.parametrize("batch", range(40))
def test_racing_writers_with_faults_at_length(batch):
    for seed in range(1000 + batch * 500, 1500 + batch * 500):
        run_writers(seed, seed % 2)


def test_an_interleaving_is_reproducible():
    def requests(seed: int) -> list[tuple[int, str, str]]:
        inner = ObjectStorage(MemoryStore())
        create(inner)
        schedule = Interleaving(chooser(seed))
        handles = [open_log(schedule.storage(inner)) for _ in range(2)]
        schedule.run(
            *(lambda h=handle: [apply(h, SetRef(TAG, "v", ROOT.id)) for _ in range(4)] for handle in handles)
        )
        assert isinstance(schedule.storage(inner), InterleavedStorage)
        return schedule.requests

    assert requests(5) == requests(5)
    assert requests(5) != requests(6)


def test_read_only_storage_can_be_opened(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    commit_on(create(storage), MAIN, "first")

    class ReadOnly(FaultyStorage):
        def create(self, name: str, data: bytes) -> None:
            raise AccessDeniedError("read-only")

        def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
            raise AccessDeniedError("read-only")

        def delete(self, names: object) -> None:
            raise AccessDeniedError("read-only")

    catalog = open_log(ReadOnly(storage))
    assert sequence_of(catalog) == 1
    with pytest.raises(AccessDeniedError):
        catalog.check_writable()
    with pytest.raises(AccessDeniedError):
        catalog.update(tag("v1"))
    assert catalog.check() == []
