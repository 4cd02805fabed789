"""What moves branches and tags, and the log of what was done: one catalog transaction for each change.

A change is decided on a view of the catalog, as a `Change`, and applied by `apply` under preconditions that say what
was seen. `undo` and `restore` put refs back to what the operations log says they held; `protect` keeps branches from
being moved back or deleted. `repository` gives all of this its public names, `history` finds the snapshots.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, NoReturn, TypeAlias

import msgspec

from vstore.catalog.base import (
    ABSENT,
    PROTECTED,
    Absent,
    Applied,
    CatalogView,
    DropRef,
    NameUnused,
    Precondition,
    RefIs,
    Refusal,
    Retained,
    SessionIs,
    SetRef,
    SetValue,
    Transaction,
    Update,
    ValueIs,
    settle,
)
from vstore.clock import to_datetime
from vstore.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    FormatError,
    InternalError,
    InvalidInputError,
    ProtectedBranchError,
    RefExistsError,
    RefNotFoundError,
    SessionStateError,
    SnapshotExpiredError,
    StorageError,
    VStoreError,
)
from vstore.format.record import Operation, OperationKind, RefChange, RefKind
from vstore.handle import Handle, protected_patterns, require_online, require_unprotected
from vstore.history import find_snapshot, is_ancestor, require_branch, require_entry, require_tag
from vstore.ids import SnapshotId, new_transaction_id, parse_snapshot_id
from vstore.keys.refs import check_ref_name
from vstore.storage.base import require_writable

MAIN = "main"
_TRIES = 20
_BATCH = 256
_GLOB = re.compile(r"\[[^\]]+\]|[*?]")


@dataclass(frozen=True, slots=True)
class OperationInfo:
    """One entry of the operations log: who did what when, and the refs before and after.

    `changes` has the kind and the name of each ref, and the ids that it held before and after, None for no such ref.
    `details` says more where there is more: what was undone or restored, which pattern was protected.
    """

    sequence: int
    kind: str
    written_at: datetime
    author: str
    changes: tuple[tuple[str, str, str | None, str | None], ...]
    details: dict[str, Any] = field(default_factory=dict, hash=False)


# --- applying ------------------------------------------------------------------------------------------------


class Change(msgspec.Struct, frozen=True):
    """What a transaction should do, as decided on one view."""

    kind: OperationKind
    preconditions: tuple[Precondition, ...]
    updates: tuple[Update, ...]
    details: dict[str, Any] = msgspec.field(default_factory=dict)


_PASSING = (ValueIs, Retained, SessionIs)
Plan: TypeAlias = Callable[[CatalogView], Change | Operation]
"""Decides on a view what to do; an operation says that there is nothing to do, and is what `apply` returns."""


def apply(handle: Handle, plan: Plan, *, request: Hashable = None) -> Operation:
    """Apply what `plan` decides, or raise what its refusal means.

    If only a value moved meanwhile (status, protection, settings), a snapshot expired, or a session's registration
    changed, `plan` decides anew. `request` says what is asked for: if that was in doubt, this finds out first, and
    does nothing more if it was applied (`settled`).
    """
    handle.catalog.check_writable()
    done = None if request is None else settled(handle, request)
    if done is not None:
        return done
    for tries_left in reversed(range(_TRIES)):
        with handle.catalog.reading() as view:
            change = plan(view)
            if isinstance(change, Operation):
                return change
            online = () if change.kind == OperationKind.SET_STATUS else (require_online(view),)
            since = view.sequence
        transaction = Transaction(
            new_transaction_id(),
            since,
            change.kind,
            handle.clock.now_us(),
            handle.author,
            (*online, *change.preconditions),
            change.updates,
            change.details,
        )
        try:
            outcome = handle.catalog.update(transaction)
        except (CommitOutcomeUnknownError, KeyboardInterrupt):
            if request is not None:
                handle.doubts.note(request, transaction)
            raise
        if isinstance(outcome, Applied):
            return outcome.operation
        lasting = [each for each in outcome.refusals if not isinstance(each.precondition, _PASSING)]
        if lasting or not tries_left:
            _raise_refusal((lasting or outcome.refusals)[0], change.kind)
    raise InternalError("unreachable")


Lasts: TypeAlias = Callable[[CatalogView, Operation], bool]
"""Tells whether what an operation did is still an answer to who asks for the same."""


def settled(handle: Handle, request: Hashable, lasts: Lasts | None = None) -> Operation | None:
    """Return the operation of an earlier call for the same, if it was in doubt and was applied.

    It is not done twice, whatever others did since: that would take their work away, or refuse what was done. Only
    what does not last by `lasts` is made anew; by default a new branch that they deleted.
    """
    doubtful = handle.doubts.get(request)
    if doubtful is None:
        return None
    done = settle(handle.catalog, doubtful)
    if lasts is None and doubtful.kind == OperationKind.CREATE_BRANCH:
        lasts = _is_there
    if done is not None and lasts is not None:
        try:
            with handle.catalog.reading() as view:
                is_answer = lasts(view, done)
        except (StorageError, FormatError) as error:
            # As it is, it would say that nothing was done. The doubt stays.
            raise _still_in_doubt(doubtful, error) from error
        done = done if is_answer else None
    handle.doubts.forget(request, doubtful)
    return done


def _is_there(view: CatalogView, done: Operation) -> bool:
    return all(view.ref(change.kind, change.name) is not None for change in done.changes)


def _still_in_doubt(doubtful: Transaction, error: VStoreError) -> CommitOutcomeUnknownError:
    text = doubtful.transaction.hex()
    return CommitOutcomeUnknownError(
        f"transaction {text} was applied, as it turned out; whether what it did was taken back since can't be told: "
        f"{error.message} Retry to find out.",
        transaction_id=text,
    )


def _raise_refusal(refusal: Refusal, kind: OperationKind) -> NoReturn:
    match refusal.precondition:
        case RefIs(ref_kind, name, expected):
            _raise_moved(f"{ref_kind.name.lower()} {name!r}", expected, refusal.found, kind)
        case NameUnused(_, name):
            raise RefExistsError(
                f"a deleted tag was called {name!r}, and its name stays taken. Choose another, or pass force=True."
            )
        case Retained(snapshots):
            raise SnapshotExpiredError(f"snapshot {snapshots[0].hex()} has expired meanwhile.")
        case ValueIs(name, _):
            raise ConflictError(f"the repository's {name} was changed by somebody else meanwhile. Try again.")
        case other:
            raise StorageError(f"the change was refused ({type(other).__name__}); try again.")


def _raise_moved(noun: str, expected: SnapshotId | Absent, found: object, kind: OperationKind) -> NoReturn:
    wanted = None if isinstance(expected, Absent) else expected.hex()
    actual = found.hex() if isinstance(found, bytes) else None
    if kind not in (OperationKind.UNDO, OperationKind.RESTORE):
        if wanted is None:
            raise RefExistsError(f"there is a {noun} already; choose another name.")
        if actual is None:
            raise RefNotFoundError(f"{noun} was deleted meanwhile.")
    raise ConflictError(
        f"{noun} holds {actual or 'nothing'}, not {wanted or 'nothing'}. Look at it, then decide.",
        expected_parent=wanted,
        actual_parent=actual,
    )


def set_value(
    handle: Handle,
    kind: OperationKind,
    name: str,
    change: Callable[[bytes | None], bytes],
    *,
    request: Hashable = None,
) -> bytes:
    """Replace a value of the catalog by what `change` makes of it, by compare-and-swap, and return the new one.

    `request` is as in `apply`.
    """
    made: bytes | None = None
    asked = None if request is None else (kind, name, request)
    doubtful = None if asked is None else handle.doubts.get(asked)

    def plan(view: CatalogView) -> Change:
        nonlocal made
        old = view.value(name)
        made = change(old)
        return _replacement(kind, name, old, made)

    apply(handle, plan, request=asked)
    if made is None and doubtful is not None:
        # An earlier call, whose outcome was unknown, had done it. Nothing is asked for, which could fail.
        made = next(update.value for update in doubtful.updates if isinstance(update, SetValue))
    return made or b""


def _replacement(
    kind: OperationKind, name: str, old: bytes | None, new: bytes, details: Mapping[str, Any] | None = None
) -> Change:
    expected: bytes | Absent = ABSENT if old is None else old
    return Change(kind, (ValueIs(name, expected),), (SetValue(name, new),), dict(details or {}))


# --- branches and tags ---------------------------------------------------------------------------------------


def create_branch(handle: Handle, branch: str, snapshot_id: str) -> None:
    """Make a branch; `Repository` documents it, as all that follows."""
    _create(handle, OperationKind.CREATE_BRANCH, RefKind.BRANCH, branch, snapshot_id, ())


def create_tag(handle: Handle, tag: str, snapshot_id: str, *, force: bool) -> None:
    unused = () if force else (NameUnused(RefKind.TAG, tag),)
    _create(handle, OperationKind.CREATE_TAG, RefKind.TAG, tag, snapshot_id, unused)


def _create(
    handle: Handle,
    operation: OperationKind,
    kind: RefKind,
    name: str,
    snapshot_id: str,
    conditions: tuple[Precondition, ...],
) -> None:
    check_ref_name(name)

    def plan(view: CatalogView) -> Change:
        snapshot = find_snapshot(view, snapshot_id).id
        return Change(
            operation,
            (RefIs(kind, name, ABSENT), Retained((snapshot,)), *conditions),
            (SetRef(kind, name, snapshot),),
        )

    apply(handle, plan, request=(operation, name, snapshot_id))


def delete_branch(handle: Handle, branch: str) -> None:
    if branch == MAIN:
        raise SessionStateError(f"branch {MAIN!r} can't be deleted. reset_branch() points it elsewhere.")

    def plan(view: CatalogView) -> Change:
        held = RefIs(RefKind.BRANCH, branch, require_branch(view, branch))
        unprotected = require_unprotected(view, branch)
        return Change(OperationKind.DELETE_BRANCH, (held, unprotected), (DropRef(RefKind.BRANCH, branch),))

    apply(handle, plan, request=(OperationKind.DELETE_BRANCH, branch))


def delete_tag(handle: Handle, tag: str) -> None:
    def plan(view: CatalogView) -> Change:
        held = RefIs(RefKind.TAG, tag, require_tag(view, tag))
        return Change(OperationKind.DELETE_TAG, (held,), (DropRef(RefKind.TAG, tag, retire=True),))

    apply(handle, plan, request=(OperationKind.DELETE_TAG, tag))


def reset_branch(handle: Handle, branch: str, snapshot_id: str, from_snapshot_id: str | None) -> None:
    def plan(view: CatalogView) -> Change:
        snapshot = find_snapshot(view, snapshot_id).id
        held = require_branch(view, branch)
        expected = held if from_snapshot_id is None else parse_snapshot_id(from_snapshot_id)
        return Change(
            OperationKind.RESET_BRANCH,
            (
                RefIs(RefKind.BRANCH, branch, expected),
                Retained((snapshot,)),
                require_unprotected(view, branch),
            ),
            (SetRef(RefKind.BRANCH, branch, snapshot),),
        )

    apply(handle, plan, request=(OperationKind.RESET_BRANCH, branch, snapshot_id, from_snapshot_id))


# --- protection ----------------------------------------------------------------------------------------------


def protect(handle: Handle, pattern: str) -> None:
    """Add a name or glob to those that are protected; nothing happens if it is there."""
    _check_pattern(pattern)

    def plan(view: CatalogView) -> Change | Operation:
        value = view.value(PROTECTED)
        patterns = protected_patterns(value)
        if pattern in patterns:
            return _newest(view)
        return _protection(OperationKind.PROTECT_BRANCH, value, [*patterns, pattern], pattern)

    apply(handle, plan, request=(OperationKind.PROTECT_BRANCH, pattern))


def unprotect(handle: Handle, pattern: str) -> None:
    """Remove a name or glob from those that are protected."""

    def plan(view: CatalogView) -> Change:
        value = view.value(PROTECTED)
        patterns = protected_patterns(value)
        if pattern not in patterns:
            shown = ", ".join(map(repr, patterns))
            raise InvalidInputError(f"{pattern!r} is not protected; {shown or 'nothing'} is.")
        left = [other for other in patterns if other != pattern]
        return _protection(OperationKind.UNPROTECT_BRANCH, value, left, pattern)

    apply(handle, plan, request=(OperationKind.UNPROTECT_BRANCH, pattern))


def _protection(kind: OperationKind, old: bytes | None, patterns: list[str], pattern: str) -> Change:
    return _replacement(kind, PROTECTED, old, json.dumps(sorted(patterns)).encode(), {"pattern": pattern})


def _check_pattern(pattern: str) -> None:
    try:
        check_ref_name(_GLOB.sub("x", pattern) if isinstance(pattern, str) else pattern)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{pattern!r} can't be a branch's name, or a glob with '*', '?' and '[...]' for branches: {error}"
        ) from None


# --- the operations log --------------------------------------------------------------------------------------


def iter_operations(handle: Handle, before: int | None = None) -> Iterator[Operation]:
    """Yield the operations numbered below `before` (None: all), newest first, with no view held open between."""
    while before is None or before > 0:
        with handle.catalog.reading() as view:
            operations = list(islice(view.iter_operations(before), _BATCH))
        yield from operations
        before = operations[-1].sequence if operations else 0


def _newest(view: CatalogView) -> Operation:
    return next(view.iter_operations())


def operation_info(operation: Operation) -> OperationInfo:
    """Return what users see of an operation."""
    changes = tuple(
        (
            change.kind.name.lower(),
            change.name,
            None if change.before is None else change.before.hex(),
            None if change.after is None else change.after.hex(),
        )
        for change in operation.changes
    )
    return OperationInfo(
        operation.sequence,
        _kind_name(operation),
        to_datetime(operation.time_us),
        operation.author,
        changes,
        operation.details,
    )


def _kind_name(operation: Operation) -> str:
    return operation.kind.name.lower().replace("_", "-")


# --- undo and restore ----------------------------------------------------------------------------------------


_Targets: TypeAlias = dict[tuple[RefKind, str], SnapshotId | None]
"""What refs are to hold; None is to be absent."""


def undo(handle: Handle, expected: int | None) -> Operation:
    """Put the refs of the newest operation that changed any back to what they held before it."""
    if expected is not None and type(expected) is not int:
        raise InvalidInputError(f"{expected!r} is not the number of an operation; ops_log() has them.")

    def plan(view: CatalogView) -> Change | Operation:
        # Number 0 made branch main, so there is always one.
        newest = next(operation for operation in view.iter_operations() if _moves(operation))
        if expected is not None and newest.sequence != expected:
            raise ConflictError(
                f"the newest operation that changed a branch or tag is number {newest.sequence} "
                f"({_kind_name(newest)}), not {expected}. Look at ops_log(), then decide."
            )
        if newest.kind == OperationKind.CREATE_REPOSITORY:
            raise SessionStateError("there is nothing to undo but the repository's creation.")
        targets = {(move.kind, move.name): move.before for move in _moves(newest)}
        return _put_back(view, OperationKind.UNDO, (), targets, {"undone": newest.sequence})

    return apply(handle, plan, request=(OperationKind.UNDO, expected))


def restore(handle: Handle, operation: int | OperationInfo) -> Operation:
    """Make all refs what they were right after an operation."""
    require_writable(handle.storage)
    sequence = operation.sequence if isinstance(operation, OperationInfo) else operation
    request = (OperationKind.RESTORE, sequence)
    # First, as what fails below would say that nothing was done.
    done = settled(handle, request)
    if done is not None:
        return done
    with handle.catalog.reading() as view:
        walked = view.sequence
    if type(sequence) is not int or not 0 <= sequence <= walked:
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
        return _newest(view)
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
