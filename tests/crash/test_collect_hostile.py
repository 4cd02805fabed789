"""gc and compact where the world is unkind: listings that are stale, deletes that half fail, clocks that are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import vstore
from tests.crash.collecting import MANY, Pause, World, new_world
from tests.crash.faulty import open_faulty
from tests.crash.trial import TinyPacks
from tests.repositories import KINDS, HandClock, commit, contents, write
from tests.unit.ops.repositories import FUTURE, marks, packs
from vstore.catalog.base import Applied, CloseSession, Transaction
from vstore.format.record import OperationKind
from vstore.handle import Handle
from vstore.ids import new_transaction_id
from vstore.ops.gc import DEFAULT_GRACE_US, collect
from vstore.storage.base import ObjectInfo
from vstore.testing.faults import FaultPlan, FaultyStorage

DAY = timedelta(days=1)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with new_world(request.param) as world:
        yield world


class StaleListings(FaultyStorage):
    """Lists what was there when it was first asked: new packs are hidden, deleted ones shown."""

    def __init__(self, inner: Any, plan: FaultPlan) -> None:
        super().__init__(inner, plan)
        self.shown: dict[str, list[ObjectInfo]] = {}

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(self.shown.setdefault(prefix, [*self.inner.list(prefix)]))


def test_a_listing_that_is_stale(world: World) -> None:
    with open_faulty(world.place, FaultPlan(), StaleListings) as stale, world.open() as other:
        assert stale.garbage_collect(FUTURE, dry_run=True).garbage_packs > 0
        for number in range(3):
            made = commit(other, {f"a/c/{number}": bytes([9, number]) * 500})
            world.versions[made] = contents(other.readonly_session(snapshot_id=made))
            stale.garbage_collect(FUTURE)
            stale.compact()
            other.garbage_collect(FUTURE)
    world.verify()


class HalfDeletes(FaultyStorage):
    """Deletes the first half of what it is asked to delete, then fails."""

    def delete(self, names: Sequence[str]) -> None:
        self.inner.delete(names[: len(names) // 2])
        raise vstore.StorageError("injected: the rest was not deleted")


def test_deletes_that_half_fail(world: World) -> None:
    with world.open() as other:
        other.compact()
    with open_faulty(world.place, FaultPlan(), HalfDeletes) as repository:
        report = repository.garbage_collect(FUTURE)
        assert not report.is_complete
        assert "not deleted" in str(report)
        assert report.deleted_packs < report.garbage_packs
    world.verify()


class Unsure(FaultyStorage):
    """Can't say whether a pack is there."""

    def size(self, name: str) -> int | None:
        raise vstore.StorageError("injected: no answer")


def test_packs_of_which_nobody_knows_whether_they_are_gone(world: World) -> None:
    with open_faulty(world.place, FaultPlan()) as repository:
        repository = with_storage(repository, Unsure)
        report = repository.garbage_collect(FUTURE)
        assert "may still be there" in str(report)
        assert report.deleted_packs == 0
    world.verify()


def with_storage(repository: vstore.Repository, kind: type[FaultyStorage]) -> vstore.Repository:
    """Return the repository with another storage below its blobs, and the catalog as it was."""
    handle = repository.handle
    inner = handle.storage.inner  # type: ignore[attr-defined]
    return with_parts(handle, storage=kind(inner, FaultPlan()))


def with_parts(handle: Handle, **parts: Any) -> vstore.Repository:
    names = ("storage", "catalog", "virtual", "config", "author", "clock")
    return vstore.Repository(Handle(**{name: parts.get(name, getattr(handle, name)) for name in names}))


@pytest.mark.parametrize("offset", [timedelta(hours=-30), timedelta(hours=30), timedelta(days=-9000)])
def test_clocks_that_differ(world: World, offset: timedelta) -> None:
    """A collector's clock decides how long garbage waits, never what garbage is."""
    with world.open() as other:
        start = other.handle.clock.now_us()
        wrong = HandClock(start + int(offset.total_seconds() * 1e6))
        collector = with_parts(other.handle, clock=wrong)
        session = other.writable_session("main")
        write(session, {"a/c/3": b"3" * 1000})
        for _ in range(3):
            collect(collector.handle, cutoff_us=wrong.now_us() - DEFAULT_GRACE_US)
            collector.compact()
            # And it steps back.
            wrong.time_us -= 3600 * 1_000_000
        made = session.commit("with a clock of its own")
        world.versions[made] = contents(other.readonly_session(snapshot_id=made))
    world.verify()


def test_a_new_pack_of_compact_that_a_collector_thinks_old(world: World) -> None:
    """The compactor's clock is far ahead: its marks are spared, its pack is not."""
    if world.place.kind == "log":
        pytest.skip("takes long, and differs from memory in nothing that matters here")
    plan = Pause()
    with open_faulty(world.place, plan) as opened:
        repository = with_parts(opened.handle, clock=HandClock(int((FUTURE + DAY).timestamp() * 1e6)))
        repository.compact()
        sealed = [request.method for request in plan.requests].index("seal")
    for at in range(sealed, len(plan.requests)):
        with new_world(world.place.kind) as fresh:
            plan = Pause(None)
            with open_faulty(fresh.place, plan) as opened:
                repository = with_parts(opened.handle, clock=HandClock(int((FUTURE + DAY).timestamp() * 1e6)))
                plan.reset()
                plan.at, plan.act = at, lambda fresh=fresh: fresh.collect()
                repository.compact()
                # Its marks are in the future, so that they are ended by one that collects even later.
                plan.at = None
                collect(repository.handle, cutoff_us=int((FUTURE + 2 * DAY).timestamp() * 1e6))
            fresh.verify()


def test_a_session_that_is_registered_is_left_alone_until_it_is_abandoned(world: World) -> None:
    with open_faulty(world.place, FaultPlan(), TinyPacks) as repository:
        session = repository.writable_session("main")
        write(session, MANY)
        session.tree.writer.flush()
        before = packs(repository).keys()
        with world.open() as other:
            report = other.garbage_collect(FUTURE)
            assert report.held_packs > 0
            held = before - packs(other).keys()
            with other.handle.catalog.reading() as view:
                (entry,) = view.iter_sessions()
                since = view.sequence
            assert entry.session.hex() == session.id
            assert all(not name.rpartition("/")[2].startswith(session.id[:16]) for name in held)
            abandon = Transaction(
                new_transaction_id(),
                since,
                OperationKind.CLOSE_SESSION,
                0,
                "",
                (),
                (CloseSession(entry.session),),
            )
            assert isinstance(other.handle.catalog.update(abandon), Applied)
            other.garbage_collect(FUTURE)
        with pytest.raises((vstore.SessionStateError, vstore.MissingBlobError)):
            session.commit("too late")
        session.close()
    world.verify()


def test_staged_files_of_the_dead_are_deleted_and_those_of_the_living_kept(tmp_path: Path) -> None:
    import os

    with vstore.Repository.create(tmp_path / "repository") as repository:
        folder = tmp_path / "repository" / "staging"
        folder.mkdir(exist_ok=True)
        session = repository.writable_session("main")
        write(session, {"value": os.urandom(2_000_000)})
        (living,) = folder.iterdir()
        dead = folder / ("cd" * 16)
        dead.write_bytes(b"half a pack")
        for path in (living, dead):
            os.utime(path, (1_600_000_000, 1_600_000_000))
        report = repository.garbage_collect()
        assert (living.exists(), dead.exists()) == (True, False)
        assert report.held_packs == 1
        session.commit("alive")
        assert marks(repository) == set()
