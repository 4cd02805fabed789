"""Changes of refs and values: decided on a view of the catalog, applied under preconditions that say what was seen.

`apply` decides anew where only something passing moved meanwhile, finds out about an earlier try whose outcome was
unknown, and says what a refusal means. Leases, merges and registrations are applied by it too. Below: `handle`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NoReturn, TypeAlias

import msgspec

from vstore.catalog.base import (
    ABSENT,
    Absent,
    Applied,
    CatalogView,
    NameUnused,
    Precondition,
    RefIs,
    Refusal,
    Retained,
    SessionIs,
    SetValue,
    Transaction,
    Update,
    ValueIs,
    settle,
)
from vstore.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    FormatError,
    InternalError,
    RefExistsError,
    RefNotFoundError,
    SnapshotExpiredError,
    StorageError,
    VStoreError,
)
from vstore.format.record import Operation, OperationKind
from vstore.handle import Handle, require_online
from vstore.ids import SnapshotId, new_transaction_id

_TRIES = 20


class Change(msgspec.Struct, frozen=True):
    """What a transaction should do, as decided on one view."""

    kind: OperationKind
    preconditions: tuple[Precondition, ...]
    updates: tuple[Update, ...]
    details: dict[str, Any] = msgspec.field(default_factory=dict)


class Done(msgspec.Struct, frozen=True):
    """An operation, and the updates that it was made of: none if there was nothing to do."""

    operation: Operation
    updates: tuple[Update, ...] = ()


_PASSING = (ValueIs, Retained, SessionIs)
Plan: TypeAlias = Callable[[CatalogView], Change | Operation]
"""Decides on a view what to do; an operation says that there is nothing to do, and is what `apply` returns."""
Lasts: TypeAlias = Callable[[CatalogView, Done], bool]
"""Tells whether what was done is still an answer to who asks for the same."""


def apply(handle: Handle, plan: Plan, *, request: Hashable = None) -> Operation:
    """Apply what `plan` decides, or raise what its refusal means.

    If only a value moved meanwhile (status, protection, settings), a snapshot expired, or a session's registration
    changed, `plan` decides anew. `request` says what is asked for: if that was in doubt, this finds out first, and
    does nothing more if it was applied (`settled`).
    """
    return carry_out(handle, plan, request=request).operation


def carry_out(handle: Handle, plan: Plan, *, request: Hashable = None, lasts: Lasts | None = None) -> Done:
    """Do as `apply`, and return also the updates that were made, by this call or by the earlier one."""
    handle.catalog.check_writable()
    done = None if request is None else settled(handle, request, lasts)
    if done is not None:
        return done
    for tries_left in reversed(range(_TRIES)):
        with handle.catalog.reading() as view:
            change = plan(view)
            if isinstance(change, Operation):
                return Done(change)
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
            handle.doubts.overtake(transaction, outcome.operation)
            return Done(outcome.operation, transaction.updates)
        lasting = [each for each in outcome.refusals if not isinstance(each.precondition, _PASSING)]
        if lasting or not tries_left:
            _raise_refusal((lasting or outcome.refusals)[0], change.kind)
    raise InternalError("unreachable")


def settled(handle: Handle, request: Hashable, lasts: Lasts | None = None) -> Done | None:
    """Return what an earlier call for the same did, if it was in doubt and was applied.

    It is not done twice, whatever others did since: that would take their work away, or refuse what was done. Made
    anew is only what this handle itself has changed since, and what does not last by `lasts`; by default a new branch
    that others deleted.
    """
    doubtful = handle.doubts.get(request)
    if doubtful is None:
        return None
    operation = settle(handle.catalog, doubtful)
    if operation is None:
        handle.doubts.forget(request, doubtful)
        return None
    done = Done(operation, doubtful.updates)
    if lasts is None and doubtful.kind == OperationKind.CREATE_BRANCH:
        lasts = _is_there
    try:
        is_answer = not _is_overtaken(handle, doubtful, operation)
        if is_answer and lasts is not None:
            with handle.catalog.reading() as view:
                is_answer = lasts(view, done)
    except (StorageError, FormatError) as error:
        # As it is, it would say that nothing was done. The doubt stays.
        raise _still_in_doubt(doubtful, error) from error
    handle.doubts.forget(request, doubtful)
    handle.doubts.overtake(doubtful, operation)
    return done if is_answer else None


def _is_overtaken(handle: Handle, doubtful: Transaction, operation: Operation) -> bool:
    """Tell whether a later change of the same by this handle, whose outcome is unknown too, was applied."""
    outcomes = (settle(handle.catalog, rival) for rival in handle.doubts.rivals(doubtful))
    return any(later is not None and later.sequence > operation.sequence for later in outcomes)


def _is_there(view: CatalogView, done: Done) -> bool:
    return all(view.ref(change.kind, change.name) is not None for change in done.operation.changes)


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

    def plan(view: CatalogView) -> Change:
        old = view.value(name)
        return replacement(kind, name, old, change(old))

    done = carry_out(handle, plan, request=None if request is None else (kind, name, request))
    return next(update.value for update in done.updates if isinstance(update, SetValue))


def replacement(
    kind: OperationKind, name: str, old: bytes | None, new: bytes, details: Mapping[str, Any] | None = None
) -> Change:
    """Return the change that replaces a value of the catalog, if it is still `old`."""
    expected: bytes | Absent = ABSENT if old is None else old
    return Change(kind, (ValueIs(name, expected),), (SetValue(name, new),), dict(details or {}))
