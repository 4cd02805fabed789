"""Every two edits of `tests.merge.cases`, in both orders, rebased and merged, against the matrix and the model.

The model knows no sides, so that what it says of two edits it says of both orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zarr

import vstore
from tests.merge import model
from tests.merge.cases import EDITS, LETTERS, Edit, make_base, matrix
from tests.repositories import KINDS, Place, contents, quick_folder
from vstore.ops.fsck import check
from vstore.session import Session

WORK = "work"
CELLS = matrix()
# Plain values, which Zarr says it does not know.
pytestmark = pytest.mark.filterwarnings("ignore:Object at .* is not recognized")
DEEP = [pytest.param(kind, marks=pytest.mark.deep) for kind in KINDS if kind != "sqlite"]


class Lab:
    """A repository with the base, and each edit committed on it, twice: `theirs`, and as `ours` of merges."""

    def __init__(self, repository: vstore.Repository) -> None:
        self.repository = repository
        session = repository.writable_session("main")
        make_base(session)
        self.base = session.commit("base")
        repository.create_branch(WORK, self.base)
        self.theirs = {edit.name: self._commit(edit) for edit in EDITS}
        self.ours = {edit.name: self._commit(edit) for edit in EDITS}

    def _commit(self, edit: Edit) -> str:
        snapshot = self.session(edit).commit(edit.name, allow_empty=True)
        self.reset(self.base)
        return snapshot

    def reset(self, snapshot: str) -> None:
        self.repository.reset_branch(WORK, snapshot)

    def session(self, edit: Edit) -> Session:
        session = self.repository.writable_session(WORK)
        edit.act(session)
        return session

    def moved(self, ours: Edit, theirs: Edit) -> Session:
        """Return a session with our edit, whose branch got theirs meanwhile."""
        self.reset(self.base)
        session = self.session(ours)
        self.reset(self.theirs[theirs.name])
        return session

    def head(self) -> model.Hierarchy:
        return model.read(contents(self.repository.readonly_session(WORK)))

    def merge(self, ours: Edit, theirs: Edit, solver: Any = None) -> model.Hierarchy:
        self.reset(self.ours[ours.name])
        self.repository.merge(self.theirs[theirs.name], WORK, solver=solver, fast_forward=False)
        return self.head()


@pytest.fixture(scope="module", params=["sqlite", *DEEP])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with quick_folder() as folder, Place.new(request.param, folder).create(author="ada") as repository:
        lab = Lab(repository)
        yield lab
        # All that was ever committed, at once: it takes as long as that is much.
        assert check(repository).damages == []


@dataclass
class Outcome:
    """What became of two edits: the result, or the types of the conflicts."""

    result: model.Hierarchy | None
    conflicts: set[vstore.ConflictType]


EITHER = pytest.mark.parametrize("is_ours", [True, pytest.param(False, marks=pytest.mark.deep)])
"""For the tests that take longest: edits one way round, and with --deep the other way round."""


def pairs(edit: Edit, *, is_ours: bool | None = None) -> Iterator[tuple[Edit, Edit]]:
    """Yield each two edits of which the later one is `edit`, in both orders, or those where it is ours or theirs."""
    for other in EDITS[: EDITS.index(edit) + 1]:
        if is_ours is not False:
            yield edit, other
        if is_ours is not True and other is not edit:
            yield other, edit


def expected(ours: Edit, theirs: Edit) -> Outcome:
    kinds = model.conflict_types(ours.changes, theirs.changes)
    return Outcome(None if kinds else model.render(model.merged(ours.changes, theirs.changes)), kinds)


def types_of(error: vstore.MergeConflictError) -> set[vstore.ConflictType]:
    assert error.conflicts
    return {conflict.conflict_type for conflict in error.conflicts}


def assert_consistent(lab: Lab, result: model.Hierarchy) -> None:
    """No orphan, and all that is listed can be read through Zarr."""
    assert model.orphans(result) == []
    root = zarr.open_group(lab.repository.readonly_session(WORK).store, mode="r")
    members = dict(root.members(max_depth=None))
    assert {"", *members} == {path for path, node in result.items() if isinstance(node, dict)}
    for name, node in members.items():
        assert dict(node.attrs) == result[name]["attributes"]
        if isinstance(node, zarr.Array) and is_readable(result[name]):
            np.testing.assert_array_equal(node[...], model.cells(result[name]))


def is_readable(node: dict[str, Any]) -> bool:
    """Tell whether the edit left chunks that the array's metadata describes: changing that in place does not."""
    size = np.dtype(node["data_type"]).itemsize * model.CHUNK
    return (
        len(node["codecs"]) == 1
        and node["chunk_grid"] == model.regular_grid(model.CHUNK)
        and all(len(chunk) == size for chunk in node["chunks"].values())
    )


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_matrix_is_what_the_model_says(edit: Edit) -> None:
    for ours, theirs in pairs(edit):
        letters = {letter for letter, _ in model.find_conflicts(ours.changes, theirs.changes)}
        assert set(CELLS[ours.name, theirs.name]) == letters <= set(LETTERS), (ours.name, theirs.name)
        other_order = model.merged(theirs.changes, ours.changes)
        assert letters or model.merged(ours.changes, theirs.changes) == other_order, (ours.name, theirs.name)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_edit_does_what_the_model_says(lab: Lab, edit: Edit) -> None:
    for snapshots in (lab.ours, lab.theirs):
        lab.reset(snapshots[edit.name])
        result = lab.head()
        assert result == model.render(model.merged(edit.changes, {}))
        assert_consistent(lab, result)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_rebase(lab: Lab, edit: Edit) -> None:
    for ours, theirs in pairs(edit):
        with noted(ours, theirs):
            assert rebase(lab, ours, theirs) == expected(ours, theirs)


