"""Rebasing: onto a branch whatever happened to it, from several threads, and with every kind of solver."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vstore
from tests.repositories import GROUP, Place, array_document, array_document_2, contents, quick_folder, write
from vstore.changes.boxes import Box
from vstore.merge.conflicts import Conflict, ConflictType, UseValue, VersionSelection
from vstore.ops.fsck import check
from vstore.session import Session

CELLS, CHUNK = 12, 4
BIG = 20_000
"""More than a document or chunk that lies in the metadata."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def repository(folder: Path) -> Iterator[vstore.Repository]:
    with Place.new("sqlite", folder).create(author="ada") as repository:
        yield repository
        assert check(repository, data=True).damages == []


class Lab:
    """Array "a" of 12 cells in chunks of 4, on branch main."""

    def __init__(self, repository: vstore.Repository) -> None:
        self.repository = repository
        self.start = repository.lookup_branch("main")
        session = self.session()
        zarr.create_group(session.store, attributes={"title": "base"})
        self.create("a", session)
        self.base = session.commit("base")

    def session(self) -> Session:
        return self.repository.writable_session("main")

    def create(self, path: str, session: Session, **options: Any) -> Any:
        array = zarr.create_array(
            session.store, name=path, shape=(CELLS,), chunks=(CHUNK,), dtype="f8", **options
        )
        array[:] = np.arange(CELLS)
        return array

    def writing(self, changes: dict[int, float], path: str = "a") -> Session:
        """Return a session in which these cells have these values."""
        session = self.session()
        self.set(session, changes, path)
        return session

    def set(self, session: Session, changes: dict[int, float], path: str = "a") -> None:
        array = zarr.open_array(session.store, path=path)
        for cell, value in changes.items():
            array[cell] = value

    def commit(self, changes: dict[int, float], path: str = "a") -> str:
        return self.writing(changes, path).commit("theirs")

    def cells(self, session: Session | None = None, path: str = "a") -> list[float]:
        """Return an array's cells, on the branch if no session is given."""
        store = (session or self.repository.readonly_session("main")).store
        return np.asarray(zarr.open_array(store, path=path, mode="r")[:]).tolist()

    def expected(self, changes: dict[int, float]) -> list[float]:
        return [changes.get(cell, float(cell)) for cell in range(CELLS)]


@pytest.fixture
def lab(repository: vstore.Repository) -> Lab:
    return Lab(repository)


