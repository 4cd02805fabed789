"""The catalog contract: a view of the present state, and one atomic call that changes it.

A `Transaction` lists preconditions and updates under a transaction id. It is applied whole and at most once, or
refused with what was found; nothing is ever changed from a cached state. Order is the sequence number's: every
applied transaction takes the next one, from 0, and leaves one `Operation` in the operations log under it.
Neighbours: `state` says what a transaction does to a state, `sqlite` and `log` keep the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from vstore.errors import InvalidInputError
from vstore.format.record import (
    ExpiredEntry,
    Operation,
    OperationKind,
    PackMark,
    PackState,
    RefKind,
    SessionEntry,
    SnapshotEntry,
)
from vstore.format.refs import BlobRef
from vstore.ids import DIGEST_SIZE, PackId, RepositoryId, SessionId, SnapshotId, TransactionId
from vstore.keys.refs import check_ref_name


class Absent(Enum):
    """The expectation that there is nothing; None is never accepted in its place."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT

CONFIG = "config"
METADATA = "metadata"
STATUS = "status"
PROTECTED = "protected"
VALUE_NAMES = (CONFIG, METADATA, STATUS, PROTECTED)
MAX_VALUE_BYTES = 1024 * 1024


class Identity(NamedTuple):
    """What a repository is: fixed at its creation."""

    repository: RepositoryId
    format_version: int
    required_features: tuple[str, ...]
    created_us: int


FORMAT_VERSION = 1
SUPPORTED_FEATURES: frozenset[str] = frozenset()


# --- preconditions -------------------------------------------------------------------------------------------


class RefIs(msgspec.Struct, frozen=True):
    """The ref holds `expected`, or is `ABSENT`."""

    kind: RefKind
    name: str
    expected: SnapshotId | Absent


class NameUnused(msgspec.Struct, frozen=True):
    """No deleted tag had this name."""

    kind: RefKind
    name: str


class Retained(msgspec.Struct, frozen=True):
    """All these snapshots are retained."""

    snapshots: tuple[SnapshotId, ...]


class NotHeld(msgspec.Struct, frozen=True):
    """No ref (but those in `besides`) points at any of these snapshots; no lease that ends after `now_us` keeps one."""

    snapshots: frozenset[SnapshotId]
    now_us: int
    besides: frozenset[tuple[RefKind, str]] = frozenset()


class BranchesAre(msgspec.Struct, frozen=True):
    """The branches with one of the names or globs in `patterns` are just `held`, sorted by name."""

    patterns: tuple[str, ...]
    held: tuple[tuple[str, SnapshotId], ...]


class EpochIs(msgspec.Struct, frozen=True):
    """No collector has moved since."""

    epoch: int


class PacksUsable(msgspec.Struct, frozen=True):
    """None of these packs is being deleted, or was replaced by another."""

    packs: frozenset[PackId]


class PacksMarked(msgspec.Struct, frozen=True):
    """All these marks are there, each of the same epoch and target."""

    states: tuple[PackState, ...]


class ValueIs(msgspec.Struct, frozen=True):
    """A value (one of `VALUE_NAMES`: JSON bytes) is as expected."""

    name: str
    expected: bytes | Absent


class SessionOpen(msgspec.Struct, frozen=True):
    """The registered session has not been abandoned."""

    session: SessionId


class SessionIs(msgspec.Struct, frozen=True):
    """The session is registered with just this entry."""

    entry: SessionEntry


Precondition: TypeAlias = (
    RefIs
    | NameUnused
    | Retained
    | NotHeld
    | BranchesAre
    | EpochIs
    | PacksUsable
    | PacksMarked
    | ValueIs
    | SessionOpen
    | SessionIs
)


# --- updates -------------------------------------------------------------------------------------------------


class SetRef(msgspec.Struct, frozen=True):
    """Point a ref at a snapshot, creating it if need be. A retired name is in use again."""

    kind: RefKind
    name: str
    snapshot: SnapshotId


class DropRef(msgspec.Struct, frozen=True):
    """Delete a ref; `retire` keeps its name used. Nothing happens if there is no such ref."""

    kind: RefKind
    name: str
    retire: bool = False


