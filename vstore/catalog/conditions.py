"""Whether a transaction may be asked for, and whether its preconditions hold. Pure: catalogs call it on their views."""

from __future__ import annotations

from fnmatch import fnmatchcase

from vstore.catalog.base import CatalogView
from vstore.catalog.transaction import (
    MAX_VALUE_BYTES,
    VALUE_NAMES,
    Absent,
    AddSnapshot,
    BranchesAre,
    DropRef,
    DropSnapshots,
    EpochIs,
    NameUnused,
    NotHeld,
    PacksMarked,
    PacksUsable,
    Precondition,
    RefIs,
    Refusal,
    Retained,
    SessionIs,
    SessionOpen,
    SetRef,
    SetValue,
    Transaction,
    ValueIs,
)
from vstore.errors import InvalidInputError
from vstore.format.record import PackMark, RefKind
from vstore.ids import DIGEST_SIZE, SnapshotId
from vstore.keys.refs import check_ref_name


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
