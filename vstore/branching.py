"""Merge, cherry-pick and revert: commits that put what changed between two snapshots onto a branch.

Each prepares a session whose changes are the merge's, which can be looked at and edited before it is committed.
Below: `merge`, `history`, `session`; above: `repository`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from vstore.catalog.base import CatalogView, RefIs, Retained, SetRef
from vstore.comparison import snapshot_tree
from vstore.config import load_object
from vstore.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    InternalError,
    InvalidInputError,
    MergeConflictError,
    NotFoundError,
    NothingToCommitError,
    RefNotFoundError,
    SnapshotExpiredError,
    UnrelatedHistoriesError,
)
from vstore.format.record import Operation, OperationKind, RefKind, SnapshotEntry
from vstore.handle import Handle
from vstore.history import (
    find_snapshot,
    is_ancestor,
    merge_bases,
    require_branch,
    require_entry,
    require_retained,
)
from vstore.ids import SnapshotId, is_snapshot_text
from vstore.merge.conflicts import CLASHED, Conflict, ConflictType, Decision, UseValue, VersionSelection
from vstore.merge.solvers import SolverSpec, make_solver
from vstore.merge.three_way import merge_trees
from vstore.rebase import Changes, Origin
from vstore.refs import Change, Done, apply, settled
from vstore.session import Session
from vstore.storage.base import require_writable
from vstore.worktree import Worktree
from vstore.worktree.copying import copy_worktree

_TRIES = 20
_MAX_BASES = 16


@dataclass(frozen=True, slots=True)
class CommitText:
    """What the commit says; None stands for a text that says what it is."""

    message: str | None
    metadata: Mapping[str, Any] | None


def find_source(view: CatalogView, name: object) -> SnapshotEntry:
    """Return the snapshot that a branch, a tag or a snapshot id names, in this order."""
    if not isinstance(name, str):
        raise InvalidInputError(
            f"{name!r} is not a name. Give a branch, a tag or a snapshot id of this repository, as text."
        )
    for kind in (RefKind.BRANCH, RefKind.TAG):
        found = view.ref(kind, name)
        if found is not None:
            return require_entry(view, found)
    if is_snapshot_text(name):
        return find_snapshot(view, name)
    raise RefNotFoundError(f"there is no branch, tag or snapshot {name!r} in this repository.")


# --- merge ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """Merge `source` (a branch, tag or snapshot id) into branch `into`; `squash` keeps no second parent."""

    source: str
    into: str
    solver: SolverSpec
    squash: bool = False


def merge(
    handle: Handle,
    request: MergeRequest,
    text: CommitText,
    defaults: Mapping[str, Any],
    *,
    fast_forward: bool,
) -> str:
    """Merge, and return the id of the branch's new head, or of its head if the source is in it already."""
    make_solver(request.solver)
    require_writable(handle.storage)

    def attempt() -> str:
        with handle.catalog.reading() as view:
            head, source = _ends(view, request)
            if is_ancestor(view, source, head):
                return head.id.hex()
            is_ahead = is_ancestor(view, head, source)
        if is_ahead and fast_forward and not request.squash:
            _fast_forward(handle, request, head, source, asked)
            return source.id.hex()
        message = f"Merge {request.source!r} into {request.into!r}" if text.message is None else text.message
        says = CommitText(message, text.metadata)
        with merge_session(handle, request, defaults) as session:
            return _commit(handle, session, says, asked)

    asked = ("merge", request.source, request.into, request.squash)
    # Where there is more to take in by now, that is merged.
    landed = _landed(handle, asked, request.into, request.source, "merged")
    return landed or _until_the_branch_stands_still(attempt)


def merge_session(handle: Handle, request: MergeRequest, defaults: Mapping[str, Any]) -> Session:
    """Return a session on the branch whose changes are the merge's."""
    solver = make_solver(request.solver)
    require_writable(handle.storage)
    with handle.catalog.reading() as view:
        epoch = view.epoch
        head, source = _ends(view, request)
        if is_ancestor(view, source, head):
            raise NothingToCommitError(f"{request.source!r} is merged into {request.into!r} already.")
    base = merge_base_tree(handle, head, source)
    origin = Origin(
        OperationKind.MERGE,
        parents=() if request.squash else (source,),
        sources=(source.id,),
        details={"merged": source.id.hex()},
    )
    session = Session(handle, head, branch=request.into, default_metadata=defaults, epoch=epoch)
    session.apply(Changes(base, snapshot_tree(handle, source), origin), solver)
    return session