def rebase(lab: Lab, ours: Edit, theirs: Edit) -> Outcome:
    """Commit with a rebase; if it fails, nothing may have changed."""
    session = lab.moved(ours, theirs)
    status, before = session.status(), contents(session)
    try:
        session.commit("ours", rebase_with="fail")
    except vstore.RebaseFailedError as error:
        assert session.status() == status
        assert contents(session) == before
        assert lab.repository.lookup_branch(WORK) == lab.theirs[theirs.name]
        return Outcome(None, types_of(error))
    result = lab.head()
    assert model.orphans(result) == []
    return Outcome(result, set())


@EITHER
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_merge(lab: Lab, edit: Edit, is_ours: bool) -> None:
    for ours, theirs in pairs(edit, is_ours=is_ours):
        with noted(ours, theirs):
            try:
                found = Outcome(lab.merge(ours, theirs), set())
            except vstore.MergeConflictError as error:
                found = Outcome(None, types_of(error))
                assert lab.repository.lookup_branch(WORK) == lab.ours[ours.name]
            assert found == expected(ours, theirs)


@EITHER
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_solvers(lab: Lab, edit: Edit, is_ours: bool) -> None:
    """Either side can hold, and gives a consistent result, the same in a rebase and in a merge."""
    for ours, theirs in pairs(edit, is_ours=is_ours):
        if CELLS[ours.name, theirs.name]:
            with noted(ours, theirs):
                check_solvers(lab, ours, theirs)


def check_solvers(lab: Lab, ours: Edit, theirs: Edit) -> None:
    for solver, winner, loser in (("ours", ours, theirs), ("theirs", theirs, ours)):
        result = solve(lab, lab.moved(ours, theirs), solver)
        is_deleted = any(key[1] == "place" for key in {*ours.changes, *theirs.changes})
        if set(CELLS[ours.name, theirs.name]) <= set("CMK") and not is_deleted:
            assert result == model.render(model.winning(winner.changes, loser.changes)), solver
        assert lab.merge(ours, theirs, solver) == result, solver


def solve(lab: Lab, session: Session, solver: str) -> model.Hierarchy:
    """Rebase and commit with a solver a session that failed to be rebased without one."""
    with pytest.raises(vstore.RebaseFailedError):
        session.rebase()
    session.rebase(solver)
    assert session.conflicts
    session.commit(solver, allow_empty=True)
    result = lab.head()
    assert_consistent(lab, result)
    return result


class noted:
    """Adds to an error which pair it is about."""

    def __init__(self, ours: Edit, theirs: Edit) -> None:
        self._names = f"ours: {ours.name}, theirs: {theirs.name}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            error.add_note(self._names)
