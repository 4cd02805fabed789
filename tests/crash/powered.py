"""What the writers of `test_power` and `test_failing_disk` do: operations on a repository, step by acknowledged step.

Each operation says after each step what it was told has happened. `picture` is all that a repository's readers see.
The writers' processes import this.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import vstore
from tests.repositories import GROUP, HandClock, Place, array_document, commit, contents, write
from tests.unit.ops.repositories import FUTURE
from vstore.clock import SYSTEM_CLOCK
from vstore.ops.expire import RetentionPolicy
from vstore.session import Session
from vstore.storage.base import PackPolicy
from vstore.worktree.spilling import spill

Say = Callable[[str], None]
MANY_TRIES = 40
TINY_PACKS = PackPolicy(target_bytes=12_000, buffer_bytes=5000, direct_bytes=4000, writes_behind=True)
MANY = {
    "m/zarr.json": array_document((40_000,), (1000,)),
    **{f"m/c/{n}": bytes([n]) * (1000 if n % 7 else 6000) for n in range(30)},
}


def make_base(place: Place) -> None:
    """Make a repository with branches, a tag, history that may expire, small packs, and garbage."""
    with place.create() as repository:
        first = {"zarr.json": GROUP, "a/zarr.json": array_document((8000,), (1000,))}
        first |= {f"a/c/{n}": bytes([n]) * 1000 for n in range(4)} | {"value": b"v" * 5000}
        commit(repository, first, "first")
        middle = commit(repository, {"a/c/1": b"2" * 1000, "gone": b"g" * 3000}, "second")
        repository.create_tag("v1", middle)
        repository.create_branch("dev", middle)
        lost = commit(repository, {"lost": b"l" * 3000}, "lost")
        repository.reset_branch("main", middle)
        session = repository.writable_session("main")
        session.tree_for_writing().delete("gone")
        write(session, {"a/c/2": b"3" * 1000, "a/c/3": b"tiny"})
        session.commit("third")
        assert lost
        session = repository.writable_session("dev")
        write(session, {"dev": b"d" * 3000})
        session.commit("on dev")


def picture(repository: vstore.Repository) -> dict[str, Any]:
    """Return what the refs hold, key by key, and what the retained snapshots are called."""
    with repository.handle.catalog.reading() as view:
        retained = sorted(entry.ref.digest.hex() for entry in view.iter_snapshots())
    return {
        "branches": {n: contents(repository.readonly_session(n)) for n in repository.list_branches()},
        "tags": {n: contents(repository.readonly_session(tag=n)) for n in repository.list_tags()},
        "messages": sorted(repository.lookup_snapshot(name).message for name in retained),
    }


def look(place: Place) -> dict[str, Any] | None:
    """Return the picture of the repository at `place`, as another process would see it; None if there is none."""
    if not vstore.Repository.exists(place.location):
        return None
    with place.open() as repository:
        return picture(repository)


def create(place: Place, say: Say) -> None:
    with place.create() as repository:
        say("created")
        say(commit(repository, {"zarr.json": GROUP, "x": b"x" * 3000}, "one"))


def commits(place: Place, say: Say) -> None:
    with place.open() as repository:
        say(commit(repository, {"a/c/1": b"one" * 400, "b": b"b" * 80_000}, "one"))
        say(commit(repository, {"a/c/2": b"small"}, "two"))


def several_packs(place: Place, say: Say, *, spilled: bool = False) -> None:
    with place.open() as repository:
        repository.handle.storage.pack_policy = TINY_PACKS
        session = repository.writable_session("main")
        for number, (key, value) in enumerate(MANY.items()):
            write(session, {key: value})
            if spilled and number % 10 == 9:
                spill(session.tree, fewest_refs=1)
        say(session.commit("many"))


def spilled_manifests(place: Place, say: Say) -> None:
    several_packs(place, say, spilled=True)


def amend(place: Place, say: Say) -> None:
    with place.open() as repository:
        session = repository.writable_session("main")
        write(session, {"a/c/1": b"amended" * 200})
        say(session.amend("third, better"))


def refs(place: Place, say: Say) -> None:
    with place.open() as repository:
        head = repository.lookup_branch("main")
        repository.create_branch("new", head)
        say("branch")
        repository.create_tag("v2", head)
        say("tag")
        repository.reset_branch("dev", head)
        say("reset")
        repository.delete_branch("new")
        say("deleted")
        repository.delete_tag("v1")
        say("tag deleted")


def many_tags(place: Place, say: Say) -> None:
    """Enough for a record of the log to move some of them to pages."""
    with place.open() as repository:
        head = repository.lookup_branch("dev")
        for number in range(45):
            repository.create_tag(f"{number}-{'long' * 45}", head)
            say("tag")


def expire(place: Place, say: Say) -> None:
    with place.open() as repository:
        repository.expire_snapshots(policy=RetentionPolicy(keep_last=1, unreachable_after=timedelta(0)))
        say("expired")


def expire_and_collect(place: Place, say: Say) -> None:
    expire(place, say)
    with place.open(clock=LaterClock()) as repository:
        repository.garbage_collect(FUTURE)
        say("collected")


def compact(place: Place, say: Say) -> None:
    with place.open(clock=LaterClock()) as repository:
        repository.compact()
        say("compacted")
        repository.garbage_collect(FUTURE)
        say("collected")


def convert(place: Place, say: Say) -> None:
    """Convert to the other kind of catalog, and back; a cut may need the conversion to be finished."""
    with place.open() as repository:
        repository.convert_catalog("sqlite" if place.kind == "log" else "log")
    say("converted")
    with place.open() as repository:
        say(commit(repository, {"a/c/1": b"converted" * 100}, "after it"))


def trials(place: Place, say: Say, count: str, closing: str = "") -> None:
    """Commit again and again; what fails is tried again in the same session, which must hold its changes.

    With `closing` the repository is closed after each failure, before that is said.
    """
    clock = LaterClock()
    with place.open(clock=clock) as repository:
        if place.kind == "log":
            # Its waits between tries are by the system's clock.
            repository.handle.catalog._clock = clock  # type: ignore[attr-defined]
        for number in range(int(count)):
            close = repository.close if closing else nothing
            session = _stubbornly(lambda: repository.writable_session("main"), nothing, lambda text: None)
            values = {f"a/c/{number % 4}": bytes([number]) * 600, "number": b"%d" % number * 700}
            write(session, values)
            say(f"trial {number}")
            made = _stubbornly(partial(_commit_and_look, session, number), close, say)
            say(f"ack {number} {made}")
            found = contents(repository.readonly_session("main"))
            assert {key: found[key] for key in values} == values
            assert repository.lookup_branch("main") == made == session.snapshot_id
        say("all done")


def creations(place: Place, say: Say, count: str) -> None:
    """Create repositories, one after the other, each with a commit; what fails is opened, or made, and done again."""
    for number in range(int(count)):
        target = Place(place.kind, place.location.parent / f"new {number}" / "repository")
        say(f"trial {number}")
        say(f"ack {number} {_stubbornly(partial(_create_and_commit, target), nothing, say)}")
    say("all done")


def _create_and_commit(place: Place) -> str:
    catalog = "log" if place.kind == "log" else None
    with vstore.Repository.open_or_create(place.location, catalog=catalog) as repository:
        if place.kind == "log":
            repository.handle.catalog._clock = LaterClock()  # type: ignore[attr-defined]
        return commit(repository, {"zarr.json": GROUP})


def nothing() -> None:
    """Do nothing."""


def _stubbornly(act: Callable[[], Any], close: Callable[[], None], say: Say) -> Any:
    for _ in range(MANY_TRIES):
        try:
            return act()
        except vstore.VStoreError as error:
            close()
            said = f"{type(error).__name__} {error.message}"
        say(f"failed {said}".replace("\n", " "))
        assert said.count(". ") >= 1, "it does not say what to do"
    raise AssertionError(f"it did not work {MANY_TRIES} times")


def _commit_and_look(session: Session, number: int) -> str:
    try:
        return session.commit(str(number))
    finally:
        assert session.tree.read("number") == b"%d" % number * 700, "the session lost what was written"


OPERATIONS: dict[str, Callable[[Place, Say], None]] = {
    "create": create,
    "commits": commits,
    "several packs": several_packs,
    "spilled manifests": spilled_manifests,
    "amend": amend,
    "refs": refs,
    "expire and collect": expire_and_collect,
    "compact": compact,
    "convert": convert,
    "many tags": many_tags,
}


class LaterClock(HandClock):
    """A clock an hour ahead: what was staged a moment ago is old enough for gc."""

    def __init__(self) -> None:
        super().__init__(SYSTEM_CLOCK.now_us() + 3600 * 1_000_000)


def main(folder: str, kind: str, operation: str, *more: str) -> None:
    """Do an operation in a process of its own, which waits until it is told to begin."""
    import tests.crash.stepping

    place = Place(kind, Path(folder))
    if operation != "create":
        # What is imported when it is needed is no part of what is watched.
        place.open().close()
    tests.crash.stepping.started()

    def say(text: str) -> None:
        print(text, flush=True)

    if more:
        {"trials": trials, "creations": creations}[operation](place, say, *more)
    else:
        OPERATIONS[operation](place, say)
