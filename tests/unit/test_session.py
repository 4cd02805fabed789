"""What a session does with its changes: commit, amend, flush, discard, status; copies of it; threads."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype

import vstore
import vstore.commit
from tests.repositories import (
    GROUP,
    KINDS,
    LOCAL_KINDS,
    Place,
    array_document,
    commit,
    contents,
    quick_folder,
    write,
)
from vstore.blobs.cache import CACHE
from vstore.changes.boxes import Box, boxes_of
from vstore.changes.metadata import MISSING
from vstore.config import RepositoryConfig
from vstore.errors import StorageError
from vstore.ops.fsck import check
from vstore.session import Session

BIG = 1_100_000
"""More than a block of checksums, and than what waits in memory."""


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with quick_folder() as folder:
        yield Place.new(request.param, folder)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create(author="ada") as repository:
        yield repository


@pytest.fixture
def session(repository: vstore.Repository) -> Session:
    return repository.writable_session("main")


def an_array(chunks: int, chunk_bytes: int = 1000) -> dict[str, bytes]:
    """Return the keys of an array with these chunks, all different."""
    values = {"a/zarr.json": array_document((chunks * chunk_bytes,), (chunk_bytes,))}
    return values | {f"a/c/{n}": bytes([n % 251]) * chunk_bytes for n in range(chunks)}


def stored_bytes(repository: vstore.Repository) -> dict[str, int]:
    """Return the sizes of all packs."""
    return {info.name: info.size for info in repository.handle.storage.list("packs/")}


# --- commit --------------------------------------------------------------------------------------------------


def test_a_commit_shows_everything_that_was_written(repository: vstore.Repository, place: Place) -> None:
    values = {"zarr.json": GROUP, **an_array(5), "plain": b"value"}
    session = repository.writable_session("main")
    write(session, values)
    assert contents(session) == values
    assert contents(repository.readonly_session("main")) == {}
    made = session.commit("a commit")
    for reader in (repository, place.open()):
        assert reader.lookup_branch("main") == made
        assert contents(reader.readonly_session("main")) == values
    assert check(repository, data=True).is_clean


def test_commits_build_on_each_other(repository: vstore.Repository) -> None:
    values: dict[str, bytes] = {}
    versions = {}
    for number in range(5):
        new = {f"key {number}": b"%d" % number, "counter": b"%d" % number}
        versions[commit(repository, new)] = values = values | new
    for snapshot_id, expected in versions.items():
        assert contents(repository.readonly_session(snapshot_id=snapshot_id)) == expected


def test_a_small_commit_is_one_pack(repository: vstore.Repository) -> None:
    before = stored_bytes(repository)
    commit(repository, an_array(100))
    assert len(stored_bytes(repository)) == len(before) + 1


def test_after_a_commit_the_session_reads_what_it_made_and_writes_no_more(session: Session) -> None:
    store = session.store
    write(session, an_array(2))
    made = session.commit("a commit")
    assert (session.snapshot_id, session.read_only, session.branch) == (made, True, None)
    assert contents(session) == an_array(2)
    assert not session.has_uncommitted_changes
    assert session.store.read_only
    buffer = default_buffer_prototype().buffer.from_bytes(b"1")
    calls: list[Callable[[], object]] = [
        lambda: store.set_sync("x", buffer),
        lambda: store.delete_sync("a/c/0"),
        lambda: zarr.create_group(store, path="g"),
        lambda: session.commit("again"),
        lambda: session.amend("again"),
        lambda: session.flush("again"),
        session.discard_changes,
    ]
    for call in calls:
        with pytest.raises(vstore.ReadOnlyError):
            call()
    assert contents(session) == an_array(2)


def test_a_session_without_writes_has_nothing_to_commit(session: Session) -> None:
    before = session.snapshot_id
    with pytest.raises(vstore.NothingToCommitError, match="allow_empty"):
        session.commit("nothing")
    write(session, {"x": b"1"})
    assert session.commit("something") != before


def test_an_empty_commit_may_be_asked_for(repository: vstore.Repository, session: Session) -> None:
    before = session.snapshot_id
    made = session.commit("a milestone", allow_empty=True)
    assert made != before
    assert repository.lookup_snapshot(made).parent_id == before
    assert contents(repository.readonly_session("main")) == {}


def test_writing_the_same_again_returns_the_head_and_grows_nothing(
    repository: vstore.Repository, place: Place
) -> None:
    values = {"zarr.json": GROUP, **an_array(3), **{f"a/c/{n}": b"small" for n in (3,)}, "plain": b"v" * 5000}
    values["a/zarr.json"] = array_document((4000,), (1000,))
    made = commit(repository, values)
    before, operations = stored_bytes(repository), len(list(repository.ops_log()))
    session = repository.writable_session("main")
    write(session, values)
    assert not session.has_uncommitted_changes
    assert session.status().is_empty()
    assert session.commit("the same") == made
    assert session.read_only
    assert stored_bytes(repository) == before
    assert len(list(repository.ops_log())) == operations


def test_the_same_again_can_be_committed_as_an_empty_commit(repository: vstore.Repository) -> None:
    made = commit(repository, an_array(2))
    session = repository.writable_session("main")
    write(session, an_array(2))
    again = session.commit("the same", allow_empty=True)
    assert again != made
    assert repository.lookup_snapshot(again).parent_id == made


def test_a_rerun_with_mode_w_grows_nothing(repository: vstore.Repository) -> None:
    def run() -> str:
        session = repository.writable_session("main")
        group = zarr.open_group(session.store, mode="w")
        array = group.create_array("a", shape=(50, 40), chunks=(10, 40), dtype="f8")
        array[:] = np.arange(2000).reshape(50, 40)
        group.create_group("sub").attrs["title"] = "x"
        return session.commit("a run")

    made = run()
    before = stored_bytes(repository)
    assert run() == made
    assert stored_bytes(repository) == before


def test_changes_that_were_taken_back_are_no_changes(repository: vstore.Repository) -> None:
    made = commit(repository, an_array(2))
    session = repository.writable_session("main")
    write(session, {"a/c/0": b"x" * 1000, "new": b"1", "b/zarr.json": GROUP})
    session.tree.delete("new")
    session.tree.delete("b/zarr.json")
    write(session, {"a/c/0": an_array(2)["a/c/0"]})
    assert not session.has_uncommitted_changes
    assert session.commit("nothing in the end") == made


def test_equal_bytes_are_stored_once(repository: vstore.Repository) -> None:
    values = {"a/zarr.json": array_document((50 * BIG,), (BIG,))}
    commit(repository, values | {f"a/c/{n}": b"x" * BIG for n in range(50)})
    assert sum(stored_bytes(repository).values()) < 2 * BIG


def test_a_chunk_that_was_overwritten_before_the_commit_is_not_stored(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, an_array(1, 4000))
    for _ in range(100):
        write(session, {"a/c/0": os.urandom(4000)})
    session.commit("the last one counts")
    assert sum(stored_bytes(repository).values()) < 10_000


def test_a_moved_branch_is_a_conflict_and_the_session_keeps_its_changes(
    repository: vstore.Repository,
) -> None:
    base = commit(repository, an_array(1))
    session = repository.writable_session("main")
    mine = {"a/c/0": b"m" * 1000, "mine": b"1"}
    write(session, mine)
    theirs = commit(repository, {"theirs": b"1"})
    for _ in range(2):
        with pytest.raises(vstore.ConflictError, match="flush") as caught:
            session.commit("too late")
        assert (caught.value.expected_parent, caught.value.actual_parent) == (base, theirs)
    assert repository.lookup_branch("main") == theirs
    write(session, {"more": b"2"})
    kept = session.flush("kept")
    repository.create_branch("mine", kept)
    expected = an_array(1) | mine | {"more": b"2"}
    assert contents(repository.readonly_session("mine")) == expected
    assert contents(repository.readonly_session("main")) == an_array(1) | {"theirs": b"1"}


def test_a_conflict_that_only_the_catalog_notices(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repository.writable_session("main")
    write(session, an_array(3))

    theirs = []

    def overtake(*args: Any) -> Any:
        monkeypatch.undo()
        theirs.append(commit(repository, {"theirs": b"1"}))
        return publish(*args)

    publish = vstore.commit.publish
    monkeypatch.setattr(vstore.commit, "publish", overtake)
    with pytest.raises(vstore.ConflictError) as caught:
        session.commit("overtaken after the upload")
    assert caught.value.actual_parent == theirs[0]
    repository.create_branch("mine", session.flush("kept"))
    assert contents(repository.readonly_session("mine")) == an_array(3)
    assert check(repository, data=True).is_clean


def test_a_deleted_branch_is_a_conflict(repository: vstore.Repository) -> None:
    repository.create_branch("other", repository.lookup_branch("main"))
    session = repository.writable_session("other")
    write(session, {"x": b"1"})
    repository.delete_branch("other")
    with pytest.raises(vstore.ConflictError, match="deleted") as caught:
        session.commit("nowhere to go")
    assert caught.value.actual_parent is None
    assert repository.list_branches() == {"main"}


def test_sessions_on_two_branches_do_not_conflict(repository: vstore.Repository) -> None:
    repository.create_branch("other", repository.lookup_branch("main"))
    one, other = repository.writable_session("main"), repository.writable_session("other")
    write(one, {"x": b"1"})
    write(other, {"x": b"2"})
    one.commit("one")
    other.commit("other")
    assert contents(repository.readonly_session("main")) == {"x": b"1"}
    assert contents(repository.readonly_session("other")) == {"x": b"2"}


@pytest.mark.parametrize("message", [None, b"bytes", 5, "\ud800"], ids=ascii)
def test_a_message_that_is_no_text_is_refused(session: Session, message: Any) -> None:
    write(session, {"x": b"1"})
    with pytest.raises(vstore.InvalidInputError, match="message"):
        session.commit(message)
    session.commit("a message")


# --- amend ---------------------------------------------------------------------------------------------------


def test_amend_replaces_the_head(repository: vstore.Repository) -> None:
    first = commit(repository, {"x": b"1"})
    second = commit(repository, {"y": b"2"}, "a tpyo")
    session = repository.writable_session("main")
    write(session, {"z": b"3"})
    amended = session.amend("a typo", {"a": 1})
    info = repository.lookup_snapshot(amended)
    assert (info.parent_ids, info.message, info.metadata) == ((first,), "a typo", {"a": 1})
    assert [entry.id for entry in repository.ancestry(branch="main")][:2] == [amended, first]
    assert contents(repository.readonly_session("main")) == {"x": b"1", "y": b"2", "z": b"3"}
    assert contents(repository.readonly_session(snapshot_id=second)) == {"x": b"1", "y": b"2"}
    assert session.read_only


def test_amend_without_changes_gives_a_new_message(repository: vstore.Repository) -> None:
    commit(repository, {"x": b"1"}, "a tpyo")
    amended = repository.writable_session("main").amend("a typo")
    assert repository.lookup_branch("main") == amended
    assert [info.message for info in repository.ancestry(branch="main")] == [
        "a typo",
        "Repository initialized",
    ]


def test_the_first_snapshot_can_not_be_amended(session: Session) -> None:
    write(session, {"x": b"1"})
    with pytest.raises(vstore.SessionStateError, match=r"commit\(\)"):
        session.amend("no parent")
    session.commit("goes")


def test_amend_of_a_moved_branch_is_a_conflict(repository: vstore.Repository) -> None:
    commit(repository, {"x": b"1"})
    session = repository.writable_session("main")
    write(session, {"y": b"1"})
    theirs = commit(repository, {"z": b"1"})
    with pytest.raises(vstore.ConflictError) as caught:
        session.amend("too late")
    assert caught.value.actual_parent == theirs
    assert repository.lookup_branch("main") == theirs


# --- flush and discard ---------------------------------------------------------------------------------------


def test_flush_saves_without_moving_the_branch(repository: vstore.Repository, place: Place) -> None:
    before = repository.lookup_branch("main")
    session = repository.writable_session("main")
    write(session, an_array(2))
    kept = session.flush("aside", {"a": 1})
    assert repository.lookup_branch("main") == before
    assert (session.read_only, session.snapshot_id) == (True, kept)
    reopened = place.open()
    info = reopened.lookup_snapshot(kept)
    assert (info.message, info.metadata, info.parent_id) == ("aside", {"a": 1}, before)
    reopened.create_branch("kept", kept)
    assert contents(reopened.readonly_session("kept")) == an_array(2)
    reopened.reset_branch("main", kept)
    assert contents(reopened.readonly_session("main")) == an_array(2)


def test_flush_needs_no_changes(repository: vstore.Repository, session: Session) -> None:
    kept = session.flush("as it is")
    assert repository.lookup_snapshot(kept).message == "as it is"


def test_discarded_changes_are_gone_and_the_session_goes_on(repository: vstore.Repository) -> None:
    commit(repository, an_array(2))
    session = repository.writable_session("main")
    store = session.store
    write(session, {"a/c/0": b"x" * BIG, "b/zarr.json": GROUP})
    session.tree.delete("a/c/1")
    session.discard_changes()
    assert contents(session) == an_array(2)
    assert not session.has_uncommitted_changes
    assert (session.read_only, session.branch) == (False, "main")
    store.set_sync("after", default_buffer_prototype().buffer.from_bytes(b"1"))
    session.commit("after")
    assert contents(repository.readonly_session("main")) == an_array(2) | {"after": b"1"}


def test_what_was_discarded_is_not_stored(repository: vstore.Repository) -> None:
    before = stored_bytes(repository)
    session = repository.writable_session("main")
    write(session, {"x": os.urandom(BIG)})
    session.discard_changes()
    with suppress(vstore.NothingToCommitError):
        assert session.commit("nothing left") == session.snapshot_id == repository.lookup_branch("main")
    session.close()
    assert stored_bytes(repository) == before


# --- status --------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(repository: vstore.Repository) -> Session:
    """A session on a hierarchy of two groups and two arrays."""
    document = array_document((4, 4), (2, 2))
    values = {"zarr.json": GROUP, "g/zarr.json": GROUP, "g/a/zarr.json": document, "b/zarr.json": document}
    values |= {f"{path}/c/{i}/{j}": b"abcd" for path in ("g/a", "b") for i in (0, 1) for j in (0, 1)}
    commit(repository, values | {"README": b"text"})
    return repository.writable_session("main")


def chunks(path: str, indices: list[tuple[int, ...]]) -> dict[str, tuple[Box, ...]]:
    return {path: boxes_of(np.array(indices))}


def test_a_fresh_session_has_no_status(tree: Session) -> None:
    assert tree.status() == vstore.Diff()
    assert tree.status().is_empty()
    assert not tree.has_uncommitted_changes
    assert str(tree.status()) == "No changes"


def test_new_nodes_in_the_status(tree: Session) -> None:
    write(tree, {"new/zarr.json": GROUP, "new/a/zarr.json": array_document((3,)), "new/a/c/2": b"x"})
    assert tree.status() == vstore.Diff(
        new_groups=frozenset({"/new"}),
        new_arrays=frozenset({"/new/a"}),
        chunk_boxes=chunks("/new/a", [(2,)]),
    )
    assert tree.has_uncommitted_changes


def test_deleted_nodes_in_the_status(tree: Session) -> None:
    tree.tree.delete_folder("g")
    assert tree.status() == vstore.Diff(deleted_groups=frozenset({"/g"}), deleted_arrays=frozenset({"/g/a"}))


def test_updated_nodes_in_the_status(tree: Session) -> None:
    write(tree, {"g/zarr.json": GROUP.replace(b"{}", b'{"a": 1}')})
    write(tree, {"b/zarr.json": array_document((4, 4), (2, 2), attributes={"units": "m"})})
    assert tree.status() == vstore.Diff(
        updated_groups=frozenset({"/g"}),
        updated_arrays=frozenset({"/b"}),
        updated_attributes={"/g": {"a": (MISSING, 1)}, "/b": {"units": (MISSING, "m")}},
    )


def test_chunks_in_the_status(tree: Session) -> None:
    write(tree, {"b/c/1/0": b"wxyz", "b/c/0/1": b"wxyz" * 300, "g/a/c/0/0": b"abcd"})
    tree.tree.delete("b/c/1/1")
    assert tree.status() == vstore.Diff(chunk_boxes=chunks("/b", [(0, 1), (1, 0), (1, 1)]))


def test_values_in_the_status(tree: Session) -> None:
    write(tree, {"README": b"other text", "g/NOTES": b"n"})
    assert tree.status() == vstore.Diff(changed_values=frozenset({"README", "g/NOTES"}))


def test_a_root_group_in_the_status(session: Session) -> None:
    write(session, {"zarr.json": GROUP})
    assert session.status() == vstore.Diff(new_groups=frozenset({"/"}))


def test_a_shrunk_array_in_the_status(tree: Session) -> None:
    write(tree, {"b/zarr.json": array_document((2, 4), (2, 2))})
    assert tree.status() == vstore.Diff(
        updated_arrays=frozenset({"/b"}),
        updated_fields={"/b": {"shape": ([4, 4], [2, 4])}},
        chunk_boxes=chunks("/b", [(1, 0), (1, 1)]),
    )


def test_an_array_that_became_a_group_in_the_status(tree: Session) -> None:
    tree.tree.delete_folder("b")
    write(tree, {"b/zarr.json": GROUP})
    assert tree.status() == vstore.Diff(deleted_arrays=frozenset({"/b"}), new_groups=frozenset({"/b"}))


def test_an_array_recreated_with_another_dtype_in_the_status(tree: Session) -> None:
    tree.tree.delete_folder("b")
    write(tree, {"b/zarr.json": array_document((4, 4), (2, 2), dtype="int8"), "b/c/0/0": b"abcd"})
    assert tree.status() == vstore.Diff(
        deleted_arrays=frozenset({"/b"}),
        new_arrays=frozenset({"/b"}),
        chunk_boxes=chunks("/b", [(0, 0)]),
    )


def test_the_status_as_text(tree: Session) -> None:
    write(tree, {"new/zarr.json": GROUP, "b/c/0/0": b"wxyz", "x": b"1"})
    assert str(tree.status()) == "New groups: /new\nChunks of /b: (0, 0)\nOther keys: x"


# --- closing -------------------------------------------------------------------------------------------------


def test_a_closed_session_refuses_writes_and_commits(repository: vstore.Repository, session: Session) -> None:
    write(session, {"x": b"1"})
    session.close()
    session.close()
    with pytest.raises(vstore.ReadOnlyError, match="closed"):
        write(session, {"x": b"2"})
    with pytest.raises(vstore.ReadOnlyError):
        session.commit("too late")
    assert repository.lookup_branch("main") == session.snapshot_id


@pytest.mark.parametrize("size", [10, 1000, BIG])
def test_what_a_closed_session_held_is_gone_with_a_clear_error_or_none(session: Session, size: int) -> None:
    write(session, an_array(1, size))
    session.close()
    with suppress(vstore.VStoreError):
        assert session.tree.read("a/c/0") in (None, an_array(1, size)["a/c/0"])


def test_a_with_block_closes_the_session(repository: vstore.Repository) -> None:
    with repository.writable_session("main") as session:
        write(session, {"x": b"1"})
    assert session.read_only
    assert contents(repository.readonly_session("main")) == {}


def test_a_closed_readonly_session_still_reads(repository: vstore.Repository) -> None:
    commit(repository, an_array(1))
    with repository.readonly_session("main") as session:
        pass
    assert contents(session) == an_array(1)


def test_a_readonly_session_writes_nothing(repository: vstore.Repository) -> None:
    session = repository.readonly_session("main")
    calls: list[Callable[[], object]] = [
        lambda: write(session, {"x": b"1"}),
        lambda: session.commit("no"),
        lambda: session.amend("no"),
        lambda: session.flush("no"),
        session.discard_changes,
    ]
    commit(repository, {"x": b"1"})
    for call in calls:
        with pytest.raises((vstore.ReadOnlyError, vstore.SessionStateError)):
            call()


# --- large sessions ------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_packs(repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from vstore.storage.base import PackPolicy

    monkeypatch.setattr(type(repository.handle.storage), "pack_policy", PackPolicy(20_000, 5_000, None))


@pytest.mark.usefixtures("tiny_packs")
def test_a_session_of_several_packs(repository: vstore.Repository, place: Place) -> None:
    session = repository.writable_session("main")
    values = an_array(100)
    write(session, values)
    assert len(stored_bytes(repository)) > 2, "full packs are sealed before the commit"
    assert contents(session) == values
    session.commit("many packs")
    assert contents(place.open().readonly_session("main")) == values
    report = check(repository, data=True)
    assert (report.is_clean, report.unreferenced_packs) == (True, 0)
    with repository.handle.catalog.reading() as view:
        assert list(view.iter_sessions()) == []


@pytest.mark.usefixtures("tiny_packs")
def test_packs_before_the_commit_are_registered(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, an_array(100))
    with repository.handle.catalog.reading() as view:
        assert [entry.session.hex() for entry in view.iter_sessions()] == [session.id]
    session.commit("many packs")


@pytest.mark.usefixtures("tiny_packs", "eager_threads")
def test_a_session_is_registered_once(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, an_array(300))
    session.commit("many packs")
    kinds = [operation.kind for operation in repository.ops_log()]
    assert kinds == ["commit", "open-session", "create-repository"]


@pytest.mark.usefixtures("tiny_packs")
@pytest.mark.parametrize("end", ["close", "discard", "same again"])
def test_a_session_that_ends_without_a_commit_is_registered_no_more(
    repository: vstore.Repository, end: str
) -> None:
    commit(repository, an_array(100))
    session = repository.writable_session("main")
    write(session, {key: value[::-1] + b"x" for key, value in an_array(100).items() if "/c/" in key})
    if end == "close":
        session.close()
    elif end == "discard":
        session.discard_changes()
    else:
        write(session, an_array(100))
        session.commit("nothing in the end")
    with repository.handle.catalog.reading() as view:
        assert list(view.iter_sessions()) == [], "gc would leave its packs alone for ever"


def test_the_inline_threshold_decides_what_the_manifest_holds(place: Place) -> None:
    repository = place.create(config=RepositoryConfig(inline_chunk_threshold_bytes=4096))
    session = repository.writable_session("main")
    write(session, an_array(10, 4096))
    session.commit("all inline")
    assert contents(place.open().readonly_session("main")) == an_array(10, 4096)


# --- a commit whose outcome was not told ---------------------------------------------------------------------


def interrupt_after(monkeypatch: pytest.MonkeyPatch, repository: vstore.Repository, error: Exception) -> None:
    """Let the next catalog update be applied and then raise `error`, as a lost reply or Ctrl-C does."""
    kind = type(repository.handle.catalog)
    update = kind.update

    def applied(self: Any, transaction: Any) -> Any:
        monkeypatch.undo()
        update(self, transaction)
        raise error

    monkeypatch.setattr(kind, "update", applied)


UNTOLD = [KeyboardInterrupt(), vstore.CommitOutcomeUnknownError("lost", transaction_id="")]


@pytest.mark.parametrize("error", UNTOLD, ids=lambda error: type(error).__name__)
def test_asking_again_tells_that_the_commit_landed(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    session = repository.writable_session("main")
    write(session, an_array(2))
    interrupt_after(monkeypatch, repository, error)
    with pytest.raises(type(error)):
        session.commit("a commit")
    made = session.commit("a commit")
    assert made == repository.lookup_branch("main") == session.snapshot_id
    assert session.read_only
    assert [info.message for info in repository.ancestry(branch="main")] == [
        "a commit",
        "Repository initialized",
    ]


@pytest.mark.parametrize("error", UNTOLD, ids=lambda error: type(error).__name__)
def test_what_was_written_after_an_interrupted_commit_is_not_lost(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    session = repository.writable_session("main")
    write(session, {"early": b"1"})
    interrupt_after(monkeypatch, repository, error)
    with pytest.raises(type(error)):
        session.commit("early")
    try:
        write(session, {"late": b"2"})
        session.commit("late")
    except vstore.VStoreError:
        # Refused with a clear error: the user knows.
        return
    assert contents(repository.readonly_session("main")) == {"early": b"1", "late": b"2"}


def test_discarding_after_an_interrupted_commit_does_not_pretend(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repository.writable_session("main")
    write(session, {"early": b"1"})
    interrupt_after(monkeypatch, repository, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        session.commit("early")
    try:
        session.discard_changes()
        write(session, {"late": b"2"})
        session.commit("late")
    except vstore.VStoreError:
        return
    assert contents(repository.readonly_session("main")).get("late") == b"2"


def test_a_commit_that_can_not_read_its_snapshot_back_is_a_commit_all_the_same(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repository.writable_session("main")
    write(session, an_array(2))
    before = session.snapshot_id
    publish = vstore.commit.publish

    def then_no_reads(*args: Any) -> Any:
        made = publish(*args)
        monkeypatch.setattr(type(repository.handle.storage), "read", fail)
        return made

    def fail(*_: object) -> Any:
        raise StorageError("injected: the network is down")

    monkeypatch.setattr(vstore.commit, "publish", then_no_reads)
    try:
        made = session.commit("a commit")
    except vstore.VStoreError:
        monkeypatch.undo()
        assert repository.lookup_branch("main") == before, "an error was raised for a commit that was made"
    else:
        monkeypatch.undo()
        assert repository.lookup_branch("main") == made
        assert contents(session) == an_array(2)


# --- failing writes ------------------------------------------------------------------------------------------


@pytest.mark.timeout(15)
@pytest.mark.parametrize("size", [1000, BIG])
def test_a_session_survives_a_pack_that_can_not_be_opened(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    session = repository.writable_session("main")
    values = an_array(3, size)

    def fail(*_: object) -> Any:
        raise vstore.OutOfSpaceError("injected: no inode left")

    def write_and_commit() -> None:
        write(session, values)
        session.commit("a commit")

    monkeypatch.setattr(type(repository.handle.storage), "open_pack", fail)
    with pytest.raises(vstore.OutOfSpaceError):
        write_and_commit()
    monkeypatch.undo()
    write_and_commit()
    assert contents(repository.readonly_session("main")) == values


# --- threads -------------------------------------------------------------------------------------------------


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads take turns so often that what is not locked shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run_together(*bodies: Callable[[], object]) -> list[BaseException]:
    """Run each body in a thread and return what they raised."""
    errors: list[BaseException] = []

    def run(body: Callable[[], object]) -> None:
        try:
            body()
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.usefixtures("eager_threads")
def test_several_threads_write_one_session(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": array_document((800_000,), (1000,))})
    sizes = (10, 600, BIG)

    def writer(first: int) -> None:
        for n in range(first, 120, 4):
            write(session, {f"a/c/{n}": bytes([n]) * sizes[n % 3], f"g{n}/zarr.json": GROUP})

    assert run_together(*(lambda first=first: writer(first) for first in range(4))) == []
    session.commit("from four threads")
    found = contents(repository.readonly_session("main"))
    assert {n: found[f"a/c/{n}"] for n in range(120)} == {n: bytes([n]) * sizes[n % 3] for n in range(120)}
    assert all(found[f"g{n}/zarr.json"] == GROUP for n in range(120))
    assert check(repository, data=True).is_clean


@pytest.mark.usefixtures("eager_threads")
def test_listing_while_another_thread_writes(repository: vstore.Repository) -> None:
    from vstore.worktree.listing import iter_keys, list_folder, size_below

    session = repository.writable_session("main")
    write(session, {"a/zarr.json": array_document((4000,), (1,))})
    done = threading.Event()

    def writer() -> None:
        try:
            for n in range(3000):
                write(session, {f"a/c/{n * 7 % 4000}": b"x"})
        finally:
            done.set()

    def lister() -> None:
        while not done.is_set():
            list(iter_keys(session.tree, "a/"))
            list_folder(session.tree, "a/c")
            size_below(session.tree, "a")

    assert run_together(writer, lister, lister) == []


@pytest.mark.parametrize("size", [1000, BIG])
def test_writing_during_a_commit_never_damages_it(repository: vstore.Repository, size: int) -> None:
    """What is written meanwhile may be refused or be left out, but what was committed can be read."""
    for _ in range(6):
        session = repository.writable_session("main")
        session.tree.delete_folder("a")
        write(session, {"a/zarr.json": array_document((10**9,), (1000,))})
        values = {f"a/c/{n}": os.urandom(size) for n in range(20)}
        write(session, values)
        started, ended = threading.Event(), threading.Event()

        def writer(session: Session = session, started: Any = started, ended: Any = ended) -> None:
            for n in range(1000, 5000):
                with suppress(vstore.ReadOnlyError, vstore.SessionStateError):
                    write(session, {f"a/c/{n}": os.urandom(size)})
                started.set()
                if ended.is_set():
                    break

        def committer(session: Session = session, started: Any = started, ended: Any = ended) -> None:
            started.wait(10)
            try:
                session.commit("while others write")
            finally:
                ended.set()

        assert run_together(writer, writer, committer) == []
        CACHE.clear()
        found = contents(repository.readonly_session("main"))
        assert found | values == found
    assert check(repository, data=True).damages == []


# --- identity and copies -------------------------------------------------------------------------------------


def read_sync(store: Any, key: str) -> bytes | None:
    buffer: Buffer | None = store.get_sync(key)
    return None if buffer is None else buffer.to_bytes()


def test_equality_is_that_of_the_session(repository: vstore.Repository) -> None:
    one, other = repository.writable_session("main"), repository.writable_session("main")
    assert one != other
    assert one.store == one.store
    assert one.store != other.store
    assert one.store != one.store.with_read_only(True)
    assert len({one, other, pickle.loads(pickle.dumps(one))}) == 2
    assert len({one.store, one.store, one.store.with_read_only(True)}) == 2
    assert one != "a session"
    assert one.id != other.id


def test_clean_stores_on_one_snapshot_have_one_dask_token(
    repository: vstore.Repository, place: Place
) -> None:
    commit(repository, an_array(1))
    first = repository.readonly_session("main")
    sessions = [repository.readonly_session("main"), repository.writable_session("main")]
    sessions.append(place.open().readonly_session("main"))
    for session in sessions:
        assert session.store.__dask_tokenize__() == first.store.__dask_tokenize__()


def test_each_write_gives_another_dask_token(repository: vstore.Repository) -> None:
    commit(repository, an_array(1))
    session = repository.writable_session("main")
    store = session.store
    edits: list[Callable[[], object]] = [
        lambda: None,
        lambda: write(session, {"a/c/0": b"x" * 1000}),
        lambda: write(session, {"a/c/0": b"x"}),
        lambda: write(session, {"g/zarr.json": GROUP}),
        lambda: write(session, {"plain": b"1"}),
        lambda: session.tree.delete("plain"),
        lambda: session.tree.delete_folder("g"),
        session.discard_changes,
        lambda: write(session, {"a/c/0": b"x" * 1000}),
        lambda: session.commit("a commit"),
    ]
    tokens = set()
    for edit in edits:
        edit()
        tokens.add(store.__dask_tokenize__())
    assert len(tokens) == len(edits)


def test_two_dirty_sessions_have_different_dask_tokens(repository: vstore.Repository) -> None:
    sessions = [repository.writable_session("main") for _ in range(2)]
    for number, session in enumerate(sessions):
        write(session, {"x": b"%d" % number})
    assert sessions[0].store.__dask_tokenize__() != sessions[1].store.__dask_tokenize__()


def test_after_a_commit_the_dask_token_is_that_of_its_snapshot(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"x": b"1"})
    session.commit("a commit")
    reader = repository.readonly_session("main")
    assert session.store.__dask_tokenize__() == reader.store.__dask_tokenize__()


def every_kind_of_edit(repository: vstore.Repository) -> tuple[Session, dict[str, bytes]]:
    """Return a session with edits over a base, and what it shows."""
    commit(repository, an_array(4) | {"old/zarr.json": GROUP, "old/plain": b"1", "kept": b"k" * 5000})
    session = repository.writable_session("main")
    document = array_document((3000,), (1000,))
    edits = {"a/zarr.json": document, "a/c/0": b"s", "a/c/1": b"m" * 1000, "a/c/2": b"l" * BIG}
    edits |= {"new/zarr.json": array_document((5,)), "new/c/4": b"x", "value": b"v" * 5000}
    write(session, edits)
    session.tree.delete_folder("old")
    return session, edits | {"kept": b"k" * 5000}


def test_a_pickled_writable_session_reads_what_it_held_then(repository: vstore.Repository) -> None:
    session, expected = every_kind_of_edit(repository)
    copy = pickle.loads(pickle.dumps(session))
    assert (copy, copy.id, copy.branch, copy.snapshot_id) == (
        session,
        session.id,
        session.branch,
        session.snapshot_id,
    )
    write(session, {"a/c/0": b"later"})
    session.tree.delete("value")
    assert contents(copy) == expected
    assert contents(pickle.loads(pickle.dumps(copy))) == expected


def test_a_pickled_copy_still_reads_after_the_commit(repository: vstore.Repository) -> None:
    session, expected = every_kind_of_edit(repository)
    early = pickle.dumps(session)
    session.commit("a commit")
    assert contents(pickle.loads(early)) == expected
    assert contents(pickle.loads(pickle.dumps(session))) == expected


def test_a_pickled_writable_session_writes_nothing(repository: vstore.Repository) -> None:
    session, expected = every_kind_of_edit(repository)
    copy = pickle.loads(pickle.dumps(session.store))
    assert copy == session.store
    assert copy.read_only is session.store.read_only is False
    value = default_buffer_prototype().buffer.from_bytes(b"1")
    calls: list[Callable[[], object]] = [
        lambda: copy.set_sync("x", value),
        lambda: copy.delete_sync("value"),
        lambda: zarr.create_group(copy, path="g"),
        lambda: copy.session.commit("no"),
        lambda: copy.session.flush("no"),
        copy.session.discard_changes,
    ]
    for call in calls:
        with pytest.raises(vstore.ReadOnlyError, match="pickle"):
            call()
    assert contents(copy.session) == expected


def test_a_pickled_readonly_session_stays_one(repository: vstore.Repository) -> None:
    commit(repository, an_array(2))
    session = repository.readonly_session("main")
    copy = pickle.loads(pickle.dumps(session))
    assert copy == session
    assert (copy.read_only, copy.branch, copy.store.read_only) == (True, None, True)
    assert contents(copy) == an_array(2)
    with pytest.raises(vstore.ReadOnlyError):
        write(copy, {"x": b"1"})


def test_a_pickled_store_has_the_dask_token_of_the_original(repository: vstore.Repository) -> None:
    session, _ = every_kind_of_edit(repository)
    copy = pickle.loads(pickle.dumps(session.store))
    assert copy.__dask_tokenize__() == session.store.__dask_tokenize__()


IN_ANOTHER_PROCESS = """
import pickle, sys
import vstore
from tests.repositories import contents, write
with open(sys.argv[1], "rb") as file:
    store = pickle.load(file)
