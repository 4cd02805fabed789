"""Branches and tags are made, moved and deleted here: one catalog transaction each. `Repository` documents them."""

from __future__ import annotations

from vstore.catalog.base import (
    ABSENT,
    CatalogView,
    DropRef,
    NameUnused,
    Precondition,
    RefIs,
    Retained,
    SetRef,
)
from vstore.errors import SessionStateError
from vstore.format.record import OperationKind, RefKind
from vstore.handle import Handle, require_unprotected
from vstore.history import find_snapshot, require_branch, require_tag
from vstore.ids import parse_snapshot_id
from vstore.keys.refs import MAIN, check_ref_name
from vstore.refs.change import Change, apply


def create_branch(handle: Handle, branch: str, snapshot_id: str) -> None:
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