class Unchanged:
    """Checks that a session shows afterwards what it shows now, and that it holds no other blobs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _state(self) -> tuple[Any, ...]:
        session = self._session
        held = session.tree.writer.slots.state().in_memory
        return session.status(), contents(session), session.snapshot_id, session.conflicts, held

    def __enter__(self) -> None:
        self._before = self._state()

    def __exit__(self, *error: object) -> None:
        assert self._state() == self._before


# --- what may happen to the branch ---------------------------------------------------------------------------


def test_a_branch_that_did_not_move_is_no_rebase(lab: Lab) -> None:
    session = lab.writing({0: 50})
    with Unchanged(session):
        session.rebase(lambda conflict: pytest.fail("nothing to ask"))
    session.commit("ours")
    assert lab.cells() == lab.expected({0: 50})


def test_after_an_amend(lab: Lab) -> None:
    lab.commit({4: 60})
    session = lab.writing({0: 50})
    amending = lab.writing({4: 61, 8: 70})
    amended = amending.amend("amended")
    with pytest.raises(vstore.ConflictError):
        session.commit("ours")
    session.rebase()
    assert session.snapshot_id == amended
    session.commit("ours")
    assert lab.cells() == lab.expected({0: 50, 4: 61, 8: 70})


def test_after_an_amend_of_the_same_chunk(lab: Lab) -> None:
    lab.commit({4: 60})
    session = lab.writing({5: 50})
    lab.writing({5: 51}).amend("amended")
    with Unchanged(session), pytest.raises(vstore.RebaseFailedError) as caught:
        session.rebase()
    assert caught.value.conflicts[0].conflicted_chunks == ((1,),)


def test_after_a_reset_back(lab: Lab) -> None:
    """What the session was built on is gone from the branch: its changes are put on what is left, no others."""
    lab.commit({4: 60})
    session = lab.writing({0: 50})
    lab.repository.reset_branch("main", lab.base)
    session.commit("ours", rebase_with="fail")
    assert lab.cells() == lab.expected({0: 50})


def test_after_a_reset_back_to_before_the_array(lab: Lab) -> None:
    session = lab.writing({0: 50})
    lab.repository.reset_branch("main", lab.start)
    with Unchanged(session), pytest.raises(vstore.RebaseFailedError) as caught:
        session.rebase()
    assert [conflict.conflict_type for conflict in caught.value.conflicts] == [
        ConflictType.ChunksUpdatedInDeletedArray
    ]
    # The array's group is gone too, and comes back with it.
    session.rebase({"/a": "ours"})
    session.commit("ours")
    assert lab.cells() == lab.expected({0: 50})
    assert json.loads(contents(lab.repository.readonly_session("main"))["zarr.json"])["node_type"] == "group"


def test_after_a_reset_to_another_history(lab: Lab) -> None:
    lab.repository.create_branch("other", lab.start)
    other = lab.repository.writable_session("other")
    zarr.create_group(other.store, attributes={"title": "other"})
    lab.create("b", other)
    snapshot = other.commit("other")
    session, creating = lab.writing({0: 50}), lab.session()
    lab.create("c", creating)
    lab.repository.reset_branch("main", snapshot)
    with Unchanged(session), pytest.raises(vstore.RebaseFailedError):
        session.rebase()
    creating.commit("c", rebase_with="fail")
    assert lab.cells(path="b") == lab.cells(path="c") == lab.expected({})
    assert "a/zarr.json" not in contents(lab.repository.readonly_session("main"))


def test_after_the_branch_was_deleted_and_made_again(lab: Lab) -> None:
    moved = lab.commit({4: 60})
    lab.repository.create_branch("work", lab.base)
    session = lab.repository.writable_session("work")
    lab.set(session, {0: 50})
    lab.repository.delete_branch("work")
    with Unchanged(session), pytest.raises(vstore.RefNotFoundError):
        session.rebase("ours")
    with Unchanged(session), pytest.raises((vstore.RefNotFoundError, vstore.ConflictError)):
        session.commit("ours", rebase_with="ours")
    lab.repository.create_branch("work", moved)
    session.commit("ours", rebase_with="fail")
    assert lab.cells(lab.repository.readonly_session("work")) == lab.expected({0: 50, 4: 60})


def test_after_the_branch_was_made_again_where_it_was(lab: Lab) -> None:
    lab.repository.create_branch("work", lab.base)
    session = lab.repository.writable_session("work")
    lab.set(session, {0: 50})
    lab.repository.delete_branch("work")
    lab.repository.create_branch("work", lab.base)
    session.commit("ours")
    assert lab.cells(lab.repository.readonly_session("work")) == lab.expected({0: 50})


def test_a_rebased_session_is_rebased_again(lab: Lab) -> None:
    session = lab.writing({0: 50})
    for cell in (4, 8):
        lab.commit({cell: 60})
        session.rebase()
    assert session.status() == lab.writing({0: 50}).status()
    session.commit("ours")
    assert lab.cells() == lab.expected({0: 50, 4: 60, 8: 60})


# --- commits that follow the branch --------------------------------------------------------------------------


def test_threads_that_write_disjoint_chunks_lose_nothing(lab: Lab) -> None:
    rounds = 15
    failures: list[BaseException] = []
    together = threading.Barrier(2)

    def write_all(chunk: int) -> None:
        try:
            for number in range(1, rounds + 1):
                session = lab.session()
                array = zarr.open_array(session.store, path="a")
                array[chunk * CHUNK : (chunk + 1) * CHUNK] = 100 * chunk + number
                array.attrs[f"{chunk}-{number}"] = number
                together.wait(60)
                session.commit(f"{chunk}: {number}", rebase_with="fail")
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=write_all, args=(chunk,)) for chunk in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert lab.cells() == [0, 1, 2, 3] + [100 + rounds] * CHUNK + [200 + rounds] * CHUNK
    array = zarr.open_array(lab.repository.readonly_session("main").store, path="a", mode="r")
    assert len(array.attrs) == 2 * rounds
    messages = [info.message for info in lab.repository.ancestry(branch="main")]
    assert len(messages) == len(set(messages)) == 2 * rounds + 2


def test_tries_are_bounded(lab: Lab) -> None:
    asked = []

    def move_again(conflict: Conflict) -> str:
        # While our commit is between two tries, the branch moves once more.
        asked.append(conflict)
        lab.commit({0: 100 + len(asked)})
        return "ours"

    session = lab.writing({0: 50})
    lab.commit({0: 60})
    with pytest.raises(vstore.ConflictError) as caught:
        session.commit("ours", rebase_with=move_again, rebase_tries=3)
    assert not isinstance(caught.value, vstore.RebaseFailedError)
    assert len(asked) == 3
    assert lab.cells(session) == lab.expected({0: 50})
    assert lab.cells() == lab.expected({0: 103})
    session.commit("ours", rebase_with="ours")
    assert lab.cells() == lab.expected({0: 50})


def test_no_tries(lab: Lab) -> None:
    session = lab.writing({0: 50})
    lab.commit({4: 60})
    with Unchanged(session), pytest.raises(vstore.ConflictError):
        session.commit("ours", rebase_with="ours", rebase_tries=0)


# --- solvers -------------------------------------------------------------------------------------------------


def clashing(lab: Lab, ours: dict[int, float], theirs: dict[int, float]) -> Session:
    session = lab.writing(ours)
    lab.commit(theirs)
    return session


@pytest.mark.parametrize("solver", [None, "fail", VersionSelection.Fail, vstore.ConflictDetector(), {}])
def test_solvers_that_decide_nothing(lab: Lab, solver: Any) -> None:
    session = clashing(lab, {0: 50, 4: 51}, {1: 60, 5: 61})
    with Unchanged(session), pytest.raises(vstore.RebaseFailedError) as caught:
        session.rebase(solver)
    (conflict,) = caught.value.conflicts
    assert (conflict.conflict_type, conflict.path) == (ConflictType.ChunkDoubleUpdate, "/a")
    assert conflict.conflicted_chunks == ((0,), (1,))
    assert caught.value.expected_parent == lab.base
    assert caught.value.actual_parent == lab.repository.lookup_branch("main")


@pytest.mark.parametrize(("solver", "value"), [("ours", 50), ("theirs", 60), (lambda conflict: "ours", 50)])
def test_a_side_holds(lab: Lab, solver: Any, value: float) -> None:
    session = clashing(lab, {0: 50, 4: 51}, {0: 60, 8: 61})
    session.rebase(solver)
    assert [conflict.conflicted_chunks for conflict in session.conflicts] == [((0,),)]
    session.commit("ours", allow_empty=True)
    assert lab.cells() == lab.expected({0: value, 4: 51, 8: 61})


def test_cells_that_are_disjoint(lab: Lab) -> None:
    session = clashing(lab, {0: 50, 1: np.nan}, {2: 60, 3: 61})
    session.commit("ours", rebase_with="cells")
    np.testing.assert_array_equal(lab.cells(), lab.expected({0: 50, 1: np.nan, 2: 60, 3: 61}))


def test_cells_that_overlap(lab: Lab) -> None:
    session = clashing(lab, {4: 50, 5: 51, 6: 52}, {5: 60, 6: 61, 7: 62})
    with Unchanged(session), pytest.raises(vstore.RebaseFailedError) as caught:
        session.rebase("cells")
    (conflict,) = caught.value.conflicts
    assert conflict.conflicted_cells == (Box((5,), (7,)),)


def test_cells_that_both_made_the_same(lab: Lab) -> None:
    """NaN equals NaN, and a NaN that one side made a number is changed."""
    lab.commit({0: np.nan, 1: np.nan})
    session = clashing(lab, {1: 5, 2: np.nan, 3: 7}, {0: np.nan, 2: np.nan, 3: 7})
    lab.commit({2: np.nan, 3: 7, 0: 9})
    session.rebase("cells")
    session.commit("ours")
    np.testing.assert_array_equal(lab.cells(), lab.expected({0: 9, 1: 5, 2: np.nan, 3: 7}))


def test_cells_of_a_chunk_that_was_not_there(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(8,), chunks=(4,), dtype="i4", fill_value=7)
    session.commit("base")
    ours, theirs = (repository.writable_session("main") for _ in range(2))
    zarr.open_array(ours.store, path="a")[0] = 1
    zarr.open_array(theirs.store, path="a")[1] = 2
    theirs.commit("theirs")
    ours.commit("ours", rebase_with="cells")
    found = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[:]
    assert found.tolist() == [1, 2, 7, 7, 7, 7, 7, 7]


def test_solvers_by_path(lab: Lab) -> None:
    session = lab.session()
    for path in ("b", "c", "d"):
        lab.create(path, session)
    session.commit("more")
    session = lab.session()
    for path in ("a", "b", "c"):
        lab.set(session, {0: 50}, path)
    theirs = lab.session()
    for path in ("a", "b", "c"):
        lab.set(theirs, {0 if path != "c" else 1: 60}, path)
    theirs.commit("theirs")
    with Unchanged(session), pytest.raises(vstore.RebaseFailedError) as caught:
        session.rebase({"/a": "ours", "b*": "theirs"})
    assert [conflict.path for conflict in caught.value.conflicts] == ["/c"]
    session.rebase({"/a": "ours", "b": lambda conflict: "theirs", "*": "cells"})
    session.commit("ours")
    found = [lab.cells(path=path) for path in ("a", "b", "c", "d")]
    assert found == [lab.expected(cells) for cells in ({0: 50}, {0: 60}, {0: 50, 1: 60}, {})]


def test_a_function_sees_all_three_sides(lab: Lab) -> None:
    seen: list[Conflict] = []

    def decide(conflict: Conflict) -> Any:
        seen.append(conflict)
        if conflict.attribute is not None:
            assert (conflict.base, conflict.ours, conflict.theirs) == ("base", "ours", "theirs")
            return UseValue([conflict.ours, conflict.theirs])
        assert conflict.base.tolist() == [0, 1, 2, 3]
        assert conflict.ours.tolist() == [50, 1, 2, 3]
        assert conflict.theirs.tolist() == [60, 1, 2, 3]
        return conflict.ours + conflict.theirs

    session, theirs = lab.writing({0: 50}), lab.writing({0: 60})
    for name, side in (("ours", session), ("theirs", theirs)):
        zarr.open_group(side.store).attrs["title"] = name
    theirs.commit("theirs")
    session.commit("ours", rebase_with=decide)
    assert {conflict.path for conflict in seen} == {"/", "/a"}
    assert lab.cells() == lab.expected({0: 110, 1: 2, 2: 4, 3: 6})
    attributes = zarr.open_group(lab.repository.readonly_session("main").store, mode="r").attrs
    assert attributes["title"] == ["ours", "theirs"]


def test_values_are_read_only_when_asked_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from vstore.merge.cells import ChunkCodec

    decoded = []
    decode = ChunkCodec.decode
    monkeypatch.setattr(
        ChunkCodec, "decode", lambda codec, data, index: decoded.append(index) or decode(codec, data, index)
    )
    session = clashing(lab, {0: 50, 4: 51}, {0: 60, 4: 61})
    session.rebase(lambda conflict: "ours" if conflict.chunk == (0,) or conflict.theirs[0] == 61 else "fail")
    assert decoded == [(1,)]


def test_the_solver_of_icechunk(lab: Lab) -> None:
    session = clashing(lab, {0: 50}, {0: 60})
    with Unchanged(session), pytest.raises(vstore.RebaseFailedError):
        session.rebase(vstore.BasicConflictSolver(on_chunk_conflict=VersionSelection.Fail))
    session.rebase(vstore.BasicConflictSolver(on_chunk_conflict=VersionSelection.UseTheirs))
    assert lab.cells(session) == lab.expected({0: 60})
    deleting = lab.session()
    deleting.tree_for_writing().delete_folder("a")
    lab.commit({0: 70})
    with Unchanged(deleting), pytest.raises(vstore.RebaseFailedError) as caught:
        deleting.rebase(vstore.BasicConflictSolver(fail_on_delete_of_updated_array=True))
    assert caught.value.conflicts[0].conflict_type == ConflictType.DeleteOfUpdatedArray
    deleting.rebase(vstore.BasicConflictSolver())
    assert set(contents(deleting)) == {"zarr.json"}


def fail(conflict: Conflict) -> Any:
    raise ZeroDivisionError("a mistake")


@pytest.mark.parametrize(
    "solver",
    [
        fail,
        lambda conflict: "mine",
        lambda conflict: 5,
        lambda conflict: [1.0, 2.0, 3.0, 4.0],
        lambda conflict: np.zeros(CHUNK + 1),
        lambda conflict: np.zeros((CHUNK, 1)),
        lambda conflict: np.array(["text"] * CHUNK),
        lambda conflict: np.zeros(CHUNK, complex),
        lambda conflict: np.array(5.0),
        lambda conflict: UseValue("text"),
        lambda conflict: UseValue(None),
        lambda conflict: UseValue({"a": 1}),
        lambda conflict: conflict.no_such_attribute,
    ],
)
def test_mistakes_of_solvers(lab: Lab, solver: Any) -> None:
    session = clashing(lab, {0: 50}, {0: 60})
    with Unchanged(session), pytest.raises(vstore.SolverError):
        session.rebase(solver)
    with Unchanged(session), pytest.raises(vstore.SolverError):
        session.commit("ours", rebase_with=solver)
    session.commit("ours", rebase_with="ours")
    assert lab.cells() == lab.expected({0: 50})


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_values_that_are_no_json(lab: Lab, value: Any) -> None:
    session, theirs = lab.session(), lab.session()
    for name, side in (("ours", session), ("theirs", theirs)):
        zarr.open_group(side.store).attrs["title"] = name
    theirs.commit("theirs")
    with Unchanged(session), pytest.raises(vstore.SolverError):
        session.rebase(lambda conflict: UseValue(value))


class Broken:
    """A solver of a user's own, with a mistake."""

    per_chunk = True

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def solve(self, conflict: Conflict) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("answer", [ZeroDivisionError("a mistake"), "ours", None, 5, np.zeros(CHUNK)])
@pytest.mark.parametrize("kind", ["chunk", "attribute"])
def test_mistakes_of_solvers_of_ones_own(lab: Lab, answer: Any, kind: str) -> None:
    session, theirs = lab.session(), lab.session()
    for number, side in enumerate((session, theirs)):
        if kind == "chunk":
            lab.set(side, {0: 50 + number})
        else:
            zarr.open_group(side.store).attrs["title"] = number
    theirs.commit("theirs")
    with Unchanged(session), pytest.raises(vstore.SolverError):
        session.rebase(Broken(answer))