class AddSnapshot(msgspec.Struct, frozen=True):
    """Retain a snapshot. If it is retained already, the old entry or this one holds from now on: both are right."""

    entry: SnapshotEntry


class DropSnapshots(msgspec.Struct, frozen=True):
    """Retain these snapshots no longer; history keeps an `ExpiredEntry` of each. Those not retained are passed over."""

    snapshots: tuple[SnapshotId, ...]


class SetValue(msgspec.Struct, frozen=True):
    """Replace a value (JSON bytes)."""

    name: str
    value: bytes


class RescuePacks(msgspec.Struct, frozen=True):
    """Strike these packs from the condemned and replacing lists: a new root needs them."""

    packs: frozenset[PackId]


class MarkPacks(msgspec.Struct, frozen=True):
    """Add these marks; one of the same pack and kind is replaced."""

    states: tuple[PackState, ...]


class UnmarkPacks(msgspec.Struct, frozen=True):
    """Remove marks; those that are absent are passed over."""

    marks: frozenset[tuple[PackId, PackMark]]


class AdvanceEpoch(msgspec.Struct, frozen=True):
    """Add one to the epoch."""


class OpenSession(msgspec.Struct, frozen=True):
    """Register a session, or replace its entry."""

    entry: SessionEntry


class CloseSession(msgspec.Struct, frozen=True):
    """End a session's registration; nothing happens if it has none."""

    session: SessionId


Update: TypeAlias = (
    SetRef
    | DropRef
    | AddSnapshot
    | DropSnapshots
    | SetValue
    | RescuePacks
    | MarkPacks
    | UnmarkPacks
    | AdvanceEpoch
    | OpenSession
    | CloseSession
)


class Transaction(msgspec.Struct, frozen=True):
    """One intended change. `since` is a sequence number that was current before the first try with this id.

    `details` must be what JSON can say. A ref, a snapshot or a value may be changed by one update at most.
    """

    transaction: TransactionId
    since: int
    kind: OperationKind
    time_us: int
    author: str
    preconditions: tuple[Precondition, ...]
    updates: tuple[Update, ...]
    details: dict[str, Any] = msgspec.field(default_factory=dict)


class Refusal(NamedTuple):
    """A precondition that did not hold, and what was found in its place (of a type that depends on it)."""

    precondition: Precondition
    found: object


class Applied(msgspec.Struct, frozen=True):
    """The transaction is in the catalog, now or since an earlier try."""

    operation: Operation


class Refused(msgspec.Struct, frozen=True):
    """Nothing was changed; `sequence` and `epoch` are those of the state that was found."""

    refusals: tuple[Refusal, ...]
    sequence: int
    epoch: int


Outcome: TypeAlias = Applied | Refused


class CatalogView(Protocol):
    """One consistent state. Look-ups cost what they touch, never the whole state.

    Usable from several threads, within the `with` block that gave it. Every method may raise `CorruptionError`:
    damage is never taken for an absent ref or a shorter list.
    """

    @property
    def sequence(self) -> int:
        """The number of the newest operation."""

    @property
    def epoch(self) -> int:
        """How often a collector has changed what may be relied on."""

    @property
    def identity(self) -> Identity:
        """What the repository is."""

    def ref(self, kind: RefKind, name: str) -> SnapshotId | None:
        """Return what the ref holds, or None."""

    def is_retired(self, kind: RefKind, name: str) -> bool:
        """Tell whether a deleted tag had this name."""

    def iter_refs(self, kind: RefKind) -> Iterator[tuple[str, SnapshotId]]:
        """Yield names and snapshots, sorted by name."""

    def snapshot(self, snapshot: SnapshotId) -> SnapshotEntry | None:
        """Return the entry of a retained snapshot, or None."""

    def expired(self, snapshot: SnapshotId) -> ExpiredEntry | None:
        """Return what is kept of an expired snapshot, or None."""

    def find_snapshots(self, prefix: str, limit: int) -> list[SnapshotId]:
        """Return up to `limit` snapshots, retained or expired, whose ids start with these hex digits, sorted."""

    def iter_snapshots(self) -> Iterator[SnapshotEntry]:
        """Yield all retained snapshots, in no special order."""

    def iter_expired(self) -> Iterator[ExpiredEntry]:
        """Yield what is kept of all expired snapshots, in no special order; also of those that were retained again."""

    def iter_operations(self, before: int | None = None) -> Iterator[Operation]:
        """Yield the operations numbered below `before` (None: all), newest first, lazily."""

    def find_transaction(self, transaction: TransactionId, since: int) -> Operation | None:
        """Return the operation of this transaction if one after sequence `since` has it."""

    def value(self, name: str) -> bytes | None:
        """Return the JSON bytes of one of `VALUE_NAMES`, or None if never set."""

    def pack_states(self, packs: frozenset[PackId] | None) -> list[PackState]:
        """Return the marks of these packs (None: of all that have one), sorted. A pack may have several."""

    def session(self, session: SessionId) -> SessionEntry | None:
        """Return a registered session's entry, or None."""

    def iter_sessions(self) -> Iterator[SessionEntry]:
        """Yield all registered sessions."""

    def iter_pages(self) -> Iterator[BlobRef]:
        """Yield where the catalog's own pages are: its state needs them, so gc must keep their packs."""


