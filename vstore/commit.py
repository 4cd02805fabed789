"""The write order of a commit, stated once.

Chunk packs, then the metadata at the end of the last of them, all made durable, then one catalog transaction. A
crash between any two leaves unreferenced packs, and nothing else.

`prepare` builds and uploads; `publish` is the catalog transaction and can be asked again: the same transaction is
applied at most once. docs/architecture.md has the protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vstore.blobs.metadata import MetadataBatch
from vstore.blobs.reader import remember_snapshot
from vstore.blobs.uploads import UploadTries
from vstore.blobs.writer import BlobWriter
from vstore.catalog.base import (
    ABSENT,
    Absent,
    AddSnapshot,
    Applied,
    CatalogView,
    CloseSession,
    EpochIs,
    Outcome,
    PacksUsable,
    Precondition,
    RefIs,
    Refused,
    RescuePacks,
    Retained,
    SessionOpen,
    SetRef,
    Transaction,
    Update,
    ValueIs,
)
from vstore.catalog.base import settle as catalog_settle
from vstore.errors import (
    ConflictError,
    MissingBlobError,
    OutcomeUnknownError,
    SessionStateError,
    SnapshotExpiredError,
    StorageError,
)
from vstore.format.envelope import BlobKind
from vstore.format.page import Child
from vstore.format.record import HistoryEntry, OperationKind, PackMark, RefKind, SnapshotEntry, relocations
from vstore.format.snapshot import Snapshot, encode_snapshot
from vstore.handle import Handle, require_online, require_unprotected
from vstore.history import jump_target
from vstore.ids import PackId, SessionId, SnapshotId, TransactionId, new_transaction_id
from vstore.keys.objects import pack_name
from vstore.worktree import Worktree
from vstore.worktree.encode import EncodedTree, encode_worktree
from vstore.worktree.relocating import borrowed_packs, relocate_pending

MAX_ENTRY_INFO_BYTES = 2048
"""A longer message and metadata are not repeated in the catalog's entry, but read from the snapshot."""
_EPOCH_TRIES = 20
MOVED_TRIES = 5
"""How often a commit is prepared anew because compact moved what it points at."""


