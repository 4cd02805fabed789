"""Collectors, compactors, writers and readers, a request at a time in orders that a seed decides."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import vstore
from tests.crash.collecting import WRITINGS, World, new_world
from tests.crash.faulty import open_interleaved
from tests.repositories import KINDS, contents
from tests.unit.ops.repositories import FUTURE, expire
from vstore.testing.faults import SimulatedCrash
from vstore.testing.interleave import Fate, Interleaving, chooser

Work = Callable[[vstore.Repository, World], object]

ALWAYS_ALLOWED = (vstore.StorageError, vstore.SnapshotExpiredError, SimulatedCrash)
ALLOWED_TO_WRITERS = (vstore.MissingBlobError, vstore.ConflictError)
"""Their packs were deleted before they committed, or another was quicker."""


def collect(repository: vstore.Repository, world: World) -> None:
    repository.garbage_collect(FUTURE)


def compact(repository: vstore.Repository, world: World) -> None:
    repository.compact()


def rewrite(repository: vstore.Repository, world: World) -> None:
    repository.compact(rewrite_heads=True)


def writer(name: str) -> Work:
    def write(repository: vstore.Repository, world: World) -> None:
        made = WRITINGS[name].act(repository, world)
        if made is not None:
            assert contents(repository.readonly_session(snapshot_id=made)).keys() >= {"value"}

    return write


def reader(repository: vstore.Repository, world: World) -> None:
    for name in ("third", "dev 2", "lost"):
        found = contents(repository.readonly_session(snapshot_id=world.names[name]))
        assert found == world.versions[world.names[name]]


def lose(repository: vstore.Repository, world: World) -> None:
    expire(repository, world.names["lost"])


CASTS: dict[str, tuple[Work, ...]] = {
    "two collectors": (collect, collect),
    "two compactors": (compact, compact),
    "collector, compactor": (collect, compact),
    "with a writer": (collect, compact, writer("shift")),
    "with a merge": (collect, compact, writer("merge")),
    "with a second try": (collect, collect, writer("second try")),
    "with readers": (collect, compact, reader, lose),
    "all": (collect, rewrite, writer("commit"), writer("flush"), reader, lose, collect),
}
FATES = (Fate.DONE,) * 9 + (
    Fate.LOST,
    Fate.APPLIED,
    Fate.OWN_EXISTS,
    Fate.FALSE_EXISTS,
    Fate.LATE,
    Fate.REFUSED,
)


def play(kind: str, cast: str, seed: int) -> None:
    choose = chooser(seed)
    with new_world(kind) as world:
        troubled = seed % 2 == 1
        schedule = Interleaving(choose, fates=FATES if troubled else (Fate.DONE,), crashes=troubled)
        repositories = [open_interleaved(world.place, schedule) for _ in CASTS[cast]]
        try:
            works = zip(CASTS[cast], repositories, strict=True)
            results = schedule.run(
                *(
                    lambda work=work, repository=repository: work(repository, world)
                    for work, repository in works
                )
            )
            for result, work in zip(results, CASTS[cast], strict=True):
                allowed = ALWAYS_ALLOWED + (
                    ALLOWED_TO_WRITERS if work.__name__ in ("write", "rewrite") else ()
                )
                assert result is None or isinstance(result, allowed), result
                assert not isinstance(result, vstore.ObjectNotFoundError), result
            schedule.land_all()
            for repository in repositories:
                repository.close()
            world.verify()
        except BaseException as error:
            error.add_note(f"{kind}, {cast}, seed {seed}: {schedule.requests}")
            raise


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_some_orders(kind: str, cast: str) -> None:
    for seed in range(2):
        play(kind, cast, seed)


@pytest.mark.deep
@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_many_orders(kind: str, cast: str) -> None:
    for seed in range(2, 200):
        play(kind, cast, seed)
