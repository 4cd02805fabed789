"""Merge, cherry-pick and revert of branches: which commits they make, and from what they tell who changed what."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pytest
import zarr
from msgspec.structs import replace

import vstore
from tests.repositories import GROUP, KINDS, Place, array_document, contents, drop, quick_folder, write
from vstore.branching import merge_base_tree
from vstore.catalog.base import AddSnapshot, Applied
from vstore.history import find_snapshot
from vstore.ops.fsck import check
from vstore.repository.creation import first_transaction

UNKNOWN = "ab" * 32
START = {"zarr.json": GROUP, "a/zarr.json": array_document((4,)), "a/c/0": b"0", "a/c/1": b"1"}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with quick_folder() as folder:
        yield Place.new(request.param, folder)


@pytest.fixture
def repository() -> Iterator[vstore.Repository]:
    """A repository whose branches main and dev hold array "a"."""
    with quick_folder() as folder, Place.new("sqlite", folder).create(author="ada") as repository:
        save(repository, START)
        repository.create_branch("dev", head(repository))
        yield repository
        assert check(repository, data=True).damages == []


def save(
    repository: vstore.Repository, values: Mapping[str, bytes | None], branch: str = "main", **options: Any
) -> str:
    """Set keys, or delete those with None, and commit."""
    with repository.writable_session(branch) as session:
        for key, value in values.items():
            if value is None:
                session.tree_for_writing().delete(key)
            else:
                write(session, {key: value})
        return session.commit(options.pop("message", "a commit"), **options)


def head(repository: vstore.Repository, branch: str = "main") -> str:
    return repository.lookup_branch(branch)


def shown(repository: vstore.Repository, branch: str = "main") -> dict[str, bytes]:
    return contents(repository.readonly_session(branch))


def parents(repository: vstore.Repository, snapshot: str) -> tuple[str, ...]:
    return repository.lookup_snapshot(snapshot).parent_ids


def last_operation(repository: vstore.Repository) -> vstore.OperationInfo:
    return next(repository.ops_log())


@contextmanager
def nothing_changes(repository: vstore.Repository) -> Iterator[None]:
    before = last_operation(repository)
    yield
    assert last_operation(repository) == before


# --- merge ---------------------------------------------------------------------------------------------------


def test_a_branch_with_nothing_of_its_own_is_moved_to_the_source(place: Place) -> None:
    with place.create() as repository:
        old = save(repository, START)
        repository.create_branch("dev", old)
        made = save(repository, {"a/c/2": b"2"}, "dev")
        assert repository.merge("dev") == made == head(repository)
        operation = last_operation(repository)
        assert (operation.kind, operation.details) == ("merge", {"merged": made})
        assert operation.changes == (("branch", "main", old, made),)
        assert len(list(repository.ancestry(branch="main"))) == 3


def test_a_merge_has_both_parents_and_what_both_sides_changed(place: Place) -> None:
    with place.create() as repository:
        repository.create_branch("dev", save(repository, START))
        sides = save(repository, {"a/c/0": b"main"}), save(repository, {"a/c/1": b"dev"}, "dev")
        made = repository.merge("dev")
        assert made == head(repository)
        assert head(repository, "dev") == sides[1]
        assert parents(repository, made) == sides
        assert repository.lookup_snapshot(made).message == "Merge 'dev' into 'main'"
        assert shown(repository) == START | {"a/c/0": b"main", "a/c/1": b"dev"}
        operation = last_operation(repository)
        assert (operation.kind, operation.details) == ("merge", {"merged": sides[1]})
        assert operation.changes == (("branch", "main", sides[0], made),)
        assert [info.id for info in repository.ancestry(branch="main")][:3] == [made, sides[1], sides[0]]
        assert check(repository, data=True).damages == []


def test_without_fast_forward_there_is_a_merge_commit(repository: vstore.Repository) -> None:
    old, made = head(repository), save(repository, {"a/c/2": b"2"}, "dev")
    merged = repository.merge("dev", fast_forward=False)
    assert parents(repository, merged) == (old, made)
    assert shown(repository) == shown(repository, "dev")


def test_a_source_that_is_merged_already_changes_nothing(repository: vstore.Repository) -> None:
    made = save(repository, {"a/c/2": b"2"})
    with nothing_changes(repository):
        assert repository.merge("dev") == made
        assert repository.merge("dev", fast_forward=False, squash=True) == made
        assert repository.merge("main") == made
        with pytest.raises(vstore.NothingToCommitError, match="merged into 'main' already"):
            repository.merge_session("dev")


def test_a_squash_has_one_parent(repository: vstore.Repository) -> None:
    old = head(repository)
    save(repository, {"a/c/2": b"2"}, "dev")
    made = save(repository, {"a/c/3": b"3"}, "dev")
    squashed = repository.merge("dev", squash=True)
    assert parents(repository, squashed) == (old,)
    assert shown(repository) == START | {"a/c/2": b"2", "a/c/3": b"3"}
    assert last_operation(repository).details == {"merged": made}
    # Nothing tells that it was merged, but it has nothing new.
    with nothing_changes(repository):
        assert repository.merge("dev", squash=True) == squashed


def test_a_merge_that_brings_nothing_new_still_joins_the_histories(repository: vstore.Repository) -> None:
    sides = save(repository, {"a/c/2": b"2"}), save(repository, {"a/c/2": b"2"}, "dev")
    made = repository.merge("dev")
    assert parents(repository, made) == sides
    assert repository.merge("main", "dev") == made


def test_a_merge_takes_message_and_metadata(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/1": b"dev"}, "dev")
    repository.set_default_commit_metadata({"by": "ada", "run": 1})
    info = repository.lookup_snapshot(repository.merge("dev", message="", metadata={"run": 2}))
    assert (info.message, info.metadata) == ("", {"by": "ada", "run": 2})


def test_a_conflict_changes_nothing_and_is_named(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"main", "a/zarr.json": array_document((4,), attributes={"unit": "m"})})
    save(repository, {"a/c/0": b"dev", "a/zarr.json": array_document((4,), attributes={"unit": "s"})}, "dev")
    with (
        nothing_changes(repository),
        pytest.raises(vstore.MergeConflictError, match=r"chunks \(0,\)") as raised,
    ):
        repository.merge("dev")
    found = {conflict.conflict_type: conflict for conflict in raised.value.conflicts}
    assert len(found) == len(raised.value.conflicts) == 2
    chunk = found[vstore.ConflictType.ChunkDoubleUpdate]
    assert (chunk.path, chunk.conflicted_chunks) == ("/a", ((0,),))
    unit = found[vstore.ConflictType.ZarrMetadataDoubleUpdate]
    assert (unit.attribute, unit.base, unit.ours, unit.theirs) == ("unit", vstore.MISSING, "m", "s")


@pytest.mark.parametrize(("solver", "holds"), [("ours", b"main"), ("theirs", b"dev")])
def test_ours_is_the_branch_that_is_merged_into(
    repository: vstore.Repository, solver: str, holds: bytes
) -> None:
    save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/0": b"dev", "a/c/1": b"more"}, "dev")
    repository.merge("dev", solver=solver)
    assert shown(repository) == START | {"a/c/0": holds, "a/c/1": b"more"}


@pytest.mark.parametrize("name", ["dev", "a-tag", "id", "short"])
def test_a_source_is_a_branch_a_tag_or_a_snapshot(repository: vstore.Repository, name: str) -> None:
    made = save(repository, {"a/c/2": b"2"}, "dev")
    repository.create_tag("a-tag", made)
    assert repository.merge({"id": made, "short": made[:10]}.get(name, name)) == made


def test_a_branch_goes_before_a_tag_of_its_name(repository: vstore.Repository) -> None:
    repository.create_tag("dev", head(repository))
    made = save(repository, {"a/c/2": b"2"}, "dev")
    assert repository.merge("dev") == made


OPERATIONS: list[Callable[[vstore.Repository, Any], Any]] = [
    lambda repository, name: repository.merge(name),
    lambda repository, name: repository.merge_session(name),
    lambda repository, name: repository.cherry_pick(name),
    lambda repository, name: repository.revert(name),
    lambda repository, name: repository.revert("main", since=name),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wrong_names_are_refused(
    repository: vstore.Repository, operation: Callable[[vstore.Repository, Any], Any]
) -> None:
    with nothing_changes(repository):
        wrong: tuple[Any, ...] = (repository, 1, b"dev")
        for name in wrong:
            with pytest.raises(vstore.InvalidInputError, match="is not a name"):
                operation(repository, name)
        for unknown in ("nobody", ""):
            with pytest.raises(vstore.RefNotFoundError, match="no branch, tag or snapshot"):
                operation(repository, unknown)
        with pytest.raises(vstore.SnapshotNotFoundError):
            operation(repository, UNKNOWN)


def test_unknown_targets_and_solvers_are_refused(repository: vstore.Repository) -> None:
    made = save(repository, {"a/c/2": b"2"}, "dev")
    with nothing_changes(repository):
        for act in (repository.merge, repository.merge_session, repository.cherry_pick, repository.revert):
            call = cast(Callable[..., object], act)
            with pytest.raises(vstore.RefNotFoundError, match="there is 'dev', 'main'"):
                call("dev", "nobody")
            with pytest.raises(vstore.InvalidInputError, match="no solver"):
                call(made, solver="mine")


# --- merge_session -------------------------------------------------------------------------------------------


def test_a_merge_can_be_looked_at_and_edited(repository: vstore.Repository) -> None:
    sides = save(repository, {"a/c/0": b"main"}), save(repository, {"a/c/1": b"dev"}, "dev")
    with repository.merge_session("dev") as session:
        assert (session.branch, session.snapshot_id, session.conflicts) == ("main", sides[0], ())
        assert session.status().updated_chunks == {"/a": [(1,)]}
        write(session, {"a/c/3": b"mine"})
        assert session.status().updated_chunks == {"/a": [(1,), (3,)]}
        made = session.commit("merged by hand")
    assert parents(repository, made) == sides
    assert shown(repository) == START | {"a/c/0": b"main", "a/c/1": b"dev", "a/c/3": b"mine"}
    assert last_operation(repository).details == {"merged": sides[1]}


def test_a_merge_session_tells_what_its_solver_decided(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/0": b"dev"}, "dev")
    with nothing_changes(repository):
        with pytest.raises(vstore.MergeConflictError):
            repository.merge_session("dev")
        with repository.merge_session("dev", solver="theirs") as session:
            (conflict,) = session.conflicts
            assert (conflict.path, conflict.conflicted_chunks) == ("/a", ((0,),))
            assert session.status().updated_chunks == {"/a": [(0,)]}


def test_a_merge_session_whose_branch_moved_follows_it(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"main"})
    other = save(repository, {"a/c/1": b"dev"}, "dev")
    with repository.merge_session("dev") as session:
        moved = save(repository, {"a/c/2": b"later"})
        with pytest.raises(vstore.ConflictError, match="now holds"):
            session.commit("a merge")
        made = session.commit("a merge", rebase_with="fail")
    assert parents(repository, made) == (moved, other)
    assert shown(repository) == START | {"a/c/0": b"main", "a/c/1": b"dev", "a/c/2": b"later"}


def test_a_merge_session_can_become_a_plain_one(repository: vstore.Repository) -> None:
    old = save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/1": b"dev"}, "dev")
    with repository.merge_session("dev") as session:
        with pytest.raises(vstore.SessionStateError, match="can't be amended"):
            session.amend("a merge")
        session.discard_changes()
        assert session.status().is_empty()
        write(session, {"a/c/3": b"3"})
        made = session.commit("no merge")
    assert parents(repository, made) == (old,)
    assert last_operation(repository).kind == "commit"


def test_a_squashing_merge_session_has_one_parent(repository: vstore.Repository) -> None:
    old = save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/1": b"dev"}, "dev")
    with repository.merge_session("dev", squash=True) as session:
        assert parents(repository, session.commit("squashed")) == (old,)


# --- histories -----------------------------------------------------------------------------------------------


def test_a_second_merge_brings_only_what_is_new(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/1": b"dev"}, "dev")
    repository.merge("dev")
    # Main goes back on what dev did, and dev goes on: what was merged is not brought again.
    save(repository, {"a/c/1": b"1"})
    save(repository, {"a/c/2": b"dev"}, "dev")
    repository.merge("dev")
    assert shown(repository) == START | {"a/c/0": b"main", "a/c/2": b"dev"}
    made = head(repository)
    assert repository.merge("main", "dev") == made
    save(repository, {"a/c/2": None}, "dev")
    assert repository.merge("dev") == head(repository, "dev") != made


def test_changes_that_came_over_a_third_branch_count_as_common(repository: vstore.Repository) -> None:
    repository.create_branch("third", head(repository))
    save(repository, {"a/c/0": b"dev"}, "dev")
    save(repository, {"a/c/1": b"third"}, "third")
    repository.merge("dev", "third")
    save(repository, {"a/c/2": b"main"})
    repository.merge("third")
    save(repository, {"a/c/0": b"dev again"}, "dev")
    save(repository, {"a/c/1": b"main again"})
    repository.merge("dev")
    assert shown(repository) == START | {"a/c/0": b"dev again", "a/c/1": b"main again", "a/c/2": b"main"}


def cross(
    repository: vstore.Repository,
    main: Mapping[str, bytes],
    dev: Mapping[str, bytes],
    solvers: tuple[str, str] = ("fail", "fail"),
) -> None:
    """Commit to both branches and merge each into the other as it was then: there are two merge bases afterwards."""
    sides = save(repository, main), save(repository, dev, "dev")
    repository.merge(sides[1], "main", solver=solvers[0])
    repository.merge(sides[0], "dev", solver=solvers[1])


def test_after_a_criss_cross_both_sides_may_go_back(repository: vstore.Repository) -> None:
    cross(repository, {"a/c/0": b"main"}, {"a/c/1": b"dev"})
    # Against either base alone, one of these looks as if nothing was done, and the other side's stale value wins.
    save(repository, {"a/c/0": b"0"})
    save(repository, {"a/c/1": b"1"}, "dev")
    repository.merge("dev")
    assert shown(repository) == START


def test_after_a_criss_cross_a_further_change_is_no_conflict(repository: vstore.Repository) -> None:
    cross(repository, {"a/c/0": b"main"}, {"a/c/1": b"dev"})
    # Against the base of the other side, both would have changed the chunk.
    save(repository, {"a/c/0": b"further"})
    save(repository, {"a/c/1": b"further"}, "dev")
    repository.merge("dev")
    assert shown(repository) == START | {"a/c/0": b"further", "a/c/1": b"further"}


def attributes(**values: Any) -> dict[str, bytes]:
    return {"a/zarr.json": array_document((4,), attributes=values)}


def test_attributes_after_a_criss_cross(repository: vstore.Repository) -> None:
    cross(repository, attributes(x=1), attributes(y=1))
    save(repository, attributes(y=1))
    save(repository, attributes(x=1), "dev")
    repository.merge("dev")
    assert json.loads(shown(repository)["a/zarr.json"])["attributes"] == {}


@pytest.mark.parametrize("values", [({"a/c/0": b"M"}, {"a/c/0": b"D"}), (attributes(x=1), attributes(x=2))])
@pytest.mark.parametrize("solver", [None, "cells"])
def test_bases_that_disagree_decide_for_neither_side(
    repository: vstore.Repository, values: tuple[dict[str, bytes], dict[str, bytes]], solver: str | None
) -> None:
    cross(repository, *values, solvers=("ours", "ours"))
    # Each base equals one side's result: alone, it would make the other side's win unasked.
    with nothing_changes(repository), pytest.raises(vstore.MergeConflictError) as raised:
        repository.merge("dev", solver=solver)
    assert [conflict.path for conflict in raised.value.conflicts] == ["/a"]
    repository.merge("dev", solver="theirs")
    assert shown(repository) == shown(repository, "dev")


def test_bases_that_disagree_do_not_matter_where_the_sides_agree(repository: vstore.Repository) -> None:
    cross(repository, {"a/c/0": b"main"}, {"a/c/0": b"dev"}, solvers=("ours", "theirs"))
    save(repository, {"a/c/2": b"2"})
    save(repository, {"a/c/3": b"3"}, "dev")
    repository.merge("dev")
    assert shown(repository) == START | {"a/c/0": b"main", "a/c/2": b"2", "a/c/3": b"3"}


def test_a_criss_cross_of_criss_crosses(repository: vstore.Repository) -> None:
    cross(repository, {"a/c/0": b"1"}, {"a/c/1": b"1"})
    cross(repository, {"a/c/0": b"2"}, {"a/c/1": b"2"})
    cross(repository, {"a/c/2": b"3"}, {"a/c/3": b"3"})
    save(repository, {"a/c/0": b"0", "a/c/2": b"4"})
    save(repository, {"a/c/1": b"1", "a/c/3": b"4"}, "dev")
    repository.merge("dev")
    assert shown(repository) == START | {"a/c/2": b"4", "a/c/3": b"4"}


def test_moves_after_a_criss_cross(repository: vstore.Repository) -> None:
    def move(branch: str, source: str, target: str) -> str:
        with repository.writable_session(branch) as session:
            session.move(source, target)
            return session.commit("a move")

    main, dev = move("main", "/a", "/b"), save(repository, {"a/c/1": b"dev"}, "dev")
    repository.merge(dev, "main")
    repository.merge(main, "dev")
    # Against dev's base alone main did not move it, and dev did.
    move("main", "/b", "/a")
    save(repository, {"b/c/1": b"1"}, "dev")
    repository.merge("dev")
    assert shown(repository) == START


def test_a_merge_whose_base_expired_is_refused_by_its_name(place: Place) -> None:
    with place.create() as repository:
        base = save(repository, START)
        repository.create_branch("dev", base)
        main, dev = save(repository, {"a/c/0": b"main"}), save(repository, {"a/c/1": b"dev"}, "dev")
        newer = save(repository, {"a/c/2": b"dev"}, "dev")
        drop(repository, base)
        acts: list[Callable[[], object]] = [
            lambda: repository.merge("dev"),
            lambda: repository.merge_session("dev"),
            lambda: repository.merge("main", "dev", squash=True),
            lambda: repository.cherry_pick(dev),
            lambda: repository.revert(dev, "dev"),
        ]
        for act in acts:
            with nothing_changes(repository), pytest.raises(vstore.SnapshotExpiredError, match=base):
                act()
        # Only what lies between the base and its ends is needed: what is older or newer may be gone.
        assert repository.cherry_pick(newer) == head(repository)
        assert shown(repository) == START | {"a/c/0": b"main", "a/c/2": b"dev"}
        assert main in parents(repository, head(repository))


def test_a_merge_needs_the_base_and_the_ends_alone(repository: vstore.Repository) -> None:
    first = repository.lookup_snapshot(head(repository)).parent_id
    assert first is not None
    between = save(repository, {"a/c/0": b"main"}), save(repository, {"a/c/1": b"dev"}, "dev")
    ends = save(repository, {"a/c/2": b"main"}), save(repository, {"a/c/3": b"dev"}, "dev")
    drop(repository, first, *between)
    made = repository.merge("dev")
    assert parents(repository, made) == ends
    expected = {"a/c/0": b"main", "a/c/1": b"dev", "a/c/2": b"main", "a/c/3": b"dev"}
    assert shown(repository) == START | expected
    # The graph goes on through what expired.
    assert repository.merge("main", "dev") == made
    assert [info.id for info in repository.ancestry(branch="dev")][:3] == [made, ends[1], ends[0]]


def test_histories_without_a_common_ancestor_do_not_merge(repository: vstore.Repository) -> None:
    handle = repository.handle
    identity = handle.catalog.identity._replace(created_us=handle.clock.now_us())
    # As if it had been brought here from another repository.
    foreign = first_transaction(handle.storage, identity, handle.config, "ada")
    added = next(update for update in foreign.updates if isinstance(update, AddSnapshot))
    assert isinstance(handle.catalog.update(replace(foreign, preconditions=(), updates=(added,))), Applied)
    repository.reset_branch("dev", added.entry.id.hex())
    save(repository, {"b": b"1"}, "dev")
    with (
        nothing_changes(repository),
        pytest.raises(vstore.UnrelatedHistoriesError, match="no common ancestor"),
    ):
        repository.merge("dev", solver="ours")


def test_crossed_bases_whose_own_base_expired_still_merge(repository: vstore.Repository) -> None:
    start = head(repository)
    cross(repository, {"a/c/0": b"main"}, {"a/c/1": b"dev"})
    with repository.handle.catalog.reading() as view:
        ends = [find_snapshot(view, head(repository, branch)) for branch in ("main", "dev")]
    assert merge_base_tree(repository.handle, *ends).read("a/c/0") == b"main"
    drop(repository, start)
    assert merge_base_tree(repository.handle, *ends).read("a/c/0") in (b"0", b"main")
    save(repository, {"a/c/2": b"main"})
    save(repository, {"a/c/3": b"dev"}, "dev")
    repository.merge("dev")
    assert shown(repository) == START | {
        "a/c/0": b"main",
        "a/c/1": b"dev",
        "a/c/2": b"main",
        "a/c/3": b"dev",
    }


# --- others commit meanwhile ---------------------------------------------------------------------------------


def test_a_merge_starts_anew_when_somebody_commits_meanwhile(place: Place) -> None:
    with place.create() as repository:
        repository.create_branch("dev", save(repository, START))
        save(repository, {"a/c/0": b"main"})
        save(repository, {"a/c/0": b"dev"}, "dev")
        moved: list[str] = []

        def solve(conflict: vstore.Conflict) -> str:
            if not moved:
                moved.append(save(repository, {"a/c/3": b"meanwhile"}))
            return "theirs"

        made = repository.merge("dev", solver=solve)
        assert parents(repository, made) == (moved[0], head(repository, "dev"))
        assert shown(repository) == START | {"a/c/0": b"dev", "a/c/3": b"meanwhile"}


def test_a_merge_gives_up_when_the_branch_never_stands_still(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/0": b"dev"}, "dev")
    moves = 0

    def solve(conflict: vstore.Conflict) -> str:
        nonlocal moves
        moves += 1
        save(repository, {"a/c/3": str(moves).encode()})
        return "ours"

    with pytest.raises(vstore.ConflictError, match="now holds") as raised:
        repository.merge("dev", solver=solve)
    assert not isinstance(raised.value, vstore.MergeConflictError)
    assert 5 < moves < 100


def test_merges_and_commits_at_the_same_time_lose_nothing(place: Place) -> None:
    count = 6
    keys = [f"a/c/{number}" for number in range(3 * count)]
    with place.create() as repository:
        start = save(repository, {"zarr.json": GROUP, "a/zarr.json": array_document((len(keys),))})
        for number in range(count):
            repository.create_branch(f"dev{number}", start)
            save(repository, {keys[number]: b"merged"}, f"dev{number}")
        failures: list[Exception] = []

        def run(act: Callable[[int], object]) -> None:
            try:
                for number in range(count):
                    act(number)
            except Exception as error:  # noqa: BLE001 - shown by the test, not by the thread
                failures.append(error)

        def commit(number: int) -> None:
            save(repository, {keys[count + number]: b"committed"}, rebase_with="fail")

        def pick(number: int) -> None:
            made = save(repository, {keys[2 * count + number]: b"picked"}, f"dev{number}")
            repository.cherry_pick(made)

        def join(number: int) -> None:
            repository.merge(f"dev{number}")

        threads = [threading.Thread(target=run, args=(act,)) for act in (join, commit, pick)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        found = shown(repository)
        assert {key for key in keys if key in found} == set(keys)
        assert check(repository, data=True).damages == []


# --- cherry-pick ---------------------------------------------------------------------------------------------


def test_a_picked_commit_brings_its_changes_message_and_metadata(place: Place) -> None:
    with place.create() as repository:
        repository.create_branch("dev", save(repository, START))
        save(repository, {"a/c/2": b"not this"}, "dev")
        picked = save(repository, {"a/c/1": b"this"}, "dev", message="a fix", metadata={"run": 7})
        save(repository, {"a/c/3": b"nor this"}, "dev")
        old = save(repository, {"a/c/0": b"main"})
        made = repository.cherry_pick(picked)
        info = repository.lookup_snapshot(made)
        assert (info.parent_ids, info.message, info.metadata) == ((old,), "a fix", {"run": 7})
        assert shown(repository) == START | {"a/c/0": b"main", "a/c/1": b"this"}
        operation = last_operation(repository)
        assert (operation.kind, operation.details) == ("cherry-pick", {"picked": picked})


def test_a_pick_takes_another_message_and_long_ones(repository: vstore.Repository) -> None:
    # Too long to be repeated in the catalog.
    long = "long " * 1000
    save(repository, {"a/c/1": b"dev"}, "dev", message=long, metadata={"run": 7})
    info = repository.lookup_snapshot(repository.cherry_pick("dev"))
    assert (info.message, info.metadata) == (long, {"run": 7})
    repository.reset_branch("main", info.parent_ids[0])
    info = repository.lookup_snapshot(repository.cherry_pick("dev", message="short", metadata={}))
    assert (info.message, info.metadata) == ("short", {})


def test_a_pick_that_is_there_already_makes_no_commit(repository: vstore.Repository) -> None:
    picked = save(repository, {"a/c/1": b"dev"}, "dev")
    made = repository.cherry_pick(picked)
    with nothing_changes(repository):
        assert repository.cherry_pick(picked) == made


def test_a_merge_is_picked_against_one_parent(repository: vstore.Repository) -> None:
    start = head(repository)
    save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/1": b"dev"}, "dev")
    merged = repository.merge("dev")
    repository.create_branch("fresh", start)
    with nothing_changes(repository):
        with pytest.raises(vstore.InvalidInputError, match="merge of 2 parents"):
            repository.cherry_pick(merged, "fresh")
        for number in (0, 3, True, "1"):
            with pytest.raises(vstore.InvalidInputError, match="no parent number"):
                repository.cherry_pick(merged, "fresh", parent=cast(int, number))
    repository.cherry_pick(merged, "fresh", parent=1)
    assert shown(repository, "fresh") == START | {"a/c/1": b"dev"}
    repository.cherry_pick(merged, "fresh", parent=2)
    assert shown(repository, "fresh") == START | {"a/c/0": b"main", "a/c/1": b"dev"}


def test_a_pick_that_conflicts_changes_nothing(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"main"})
    picked = save(repository, {"a/c/0": b"dev"}, "dev")
    with nothing_changes(repository), pytest.raises(vstore.MergeConflictError):
        repository.cherry_pick(picked)
    repository.cherry_pick(picked, solver="theirs")
    assert shown(repository)["a/c/0"] == b"dev"


def test_a_picked_creation_of_a_node_that_moved_since(repository: vstore.Repository) -> None:
    made = save(repository, {"new/zarr.json": array_document((2,)), "new/c/0": b"x"})
    with repository.writable_session("main") as session:
        session.move("/new", "/moved")
        session.commit("a move")
    with nothing_changes(repository), pytest.raises(vstore.MergeConflictError):
        repository.cherry_pick(made)


def test_a_picked_creation_of_an_array_that_was_redefined_since(repository: vstore.Repository) -> None:
    made = save(repository, {"new/zarr.json": array_document((2,)), "new/c/0": b"x"})
    save(repository, {"new/zarr.json": array_document((2,), dtype="int8"), "new/c/0": b"y"})
    with nothing_changes(repository), pytest.raises(vstore.MergeConflictError):
        repository.cherry_pick(made)


def test_the_first_snapshot_can_be_neither_picked_nor_reverted(repository: vstore.Repository) -> None:
    first = list(repository.ancestry(branch="main"))[-1].id
    with nothing_changes(repository):
        for act in (repository.cherry_pick, repository.revert):
            with pytest.raises(vstore.InvalidInputError, match="first snapshot"):
                cast(Callable[..., object], act)(first)


# --- revert --------------------------------------------------------------------------------------------------


def test_a_reverted_commit_is_undone_by_a_new_one(place: Place) -> None:
    with place.create() as repository:
        save(repository, START)
        undone = save(repository, {"a/c/0": b"bad", "a/c/1": None}, message="a mistake\n\nwith reasons")
        old = save(repository, {"a/c/2": b"good"})
        made = repository.revert(undone)
        info = repository.lookup_snapshot(made)
        assert info.parent_ids == (old,)
        assert info.message == f"Revert 'a mistake'\n\nThis reverts {undone}."
        assert shown(repository) == START | {"a/c/2": b"good"}
        operation = last_operation(repository)
        before = parents(repository, undone)[0]
        assert (operation.kind, operation.details) == ("revert", {"reverted": undone, "since": before})
        repository.revert(made, message="again", metadata={"run": 1})
        again = START | {"a/c/0": b"bad", "a/c/2": b"good"}
        assert shown(repository) == {key: value for key, value in again.items() if key != "a/c/1"}
        assert repository.lookup_snapshot(head(repository)).message == "again"
        assert check(repository, data=True).damages == []


def test_a_range_is_reverted_at_once(repository: vstore.Repository) -> None:
    start = head(repository)
    save(repository, {"a/c/0": b"bad"})
    last = save(repository, {"a/c/0": b"worse", "b/zarr.json": array_document((1,)), "b/c/0": b"x"})
    save(repository, {"a/c/2": b"good"})
    made = repository.revert(last, since=start)
    assert shown(repository) == START | {"a/c/2": b"good"}
    assert f"everything after {start[:12]}" in repository.lookup_snapshot(made).message
    assert last_operation(repository).details == {"reverted": last, "since": start}


def test_since_must_be_an_ancestor(repository: vstore.Repository) -> None:
    made, other = save(repository, {"a/c/0": b"main"}), save(repository, {"a/c/1": b"dev"}, "dev")
    later = save(repository, {"a/c/2": b"later"})
    with nothing_changes(repository):
        for since in (other, made, later):
            with pytest.raises(vstore.InvalidInputError, match="is not an ancestor"):
                repository.revert(made, since=since)


def test_a_merge_is_reverted_to_one_parent(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"main"})
    save(repository, {"a/c/1": b"dev"}, "dev")
    merged = repository.merge("dev")
    save(repository, {"a/c/2": b"later"})
    with nothing_changes(repository), pytest.raises(vstore.InvalidInputError, match="merge of 2 parents"):
        repository.revert(merged)
    repository.revert(merged, parent=1)
    assert shown(repository) == START | {"a/c/0": b"main", "a/c/2": b"later"}


def test_what_changed_since_can_not_be_reverted_unasked(repository: vstore.Repository) -> None:
    undone = save(repository, {"a/c/0": b"bad"})
    save(repository, {"a/c/0": b"mended"})
    with nothing_changes(repository), pytest.raises(vstore.MergeConflictError) as raised:
        repository.revert(undone)
    (conflict,) = raised.value.conflicts
    assert conflict.conflicted_chunks == ((0,),)
    with nothing_changes(repository):
        assert repository.revert(undone, solver="ours") == head(repository)
    repository.revert(undone, solver="theirs")
    assert shown(repository) == START


def test_a_deletion_is_reverted_with_the_node_it_was(repository: vstore.Repository) -> None:
    node = repository.readonly_session("main").get_node_id("a")
    with repository.writable_session("main") as session:
        session.tree_for_writing().delete_folder("a")
        undone = session.commit("gone")
    repository.revert(undone)
    assert shown(repository) == START
    assert repository.readonly_session("main").get_node_id("a") == node


def test_a_revert_on_another_branch(repository: vstore.Repository) -> None:
    undone = save(repository, {"a/c/0": b"bad"})
    repository.merge("main", "dev")
    repository.revert("main", "dev")
    assert shown(repository, "dev") == START
    assert head(repository) == undone


# --- nodes made twice, and made again ------------------------------------------------------------------------


def test_arrays_that_both_sides_made_merge_again_and_again(repository: vstore.Repository) -> None:
    array = {"t/zarr.json": array_document((4,))}
    save(repository, array | {"t/c/0": b"m"})
    save(repository, array | {"t/c/1": b"d"}, "dev")
    repository.merge("dev")
    for number, branch, other in ((2, "dev", "main"), (3, "main", "dev"), (0, "dev", "main")):
        save(repository, {f"t/c/{number}": str(number).encode()}, branch)
        repository.merge(branch, into=other)
    assert {key: shown(repository)[f"t/c/{key}"] for key in range(4)} == {0: b"0", 1: b"d", 2: b"2", 3: b"3"}


def test_an_array_made_again_alike_is_the_same_array(repository: vstore.Repository) -> None:
    with repository.writable_session("main") as session:
        session.tree_for_writing().delete_folder("a")
        session.commit("deleted")
    save(repository, {"a/zarr.json": array_document((4,)), "a/c/0": b"0", "a/c/1": b"again"})
    save(repository, {"a/c/0": b"dev"}, "dev")
    repository.merge("dev")
    assert shown(repository)["a/c/0"] == b"dev"
    assert shown(repository)["a/c/1"] == b"again"


def test_an_array_made_again_with_another_dtype_is_another_array(repository: vstore.Repository) -> None:
    with repository.writable_session("main") as session:
        session.tree_for_writing().delete_folder("a")
        session.commit("deleted")
    save(repository, {"a/zarr.json": array_document((4,), dtype="float64"), "a/c/0": b"12345678"})
    save(repository, {"a/c/0": b"dev"}, "dev")
    with pytest.raises(vstore.MergeConflictError):
        repository.merge("dev")


def test_a_transaction_follows_its_branch(repository: vstore.Repository) -> None:
    with repository.transaction("main", message="late", rebase_with="fail") as store:
        save(repository, {"a/c/2": b"first"})
        store._session.tree_for_writing().set("a/c/3", b"late")
    assert (shown(repository)["a/c/2"], shown(repository)["a/c/3"]) == (b"first", b"late")
    assert last_operation(repository).details == {"rebases": 1}


def test_a_session_is_compared_with_any_snapshot(repository: vstore.Repository) -> None:
    save(repository, {"a/c/0": b"dev"}, "dev")
    with repository.writable_session("main") as session:
        write(session, {"a/c/1": b"session"})
        assert session.diff(branch="dev").updated_chunks == {"/a": [(0,), (1,)]}
        assert session.diff(branch="main").updated_chunks == {"/a": [(1,)]}
        assert session.diff(snapshot_id=head(repository)) == session.status()


def test_a_protected_branch_takes_commits_but_no_amend(repository: vstore.Repository) -> None:
    repository.protect_branch("main")
    save(repository, {"a/c/0": b"1"})
    with repository.writable_session("main") as session:
        write(session, {"a/c/0": b"2"})
        with pytest.raises(vstore.ProtectedBranchError):
            session.amend("instead")
        session.commit("on top")
    assert shown(repository)["a/c/0"] == b"2"


# --- what can't be put together ------------------------------------------------------------------------------


@pytest.mark.parametrize("moves", [{"a": "g/g"}, {"h": "g"}])
def test_a_value_at_a_key_of_a_moved_array(repository: vstore.Repository, moves: dict[str, str]) -> None:
    """Whichever side is merged: the value would be taken for a chunk."""
    save(repository, {"h/zarr.json": GROUP, "h/g/zarr.json": array_document((4,)), "p/zarr.json": GROUP})
    if "a" in moves:
        save(repository, {"g/zarr.json": GROUP})
    repository.reset_branch("dev", head(repository))
    save(repository, {"g/g/c/0": b"value"}, "dev")
    with repository.writable_session("main") as session:
        for source, target in moves.items():
            session.move(source, target)
        session.commit("moved")
    for source, into in (("dev", "main"), ("main", "dev")):
        for solver in ("fail", "ours", "theirs"):
            with nothing_changes(repository), pytest.raises(vstore.MergeConflictError):
                repository.merge(source, into=into, solver=solver)


def test_groups_of_two_formats_are_two_groups(repository: vstore.Repository) -> None:
    save(repository, {"n/zarr.json": GROUP})
    save(repository, {"n/.zgroup": b'{"zarr_format": 2}', "n/.zattrs": b'{"by": "dev"}'}, "dev")
    for source, into in (("dev", "main"), ("main", "dev")):
        with nothing_changes(repository), pytest.raises(vstore.MergeConflictError) as caught:
            repository.merge(source, into=into)
        assert [conflict.path for conflict in caught.value.conflicts] == ["/n"]


@pytest.mark.parametrize("solver", ["ours", "theirs"])
def test_a_group_remade_in_another_format_is_one_or_the_other(
    repository: vstore.Repository, solver: str
) -> None:
    save(repository, {"n/.zgroup": b'{"zarr_format": 2}', "n/.zattrs": b"{}"})
    repository.reset_branch("dev", head(repository))
    save(repository, {"n/zarr.json": GROUP, "n/.zgroup": None, "n/.zattrs": None})
    save(repository, {"n/.zattrs": b'{"by": "dev"}'}, "dev")
    with pytest.raises(vstore.MergeConflictError):
        repository.merge("dev")
    repository.merge("dev", solver=solver)
    documents = {key for key in shown(repository) if key.startswith("n/")}
    assert documents == ({"n/zarr.json"} if solver == "ours" else {"n/.zgroup", "n/.zattrs"})


def small_array(repository: vstore.Repository, branch: str) -> Any:
    session = repository.writable_session(branch)
    return session, zarr.open_array(session.store, path="s")


@pytest.mark.parametrize("cell", [3, 7])
def test_shrinking_within_a_chunk_that_was_written(repository: vstore.Repository, cell: int) -> None:
    """Cell 7 is cut off, cell 3 of the other chunk is not; cell 4 of the same chunk stays."""
    with repository.writable_session("main") as session:
        zarr.create_array(session.store, name="s", shape=(8,), chunks=(4,), dtype="i4")[:] = 1
        session.commit("an array")
    repository.reset_branch("dev", head(repository))
    session, array = small_array(repository, "main")
    array.resize((5,))
    session.commit("shrunk")
    session, array = small_array(repository, "dev")
    array[cell] = 99
    session.commit("written")
    if cell == 7:
        for source, into in (("dev", "main"), ("main", "dev")):
            with nothing_changes(repository), pytest.raises(vstore.MergeConflictError) as caught:
                repository.merge(source, into=into)
            assert caught.value.conflicts[0].conflicted_chunks == ((1,),)
        repository.merge("dev", solver="theirs")
        assert small_array(repository, "main")[1][:].tolist() == [1, 1, 1, 1, 1, 1, 1, 99]
    else:
        repository.merge("dev")
        assert small_array(repository, "main")[1][:].tolist() == [1, 1, 1, 99, 1]


def test_a_written_cell_that_stays_is_no_conflict_with_shrinking(repository: vstore.Repository) -> None:
    with repository.writable_session("main") as session:
        zarr.create_array(session.store, name="s", shape=(8,), chunks=(4,), dtype="i4")[:] = 1
        session.commit("an array")
    repository.reset_branch("dev", head(repository))
    session, array = small_array(repository, "main")
    array.resize((6,))
    session.commit("shrunk")
    session, array = small_array(repository, "dev")
    array[4] = 99
    session.commit("written")
    repository.merge("dev")
    assert small_array(repository, "main")[1][:].tolist() == [1, 1, 1, 1, 99, 1]


def test_values_of_a_conflict_are_there_until_the_session_goes_on(repository: vstore.Repository) -> None:
    with repository.writable_session("main") as session:
        array = zarr.create_array(
            session.store, name="s", shape=(2000,), chunks=(2000,), dtype="f8", compressors=None
        )
        array[:] = 1
        session.commit("an array")
    session, array = small_array(repository, "main")
    array[0] = 2
    other, others = small_array(repository, "main")
    others[0] = 3
    other.commit("first")
    with pytest.raises(vstore.RebaseFailedError) as caught:
        session.rebase("cells")
    (conflict,) = caught.value.conflicts
    assert (conflict.base[0], conflict.ours[0], conflict.theirs[0]) == (1, 2, 3)
    array[0] = 4
    with pytest.raises(vstore.SessionStateError, match="before that"):
        _ = conflict.ours
    session.close()
    with pytest.raises(vstore.SessionStateError):
        _ = conflict.ours


def test_names_and_settings_of_a_wrong_type(repository: vstore.Repository) -> None:
    with repository.writable_session("main") as session:
        write(session, {"a/c/0": b"x"})
        for call in (
            lambda: session.rebase({5: "ours"}),  # type: ignore[dict-item]
            lambda: session.commit("m", rebase_with="fail", rebase_tries="q"),  # type: ignore[arg-type]
            lambda: session.diff(branch=5),  # type: ignore[arg-type]
            lambda: repository.merge("dev", into=None),  # type: ignore[arg-type]
            lambda: repository.cherry_pick(head(repository), 5),  # type: ignore[arg-type]
            lambda: repository.writable_session(None),  # type: ignore[arg-type]
            lambda: list(repository.log(5)),  # type: ignore[arg-type]
        ):
            with pytest.raises(vstore.InvalidInputError):
                call()


def test_many_decided_chunks_are_one_conflict_to_look_at(repository: vstore.Repository) -> None:
    """A solver that is asked chunk by chunk leaves no object for each of them."""
    save(repository, {f"a/c/{i}": b"main" for i in range(4)})
    save(repository, {f"a/c/{i}": b"dev!" for i in range(4)}, "dev")
    with repository.merge_session("dev", solver=lambda conflict: "theirs") as session:
        (conflict,) = session.conflicts
        assert conflict.conflicted_chunks == ((0,), (1,), (2,), (3,))
        session.commit("theirs")
    assert shown(repository)["a/c/2"] == b"dev!"
    repository.reset_branch("dev", head(repository))
    save(repository, {f"a/c/{i}": b"m" for i in range(3)})
    save(repository, {f"a/c/{i}": b"d" for i in range(3)}, "dev")
    with nothing_changes(repository), pytest.raises(vstore.MergeConflictError) as caught:
        repository.merge("dev", solver=lambda conflict: "fail")
    assert [conflict.conflicted_chunks for conflict in caught.value.conflicts] == [((0,), (1,), (2,))]