Encode: TypeAlias = Callable[[Worktree, MetadataBatch], EncodedTree]
"""Writes a worktree's metadata into a batch."""


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """What to commit and where to. `branch` None makes a snapshot that no ref names.

    `expected` is what the branch must hold; `parents` are the new snapshot's, which differ from it in a merge and in an
    amend, where they may have expired. `sources` are other snapshots whose blobs the new one points at. `conditions`
    must hold too: that the branch is not protected, where it is not moved forward. `epoch` is the catalog's when the
    session began: if it moved, a pack that was sealed since then may have been deleted. `encode` makes the metadata.
    """

    kind: OperationKind
    message: str
    metadata: bytes
    branch: str | None
    expected: SnapshotId | Absent
    parents: tuple[HistoryEntry, ...]
    allow_empty: bool = False
    epoch: int = 0
    sources: tuple[SnapshotId, ...] = ()
    conditions: tuple[Precondition, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    encode: Encode = encode_worktree


@dataclass(frozen=True, slots=True)
class Prepared:
    """A snapshot that is durable in storage but in no catalog yet, with the transaction that will put it there."""

    request: CommitRequest
    transaction: TransactionId
    since: int
    entry: SnapshotEntry
    root: Child | None
    packs: frozenset[PackId]
    epoch: int
    online: ValueIs


class Unchanged:
    """Everything that was written equals the base: there is nothing to commit."""


UNCHANGED = Unchanged()
Preparation: TypeAlias = Prepared | Unchanged


def prepare(handle: Handle, tree: Worktree, request: CommitRequest) -> Preparation:
    """Make the chunks, the metadata and the snapshot of `request` durable."""
    writer = tree.writer
    borrowed = borrowed_packs(tree)
    with handle.catalog.reading() as view:
        online = require_online(view)
        _check_ref(view.ref(RefKind.BRANCH, request.branch) if request.branch else None, request)
        since, epoch = view.sequence, view.epoch
        jump = jump_target(view, request.parents[0] if request.parents else None)
        moved = _relocations(view, borrowed)
    if moved:
        with tree.lock:
            relocate_pending(tree, moved)
    tries = UploadTries(handle.storage, handle.clock)
    while True:
        try:
            writer.flush()
        except OutcomeUnknownError as error:
            # It was tried several times.
            raise _not_uploaded(error) from error
        try:
            built = _build(handle, tree, writer, request, jump)
        except OutcomeUnknownError as error:
            # The pack's name is in doubt; the next round writes everything under another.
            if not tries.wait():
                raise _not_uploaded(error) from error
            continue
        if isinstance(built, Unchanged):
            return built
        entry, root, packs = built
        return Prepared(request, new_transaction_id(), since, entry, root, packs, epoch, online)


def _not_uploaded(error: OutcomeUnknownError) -> StorageError:
    """Return what it means for a commit that no pack of it is surely there: no catalog names one."""
    return StorageError(
        f"what was to be committed could not be uploaded: {error.message} Nothing was committed, and the session still "
        "holds everything: commit again when the storage is well."
    )


def _relocations(view: CatalogView, packs: frozenset[PackId]) -> dict[PackId, PackId]:
    """Return the targets of those of `packs` that compact replaced."""
    return relocations(view.pack_states(packs)) if packs else {}


def _check_ref(found: SnapshotId | None, request: CommitRequest) -> None:
    """Probe the head before uploading metadata for nothing."""
    if request.branch is not None and found != (None if request.expected is ABSENT else request.expected):
        raise _conflict(request, found)


def _build(
    handle: Handle, tree: Worktree, writer: BlobWriter, request: CommitRequest, jump: SnapshotId | None
) -> tuple[SnapshotEntry, Child | None, frozenset[PackId]] | Unchanged:
    batch = writer.begin_metadata()
    try:
        with tree.lock:
            encoded = request.encode(tree, batch)
        if not encoded.is_changed and not request.allow_empty:
            writer.drop_metadata(batch)
            return UNCHANGED
        parent_times = [parent.time_us + 1 for parent in request.parents]
        snapshot = Snapshot(
            tuple(parent.id for parent in request.parents),
            max(handle.clock.now_us(), *parent_times, 0),
            request.message,
            request.metadata,
            encoded.root,
        )
        ref = batch.add(BlobKind.SNAPSHOT, encode_snapshot(snapshot))
        remember_snapshot(ref, snapshot)
    except BaseException:
        writer.drop_metadata(batch)
        raise
    short = len(request.message.encode()) + len(request.metadata) <= MAX_ENTRY_INFO_BYTES
    entry = SnapshotEntry(
        ref,
        snapshot.parents,
        snapshot.time_us,
        request.parents[0].depth + 1 if request.parents else 0,
        jump,
        batch.start,
        batch.length,
        (request.message, request.metadata) if short else None,
    )
    writer.finish(batch)
    return entry, encoded.root, encoded.packs | {ref.pack}


def publish(handle: Handle, prepared: Prepared, registered: SessionId | None = None) -> SnapshotId:
    """Put a prepared snapshot into the catalog; asking again with the same one is safe.

    `registered` is the session that made it, if it is registered: it must not have been abandoned, and is closed.
    Raises `ConflictError` if the branch moved, `PacksMovedError` if it must be prepared anew,
    `CommitOutcomeUnknownError` if the storage can't tell.
    """
    request = prepared.request
    epoch, online, guards = prepared.epoch, prepared.online, request.conditions
    if epoch != request.epoch:
        # A collector moved since the session began, which may have sealed packs before this commit.
        _check_present(handle, prepared.packs)
    for _ in range(_EPOCH_TRIES):
        conditions = (online, EpochIs(epoch), *guards, *_preconditions(prepared, registered))
        transaction = transaction_of(prepared, handle.author, conditions, updates_of(prepared, registered))
        outcome = handle.catalog.update(transaction)
        if isinstance(outcome, Applied):
            handle.doubts.overtake(transaction, outcome.operation)
            return prepared.entry.id
        _raise_refusal(outcome, prepared)
        with handle.catalog.reading() as view:
            online, found, guards = require_online(view), view.epoch, _guards(view, request)
        if found != epoch:
            # A collector moved since the packs were written: what it may have deleted must be looked at.
            _check_present(handle, prepared.packs)
            epoch = found
    raise StorageError(
        f"the commit gave up after {_EPOCH_TRIES} tries, as garbage collection kept moving. Nothing was changed; "
        "commit again."
    )


def _guards(view: CatalogView, request: CommitRequest) -> tuple[Precondition, ...]:
    """Return the conditions of `request` by what is there now: other branches may have been protected."""
    if not request.conditions or request.branch is None:
        return ()
    return (require_unprotected(view, request.branch),)


def settle(handle: Handle, prepared: Prepared) -> bool:
    """Tell whether a commit whose outcome was unknown, or that was interrupted, is in the catalog."""
    transaction = transaction_of(prepared, handle.author, (), updates_of(prepared))
    done = catalog_settle(handle.catalog, transaction)
    if done is not None:
        handle.doubts.overtake(transaction, done)
    return done is not None


def transaction_of(
    prepared: Prepared,
    author: str,
    preconditions: tuple[Precondition, ...] = (),
    updates: tuple[Update, ...] = (),
) -> Transaction:
    """Return the catalog's transaction for a prepared snapshot; it can be asked for without what it is to do."""
    return Transaction(
        prepared.transaction,
        prepared.since,
        prepared.request.kind,
        prepared.entry.time_us,
        author,
        preconditions,
        updates,
        prepared.request.details,
    )


def _preconditions(prepared: Prepared, registered: SessionId | None) -> tuple[Any, ...]:
    request = prepared.request
    # What is amended is retained while the branch holds it, and the new snapshot points at nothing else.
    built_on = () if request.kind == OperationKind.AMEND else tuple(parent.id for parent in request.parents)
    conditions: list[Any] = [
        Retained((*built_on, *request.sources)),
        PacksUsable(prepared.packs),
    ]
    if request.branch is not None:
        conditions.append(RefIs(RefKind.BRANCH, request.branch, request.expected))
    if registered is not None:
        conditions.append(SessionOpen(registered))
    return tuple(conditions)


def updates_of(prepared: Prepared, registered: SessionId | None = None) -> tuple[Update, ...]:
    """Return what a prepared snapshot changes in the catalog."""
    request = prepared.request
    updates: list[Update] = [AddSnapshot(prepared.entry), RescuePacks(prepared.packs)]
    if request.branch is not None:
        updates.append(SetRef(RefKind.BRANCH, request.branch, prepared.entry.id))
    if registered is not None:
        updates.append(CloseSession(registered))
    return tuple(updates)


def _check_present(handle: Handle, packs: frozenset[PackId]) -> None:
    missing = [pack for pack in packs if handle.storage.size(pack_name(pack)) is None]
    if not missing:
        return
    with handle.catalog.reading() as view:
        moved = _relocations(view, frozenset(missing))
    lost = [pack for pack in missing if pack not in moved]
    raise _lost_packs(lost) if lost else _packs_moved()


class PacksMovedError(StorageError):
    """Compact replaced packs that a prepared snapshot names: prepared anew, it names those that replaced them."""


def _packs_moved() -> PacksMovedError:
    return PacksMovedError(
        "compact kept moving what this commit points at. Nothing was changed; commit again."
    )


def _lost_packs(packs: list[PackId]) -> MissingBlobError:
    names = ", ".join(pack.hex() for pack in packs[:3])
    return MissingBlobError(
        f"garbage collection deleted packs that this commit needs ({names}): the session was idle for longer than "
        "its grace period. Nothing was committed; run the writes again in a new session."
    )


def _raise_refusal(outcome: Outcome, prepared: Prepared) -> None:
    """Raise what the refused preconditions mean; return if only the epoch moved, so that it can be tried again."""
    assert isinstance(outcome, Refused)
    for precondition, found in outcome.refusals:
        match precondition:
            case RefIs():
                raise _conflict(prepared.request, found)
            case Retained():
                gone = found[0].hex() if isinstance(found, list) else "it started from"
                raise SnapshotExpiredError(
                    f"snapshot {gone}, on which this session's changes are built, has expired. Nothing was "
                    "committed; run the writes again in a new session."
                )
            case PacksUsable():
                assert isinstance(found, list)
                deleted = [state.pack for state in found if state.mark == PackMark.DELETING]
                raise _lost_packs(deleted) if deleted else _packs_moved()
            case SessionOpen():
                raise SessionStateError(
                    "this session was abandoned by an explicit call. Nothing was committed; start a new session."
                )
            case _:
                # The epoch, the status or the protection of branches moved: look again.
                continue


def _conflict(request: CommitRequest, found: object) -> ConflictError:
    expected = None if isinstance(request.expected, Absent) else request.expected.hex()
    actual = found.hex() if isinstance(found, bytes) else None
    if actual:
        where = f"now holds {actual}"
        remedy = 'commit(message, rebase_with="fail") puts them on top where nothing clashes'
    else:
        where, remedy = "was deleted", "create it again and commit"
    return ConflictError(
        f"branch {request.branch!r} {where}; this session started from {expected}. Nothing was committed and the "
        f"session still holds its changes: {remedy}; flush(message) keeps them as a snapshot.",
        expected_parent=expected,
        actual_parent=actual,
    )
