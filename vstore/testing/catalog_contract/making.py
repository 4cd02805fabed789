"""Entries, transactions and catalogs' states made up for tests, and what is done with them again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pytest

from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    AddSnapshot,
    Applied,
    Catalog,
    DropRef,
    DropSnapshots,
    EpochIs,
    Identity,
    PacksUsable,
    Precondition,
    RefIs,
    Refused,
    RescuePacks,
    Retained,
    SetRef,
    SetValue,
    Transaction,
    Update,
    ValueIs,
)
from vstore.format.record import (
    ExpiredEntry,
    Operation,
    OperationKind,
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


class CatalogTests:
    """What every group of tests is given."""

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
