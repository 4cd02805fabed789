"""Undo and restore: refs put back to what the operations log says they held, in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from vstore.catalog.base import (
    ABSENT,
    CatalogView,
    DropRef,
    Precondition,
    RefIs,
    Retained,
    SetRef,
    Update,
    ValueIs,
)
from vstore.errors import (
    ConflictError,
    InvalidInputError,
    ProtectedBranchError,
    SessionStateError,
    SnapshotExpiredError,
)
from vstore.format.record import Operation, OperationKind, RefChange, RefKind
from vstore.handle import Handle, require_unprotected
from vstore.history import is_ancestor, require_entry
from vstore.ids import SnapshotId
from vstore.refs.change import Change, apply, settled
from vstore.refs.operations import OperationInfo, iter_operations, kind_name, newest
from vstore.storage.base import require_writable

_Targets: TypeAlias = dict[tuple[RefKind, str], SnapshotId | None]
"""What refs are to hold; None is to be absent."""


def undo(handle: Handle, expected: int | None) -> Operation:
    """Put the refs of the newest operation that changed any back to what they held before it."""
    if expected is not None and type(expected) is not int:
        raise InvalidInputError(f"{expected!r} is not the number of an operation; ops_log() has them.")

    def plan(view: CatalogView) -> Change | Operation:
        # Number 0 made branch main, so there is always one.
        moved = next(operation for operation in view.iter_operations() if _moves(operation))
        if expected is not None and moved.sequence != expected:
            raise ConflictError(
                f"the newest operation that changed a branch or tag is number {moved.sequence} "
                f"({kind_name(moved)}), not {expected}. Look at ops_log(), then decide."
            )
        if moved.kind == OperationKind.CREATE_REPOSITORY:
            raise SessionStateError("there is nothing to undo but the repository's creation.")
        targets = {(move.kind, move.name): move.before for move in _moves(moved)}
        return _put_back(view, OperationKind.UNDO, (), targets, {"undone": moved.sequence})

    return apply(handle, plan, request=(OperationKind.UNDO, expected))


def restore(handle: Handle, operation: int | OperationInfo) -> Operation:
    """Make all refs what they were right after an operation."""
    require_writable(handle.storage)
    sequence = operation.sequence if isinstance(operation, OperationInfo) else operation
    is_number = type(sequence) is int
    request = (OperationKind.RESTORE, sequence)
    # First, as what fails below would say that nothing was done. True is 1 there, but not an operation.
    done = settled(handle, request) if is_number else None
    if done is not None:
        return done.operation
    with handle.catalog.reading() as view:
        walked = view.sequence
    if not is_number or not 0 <= sequence <= walked:
        raise InvalidInputError(
            f"there is no operation {sequence!r}; ops_log() lists them, from 0 to {walked}."
        )
    targets = _before(iter_operations(handle, walked + 1), sequence)

    def plan(view: CatalogView) -> Change | Operation:
        everything = tuple(RefIs(kind, *ref) for kind in RefKind for ref in view.iter_refs(kind))
        now = _before(view.iter_operations(), walked) | targets
        return _put_back(view, OperationKind.RESTORE, everything, now, {"restored": sequence})

    return apply(handle, plan, request=request)


def _before(operations: Iterator[Operation], last: int) -> _Targets:
    """Return what refs held right after operation `last`, for all that changed since; newest operations first."""
    targets: _Targets = {}
    for operation in operations:
        if operation.sequence <= last:
            break
        targets |= {(move.kind, move.name): move.before for move in _moves(operation)}
    return targets


def _moves(operation: Operation) -> list[RefChange]:
    """Return the refs that hold something else after an operation: a reset may go to where the branch is."""
    return [change for change in operation.changes if change.before != change.after]


def _put_back(
    view: CatalogView,
    kind: OperationKind,
    seen: tuple[RefIs, ...],
    targets: _Targets,
    details: dict[str, Any],
) -> Change | Operation:
    """Return the change that makes refs hold their targets, or the newest operation if all do.

    Its preconditions are `seen` and what the refs that move hold in `view`.
    """
    updates: list[Update] = []
    conditions: dict[Precondition, None] = dict.fromkeys(seen)
    for (ref_kind, name), target in sorted(targets.items()):
        held = view.ref(ref_kind, name)
        if held == target:
            continue
        if target is None:
            updates.append(DropRef(ref_kind, name, retire=ref_kind == RefKind.TAG))
        else:
            _require_retained(view, ref_kind, name, target)
            updates.append(SetRef(ref_kind, name, target))
            conditions[Retained((target,))] = None
        conditions[RefIs(ref_kind, name, ABSENT if held is None else held)] = None
        if ref_kind == RefKind.BRANCH and held is not None:
            conditions |= dict.fromkeys(_require_movable(view, name, held, target))
    if not updates:
        return newest(view)
    return Change(kind, tuple(conditions), tuple(updates), details)


def _require_retained(view: CatalogView, kind: RefKind, name: str, snapshot: SnapshotId) -> None:
    if view.snapshot(snapshot) is None:
        raise SnapshotExpiredError(
            f"{kind.name.lower()} {name!r} can't be put back to snapshot {snapshot.hex()}, which has expired. Nothing "
            "was changed; ops_log() shows what other snapshots it held."
        )


def _require_movable(
    view: CatalogView, branch: str, held: SnapshotId, target: SnapshotId | None
) -> tuple[ValueIs, ...]:
    """Return the preconditions under which a branch may move: a protected one only forward."""
    try:
        return (require_unprotected(view, branch),)
    except ProtectedBranchError:
        if target is None or not is_ancestor(view, require_entry(view, held), require_entry(view, target)):
            raise
        return ()
