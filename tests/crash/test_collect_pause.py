"""gc and compact between any two requests of a writer, and a writer between any two requests of theirs.

Every grace is nothing: what commits names may be deleted at any moment. What is acknowledged must be whole then, and
what can't be had must be refused with an error that says so; nothing that is retained is ever lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest

import vstore
from tests.crash.collecting import WRITINGS, Pause, World, count, expected, new_world
from tests.crash.faulty import open_faulty
from tests.repositories import KINDS, commit, contents, write
from tests.unit.ops.repositories import FUTURE, expire
from vstore.blobs.cache import CACHE
from vstore.commit import PacksMovedError, publish

CLEAN_FAILURES = (vstore.MissingBlobError,)
"""What a commit may say to whom gc deleted packs that were of no snapshot yet."""
MUST_LAND = ("several packs", "branch", "tag", "reset", "undo")
"""A session that sealed packs early is registered, and what is retained already needs no packs of its own."""

DISTURBANCES: dict[str, Callable[[World], None]] = {
    "gc twice": lambda world: world.collect(2),
    "compact and gc": lambda world: (world.compact(), world.collect(2))[0],
}
QUICK_CASES = {
    ("memory", "shift", "compact and gc"),
    ("memory", "second try", "gc twice"),
    ("sqlite", "commit", "gc twice"),
    ("sqlite", "several packs", "gc twice"),
    ("sqlite", "merge", "compact and gc"),
    ("log", "branch", "gc twice"),
}
"""What each run of the tests takes the time for; all others are for --deep."""


def cases(quick: set[tuple[str, str, str]], *names: Iterable[str]) -> list[Any]:
    """Return all combinations, those that are not quick marked as deep."""
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.deep)
        for case in itertools.product(*names)
    ]


@pytest.mark.parametrize(("kind", "name", "what"), cases(QUICK_CASES, KINDS, WRITINGS, DISTURBANCES))
def test_a_writer_is_paused_at_each_request(kind: str, name: str, what: str) -> None:
    writing = WRITINGS[name]
    wanted = expected(kind, name)
    total = count(kind, writing.act, writing.storage)
    assert total >= 2, "the plan does not see the requests"
    landed = 0
    for at in range(total):
        with new_world(kind) as world:
            plan = Pause()
            repository = open_faulty(world.place, plan, writing.storage)
            plan.reset()
            plan.at, plan.act = at, lambda world=world: DISTURBANCES[what](world)
            try:
                made = None
                with suppress(*CLEAN_FAILURES):
                    made = writing.act(repository, world)
                    landed += 1
                if made is not None:
                    world.versions[made] = wanted
                    assert contents(repository.readonly_session(snapshot_id=made)) == wanted
                plan.at = None
                repository.close()
                world.verify()
            except BaseException as error:
                error.add_note(f"paused at request {at}: {plan.requests[: at + 1]}")
                raise
    assert landed == total or (landed > 0 and name not in MUST_LAND)


# --- the reverse ---------------------------------------------------------------------------------------------


def _collect(repository: vstore.Repository, world: World) -> None:
    repository.garbage_collect(FUTURE)


def _compact(repository: vstore.Repository, world: World) -> None:
    repository.compact()


def _compact_rewriting(repository: vstore.Repository, world: World) -> None:
    repository.compact(rewrite_heads=True)


def _commit(world: World) -> None:
    """A commit that names old packs anew and leaves garbage behind, all between two requests of another."""
    with world.open() as other:
        with other.writable_session("main") as session:
            write(session, {"between": b"b" * 3000})
            session.shift_array("a", (1,))
            made = session.commit("between")
        world.versions[made] = contents(other.readonly_session(snapshot_id=made))
        with other.writable_session("dev") as session:
            write(session, {"left": b"l" * 3000})
            session.tree.writer.flush()


def _undo_what_is_lost(world: World) -> None:
    with world.open() as other:
        other.reset_branch("dev", world.names["lost"])


def _hurry(world: World) -> None:
    with world.open() as other:
        other.compact()
        _commit(world)
        other.garbage_collect(FUTURE)


def _late(name: str) -> Callable[[World], None]:
    """Publish the commit that was prepared before and is kept in `World.prepared`."""

    def act(world: World) -> None:
        repository, prepared = world.prepared[name]
        with suppress(*CLEAN_FAILURES, PacksMovedError):
            made = publish(repository.handle, prepared).hex()
            world.versions[made] = contents(repository.readonly_session(snapshot_id=made))

    return act


MAINTENANCE = {"gc": _collect, "compact": _compact}
BETWEEN: dict[str, Callable[[World], None]] = {
    "commit": _commit,
    "gc": lambda world: world.collect(),
    "compact": lambda world: world.compact(),
    "reset": _undo_what_is_lost,
    "all of it": _hurry,
    "late commit": _late("late"),
    "late commit in a named pack": _late("second"),
}


QUICK_MAINTENANCE = {
    ("sqlite", "gc", "late commit"),
    ("log", "gc", "compact"),
    ("memory", "compact", "late commit in a named pack"),
    ("sqlite", "compact", "all of it"),
}


@pytest.mark.parametrize(("kind", "operation", "what"), cases(QUICK_MAINTENANCE, KINDS, MAINTENANCE, BETWEEN))
def test_maintenance_is_paused_at_each_request(kind: str, operation: str, what: str) -> None:
    total = count(kind, MAINTENANCE[operation])
    assert total >= 5, "the plan does not see the requests"
    for at in range(total):
        with new_world(kind) as world:
            plan = Pause()
            with world.open() as other:
                # Something to relocate anew, and relocations that end.
                other.compact()
                commit(other, {"after": b"a" * 3000})
            world.prepare_commits()
            repository = open_faulty(world.place, plan)
            plan.reset()
            plan.at, plan.act = at, lambda world=world: BETWEEN[what](world)
            try:
                MAINTENANCE[operation](repository, world)
                plan.at = None
                repository.close()
                world.verify()
            except BaseException as error:
                error.add_note(f"paused at request {at}: {plan.requests[: at + 1]}")
                raise
            finally:
                world.close()


@pytest.mark.parametrize(
    "kind", ["sqlite", *(pytest.param(kind, marks=pytest.mark.deep) for kind in ("log", "memory"))]
)
def test_readers_that_are_open_all_the_while(kind: str) -> None:
    """They read the right bytes, or are told that their snapshot expired."""
    total = count(kind, lambda repository, world: contents(repository.readonly_session("dev")))
    for at in range(total):
        with new_world(kind) as world:
            plan = Pause()
            with open_faulty(world.place, plan) as repository:
                wanted = world.versions[world.names["picked"]]
                CACHE.clear()
                plan.reset()
                plan.at, plan.act = at, lambda world=world: (world.compact(), world.collect(2))
                assert contents(repository.readonly_session("dev")) == wanted
            with open_faulty(world.place, plan) as repository:
                reader = repository.readonly_session(snapshot_id=world.names["lost"])
                CACHE.clear()
                plan.happened = False
                plan.reset()
                plan.at, plan.act = min(at, 8), lambda world=world: _lose(world)
                with suppress(vstore.SnapshotExpiredError):
                    assert contents(reader) == world.versions[world.names["lost"]]


def _lose(world: World) -> None:
    with world.open() as other:
        expire(other, world.names["lost"])
    world.compact()
    world.collect(2)
