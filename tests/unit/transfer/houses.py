"""Repositories that know something of everything a catalog can hold, and how two of them are compared."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import vstore
from tests.repositories import GROUP, Place, array_document, commit, contents, write
from tests.unit.ops.repositories import FUTURE, expire
from vstore.catalog.base import OpenSession
from vstore.catalog.state import Space
from vstore.format.record import OperationKind, RefKind, SessionEntry
from vstore.ids import new_session_id
from vstore.ops.fsck import check
from vstore.refs import Change, apply

State = dict[str, Any]


def furnish(place: Place, commits: int = 12) -> vstore.Repository:
    """Make a repository that has something of everything.

    Branches, tags, a deleted tag, protection, metadata, settings, a lease, a registered writer, expired snapshots,
    relocations and marks.
    """
    repository = place.create(author="ada")
    first = commit(repository, {"zarr.json": GROUP, "a/zarr.json": array_document((8000,), (1000,))}, "first")
    repository.create_branch("dev", first)
    repository.create_tag("v1", first)
    repository.create_tag("gone", first)
    repository.delete_tag("gone")
    for number in range(commits):
        commit(repository, {f"a/c/{number % 8}": bytes([number]) * 1000, "long": bytes([number]) * 70_000})
    with repository.writable_session("dev") as session:
        write(session, {"on dev": b"d" * 3000})
        session.commit("dev", {"key": "value"})
    with repository.writable_session("main") as session:
        write(session, {"amended": b"1"})
        session.commit("to be amended")
    with repository.writable_session("main") as session:
        write(session, {"amended": b"22"})
        session.amend("amended")
    repository.merge("dev", into="main")
    repository.set_metadata({"title": "a house"})
    repository.protect_branch("release/*")
    repository.save_config()
    held = {first, repository.lookup_branch("main"), repository.lookup_branch("dev")}
    free = [info.id for info in repository.ancestry(branch="main") if info.id not in held]
    expire(repository, *free[1:4])
    repository.compact()
    repository.garbage_collect(FUTURE)
    commit(repository, {"small": b"s" * 600})
    repository.compact()
    repository.readonly_session(tag="v1", lease=timedelta(days=3))
    register(repository)
    repository.set_status("online", reason="as ever")
    return repository


def register(repository: vstore.Repository) -> None:
    """Register a writer, as one does that has sealed a pack before its commit."""
    entry = SessionEntry(new_session_id(), 0, 1, 2)
    apply(repository.handle, lambda view: Change(OperationKind.OPEN_SESSION, (), (OpenSession(entry),)))


def state_of(repository: vstore.Repository) -> State:
    """Return all that the catalog holds, by spaces, and what any user can see of it."""
    with repository.handle.catalog.reading() as view:
        spaces = {space: dict(view.iter_space(space)) for space in Space}  # type: ignore[attr-defined]
        transactions = [each.transaction for each in view.iter_operations()]
        assert all(view.find_transaction(each, -1) is not None for each in transactions[:3])
        refs = {kind: dict(view.iter_refs(kind)) for kind in RefKind}
        return {
            "identity": view.identity,
            "sequence": view.sequence,
            "epoch": view.epoch,
            "spaces": spaces,
            "refs": refs,
            "retired": view.is_retired(RefKind.TAG, "gone"),
            "transactions": transactions,
        }


def contents_of(repository: vstore.Repository) -> dict[str, dict[str, bytes]]:
    """Return what every retained snapshot holds."""
    with repository.handle.catalog.reading() as view:
        names = [entry.id.hex() for entry in view.iter_snapshots()]
    return {name: contents(repository.readonly_session(snapshot_id=name)) for name in names}


def require_sound(repository: vstore.Repository) -> None:
    """Check everything, down to the bytes."""
    assert check(repository, data=True).damages == []
    assert repository.handle.catalog.check() == []


def require_converted(before: State, after: State) -> None:
    """Compare the states before and after a conversion: some operations more, and nothing else."""
    added = after["sequence"] - before["sequence"]
    assert 0 <= added <= 6
    assert after["transactions"][added:] == before["transactions"]
    for name in ("identity", "epoch", "refs", "retired"):
        assert after[name] == before[name], name
    for space in Space:
        kept = dict(after["spaces"][space])
        if space == Space.OPERATION:
            kept = {key: kept[key] for key in before["spaces"][space]}
        assert kept == before["spaces"][space], space.name
