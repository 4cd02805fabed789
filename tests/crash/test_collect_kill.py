"""gc and compact, stopped at each of their requests in each way that a request can fail.

Nothing that is retained is lost, and one more gc leaves nothing that is not needed: no pack, and no mark.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

import vstore
from tests.crash.collecting import FUTURE, World, count, new_world
from tests.crash.faulty import open_faulty
from tests.repositories import commit
from vstore.testing.faults import Fault, FaultPlan, SimulatedCrash

FAULTS = (
    Fault.NOT_APPLIED,
    Fault.LOST,
    Fault.APPLIED,
    Fault.LATE,
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
)
QUICK_FAULTS = (Fault.APPLIED, Fault.CRASH_AFTER)
"""A crash before a request is one after the request before it."""


def collect(repository: vstore.Repository, world: World) -> None:
    repository.garbage_collect(FUTURE)


def compact(repository: vstore.Repository, world: World) -> None:
    repository.compact(rewrite_heads=True)


def prepare(world: World) -> None:
    """Have marks of every kind to be continued: what an earlier run left."""
    with world.open() as other:
        other.compact()
        commit(other, {"after": b"a" * 3000})


def stop_at_each_request(kind: str, name: str, faults: tuple[Fault, ...], step: int) -> None:
    operation = {"gc": collect, "compact": compact}[name]

    def prepared(repository: vstore.Repository, world: World) -> None:
        prepare(world)
        operation(repository, world)

    total = count(kind, prepared)
    assert total >= 10, "the plan does not see the requests"
    for number in range(0, total, step):
        for fault in faults:
            if kind == "sqlite" and fault is Fault.LATE:
                # What SQLite did not do when it returned, it does not do later.
                continue
            with new_world(kind) as world:
                plan = FaultPlan()
                repository = open_faulty(world.place, plan)
                prepare(world)
                plan.reset()
                plan.inject(number, fault)
                try:
                    with suppress(vstore.StorageError, SimulatedCrash):
                        operation(repository, world)
                    plan.land()
                    plan.reset()
                    repository.close()
                    world.verify()
                except BaseException as error:
                    error.add_note(f"with request {number} {fault}: {plan.requests}")
                    raise


@pytest.mark.parametrize("name", ["gc", "compact"])
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_every_fifth_request_fails(kind: str, name: str) -> None:
    stop_at_each_request(kind, name, QUICK_FAULTS, 5)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["gc", "compact"])
@pytest.mark.parametrize("kind", ["sqlite", "log", "memory"])
def test_every_request_fails_in_every_way(kind: str, name: str) -> None:
    stop_at_each_request(kind, name, FAULTS, 1)