@pytest.mark.parametrize("spec", ["mine", 5, {"a": "mine"}, vstore.BasicConflictSolver])
def test_what_is_no_solver(lab: Lab, spec: Any) -> None:
    session = clashing(lab, {0: 50}, {0: 60})
    with Unchanged(session), pytest.raises(vstore.InvalidInputError):
        session.rebase(spec)


# --- what is merged ------------------------------------------------------------------------------------------


def waiting(session: Session) -> int:
    return len(session.tree.writer.slots.state().in_memory)


def test_blobs_of_dropped_changes_are_released(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": array_document((3 * BIG,), (BIG,)), "a/c/0": b"0" * BIG})
    session.commit("base")
    ours, theirs = (repository.writable_session("main") for _ in range(2))
    write(ours, {"a/c/0": b"1" * BIG, "a/c/1": b"2" * BIG, "plain": b"3" * BIG})
    write(theirs, {"a/c/0": b"4" * BIG, "a/c/1": b"2" * BIG, "plain": b"5" * BIG})
    theirs.commit("theirs")
    assert waiting(ours) == 3
    with Unchanged(ours), pytest.raises(vstore.RebaseFailedError):
        ours.rebase()
    ours.rebase("theirs")
    assert waiting(ours) == 0
    assert not ours.has_uncommitted_changes


def test_a_failed_rebase_lets_go_of_what_it_made(repository: vstore.Repository) -> None:
    """Merged documents and merged chunks are blobs of their own."""
    session = repository.writable_session("main")
    write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((2 * BIG,), (BIG,))})
    write(session, {"a/c/0": b"0" * BIG, "a/c/1": b"0" * BIG})
    session.commit("base")
    ours, theirs = (repository.writable_session("main") for _ in range(2))
    for side, at in ((ours, 1), (theirs, 2)):
        zarr.open_group(side.store).attrs[f"long {at}"] = f"{at}" * BIG
        chunk = bytearray(b"0" * BIG)
        chunk[at] = at
        write(side, {"a/c/0": bytes(chunk), "a/c/1": bytes([at]) * BIG})
    theirs.commit("theirs")
    with Unchanged(ours), pytest.raises(vstore.RebaseFailedError):
        ours.rebase("cells")
    with Unchanged(ours), pytest.raises(vstore.SolverError):
        ours.rebase(lambda conflict: conflict.ours if conflict.chunk == (0,) else 5)


