"""What a catalog is asked to do, and what it answers: values, each one of a closed list.

A `Transaction` has preconditions, which say what was seen, and updates, which say what is to be. It is `Applied`, or
`Refused` with each precondition that did not hold. Neighbours: `base` says what a catalog promises about them,
`conditions` looks whether preconditions hold, `state` what updates do.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import msgspec

from vstore.format.record import (
    Operation,
    OperationKind,
    PackMark,
    PackState,
    RefKind,
    SessionEntry,
    SnapshotEntry,
)
from vstore.ids import PackId, SessionId, SnapshotId, TransactionId


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


# --- transactions --------------------------------------------------------------------------------------------


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