def _ends(view: CatalogView, request: MergeRequest) -> tuple[SnapshotEntry, SnapshotEntry]:
    head = require_entry(view, require_branch(view, request.into))
    return head, find_source(view, request.source)


def _fast_forward(
    handle: Handle, request: MergeRequest, head: SnapshotEntry, source: SnapshotEntry, asked: Hashable
) -> None:
    branch = RefKind.BRANCH, request.into
    change = Change(
        OperationKind.MERGE,
        (RefIs(*branch, head.id), Retained((source.id,))),
        (SetRef(*branch, source.id),),
        {"merged": source.id.hex()},
    )
    apply(handle, lambda view: change, request=asked)


def _commit(handle: Handle, session: Session, text: CommitText, asked: Hashable) -> str:
    """Commit a session; if its outcome is unknown, who asks for the same again finds out."""
    try:
        return session.commit(text.message or "", text.metadata)
    except CommitOutcomeUnknownError:
        doubtful = session.transaction_in_doubt
        if doubtful is not None:
            handle.doubts.note(asked, doubtful)
        raise


def _landed(handle: Handle, asked: Hashable, branch: str, source: str, detail: str) -> str | None:
    """Return the snapshot that an earlier call for the same made, if its outcome was unknown and it landed.

    Only if the branch still has it, and `source` means what it meant then, by the operation's `detail`. A name that
    was moved by the snapshot itself, as when a branch's own head was reverted, or that is gone, still does.
    """

    def lasts(view: CatalogView, done: Done) -> bool:
        made = _made(done.operation)
        entry, head = view.snapshot(made), view.ref(RefKind.BRANCH, branch)
        if entry is None or head is None or not is_ancestor(view, entry, require_entry(view, head)):
            return False
        try:
            now = find_source(view, source)
        except NotFoundError:
            return True
        return now.id.hex() == done.operation.details.get(detail) or is_ancestor(view, entry, now)

    done = settled(handle, asked, lasts)
    return None if done is None else _made(done.operation).hex()


def _made(done: Operation) -> SnapshotId:
    """Return what a merge, pick or revert put into its branch."""
    return next(change.after for change in done.changes if change.after)


def _until_the_branch_stands_still(attempt: Callable[[], str]) -> str:
    """Try again when somebody else moved the branch meanwhile."""
    for tries_left in reversed(range(_TRIES)):
        try:
            return attempt()
        except MergeConflictError:
            raise
        except ConflictError:
            if not tries_left:
                raise
    raise InternalError("unreachable")


# --- the merge base ------------------------------------------------------------------------------------------


def merge_base_tree(handle: Handle, one: SnapshotEntry, other: SnapshotEntry) -> Worktree:
    """Return what two snapshots have in common.

    Where histories crossed there are several best common ancestors; they are merged into one, as git does, and what
    they disagree on equals neither side, so that it is a conflict unless both sides agree.
    """
    with handle.catalog.reading() as view:
        bases = merge_bases(view, one, other)[:_MAX_BASES]
    if not bases:
        raise UnrelatedHistoriesError(
            f"{one.id.hex()[:12]} and {other.id.hex()[:12]} have no common ancestor, so that nothing tells what each "
            "side changed."
        )
    first, *others = map(require_retained, bases)
    tree = snapshot_tree(handle, first)
    for entry in others:
        tree = _merge_bases_into_one(handle, tree, first, entry)
    return tree


def _merge_bases_into_one(
    handle: Handle, tree: Worktree, first: SnapshotEntry, entry: SnapshotEntry
) -> Worktree:
    try:
        base = merge_base_tree(handle, first, entry)
    except (UnrelatedHistoriesError, SnapshotExpiredError):
        return tree
    incoming = snapshot_tree(handle, entry)
    try:
        merged = merge_trees(
            base, tree, incoming, _BaseSolver(), lambda: copy_worktree(tree), incoming_is_ours=False
        )
    except MergeConflictError:
        # They can't be put together: the newest of them is a right base, which may only see more conflicts.
        return tree
    return merged.tree


class _BaseSolver:
    """Decides what a merged base has where its parts disagree: something that equals neither, where there can be."""

    per_chunk = True

    def solve(self, conflict: Conflict) -> Decision:
        if conflict.conflict_type == ConflictType.ChunkDoubleUpdate:
            return UseValue(CLASHED)
        if conflict.attribute is not None:
            return UseValue({"vstore": "the merge bases disagree"})
        return VersionSelection.UseOurs


# --- cherry-pick and revert ----------------------------------------------------------------------------------