def test_large_documents(lab: Lab) -> None:
    session, theirs = lab.session(), lab.session()
    texts = {"ours": "x" * BIG, "theirs": "y" * BIG}
    for name, side in (("ours", session), ("theirs", theirs)):
        zarr.open_array(side.store, path="a").attrs[name] = texts[name]
    theirs.commit("theirs")
    session.rebase()
    assert dict(zarr.open_array(session.store, path="a").attrs) == texts
    session.commit("ours")
    found = zarr.open_array(lab.repository.readonly_session("main").store, path="a", mode="r")
    assert dict(found.attrs) == texts
    assert lab.cells() == lab.expected({})


def test_zarr_v2(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {".zgroup": b'{"zarr_format": 2}', "a/.zarray": array_document_2((4,))})
    write(session, {"a/.zattrs": b'{"units": "K"}', **{f"a/{n}": bytes([n + 1]) for n in range(4)}})
    session.commit("base")
    ours, theirs = (repository.writable_session("main") for _ in range(2))
    write(ours, {"a/0": b"A", "a/.zattrs": b'{"units": "K", "ours": 1}', "b/.zarray": array_document_2((1,))})
    write(theirs, {"a/1": b"B", "a/.zattrs": b'{"units": "m"}'})
    theirs.tree_for_writing().set("a/.zarray", array_document_2((6,)))
    theirs.commit("theirs")
    ours.commit("ours", rebase_with="fail")
    array = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r", zarr_format=2)
    assert array[:].tolist() == [ord("A"), ord("B"), 3, 4, 0, 0]
    assert dict(array.attrs) == {"units": "m", "ours": 1}
    ours, theirs = (repository.writable_session("main") for _ in range(2))
    write(ours, {"a/.zattrs": b'{"units": "s"}', "a/0": b"C"})
    write(theirs, {"a/.zattrs": b'{"units": "h"}', "a/0": b"D"})
    theirs.commit("theirs")
    with Unchanged(ours), pytest.raises(vstore.RebaseFailedError) as caught:
        ours.rebase()
    found = {(conflict.conflict_type, conflict.attribute) for conflict in caught.value.conflicts}
    assert found == {
        (ConflictType.ZarrMetadataDoubleUpdate, "units"),
        (ConflictType.ChunkDoubleUpdate, None),
    }
    ours.commit("ours", rebase_with=lambda conflict: "ours" if conflict.attribute else conflict.theirs + 1)
    keys = contents(repository.readonly_session("main"))
    assert (json.loads(keys["a/.zattrs"])["units"], keys["a/0"]) == ("s", b"E")