class Catalog(Protocol):
    """Refs and logs by compare-and-swap. Thread-safe; pickles if its storage does."""

    @property
    def identity(self) -> Identity:
        """What the repository is."""

    def reading(self) -> AbstractContextManager[CatalogView]:
        """Return the newest state; this handle never shows an older one than it has shown before.

        Hold it for a short time only: an SQLite catalog can't reclaim its write-ahead log meanwhile.
        """

    def recall(self) -> CatalogView | None:
        """Return what is at hand of the state that this handle saw last; None where looking anew is as quick.

        No request is made for it. It may have changed since, and what is absent here may be there.
        """

    def confirm(self) -> bool:
        """Make sure that the state seen last is, or was, this catalog's; return False if not, and forget it.

        Only a wrong hint misleads. To be asked before anything is deleted by what was seen, and when something that
        it needs is missing. Costs a request at most once.
        """

    def check_writable(self) -> None:
        """Raise what `update` would raise here, whatever it was asked to do, for lack of rights or guarantees.

        To be called before a session that will write. Costs nothing when called again.
        """

    def update(self, transaction: Transaction) -> Outcome:
        """Apply or refuse `transaction`.

        Raises `CommitOutcomeUnknownError` where the storage can't tell: calling again with the same transaction
        finds out. Any other error means that nothing was changed. Applying again what was applied returns the
        same operation, whatever has happened since.
        """

    def check(self) -> list[str]:
        """Return a sentence for each damage found in the catalog itself."""

    def tidy(self) -> None:
        """Give back room that nothing needs; may be cut off anywhere.

        Changes nothing that can be seen, but that the operations log may say so.
        """

    def sweep(self) -> None:
        """Delete what creators that crashed left beside the catalog; gc calls this, and nothing else is changed."""

    def close(self) -> None:
        """Let go of connections. The catalog may be used again afterwards."""


_NO_EPOCH = -1


def settle(catalog: Catalog, transaction: Transaction) -> Operation | None:
    """Find out whether a transaction whose outcome was unknown, or that was interrupted, was applied.

    Asked for again under a condition that never holds, it is found if it was; if not, it is refused, which a catalog
    says only when no try of it can land any more. It need not hold what it was first asked to do. Raises
    `CommitOutcomeUnknownError` if that still can't be told.
    """
    question = msgspec.structs.replace(transaction, preconditions=(EpochIs(_NO_EPOCH),), updates=())
    outcome = catalog.update(question)
    return outcome.operation if isinstance(outcome, Applied) else None


