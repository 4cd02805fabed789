"""The tests that every catalog must pass: the sentences of `vstore.catalog.base`, one by one.

A test module subclasses `CatalogContract` and overrides the fixtures `catalog`, which gives a new catalog made with
`IDENTITY` and `first_transaction()`, and `reopen`, which opens another handle to it. The functions that make entries
and transactions serve other tests of catalogs too.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeAlias

import pytest

from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    METADATA,
    AddSnapshot,
    AdvanceEpoch,
    Applied,
    BranchesAre,
    Catalog,
    CloseSession,
    DropRef,
    DropSnapshots,
    EpochIs,
    Identity,
    MarkPacks,
    NameUnused,
    NotHeld,
    OpenSession,
    PacksMarked,
    PacksUsable,
    Precondition,
    RefIs,
    Refused,
    RescuePacks,
    Retained,
    SessionIs,
    SessionOpen,
    SetRef,
    SetValue,
    Transaction,
    UnmarkPacks,
    Update,
    ValueIs,
)
from vstore.errors import InvalidInputError
from vstore.format.record import (
    ExpiredEntry,
    Operation,
    OperationKind,
    PackMark,
    PackState,
    RefChange,
    RefKind,
    SessionEntry,
    SnapshotEntry,
)
from vstore.format.refs import BlobRef
from vstore.ids import (
    PackId,
    RepositoryId,
    SessionId,
    SnapshotId,
    TransactionId,
    blake3_digest,
    new_transaction_id,
)

Reopen: TypeAlias = Callable[[], Catalog]

BRANCH, TAG = RefKind.BRANCH, RefKind.TAG
TIME_US = 1_764_000_000_000_000
AUTHOR = "Ada Lovelace <ada@example.org>"
IDENTITY = Identity(RepositoryId(b"repository id 16"), 1, (), TIME_US)
MAIN = "main"

RACERS = 4


# --- making things -------------------------------------------------------------------------------------------


def entry_of(name: str, *parents: SnapshotId) -> SnapshotEntry:
    """Return the entry of a snapshot made up from its name."""
    digest = blake3_digest(name.encode())
    return SnapshotEntry(
        BlobRef(digest, PackId(digest[:16]), 8192, 700),
        parents,
        TIME_US,
        len(name),
        parents[0] if parents else None,
        7000,
        2100,
        (f"add {name}", b'{"source": "test"}'),
    )


ROOT = entry_of("root")


def expired_of(entry: SnapshotEntry) -> ExpiredEntry:
    """Return what is kept of a snapshot when it expires."""
    return ExpiredEntry(entry.id, entry.parents, entry.time_us, entry.depth, entry.jump)


def lease_of(name: str, snapshot: SnapshotId, *, expires_us: int = TIME_US + 10) -> SessionEntry:
    """Return the registration of a reader made up from its name."""
    return SessionEntry(SessionId(blake3_digest(name.encode())[:16]), 0, TIME_US, expires_us, snapshot)


def pack_of(number: int) -> PackId:
    return PackId(number.to_bytes(16, "big"))


def transaction_of(
    updates: Iterable[Update],
    preconditions: Iterable[Precondition] = (),
    *,
    since: int = 0,
    kind: OperationKind = OperationKind.COMMIT,
    details: dict[str, Any] | None = None,
) -> Transaction:
    """Return a new transaction."""
    return Transaction(
        new_transaction_id(),
        since,
        kind,
        TIME_US,
        AUTHOR,
        tuple(preconditions),
        tuple(updates),
        details or {},
    )


def first_transaction() -> Transaction:
    """Return what a repository starts with: a root snapshot, and the branch main at it."""
    return transaction_of(
        (AddSnapshot(ROOT), SetRef(BRANCH, MAIN, ROOT.id)),
        (RefIs(BRANCH, MAIN, ABSENT),),
        kind=OperationKind.CREATE_REPOSITORY,
    )


def apply(catalog: Catalog, *updates: Update, given: Iterable[Precondition] = ()) -> Operation:
    """Apply updates that must not be refused."""
    outcome = catalog.update(transaction_of(updates, given))
    assert isinstance(outcome, Applied), outcome
    return outcome.operation


def refuse(catalog: Catalog, *preconditions: Precondition) -> list[object]:
    """Return what is found where preconditions, which must not hold, do not; nothing may change."""
    with catalog.reading() as view:
        before = view.sequence
    outcome = catalog.update(transaction_of([SetValue(CONFIG, b"{}")], preconditions))
    assert isinstance(outcome, Refused), outcome
    with catalog.reading() as view:
        assert (view.sequence, view.value(CONFIG)) == (before, None)
        assert (outcome.sequence, outcome.epoch) == (before, view.epoch)
    assert [refusal.precondition for refusal in outcome.refusals] == list(preconditions)
    return [refusal.found for refusal in outcome.refusals]


def commit_on(catalog: Catalog, branch: str, name: str) -> Operation:
    """Commit to a branch as sessions do: look, compare and swap, and look again when it moved."""
    while True:
        with catalog.reading() as view:
            parent, since = view.ref(BRANCH, branch), view.sequence
        assert parent is not None
        entry = entry_of(name, parent)
        outcome = catalog.update(
            transaction_of(
                (
                    AddSnapshot(entry),
                    SetRef(BRANCH, branch, entry.id),
                    RescuePacks(frozenset([entry.ref.pack])),
                ),
                (
                    RefIs(BRANCH, branch, parent),
                    Retained((parent,)),
                    EpochIs(0),
                    PacksUsable(frozenset([entry.ref.pack])),
                ),
                since=since,
            )
        )
        if isinstance(outcome, Applied):
            return outcome.operation


def commit_many(catalog: Catalog, prefix: str, count: int) -> list[int]:
    """Commit `count` times to main and return the sequence numbers; also run in other processes."""
    try:
        return [commit_on(catalog, MAIN, f"{prefix} {number}").sequence for number in range(count)]
    finally:
        catalog.close()


def check_history(catalog: Catalog, acknowledged: Iterable[int]) -> None:
    """Assert that main is one chain of commits, each made once, and that none of the acknowledged ones is lost."""
    with catalog.reading() as view:
        operations = list(view.iter_operations())[::-1]
        assert [operation.sequence for operation in operations] == list(range(view.sequence + 1))
        moves = [change for operation in operations for change in operation.changes if change.name == MAIN]
        assert [move.before for move in moves] == [None, *(move.after for move in moves[:-1])]
        assert view.ref(BRANCH, MAIN) == moves[-1].after
        assert len({operation.transaction for operation in operations}) == len(operations)
        assert {move.after for move in moves} == {entry.id for entry in view.iter_snapshots()}
        numbers = sorted(acknowledged)
        assert len(set(numbers)) == len(numbers)
        assert set(numbers) <= {operation.sequence for operation in operations if operation.changes}
    assert catalog.check() == []


IMPOSSIBLE: dict[str, Transaction] = {
    "None expected of a ref": transaction_of([], [RefIs(BRANCH, MAIN, None)]),  # type: ignore[arg-type]
    "text expected of a ref": transaction_of([], [RefIs(BRANCH, MAIN, "absent")]),  # type: ignore[arg-type]
    "half an id expected of a ref": transaction_of([], [RefIs(BRANCH, MAIN, SnapshotId(b"short"))]),
    "None expected of a value": transaction_of([], [ValueIs(CONFIG, None)]),  # type: ignore[arg-type]
    "a ref with a bad name": transaction_of([SetRef(BRANCH, "a b", ROOT.id)]),
    "a ref set to half an id": transaction_of([SetRef(BRANCH, "dev", SnapshotId(b"short"))]),
    "a ref changed twice": transaction_of([SetRef(BRANCH, "dev", ROOT.id), DropRef(BRANCH, "dev")]),
    "a snapshot added twice": transaction_of([AddSnapshot(ROOT), AddSnapshot(ROOT)]),
    "a snapshot dropped twice": transaction_of([DropSnapshots((ROOT.id,)), DropSnapshots((ROOT.id,))]),
    "a snapshot added and dropped": transaction_of([AddSnapshot(ROOT), DropSnapshots((ROOT.id,))]),
    "a snapshot before 1970": transaction_of([AddSnapshot(entry_of("new")._replace(time_us=-1))]),
    "an unknown value": transaction_of([SetValue("other", b"{}")]),
    "a huge value": transaction_of([SetValue(CONFIG, bytes(2**20 + 1))]),
    "an object in the details": transaction_of([], details={"object": object()}),
    "a huge number in the details": transaction_of([], details={"huge": 2**70}),
    "a negative since": transaction_of([], since=-1),
    "half a transaction id": Transaction(
        TransactionId(b"short"), 0, OperationKind.COMMIT, TIME_US, AUTHOR, (), ()
    ),
    "a time before 1970": Transaction(TransactionId(bytes(16)), 0, OperationKind.COMMIT, -1, AUTHOR, (), ()),
}


class CatalogContract:
    """Subclass and override `catalog` and `reopen`."""

    can_pickle = True
    """Whether another process can reach the catalog."""

    @pytest.fixture
    def catalog(self) -> Catalog:
        """Give a new catalog."""
        raise NotImplementedError("override the fixture `catalog`")

    @pytest.fixture
    def reopen(self) -> Reopen:
        """Give a function that opens another handle to the catalog."""
        raise NotImplementedError("override the fixture `reopen`")

    # A new catalog

    def test_a_new_catalog_holds_its_first_transaction(self, catalog: Catalog, reopen: Reopen) -> None:
        for handle in (catalog, reopen()):
            assert handle.identity == IDENTITY
            with handle.reading() as view:
                assert (view.sequence, view.epoch, view.identity) == (0, 0, IDENTITY)
                assert view.ref(BRANCH, MAIN) == ROOT.id
                assert view.snapshot(ROOT.id) == ROOT
                (operation,) = view.iter_operations()
            assert operation.sequence == 0
            assert operation.kind == OperationKind.CREATE_REPOSITORY
            assert operation.changes == (RefChange(BRANCH, MAIN, None, ROOT.id),)

    def test_what_was_seen_is_confirmed(self, catalog: Catalog, reopen: Reopen) -> None:
        assert catalog.confirm()
        handle = reopen()
        assert handle.confirm()
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        assert handle.confirm()
        with handle.reading() as view:
            assert view.ref(TAG, "v1") == ROOT.id

    def test_a_new_catalog_holds_nothing_else(self, catalog: Catalog) -> None:
        with catalog.reading() as view:
            assert list(view.iter_refs(TAG)) == []
            assert view.value(CONFIG) is None
            assert view.pack_states(None) == []
            assert list(view.iter_sessions()) == []
            assert view.snapshot(entry_of("other").id) is None
            assert view.ref(BRANCH, "other") is None
        assert catalog.check() == []

    # Refs

    def test_refs_are_listed_by_kind_and_sorted(self, catalog: Catalog) -> None:
        names = ["zoo", "a/b", "a", "Z", "é", "\U0001f600", "a-b", "10", "9"]
        for name in names:
            apply(catalog, SetRef(TAG, name, ROOT.id), given=[RefIs(TAG, name, ABSENT)])
        with catalog.reading() as view:
            assert list(view.iter_refs(TAG)) == [(name, ROOT.id) for name in sorted(names)]
            assert list(view.iter_refs(BRANCH)) == [(MAIN, ROOT.id)]
            assert view.ref(BRANCH, "zoo") is None

    @pytest.mark.parametrize("name", ["", "\ud800", "x" * 1000, "\0", "mai", "main2"])
    def test_any_text_may_be_asked_for(self, catalog: Catalog, name: str) -> None:
        with catalog.reading() as view:
            assert view.ref(BRANCH, name) is None
            assert not view.is_retired(BRANCH, name)
            assert view.value(name) is None

    def test_several_refs_change_at_once_or_not_at_all(self, catalog: Catalog) -> None:
        new = entry_of("new", ROOT.id)
        updates = (AddSnapshot(new), SetRef(BRANCH, MAIN, new.id), SetRef(TAG, "v1", new.id))
        held = RefIs(BRANCH, MAIN, ROOT.id)
        refused = catalog.update(transaction_of(updates, (held, RefIs(TAG, "v1", ROOT.id))))
        assert isinstance(refused, Refused)
        assert [tuple(refusal) for refusal in refused.refusals] == [(RefIs(TAG, "v1", ROOT.id), None)]
        with catalog.reading() as view:
            assert (view.sequence, view.ref(BRANCH, MAIN), view.snapshot(new.id)) == (0, ROOT.id, None)
        operation = apply(catalog, *updates, given=(held, RefIs(TAG, "v1", ABSENT)))
        assert operation.changes == (
            RefChange(BRANCH, MAIN, ROOT.id, new.id),
            RefChange(TAG, "v1", None, new.id),
        )
        with catalog.reading() as view:
            assert (view.ref(BRANCH, MAIN), view.ref(TAG, "v1")) == (new.id, new.id)
            assert view.snapshot(new.id) == new

    def test_a_refusal_says_what_each_ref_holds(self, catalog: Catalog) -> None:
        other = entry_of("other").id
        assert refuse(
            catalog, RefIs(BRANCH, MAIN, other), RefIs(BRANCH, MAIN, ABSENT), RefIs(TAG, "v1", other)
        ) == [ROOT.id, ROOT.id, None]

    def test_a_deleted_ref_is_absent(self, catalog: Catalog) -> None:
        apply(catalog, SetRef(BRANCH, "dev", ROOT.id))
        operation = apply(catalog, DropRef(BRANCH, "dev"), given=[RefIs(BRANCH, "dev", ROOT.id)])
        assert operation.changes == (RefChange(BRANCH, "dev", ROOT.id, None),)
        with catalog.reading() as view:
            assert view.ref(BRANCH, "dev") is None
            assert not view.is_retired(BRANCH, "dev")
            assert list(view.iter_refs(BRANCH)) == [(MAIN, ROOT.id)]
        apply(catalog, SetRef(BRANCH, "dev", ROOT.id), given=[RefIs(BRANCH, "dev", ABSENT)])

    def test_dropping_an_absent_ref_changes_nothing(self, catalog: Catalog) -> None:
        assert apply(catalog, DropRef(TAG, "v1", retire=True)).changes == ()
        with catalog.reading() as view:
            assert not view.is_retired(TAG, "v1")

    def test_a_retired_name_stays_used_until_it_is_set_again(self, catalog: Catalog) -> None:
        apply(catalog, SetRef(TAG, "v1", ROOT.id), given=[NameUnused(TAG, "v1")])
        apply(catalog, DropRef(TAG, "v1", retire=True))
        with catalog.reading() as view:
            assert view.ref(TAG, "v1") is None
            assert view.is_retired(TAG, "v1")
            assert not view.is_retired(BRANCH, "v1")
            assert list(view.iter_refs(TAG)) == []
        assert refuse(catalog, NameUnused(TAG, "v1")) == ["v1"]
        apply(catalog, SetRef(TAG, "v1", ROOT.id), given=[RefIs(TAG, "v1", ABSENT)])
        with catalog.reading() as view:
            assert view.ref(TAG, "v1") == ROOT.id
            assert not view.is_retired(TAG, "v1")

    # Snapshots

    def test_several_snapshots_may_be_added_at_once(self, catalog: Catalog, reopen: Reopen) -> None:
        entries = [entry_of(f"snapshot {number}", ROOT.id) for number in range(5)]
        apply(catalog, *map(AddSnapshot, entries))
        alone = entry_of("alone")._replace(info=None, jump=None)
        apply(catalog, AddSnapshot(alone))
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert [view.snapshot(entry.id) for entry in entries] == entries
                assert view.snapshot(alone.id) == alone
                assert sorted(view.iter_snapshots()) == sorted([ROOT, alone, *entries])

    def test_a_snapshot_may_be_added_again(self, catalog: Catalog) -> None:
        new = entry_of("new")
        moved = new._replace(ref=new.ref._replace(pack=pack_of(1)))
        apply(catalog, AddSnapshot(new), AddSnapshot(entry_of("other")))
        apply(catalog, AddSnapshot(new))
        apply(catalog, AddSnapshot(moved))
        with catalog.reading() as view:
            assert view.snapshot(new.id) in (new, moved)
            assert [entry.id for entry in view.iter_snapshots()].count(new.id) == 1
            assert view.find_snapshots(new.id.hex()[:8], 9) == [new.id]
        assert catalog.check() == []

    def test_snapshots_are_found_by_prefix(self, catalog: Catalog) -> None:
        entries = [entry_of(f"snapshot {number}") for number in range(40)]
        for entry in entries[:20]:
            apply(catalog, AddSnapshot(entry))
        apply(catalog, *map(AddSnapshot, entries[20:]))
        ids = sorted([ROOT.id, *(entry.id for entry in entries)])
        with catalog.reading() as view:
            for snapshot in ids:
                text = snapshot.hex()
                for length in (1, 2, 3, 8, 63, 64):
                    expected = [other for other in ids if other.hex().startswith(text[:length])]
                    assert view.find_snapshots(text[:length], 99) == expected
                    assert view.find_snapshots(text[:length], 1) == expected[:1]
            assert view.find_snapshots("", 99) == ids
            assert view.find_snapshots("", 7) == ids[:7]
            assert view.find_snapshots("f" * 64, 9) == []
            assert view.find_snapshots("0" * 64, 9) == []

    @pytest.mark.parametrize("prefix", ["x", "AB", "0" * 65, " 1", "-1", "é"])
    def test_a_prefix_is_of_hex_digits(self, catalog: Catalog, prefix: str) -> None:
        with catalog.reading() as view, pytest.raises(InvalidInputError):
            view.find_snapshots(prefix, 2)

    def test_snapshots_must_be_retained(self, catalog: Catalog) -> None:
        absent = [entry_of("one").id, entry_of("two").id]
        assert refuse(catalog, Retained((absent[0], ROOT.id, absent[1]))) == [absent]
        apply(catalog, given=[Retained((ROOT.id,)), Retained(())])

    # Expiry

    def test_what_is_dropped_leaves_its_place_in_history(self, catalog: Catalog, reopen: Reopen) -> None:
        # Alone in its operation, among several, and never there.
        alone, kept = entry_of("alone", ROOT.id), entry_of("kept", ROOT.id)
        several = [entry_of(f"snapshot {number}", alone.id, kept.id) for number in range(4)]
        apply(catalog, AddSnapshot(alone), SetRef(TAG, "v1", alone.id))
        apply(catalog, AddSnapshot(kept))
        added = apply(catalog, *map(AddSnapshot, several))
        before = self._log(catalog)
        gone = [ROOT, alone, *several[:2]]
        absent = entry_of("absent")
        done = apply(catalog, DropSnapshots((*(entry.id for entry in gone), absent.id)))
        assert done.changes == ()
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert sorted(view.iter_snapshots()) == sorted([kept, *several[2:]])
                assert sorted(view.iter_expired()) == sorted(map(expired_of, gone))
                assert [view.snapshot(entry.id) for entry in gone] == [None] * 4
                assert [view.expired(entry.id) for entry in gone] == list(map(expired_of, gone))
                for other in (kept.id, several[3].id, absent.id):
                    assert view.expired(other) is None
                assert view.snapshot(kept.id) == kept
                assert view.find_transaction(added.transaction, 0) == added
            # Operations are kept as they were.
            assert self._log(handle) == [done, *before]
        assert refuse(catalog, Retained((kept.id, alone.id))) == [[alone.id]]

    @staticmethod
    def _log(catalog: Catalog) -> list[Operation]:
        with catalog.reading() as view:
            return list(view.iter_operations())

    def test_expired_snapshots_are_found_by_prefix(self, catalog: Catalog) -> None:
        entries = [entry_of(f"snapshot {number}") for number in range(40)]
        for entry in entries[:20]:
            apply(catalog, AddSnapshot(entry))
        apply(catalog, *map(AddSnapshot, entries[20:]))
        apply(catalog, DropSnapshots(tuple(entry.id for entry in entries[10:30])))
        ids = sorted([ROOT.id, *(entry.id for entry in entries)])
        with catalog.reading() as view:
            for snapshot in ids:
                text = snapshot.hex()
                for length in (1, 2, 8, 64):
                    expected = [other for other in ids if other.hex().startswith(text[:length])]
                    assert view.find_snapshots(text[:length], 99) == expected
                    assert view.find_snapshots(text[:length], 1) == expected[:1]
            assert view.find_snapshots("", 99) == ids
            assert view.find_snapshots("", 7) == ids[:7]

    def test_dropping_again_changes_nothing_and_adding_again_retains(
        self, catalog: Catalog, reopen: Reopen
    ) -> None:
        new, other = entry_of("new", ROOT.id), entry_of("other", ROOT.id)
        apply(catalog, AddSnapshot(new))
        apply(catalog, AddSnapshot(other))
        for _ in range(2):
            apply(catalog, DropSnapshots((new.id, other.id)))
            with catalog.reading() as view:
                assert list(view.iter_snapshots()) == [ROOT]
                assert sorted(view.iter_expired()) == sorted([expired_of(new), expired_of(other)])
        moved = new._replace(ref=new.ref._replace(pack=pack_of(1)))
        apply(catalog, AddSnapshot(moved))
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert (view.snapshot(new.id), view.snapshot(other.id)) == (moved, None)
                assert view.find_snapshots(new.id.hex()[:8], 9) == [new.id]
                assert view.find_snapshots("", 9) == sorted([ROOT.id, new.id, other.id])
        apply(catalog, DropSnapshots((new.id,)))
        with reopen().reading() as view:
            assert (view.snapshot(new.id), view.expired(new.id)) == (None, expired_of(new))
            assert [entry.id for entry in view.iter_snapshots()] == [ROOT.id]
        assert catalog.check() == []

    def test_check_finds_a_ref_to_an_expired_snapshot(self, catalog: Catalog) -> None:
        apply(catalog, DropSnapshots((ROOT.id,)))
        (found,) = catalog.check()
        assert f"branch 'main' points at snapshot {ROOT.id.hex()}, which is not retained" in found

    def test_what_a_ref_holds_is_held(self, catalog: Catalog) -> None:
        one, other = entry_of("one"), entry_of("other")
        apply(catalog, AddSnapshot(one), AddSnapshot(other))
        apply(catalog, SetRef(TAG, "v1", one.id), SetRef(BRANCH, "dev", one.id), SetRef(TAG, "v2", ROOT.id))
        unwanted = frozenset([ROOT.id, one.id, other.id])
        assert refuse(catalog, NotHeld(unwanted, TIME_US)) == [sorted([ROOT.id, one.id])]
        besides = frozenset([(TAG, "v1"), (BRANCH, MAIN), (TAG, "v2")])
        assert refuse(catalog, NotHeld(unwanted, TIME_US, besides)) == [[one.id]]
        apply(catalog, given=[NotHeld(unwanted, TIME_US, besides | {(BRANCH, "dev")})])
        apply(catalog, given=[NotHeld(frozenset([other.id]), TIME_US), NotHeld(frozenset(), TIME_US)])
        apply(catalog, DropRef(TAG, "v1", retire=True), DropRef(BRANCH, "dev"))
        apply(catalog, given=[NotHeld(frozenset([one.id]), TIME_US)])

    def test_a_lease_holds_until_it_ends(self, catalog: Catalog, reopen: Reopen) -> None:
        one, other = entry_of("one"), entry_of("other")
        apply(catalog, AddSnapshot(one), AddSnapshot(other))
        lease = lease_of("reader", one.id)
        writer = SessionEntry(SessionId(b"session id of 16"), 0, TIME_US, TIME_US + 99)
        apply(catalog, OpenSession(lease), OpenSession(writer))
        with reopen().reading() as view:
            assert view.session(lease.session) == lease
            assert sorted(view.iter_sessions()) == sorted([lease, writer])
        unwanted = frozenset([one.id, other.id])
        assert refuse(catalog, NotHeld(unwanted, TIME_US + 9)) == [[one.id]]
        apply(catalog, given=[NotHeld(unwanted, TIME_US + 10)])
        apply(catalog, OpenSession(lease._replace(expires_us=TIME_US + 20)), given=[SessionIs(lease)])
        assert refuse(catalog, NotHeld(unwanted, TIME_US + 19), SessionIs(lease)) == [
            [one.id],
            lease._replace(expires_us=TIME_US + 20),
        ]
        apply(catalog, CloseSession(lease.session))
        apply(catalog, given=[NotHeld(unwanted, TIME_US)])
        assert refuse(catalog, SessionIs(lease)) == [None]

    def test_branches_are_compared_by_name_and_glob(self, catalog: Catalog) -> None:
        new = entry_of("new")
        apply(catalog, AddSnapshot(new), *(SetRef(BRANCH, name, new.id) for name in ("r/2", "r/1", "dev")))
        apply(catalog, SetRef(TAG, "r/3", new.id))
        found = (("main", ROOT.id), ("r/1", new.id), ("r/2", new.id))
        wanted = ("main", "r/*", "r/1", "none")
        assert refuse(catalog, BranchesAre(wanted, found[:2]), BranchesAre(wanted, ())) == [found] * 2
        apply(catalog, given=[BranchesAre(wanted, found), BranchesAre((), ()), BranchesAre(("none",), ())])

    def test_thousands_expire_at_once(self, catalog: Catalog, reopen: Reopen) -> None:
        entries = [entry_of(f"snapshot {number}", ROOT.id) for number in range(3000)]
        apply(catalog, *map(AddSnapshot, entries[:2500]))
        for entry in entries[2500:2600]:
            apply(catalog, AddSnapshot(entry))
        apply(catalog, *map(AddSnapshot, entries[2600:]))
        gone, kept = entries[1:2900], [ROOT, entries[0], *entries[2900:]]
        drop = transaction_of(
            [DropSnapshots(tuple(entry.id for entry in gone))],
            [NotHeld(frozenset(entry.id for entry in gone), TIME_US)],
        )
        done = catalog.update(drop)
        assert isinstance(done, Applied)
        assert catalog.update(drop) == done
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert sorted(view.iter_snapshots()) == sorted(kept)
                assert sorted(view.iter_expired()) == sorted(map(expired_of, gone))
                assert view.find_snapshots("", 9999) == sorted(entry.id for entry in (ROOT, *entries))
                for entry in gone[::97]:
                    assert (view.snapshot(entry.id), view.expired(entry.id)) == (None, expired_of(entry))
                assert next(view.iter_operations()) == done.operation
        assert catalog.check() == []

    def test_a_history_that_expires_as_it_grows(self, catalog: Catalog, reopen: Reopen) -> None:
        entries = [ROOT]
        for number in range(240):
            entry = entry_of(f"snapshot {number}", entries[-1].id)
            apply(catalog, AddSnapshot(entry), SetRef(BRANCH, MAIN, entry.id))
            entries.append(entry)
            if number % 20 == 19:
                old = tuple(entry.id for entry in entries[number - 19 : number + 1])
                apply(catalog, DropSnapshots(old), given=[NotHeld(frozenset(old), TIME_US)])
        gone = entries[:240]
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert list(view.iter_snapshots()) == entries[240:]
                assert sorted(view.iter_expired()) == sorted(map(expired_of, gone))
                assert [view.expired(entry.id) for entry in gone] == list(map(expired_of, gone))
                assert view.sequence == 240 + 12
        assert catalog.check() == []

    # Values

    def test_values_change_by_comparison(self, catalog: Catalog, reopen: Reopen) -> None:
        apply(catalog, SetValue(METADATA, b'{"a": 1}'), given=[ValueIs(METADATA, ABSENT)])
        assert refuse(catalog, ValueIs(METADATA, b"{}"), ValueIs(METADATA, ABSENT)) == [b'{"a": 1}'] * 2
        assert refuse(catalog, ValueIs(CONFIG, b"{}")) == [None]
        apply(catalog, SetValue(METADATA, b"{}"), given=[ValueIs(METADATA, b'{"a": 1}')])
        with reopen().reading() as view:
            assert view.value(METADATA) == b"{}"
            assert view.value(CONFIG) is None

    def test_a_value_may_be_large(self, catalog: Catalog, reopen: Reopen) -> None:
        value = bytes(range(256)) * 4096
        apply(catalog, SetValue(CONFIG, value))
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        with reopen().reading() as view:
            assert view.value(CONFIG) == value

    # Packs and the epoch

    def test_pack_marks(self, catalog: Catalog, reopen: Reopen) -> None:
        states = [
            PackState(pack_of(1), PackMark.CONDEMNED, 1, None),
            PackState(pack_of(1), PackMark.REPLACING, 0, None),
            PackState(pack_of(2), PackMark.CONDEMNED, 0, None),
            PackState(pack_of(2), PackMark.RELOCATED, 0, pack_of(9)),
            PackState(pack_of(3), PackMark.DELETING, 1, None),
        ]
        apply(catalog, AdvanceEpoch(), MarkPacks(tuple(states)), given=[EpochIs(0)])
        assert refuse(catalog, EpochIs(0)) == [1]
        with reopen().reading() as view:
            assert view.epoch == 1
            assert view.pack_states(None) == sorted(states)
            assert view.pack_states(frozenset([pack_of(2), pack_of(7)])) == states[2:4]
            assert view.pack_states(frozenset()) == []

    def test_packs_that_are_deleted_or_replaced_are_not_usable(self, catalog: Catalog) -> None:
        states = tuple(
            PackState(pack_of(mark), mark, 0, pack_of(9) if mark is PackMark.RELOCATED else None)
            for mark in PackMark
        )
        apply(catalog, MarkPacks(states))
        packs = frozenset(map(pack_of, range(8)))
        assert refuse(catalog, PacksUsable(packs)) == [[states[1], states[3]]]
        usable = {pack_of(PackMark.CONDEMNED), pack_of(PackMark.REPLACING), pack_of(7)}
        apply(catalog, given=[PacksUsable(frozenset(usable)), PacksUsable(frozenset())])

    def test_rescue_strikes_what_is_only_intended(self, catalog: Catalog) -> None:
        states = [PackState(pack_of(number), mark, 0, None) for number in (1, 2) for mark in PackMark]
        apply(catalog, MarkPacks(tuple(states)))
        apply(catalog, RescuePacks(frozenset([pack_of(1), pack_of(5)])))
        kept = [
            s for s in states if s.pack == pack_of(2) or s.mark in (PackMark.DELETING, PackMark.RELOCATED)
        ]
        with catalog.reading() as view:
            assert view.pack_states(None) == kept

    def test_marks_are_compared_replaced_and_removed(self, catalog: Catalog) -> None:
        old = PackState(pack_of(1), PackMark.CONDEMNED, 0, None)
        new = PackState(pack_of(1), PackMark.CONDEMNED, 1, None)
        apply(catalog, AdvanceEpoch(), MarkPacks((old,)))
        assert refuse(catalog, PacksMarked((old, new))) == [[new]]
        apply(catalog, MarkPacks((new,)), given=[PacksMarked((old,))])
        with catalog.reading() as view:
            assert view.pack_states(None) == [new]
        apply(
            catalog,
            UnmarkPacks(frozenset([(pack_of(1), PackMark.CONDEMNED), (pack_of(2), PackMark.DELETING)])),
        )
        with catalog.reading() as view:
            assert view.pack_states(None) == []
        assert catalog.check() == []

    # Sessions

    def test_sessions_are_registered_until_they_are_closed(self, catalog: Catalog, reopen: Reopen) -> None:
        session = SessionId(b"session id of 16")
        entry = SessionEntry(session, 0, TIME_US, TIME_US + 1)
        assert refuse(catalog, SessionOpen(session)) == [session]
        apply(catalog, OpenSession(entry))
        apply(catalog, OpenSession(entry._replace(expires_us=TIME_US + 2)), given=[SessionOpen(session)])
        with reopen().reading() as view:
            assert view.session(session) == entry._replace(expires_us=TIME_US + 2)
            assert list(view.iter_sessions()) == [entry._replace(expires_us=TIME_US + 2)]
            assert view.session(SessionId(bytes(16))) is None
        apply(catalog, CloseSession(session))
        apply(catalog, CloseSession(session))
        with catalog.reading() as view:
            assert view.session(session) is None
            assert list(view.iter_sessions()) == []

    # The operations log

    def test_operations_are_listed_newest_first(self, catalog: Catalog, reopen: Reopen) -> None:
        done = [apply(catalog, SetRef(TAG, f"v{number}", ROOT.id)) for number in range(300)]
        with reopen().reading() as view:
            listed = list(view.iter_operations())
            assert listed[:-1] == done[::-1]
            assert [operation.sequence for operation in listed] == list(range(300, -1, -1))
            # Lazily: several at once, and not to the end.
            first, second = view.iter_operations(), view.iter_operations()
            assert (next(first), next(second), next(first)) == (done[-1], done[-1], done[-2])

    def test_an_operation_says_who_what_and_when(self, catalog: Catalog) -> None:
        details = {"text": "é\0", "number": -1.5, "large": 2**62, "list": [1, None, {"deep": True}], "": {}}
        wanted = transaction_of((), kind=OperationKind.SET_STATUS, details=details)
        outcome = catalog.update(wanted)
        assert outcome == Applied(
            Operation(1, wanted.transaction, OperationKind.SET_STATUS, TIME_US, AUTHOR, (), details)
        )
        with catalog.reading() as view:
            assert Applied(next(view.iter_operations())) == outcome

    def test_a_transaction_is_found_after_since(self, catalog: Catalog, reopen: Reopen) -> None:
        done = [apply(catalog, SetValue(CONFIG, b"{}")) for _ in range(400)]
        with reopen().reading() as view:
            for operation in (done[0], done[100], done[143], done[144], done[370], done[-1]):
                for since in (0, operation.sequence - 1):
                    assert view.find_transaction(operation.transaction, since) == operation
                for since in (operation.sequence, view.sequence):
                    assert view.find_transaction(operation.transaction, since) is None
            assert view.find_transaction(new_transaction_id(), 0) is None

    # Once

    def test_a_transaction_is_applied_at_most_once(self, catalog: Catalog, reopen: Reopen) -> None:
        new = entry_of("new")
        wanted = transaction_of(
            (AddSnapshot(new), SetRef(BRANCH, MAIN, new.id)),
            (RefIs(BRANCH, MAIN, ROOT.id),),
            details={"a": (1, 2)},
        )
        outcome = catalog.update(wanted)
        assert isinstance(outcome, Applied)
        assert catalog.update(wanted) == outcome
        apply(catalog, SetRef(BRANCH, MAIN, ROOT.id), DropRef(TAG, "v1"))
        for handle in (catalog, reopen()):
            assert handle.update(wanted) == outcome
            with handle.reading() as view:
                assert (view.sequence, view.ref(BRANCH, MAIN)) == (2, ROOT.id)

    def test_a_refused_transaction_may_be_tried_again(self, catalog: Catalog) -> None:
        wanted = transaction_of([SetRef(TAG, "v2", ROOT.id)], [RefIs(TAG, "v1", ROOT.id)])
        assert isinstance(catalog.update(wanted), Refused)
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        assert isinstance(catalog.update(wanted), Applied)

    @pytest.mark.parametrize("name", IMPOSSIBLE)
    def test_impossible_transactions_are_told_apart_from_refused_ones(
        self, catalog: Catalog, name: str
    ) -> None:
        with pytest.raises(InvalidInputError):
            catalog.update(IMPOSSIBLE[name])
        with catalog.reading() as view:
            assert view.sequence == 0
        apply(catalog, SetRef(TAG, "v1", ROOT.id))

    # Views

    def test_a_view_stays_as_it_is(self, catalog: Catalog, reopen: Reopen) -> None:
        with catalog.reading() as view:
            new = commit_on(catalog, MAIN, "new").changes[0].after
            apply(reopen(), SetRef(TAG, "v1", ROOT.id))
            assert (view.sequence, view.ref(BRANCH, MAIN), view.ref(TAG, "v1")) == (0, ROOT.id, None)
            assert len(list(view.iter_operations())) == 1
            with catalog.reading() as inner:
                assert (inner.sequence, inner.ref(BRANCH, MAIN), inner.ref(TAG, "v1")) == (2, new, ROOT.id)

    def test_each_handle_sees_the_newest_state(self, catalog: Catalog, reopen: Reopen) -> None:
        handles = [catalog, reopen(), reopen()]
        for number in range(30):
            operation = apply(handles[number % 3], SetRef(TAG, f"v{number}", ROOT.id))
            for handle in handles:
                with handle.reading() as view:
                    assert view.sequence == operation.sequence == number + 1
                    assert view.ref(TAG, f"v{number}") == ROOT.id

    def test_a_view_may_be_used_by_several_threads(self, catalog: Catalog) -> None:
        entries = [entry_of(f"snapshot {number}") for number in range(200)]
        for start in range(0, 200, 20):
            apply(catalog, *map(AddSnapshot, entries[start : start + 20]))
        with catalog.reading() as view, ThreadPoolExecutor(RACERS) as pool:
            assert list(pool.map(view.snapshot, [entry.id for entry in entries])) == entries
            assert list(pool.map(lambda _: len(list(view.iter_operations())), range(20))) == [11] * 20

    def test_no_handle_goes_backwards(self, catalog: Catalog) -> None:
        def look(_: int) -> bool:
            seen = []
            for _ in range(50):
                with catalog.reading() as view:
                    seen.append((view.sequence, len(list(view.iter_refs(TAG)))))
            return seen == sorted(seen) and all(sequence == tags for sequence, tags in seen)

        with ThreadPoolExecutor(RACERS) as pool:
            looking = [pool.submit(look, number) for number in range(RACERS - 1)]
            for number in range(40):
                apply(catalog, SetRef(TAG, f"v{number}", ROOT.id))
            assert all(future.result() for future in looking)

    # Races

    def test_one_of_racing_threads_wins_each_round(self, catalog: Catalog, reopen: Reopen) -> None:
        handles = [catalog, reopen(), catalog, reopen()]
        rounds = 25
        start = Barrier(RACERS)

        def race(racer: int) -> list[bool]:
            wins = []
            for number in range(rounds):
                expected = ROOT.id if number == 0 else winners[number - 1]
                new = entry_of(f"round {number} racer {racer}", expected)
                start.wait()
                outcome = handles[racer].update(
                    transaction_of(
                        (AddSnapshot(new), SetRef(BRANCH, MAIN, new.id)), (RefIs(BRANCH, MAIN, expected),)
                    )
                )
                wins.append(isinstance(outcome, Applied))
                if wins[-1]:
                    winners[number] = new.id
                start.wait()
                if isinstance(outcome, Refused):
                    assert outcome.refusals[0].found == winners[number]
            return wins

        winners: dict[int, SnapshotId] = {}
        with ThreadPoolExecutor(RACERS) as pool:
            results = list(pool.map(race, range(RACERS)))
        assert [sum(column) for column in zip(*results, strict=True)] == [1] * rounds
        check_history(catalog, range(1, rounds + 1))

    def test_no_commit_of_racing_threads_is_lost(self, catalog: Catalog, reopen: Reopen) -> None:
        handles = [catalog, reopen(), catalog, reopen()]
        with ThreadPoolExecutor(RACERS) as pool:
            jobs = [pool.submit(commit_many, handles[racer], f"racer {racer}", 15) for racer in range(RACERS)]
            acknowledged = [sequence for job in jobs for sequence in job.result()]
        assert len(acknowledged) == RACERS * 15
        check_history(reopen(), acknowledged)

    def test_no_commit_of_racing_processes_is_lost(self, catalog: Catalog, reopen: Reopen) -> None:
        if not self.can_pickle:
            pytest.skip("no other process can reach it")
        jobs = [(catalog, f"process {number}", 15) for number in range(3)]
        with multiprocessing.get_context("spawn").Pool(3) as pool:
            acknowledged = [sequence for numbers in pool.starmap(commit_many, jobs) for sequence in numbers]
            pool.close()
            pool.join()
        assert len(acknowledged) == 45
        check_history(reopen(), acknowledged)

    def test_one_transaction_from_many_threads_is_applied_once(
        self, catalog: Catalog, reopen: Reopen
    ) -> None:
        handles = [catalog, reopen(), catalog, reopen()]
        for number in range(10):
            wanted = transaction_of([SetRef(TAG, f"v{number}", ROOT.id)], [RefIs(TAG, f"v{number}", ABSENT)])
            start = Barrier(RACERS)

            def act(racer: int, wanted: Transaction = wanted, start: Barrier = start) -> object:
                start.wait()
                return handles[racer].update(wanted)

            with ThreadPoolExecutor(RACERS) as pool:
                outcomes = list(pool.map(act, range(RACERS)))
            assert all(isinstance(outcome, Applied) for outcome in outcomes)
            assert outcomes == outcomes[:1] * RACERS

    # Size

    @pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.deep)])
    def test_a_long_history(self, catalog: Catalog, reopen: Reopen, count: int) -> None:
        parent = ROOT
        entries = [ROOT]
        for number in range(count):
            parent = entry_of(f"snapshot {number}", parent.id)
            updates: list[Update] = [AddSnapshot(parent), SetRef(BRANCH, MAIN, parent.id)]
            if number % 3 == 0:
                updates += [SetRef(TAG, f"v{number}", parent.id), SetRef(BRANCH, f"old{number}", parent.id)]
            if number % 9 == 8:
                updates += [DropRef(BRANCH, f"old{number - 2}"), DropRef(TAG, f"v{number - 2}", retire=True)]
            assert (
                len(apply(catalog, *updates, given=[Retained((entries[-1].id,))]).changes) == len(updates) - 1
            )
            entries.append(parent)
        dropped = {number - 2 for number in range(8, count, 9)}
        kept = [number for number in range(0, count, 3) if number not in dropped]
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert {entry.id: entry for entry in view.iter_snapshots()} == {e.id: e for e in entries}
                assert [view.snapshot(entry.id) for entry in entries] == entries
                assert dict(view.iter_refs(TAG)) == {f"v{n}": entries[n + 1].id for n in kept}
                branches = {f"old{n}": entries[n + 1].id for n in kept}
                assert dict(view.iter_refs(BRANCH)) == branches | {MAIN: parent.id}
                assert [n for n in range(count) if view.is_retired(TAG, f"v{n}")] == sorted(dropped)
                assert view.find_snapshots("", count + 9) == sorted(entry.id for entry in entries)
                numbers = [operation.sequence for operation in view.iter_operations()]
                assert numbers == list(range(count, -1, -1))
                assert len(set(view.iter_pages())) == len(list(view.iter_pages()))
        assert catalog.check() == []

    def test_what_was_written_long_ago_can_be_changed(self, catalog: Catalog, reopen: Reopen) -> None:
        expected: dict[str, SnapshotId] = {}
        entries = []
        for number in range(150):
            entry = entry_of(f"snapshot {number}")
            apply(
                catalog,
                AddSnapshot(entry),
                SetRef(TAG, f"v{number:03}-{'x' * 60}", entry.id),
                MarkPacks((PackState(pack_of(number), PackMark.CONDEMNED, 0, None),)),
            )
            entries.append(entry)
            expected[f"v{number:03}-{'x' * 60}"] = entry.id
        names = sorted(expected)
        for old, new in ((3, 9), (0, 1), (70, 2)):
            apply(catalog, SetRef(TAG, names[old], entries[new].id))
            expected[names[old]] = entries[new].id
        for gone in (5, 1, 99):
            apply(catalog, DropRef(TAG, names[gone]))
            del expected[names[gone]]
        apply(
            catalog, DropRef(TAG, names[7], retire=True), RescuePacks(frozenset(map(pack_of, range(4, 150))))
        )
        del expected[names[7]]
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert list(view.iter_refs(TAG)) == sorted(expected.items())
                assert {name: view.ref(TAG, name) for name in names} == {n: expected.get(n) for n in names}
                assert [name for name in names if view.is_retired(TAG, name)] == [names[7]]
                assert [state.pack for state in view.pack_states(None)] == list(map(pack_of, range(4)))
                assert view.pack_states(frozenset([pack_of(2), pack_of(77)])) == [
                    PackState(pack_of(2), PackMark.CONDEMNED, 0, None)
                ]
        apply(catalog, SetRef(TAG, names[5], ROOT.id), given=[RefIs(TAG, names[5], ABSENT)])
        with reopen().reading() as view:
            assert view.ref(TAG, names[5]) == ROOT.id

    def test_one_large_transaction(self, catalog: Catalog, reopen: Reopen) -> None:
        entries = [entry_of(f"snapshot {number}") for number in range(2000)]
        updates: list[Update] = [AddSnapshot(entry) for entry in entries]
        updates += [SetRef(TAG, f"v{number}", entry.id) for number, entry in enumerate(entries)]
        operation = apply(catalog, *updates)
        assert len(operation.changes) == 2000
        with reopen().reading() as view:
            assert next(view.iter_operations()) == operation
            assert view.find_transaction(operation.transaction, 0) == operation
            assert dict(view.iter_refs(TAG)) == {f"v{n}": entry.id for n, entry in enumerate(entries)}
            assert sorted(view.iter_snapshots()) == sorted([ROOT, *entries])

    # Handles

    def test_it_can_be_written(self, catalog: Catalog, reopen: Reopen) -> None:
        for handle in (catalog, reopen()):
            handle.check_writable()
            handle.check_writable()

    def test_it_may_be_used_after_close(self, catalog: Catalog) -> None:
        catalog.close()
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        with catalog.reading() as view:
            catalog.close()
            assert view.ref(TAG, "v1") == ROOT.id
        catalog.close()
        catalog.close()
        assert catalog.check() == []

    def test_it_pickles(self, catalog: Catalog) -> None:
        if not self.can_pickle:
            pytest.skip("no other process can reach it")
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        copy: Catalog = pickle.loads(pickle.dumps(catalog))
        with copy.reading() as view:
            assert (view.sequence, view.ref(TAG, "v1"), copy.identity) == (1, ROOT.id, IDENTITY)
        apply(copy, SetRef(TAG, "v2", ROOT.id))
        with catalog.reading() as view:
            assert view.ref(TAG, "v2") == ROOT.id
        copy.close()
