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
    Catalog,
    CloseSession,
    DropRef,
    EpochIs,
    Identity,
    MarkPacks,
    NameUnused,
    OpenSession,
    PacksMarked,
    PacksUsable,
    Precondition,
    RefIs,
    Refused,
    RescuePacks,
    Retained,
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