def check_transaction(transaction: Transaction) -> None:
    """Raise `InvalidInputError` if `transaction` is not one that may be asked for."""
    _require(len(transaction.transaction) == 16, "a transaction id has 16 bytes")
    _require(transaction.since >= 0, "`since` is a sequence number")
    for precondition in transaction.preconditions:
        match precondition:
            case RefIs(_, name, expected):
                _require_expectation(
                    isinstance(expected, bytes) and len(expected) == DIGEST_SIZE, name, expected
                )
            case ValueIs(name, expected_value):
                _require_expectation(isinstance(expected_value, bytes), name, expected_value)
            case _:
                pass
    subjects: list[object] = []
    for update in transaction.updates:
        match update:
            case SetRef(kind, name, snapshot):
                check_ref_name(name)
                _require(len(snapshot) == DIGEST_SIZE, f"ref {name!r} can only be set to a full snapshot id")
                subjects.append((kind, name))
            case DropRef(kind, name):
                subjects.append((kind, name))
            case AddSnapshot(entry):
                subjects.append(entry.id)
            case DropSnapshots(snapshots):
                subjects += snapshots
            case SetValue(name, value):
                _require(name in VALUE_NAMES, f"the values are {', '.join(VALUE_NAMES)}, not {name!r}")
                _require(
                    len(value) <= MAX_VALUE_BYTES,
                    f"{name} has {len(value)} bytes, which is more than {MAX_VALUE_BYTES}",
                )
                subjects.append(name)
            case _:
                pass
    _require(len(set(subjects)) == len(subjects), "a transaction can't change one thing twice")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidInputError(f"this transaction can't be applied: {message}")


def _require_expectation(is_valid: bool, name: str, expected: object) -> None:
    if not is_valid and not isinstance(expected, Absent):
        raise InvalidInputError(
            f"{expected!r} can't be expected of {name!r}: give what it should hold, or ABSENT for nothing"
        )


def check_preconditions(view: CatalogView, transaction: Transaction) -> tuple[Refusal, ...]:
    """Return every precondition of `transaction` that `view` does not meet."""
    refusals = []
    for precondition in transaction.preconditions:
        found = _violation(view, precondition)
        if found is not None:
            refusals.append(Refusal(precondition, found[0]))
    return tuple(refusals)


def _violation(view: CatalogView, precondition: Precondition) -> tuple[object] | None:
    """Return, in a tuple, what was found where `precondition` does not hold."""
    match precondition:
        case RefIs(kind, name, expected):
            found = view.ref(kind, name)
            wanted = None if isinstance(expected, Absent) else expected
            return None if found == wanted else (found,)
        case NameUnused(kind, name):
            return (name,) if view.is_retired(kind, name) else None
        case Retained(snapshots):
            missing = [snapshot for snapshot in snapshots if view.snapshot(snapshot) is None]
            return (missing,) if missing else None
        case NotHeld(unwanted, now_us, besides):
            held = [
                snapshot
                for kind in RefKind
                for name, snapshot in view.iter_refs(kind)
                if (kind, name) not in besides
            ]
            held += [
                entry.snapshot
                for entry in view.iter_sessions()
                if entry.snapshot is not None and entry.expires_us > now_us
            ]
            kept = sorted(unwanted.intersection(held))
            return (kept,) if kept else None
        case BranchesAre(patterns, expected_branches):
            branches = matching_branches(view, patterns)
            return None if branches == expected_branches else (branches,)
        case EpochIs(epoch):
            return None if view.epoch == epoch else (view.epoch,)
        case PacksUsable(packs):
            lost = [s for s in view.pack_states(packs) if s.mark in (PackMark.DELETING, PackMark.RELOCATED)]
            return (lost,) if lost else None
        case PacksMarked(states):
            present = set(view.pack_states(frozenset(state.pack for state in states)))
            lost = [state for state in states if state not in present]
            return (lost,) if lost else None
        case ValueIs(name, expected_value):
            value = view.value(name)
            wanted_value = None if isinstance(expected_value, Absent) else expected_value
            return None if value == wanted_value else (value,)
        case SessionOpen(session):
            return None if view.session(session) is not None else (session,)
        case SessionIs(entry):
            registered = view.session(entry.session)
            return None if registered == entry else (registered,)


def matching_branches(view: CatalogView, patterns: tuple[str, ...]) -> tuple[tuple[str, SnapshotId], ...]:
    """Return the branches with one of these names or globs, and what they hold, sorted by name."""
    return tuple(
        (name, snapshot)
        for name, snapshot in (view.iter_refs(RefKind.BRANCH) if patterns else ())
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    )
