"""The catalog contract: a view of the present state, and one atomic call that changes it.

A `Transaction` lists preconditions and updates under a transaction id. It is applied whole and at most once, or
refused with what was found; nothing is ever changed from a cached state. Order is the sequence number's: every
applied transaction takes the next one, from 0, and leaves one `Operation` in the operations log under it.
Neighbours: `transaction` has the values that are passed, which others import from here, `conditions` and `state` say
what they come to in a state, `sqlite` and `log` keep the state.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import msgspec

from vstore.catalog.transaction import (
    ABSENT,
    CONFIG,
    MAX_VALUE_BYTES,
    METADATA,
    PROTECTED,
    STATUS,
    VALUE_NAMES,
    Absent,
    AddSnapshot,
    AdvanceEpoch,
    Applied,
    BranchesAre,
    CloseSession,
    DropRef,
    DropSnapshots,
    EpochIs,
    MarkPacks,
    NameUnused,
    NotHeld,
    OpenSession,
    Outcome,
    PacksMarked,
    PacksUsable,
    Precondition,
    RefIs,
    Refusal,
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
from vstore.errors import CommitOutcomeUnknownError, FormatError, StorageError
from vstore.format.record import ExpiredEntry, Operation, PackState, RefKind, SessionEntry, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.ids import PackId, RepositoryId, SessionId, SnapshotId, TransactionId

__all__ = [
    "ABSENT",
    "CONFIG",
    "FORMAT_VERSION",
    "MAX_VALUE_BYTES",
    "METADATA",
    "PROTECTED",
    "STATUS",
    "SUPPORTED_FEATURES",
    "VALUE_NAMES",
    "Absent",
    "AddSnapshot",
    "AdvanceEpoch",
    "Applied",
    "BranchesAre",
    "Catalog",
    "CatalogView",
    "CloseSession",
    "DropRef",
    "DropSnapshots",
    "EpochIs",
    "Identity",
    "MarkPacks",
    "NameUnused",
    "NotHeld",
    "OpenSession",
    "Outcome",
    "PacksMarked",
    "PacksUsable",
    "Precondition",
    "RefIs",
    "Refusal",
    "Refused",
    "RescuePacks",
    "Retained",
    "SessionIs",
    "SessionOpen",
    "SetRef",
    "SetValue",
    "Transaction",
    "UnmarkPacks",
    "Update",
    "ValueIs",
    "settle",
]


class Identity(NamedTuple):
    """What a repository is: fixed at its creation."""

    repository: RepositoryId
    format_version: int
    required_features: tuple[str, ...]
    created_us: int


FORMAT_VERSION = 1
SUPPORTED_FEATURES: frozenset[str] = frozenset()


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
    try:
        outcome = catalog.update(question)
    except CommitOutcomeUnknownError:
        raise
    except (StorageError, FormatError) as error:
        # The catalog may have answered before, and has no doubt any more: as it is, this would say that nothing landed.
        text = transaction.transaction.hex()
        raise CommitOutcomeUnknownError(
            f"whether transaction {text} was applied can't be told now: {error.message} Retry to find out.",
            transaction_id=text,
        ) from error
    return outcome.operation if isinstance(outcome, Applied) else None