def cherry_pick(
    handle: Handle,
    snapshot: str,
    branch: str,
    text: CommitText,
    defaults: Mapping[str, Any],
    *,
    solver: SolverSpec,
    parent: int | None,
) -> str:
    """Put what one commit changed onto a branch; its message and metadata go along."""
    make_solver(solver)
    asked = ("cherry-pick", snapshot, branch, parent)
    require_writable(handle.storage)
    landed = _landed(handle, asked, branch, snapshot, "picked")
    if landed is not None:
        return landed
    with handle.catalog.reading() as view:
        picked = find_source(view, snapshot)
        before = _parent_of(view, picked, parent, "picked")
    info = _text_of(handle, picked)
    says = CommitText(
        info[0] if text.message is None else text.message, info[1] if text.metadata is None else text.metadata
    )
    origin = Origin(OperationKind.CHERRY_PICK, sources=(picked.id,), details={"picked": picked.id.hex()})
    ends = before, picked
    return _commit_changes(handle, branch, ends, origin, says, defaults, solver, asked)


def revert(
    handle: Handle,
    snapshot: str,
    branch: str,
    text: CommitText,
    defaults: Mapping[str, Any],
    *,
    since: str | None,
    solver: SolverSpec,
    parent: int | None,
) -> str:
    """Undo, on a branch, what one commit changed, or all commits after `since` up to that one."""
    make_solver(solver)
    asked = ("revert", snapshot, branch, since, parent)
    require_writable(handle.storage)
    landed = _landed(handle, asked, branch, snapshot, "reverted")
    if landed is not None:
        return landed
    with handle.catalog.reading() as view:
        undone = find_source(view, snapshot)
        if since is None:
            before = _parent_of(view, undone, parent, "reverted")
        else:
            before = find_source(view, since)
            if before.id == undone.id or not is_ancestor(view, before, undone):
                raise InvalidInputError(
                    f"{since!r} is not an ancestor of {snapshot!r}: there are no commits between them to be reverted."
                )
    first_line = (_text_of(handle, undone)[0].splitlines() or [""])[0]
    what = (
        f"{first_line!r}"
        if since is None
        else f"everything after {before.id.hex()[:12]} up to {first_line!r}"
    )
    says = CommitText(
        f"Revert {what}\n\nThis reverts {undone.id.hex()}." if text.message is None else text.message,
        text.metadata,
    )
    origin = Origin(
        OperationKind.REVERT,
        sources=(before.id,),
        details={"reverted": undone.id.hex(), "since": before.id.hex()},
    )
    ends = undone, before
    return _commit_changes(handle, branch, ends, origin, says, defaults, solver, asked)


def _commit_changes(
    handle: Handle,
    branch: str,
    ends: tuple[SnapshotEntry, SnapshotEntry],
    origin: Origin,
    text: CommitText,
    defaults: Mapping[str, Any],
    solver: SolverSpec,
    asked: Hashable,
) -> str:
    """Commit what changed from one snapshot to another onto a branch."""
    chosen = make_solver(solver)

    def attempt() -> str:
        with handle.catalog.reading() as view:
            head, epoch = require_entry(view, require_branch(view, branch)), view.epoch
        base, incoming = (snapshot_tree(handle, entry) for entry in ends)
        with Session(handle, head, branch=branch, default_metadata=defaults, epoch=epoch) as session:
            session.apply(Changes(base, incoming, origin), chosen)
            return _commit(handle, session, text, asked)

    return _until_the_branch_stands_still(attempt)


def _parent_of(view: CatalogView, entry: SnapshotEntry, number: int | None, done: str) -> SnapshotEntry:
    """Return the parent to compare a commit with; of a merge, the one that the user chose, counted from 1."""
    short = entry.id.hex()[:12]
    if not entry.parents:
        raise InvalidInputError(f"{short} is the first snapshot: it changed nothing that could be {done}.")
    if number is None:
        if len(entry.parents) > 1:
            raise InvalidInputError(
                f"{short} is a merge of {len(entry.parents)} parents: say with parent=1 which of them it is compared "
                f"with to be {done} (1 is the branch that was merged into)."
            )
        number = 1
    if type(number) is not int or not 1 <= number <= len(entry.parents):
        raise InvalidInputError(f"{short} has no parent number {number!r}; it has {len(entry.parents)}.")
    return require_entry(view, entry.parents[number - 1])


def _text_of(handle: Handle, entry: SnapshotEntry) -> tuple[str, dict[str, Any]]:
    if entry.info is None:
        snapshot = handle.blobs_for(entry.id).snapshot(entry.ref)
        return snapshot.message, load_object(snapshot.metadata, "a snapshot's metadata")
    return entry.info[0], load_object(entry.info[1], "a snapshot's metadata")
