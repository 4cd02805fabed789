"""Pending refs follow compact to where it put their blobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vstore
from tests.repositories import GROUP, KINDS, Place, array_document, commit, contents, write
from tests.unit.ops.repositories import FUTURE, packs
from vstore.commit import prepare
from vstore.format.record import OperationKind, PackMark
from vstore.keys.objects import pack_name
from vstore.ops.fsck import check
from vstore.reachability import NeededChunks, Walk
from vstore.session import Session
from vstore.worktree.relocating import relocate_pending
from vstore.worktree.spilling import spill, spilled_of

COUNT = 8
BASE = {"zarr.json": GROUP, "a/zarr.json": array_document((COUNT * 1000,), (1000,))}


@pytest.fixture(params=KINDS)
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[vstore.Repository]:
    with Place.new(request.param, tmp_path).create() as repository:
        commit(repository, BASE)
        for number in range(COUNT):
            commit(repository, {f"a/c/{number}": bytes([number]) * 1000})
        yield repository


def shifted(repository: vstore.Repository) -> tuple[Session, dict[str, bytes]]:
    """Return a session that points at other commits' packs, and what it shows."""
    session = repository.writable_session("main")
    session.shift_array("a", (1,))
    write(session, {"a/c/0": b"new" * 300})
    return session, contents(session)


def chunk_packs(repository: vstore.Repository, snapshot: str) -> set[str]:
    """Return the names of the packs that a snapshot's manifests name."""
    with repository.handle.catalog.reading() as view:
        (entry,) = [entry for entry in view.iter_snapshots() if entry.id.hex() == snapshot]
    found = Walk(repository.handle.blobs_for(None)).snapshot(entry)
    return {pack_name(pack) for item in found if isinstance(item, NeededChunks) for pack in item.packs}


def test_a_commit_names_the_packs_where_blobs_are_now(repository: vstore.Repository) -> None:
    session, shown = shifted(repository)
    repository.compact()
    repository.garbage_collect(FUTURE)
    made = session.commit("shifted")
    assert chunk_packs(repository, made) <= packs(repository).keys()
    assert contents(repository.readonly_session("main")) == shown
    assert check(repository, data=True).damages == []


def test_spilled_refs_follow_too(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    session.shift_array("a", (1,))
    shown = contents(session)
    spill(session.tree, fewest_refs=1)
    (tile,) = session.tree.nodes.node("a").array.pending.values()  # type: ignore[union-attr]
    assert spilled_of(tile) is not None
    assert len(tile) == 0
    repository.compact()
    repository.garbage_collect(FUTURE)
    made = session.commit("shifted")
    assert chunk_packs(repository, made) <= packs(repository).keys()
    assert contents(repository.readonly_session("main")) == shown


def test_compact_between_encoding_and_publishing(repository: vstore.Repository) -> None:
    session, shown = shifted(repository)
    publish_once = iter([repository.compact])
    handle = session._handle

    class Meddling:
        """Compacts right before the first commits reach the catalog."""

        def __getattr__(self, name: str) -> object:
            return getattr(handle.catalog, name)

        def update(self, transaction: object) -> object:
            for act in publish_once:
                act()
            return handle.catalog.update(transaction)  # type: ignore[arg-type]

    session._handle = type(handle)(
        handle.storage,
        Meddling(),  # type: ignore[arg-type]
        handle.virtual,
        handle.config,
        handle.author,
        handle.clock,
    )
    made = session.commit("shifted")
    repository.garbage_collect(FUTURE)
    assert chunk_packs(repository, made) <= packs(repository).keys()
    assert contents(repository.readonly_session("main")) == shown


def test_a_blob_that_compact_left_behind_is_an_error(repository: vstore.Repository) -> None:
    session, _ = shifted(repository)
    repository.compact()
    with repository.handle.catalog.reading() as view:
        moved = {s.pack: s.target for s in view.pack_states(None) if s.mark == PackMark.RELOCATED}
    # A pack that has none of the blobs.
    other = commit(repository, {"a/zarr.json": array_document((COUNT * 1000,), (1000,), attributes={"x": 1})})
    with repository.handle.catalog.reading() as view:
        (entry,) = [entry for entry in view.iter_snapshots() if entry.id.hex() == other]
    with pytest.raises(vstore.MissingBlobError, match="left behind"):
        relocate_pending(session.tree, dict.fromkeys(moved, entry.ref.pack))


def test_what_was_sealed_for_a_try_that_failed_is_looked_for(repository: vstore.Repository) -> None:
    """The epoch of the session counts, not that of the try."""
    session = repository.writable_session("main")
    write(session, {"a/c/0": b"new" * 300})
    request = session._draft.request(OperationKind.COMMIT, "lost", b"{}", False)
    prepare(repository.handle, session.tree, request)
    repository.garbage_collect(FUTURE)
    before = repository.lookup_branch("main")
    with pytest.raises(vstore.MissingBlobError, match="garbage collection deleted"):
        session.commit("again")
    assert repository.lookup_branch("main") == before