try:
    write(store.session, {"x": b"1"})
except vstore.ReadOnlyError as error:
    assert "through pickle" in str(error) and "own process" in str(error), error
else:
    sys.exit("it could write")
with open(sys.argv[2], "wb") as file:
    pickle.dump(contents(store.session), file)
"""


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_another_process_reads_the_uncommitted_data_of_a_pickled_store(kind: str, tmp_path: Path) -> None:
    with Place.new(kind, tmp_path).create() as repository:
        session, expected = every_kind_of_edit(repository)
        (tmp_path / "in").write_bytes(pickle.dumps(session.store))
        command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "in"), str(tmp_path / "out")]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert pickle.loads((tmp_path / "out").read_bytes()) == expected
        session.commit("the original still commits")
        assert contents(repository.readonly_session("main")) == expected


def test_zarr_reads_through_a_pickled_store(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(40,), chunks=(10,), dtype="f8")
    array[:] = np.arange(40)
    copy = pickle.loads(pickle.dumps(array))
    array[:] = 0
    np.testing.assert_array_equal(copy[:], np.arange(40))


def test_totals_count_chunks_without_reading_them(repository: vstore.Repository) -> None:
    commit(repository, an_array(3) | {f"g/{key}": value for key, value in an_array(2).items()})
    session = repository.writable_session("main")
    totals = session.totals()
    assert (totals.chunks, totals.bytes, totals.exact) == (5, 5000, True)
    assert session.totals("g").chunks == 2
    write(session, {"a/c/0": b"x"})
    assert (session.totals("a").chunks, session.totals("a").bytes) == (3, 2001)
    assert read_sync(session.store, "a/c/0") == b"x"


@pytest.mark.parametrize("is_writable", [False, True])
def test_a_session_that_is_dropped_is_gone_at_once(
    repository: vstore.Repository, *, is_writable: bool
) -> None:
    """With what it holds in memory: neither its writer nor the error of a request refers to it."""
    gc.disable()
    try:
        session = repository.writable_session("main") if is_writable else repository.readonly_session("main")
        if is_writable:
            write(session, an_array(3))
        seen = weakref.ref(session)
        del session
        assert seen() is None
    finally:
        gc.enable()