def test_sharded_arrays(lab: Lab) -> None:
    session = lab.session()
    lab.create("s", session, shards=(2 * CHUNK,))
    session.commit("shards")
    session = lab.writing({0: 50}, "s")
    lab.commit({5: 60, 9: 61}, "s")
    with Unchanged(session), pytest.raises(vstore.RebaseFailedError) as caught:
        session.rebase()
    assert caught.value.conflicts[0].conflicted_chunks == ((0,),)
    session.commit("ours", rebase_with="cells")
    assert lab.cells(path="s") == lab.expected({0: 50, 5: 60, 9: 61})


def test_virtual_chunks_on_both_sides(folder: Path) -> None:
    source = folder / "source.bin"
    source.write_bytes(bytes(range(64)))
    place = Place.new("sqlite", folder)
    with place.create(authorize_virtual_chunk_access=[folder.as_uri() + "/"]) as repository:
        session = repository.writable_session("main")
        write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((32,), (8,))})
        point(session, source, 0, [0, 8, 16, 24])
        session.commit("base")
        ours, theirs, clashes = (repository.writable_session("main") for _ in range(3))
        point(ours, source, 0, [32])
        point(clashes, source, 1, [48])
        write(ours, {"a/c/3": b"o" * 8})
        point(theirs, source, 1, [40])
        theirs.commit("theirs")
        with Unchanged(clashes), pytest.raises(vstore.RebaseFailedError):
            clashes.rebase()
        decided = []
        clashes.rebase(lambda conflict: decided.append(conflict.theirs.tolist()) or conflict.base)
        assert decided == [list(range(40, 48))]
        ours.commit("ours", rebase_with="fail")
        found = contents(
            place.open(authorize_virtual_chunk_access=[folder.as_uri() + "/"]).readonly_session("main")
        )
        assert [found[f"a/c/{n}"] for n in range(4)] == [
            bytes(range(32, 40)),
            bytes(range(40, 48)),
            bytes(range(16, 24)),
            b"o" * 8,
        ]
        assert check(repository, data=True).damages == []


def point(session: Session, source: Path, first: int, offsets: list[int]) -> None:
    """Point chunks of array "a" at ranges of a file."""
    session.store.set_virtual_refs_arr(
        "a",
        (len(offsets),),
        [source.as_uri()] * len(offsets),
        np.array(offsets, np.uint64),
        np.full(len(offsets), 8, np.uint64),
        arr_offset=(first,),
    )


def test_a_moved_array_gets_the_chunks_of_both_sides(lab: Lab) -> None:
    session, theirs = lab.writing({0: 50}), lab.writing({4: 60})
    session.move("a", "z")
    theirs.commit("theirs")
    session.commit("ours", rebase_with="fail")
    assert lab.cells(path="z") == lab.expected({0: 50, 4: 60})
