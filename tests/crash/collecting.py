"""Repositories with garbage in them, what writers do there, and what must hold whatever gc and compact did meanwhile.

A `World` is a copy of one template: small packs on two branches, a tag, a lost snapshot, garbage. `Pause` stops an
operation at one of its requests and does something else there, in the same thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha512
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import vstore
from tests.crash.faulty import open_faulty
from tests.crash.trial import TinyPacks
from tests.repositories import GROUP, Place, array_document, commit, contents, quick_folder, write
from tests.unit.ops.repositories import FUTURE, expire
from vstore.commit import Prepared, prepare, publish
from vstore.format.record import OperationKind, PackMark
from vstore.ops.fsck import check
from vstore.session import Session
from vstore.testing.faults import FaultPlan, FaultyStorage

BASE = {
    "zarr.json": GROUP,
    "a/zarr.json": array_document((8000,), (1000,)),
    **{f"a/c/{n}": bytes([n]) * 1000 for n in range(6)},
    "i/zarr.json": array_document((40 * 64,), (64,)),
    "value": b"v" * 5000,
}
ON_DEV = {"b/zarr.json": array_document((4000,), (1000,)), "b/c/1": b"d" * 1000, "dev": b"d" * 3000}
MANY = {
    "m/zarr.json": array_document((40_000,), (1000,)),
    **{f"m/c/{n}": bytes([n]) * 1000 for n in range(30)},
}
ALIKE = {f"i/c/{n}": sha512(bytes([n])).digest() for n in range(40)}
"""Inline chunks: their manifest comes to lie in a pack of each branch, which nothing else needs."""


@dataclass
class World:
    """A repository under test. `versions` is what its retained snapshots hold, by id."""

    place: Place
    names: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    prepared: dict[str, tuple[vstore.Repository, Prepared]] = field(default_factory=dict)

    def prepare_commits(self) -> None:
        """Prepare two commits that are published later, if ever, by `vstore.commit.publish`.

        "late" is of packs that nothing names yet. "second" names a pack of which another snapshot holds a part.
        """
        for name in ("late", "second"):
            repository = self.open()
            session = repository.writable_session("main")
            write(session, {"a/c/0": b"x" * 3000, "a/c/1": b"y" * 60_000})
            self.prepared[name] = repository, _flushed(repository, session)
            if name == "second":
                session.tree_for_writing().delete("a/c/1")
                first = publish(repository.handle, _flushed(repository, session)).hex()
                self.versions[first] = contents(repository.readonly_session(snapshot_id=first))

    def close(self) -> None:
        for repository, _ in self.prepared.values():
            repository.close()

    def open(self) -> vstore.Repository:
        """Open the repository as another process would, without touching what is cached in this one."""
        return vstore.Repository.open(self.place.location)

    def collect(self, times: int = 1) -> None:
        with self.open() as other:
            for _ in range(times):
                other.garbage_collect(FUTURE)

    def compact(self) -> None:
        with self.open() as other:
            other.compact()

    def verify(self, *, is_quiet: bool = True) -> None:
        """Every retained snapshot is whole; when all is quiet, one more gc leaves nothing that is not needed."""
        with self.place.open() as reader:
            with reader.handle.catalog.reading() as view:
                retained = {entry.id.hex() for entry in view.iter_snapshots()}
            for name in sorted(retained & self.versions.keys()):
                assert contents(reader.readonly_session(snapshot_id=name)) == self.versions[name]
            for name in sorted(retained - self.versions.keys()):
                contents(reader.readonly_session(snapshot_id=name))
            assert check(reader, data=True).damages == []
            if is_quiet:
                self._verify_no_leaks(reader)

    def _verify_no_leaks(self, reader: vstore.Repository) -> None:
        report = reader.garbage_collect(FUTURE)
        assert report.failures == []
        with reader.handle.catalog.reading() as view:
            assert {state.mark for state in view.pack_states(None)} <= {PackMark.RELOCATED}
            assert list(view.iter_sessions()) == []
        found = check(reader, data=True)
        assert found.damages == []
        assert found.unreferenced_packs == 0, "gc left packs behind"
        for name in self.versions:
            with reader.handle.catalog.reading() as view:
                if view.snapshot(vstore.ids.SnapshotId(bytes.fromhex(name))) is None:
                    continue
            assert contents(reader.readonly_session(snapshot_id=name)) == self.versions[name]


def _flushed(repository: vstore.Repository, session: Session) -> Prepared:
    found = prepare(
        repository.handle, session.tree, session._draft.request(OperationKind.FLUSH, "m", b"{}", True)
    )
    assert isinstance(found, Prepared)
    return found


@cache
def _template(kind: str) -> tuple[World, Any]:
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(mkdtemp(prefix="vstore-template-", dir=shared))
    world = World(Place.new(kind, folder))
    with world.place.create() as repository:
        _fill(repository, world)
        for name in map(world.names.__getitem__, ("first", "third", "fourth", "dev 2", "picked", "lost")):
            world.versions[name] = contents(repository.readonly_session(snapshot_id=name))
    if kind != "memory":
        return world, folder
    store = world.place.location
    names = [item["path"] for batch in store.list() for item in batch]
    saved = {name: bytes(store.get(name).bytes()) for name in names}
    return world, saved


def _fill(repository: vstore.Repository, world: World) -> None:
    names = world.names
    names["first"] = commit(repository, BASE, "first")
    repository.create_tag("v1", names["first"])
    repository.create_branch("dev", names["first"])
    names["second"] = commit(repository, ALIKE, "second")
    with repository.writable_session("dev") as session:
        write(session, ALIKE)
        names["dev 1"] = session.commit("dev 1")
    with repository.writable_session("dev") as session:
        write(session, ON_DEV)
        names["dev 2"] = session.commit("dev 2")
    with repository.writable_session("dev") as session:
        write(session, {"a/c/2": b"f" * 1000, "picked": b"p" * 3000})
        names["picked"] = session.commit("picked")
    with repository.writable_session("main") as session:
        write(session, {"lost": b"l" * 3000})
        names["lost"] = session.flush("lost")
    with repository.writable_session("main") as session:
        write(session, {"gone": b"g" * 3000})
        names["gone"] = session.flush("gone")
    expire(repository, names["gone"])
    names["third"] = commit(
        repository, {"a/c/7": b"7" * 10, "a/c/6": b"six" * 400, "third": b"t" * 2000}, "third"
    )
    names["fourth"] = commit(repository, {"fourth": b"4" * 2000}, "fourth")
    # What they hold is needed by those that follow them.
    expire(repository, names["second"], names["dev 1"])


@contextmanager
def new_world(kind: str) -> Iterator[World]:
    """Give a world of its own."""
    template, saved = _template(kind)
    with quick_folder() as folder:
        if kind == "memory":
            place = Place.new(kind, folder)
            for name, data in saved.items():
                place.location.put(name, data)
        else:
            shutil.copytree(saved, folder, dirs_exist_ok=True)
            place = Place.new(kind, folder)
        yield World(place, dict(template.names), dict(template.versions))


class Pause(FaultPlan):
    """Does `act` right before request number `at`, once; with None never."""

    def __init__(self, at: int | None = None, act: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.at = at
        self.act = act
        self.happened = False

    def _count(self, method: str, name: str) -> Any:
        fault = super()._count(method, name)
        if self.at is not None and len(self.requests) - 1 == self.at and not self.happened:
            self.happened = True
            self.act()
        return fault


# --- what writers do -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writing:
    """What a writer does. `act` is given the repository, and returns the snapshot that it made, if any."""

    act: Callable[[vstore.Repository, World], str | None]
    storage: type[FaultyStorage] = FaultyStorage


def _edit(repository: vstore.Repository, edit: Callable[[Any], None], method: str = "commit") -> str:
    with repository.writable_session("main") as session:
        edit(session)
        return str(getattr(session, method)("the change"))


def _small(session: Any) -> None:
    write(session, {"a/c/0": b"new" * 400, "new": b"n" * 3000, "b/zarr.json": GROUP})


def _shift(session: Any) -> None:
    session.shift_array("a", (1,))


def _reindex(session: Any) -> None:
    session.reindex_array("a", lambda index: (7 - index[0],))


def _moved_head(repository: vstore.Repository, world: World) -> str:
    with repository.writable_session("main") as session:
        write(session, {"mine": b"m" * 3000})
        with world.open() as other:
            commit(other, {"theirs": b"t" * 3000})
        session.shift_array("a", (1,))
        return session.commit("the change", rebase_with="fail")


def _second_try(repository: vstore.Repository, world: World) -> str:
    """A commit of which the packs were sealed long before, by a try that failed."""
    with repository.writable_session("main") as session:
        _small(session)
        prepare(
            repository.handle,
            session.tree,
            session._draft.request(OperationKind.COMMIT, "lost", b"{}", False),
        )
        return session.commit("the change")


def _nothing_made(act: Callable[[vstore.Repository, World], object]) -> Writing:
    def run(repository: vstore.Repository, world: World) -> None:
        act(repository, world)

    return Writing(run)


WRITINGS = {
    "commit": Writing(lambda repository, _: _edit(repository, _small)),
    "amend": Writing(lambda repository, _: _edit(repository, _small, "amend")),
    "flush": Writing(lambda repository, _: _edit(repository, _small, "flush")),
    "second try": Writing(_second_try),
    "several packs": Writing(
        lambda repository, _: _edit(repository, lambda session: write(session, MANY)), TinyPacks
    ),
    "same bytes again": Writing(
        lambda repository, _: _edit(
            repository, lambda session: write(session, BASE | {"a/c/7": BASE["a/c/1"]})
        )
    ),
    "shift": Writing(lambda repository, _: _edit(repository, _shift)),
    "reindex": Writing(lambda repository, _: _edit(repository, _reindex)),
    "merge": Writing(lambda repository, _: repository.merge("dev")),
    "squash": Writing(lambda repository, _: repository.merge("dev", squash=True)),
    "cherry-pick": Writing(lambda repository, world: repository.cherry_pick(world.names["picked"])),
    "revert": Writing(lambda repository, world: repository.revert(world.names["picked"], "dev")),
    "rebase": Writing(_moved_head),
    "branch": _nothing_made(lambda repository, world: repository.create_branch("new", world.names["lost"])),
    "tag": _nothing_made(lambda repository, world: repository.create_tag("v2", world.names["lost"])),
    "reset": _nothing_made(lambda repository, world: repository.reset_branch("main", world.names["lost"])),
    "undo": _nothing_made(lambda repository, world: repository.undo()),
}


@cache
def expected(kind: str, name: str) -> dict[str, bytes]:
    """Return what the snapshot that `name` makes must hold, undisturbed."""
    with (
        new_world(kind) as world,
        open_faulty(world.place, FaultPlan(), WRITINGS[name].storage) as repository,
    ):
        made = WRITINGS[name].act(repository, world)
        return contents(repository.readonly_session(snapshot_id=made)) if made else {}


def count(
    kind: str, operation: Callable[[vstore.Repository, World], object], storage: Any = FaultyStorage
) -> int:
    """Return how many requests an operation makes."""
    plan = Pause()
    with new_world(kind) as world, open_faulty(world.place, plan, storage) as repository:
        plan.reset()
        operation(repository, world)
        return len(plan.requests)
