"""A commit is all or nothing: it is stopped at each of its requests, in each way a request can go wrong.

Before and after every one of them the repository, looked at by another process, holds the old state or the new one;
what was acknowledged is there; and a session that lives on can be committed again, once.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

import vstore
from tests.crash.trial import SCENARIOS, Trial, count_requests
from tests.repositories import KINDS
from vstore.testing.faults import Fault, SimulatedCrash

LIVE_FAULTS = (Fault.NOT_APPLIED, Fault.LOST, Fault.APPLIED, Fault.LATE)
CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)

# Every kind of storage and catalog for the plainest one.
CASES = [(kind, name) for name in SCENARIOS for kind in (KINDS if name == "small" else ("sqlite", "memory"))]


def each_fault(kind: str, name: str, faults: tuple[Fault, ...]) -> Iterator[tuple[int, Fault]]:
    count = count_requests(kind, SCENARIOS[name])
    assert count >= 5, "the plan does not see the requests"
    return itertools.product(range(count), faults)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_crash_at_each_request_leaves_the_old_state_or_the_new(kind: str, name: str) -> None:
    for fault in each_fault(kind, name, CRASHES):
        with Trial(kind, SCENARIOS[name], fault) as trial:
            crash(trial)


def crash(trial: Trial) -> None:
    acknowledged = None
    with suppress(SimulatedCrash):
        acknowledged = trial.scenario.run(trial.session)
    # All may go well where seals in the background made fewer requests than when they were counted, or where the
    # request fails by itself.
    assert trial.plan.crashed == (acknowledged is None), "the crash was swallowed"
    trial.plan.reset()
    trial.verify(acknowledged)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_error_at_each_request_leaves_a_session_that_can_commit(kind: str, name: str) -> None:
    for fault in each_fault(kind, name, LIVE_FAULTS):
        with Trial(kind, SCENARIOS[name], fault) as trial:
            trial.run_to_the_end(vstore.StorageError)
            # What was on its way lands at last.
            trial.plan.land()
            trial.verify(trial.session.snapshot_id)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] in ("small", "several packs")])
def test_an_error_that_lasts_leaves_the_old_state_until_it_ends(kind: str, name: str) -> None:
    """From some request on all fail; then none."""
    scenario = SCENARIOS[name]
    # Packs are sealed in the background, so that the last few requests are not the same in every run.
    for first in range(0, count_requests(kind, scenario) - 4, 3):
        with Trial(kind, scenario) as trial:
            for number in range(first, first + 200):
                trial.plan.inject(number, Fault.NOT_APPLIED)
            with pytest.raises(vstore.StorageError):
                scenario.run(trial.session)
            trial.plan.reset()
            trial.verify()
            trial.verify(scenario.run(trial.session))


def storm(kind: str, name: str, seed: int) -> None:
    """Let one request in twenty fail in one way or another until the commit comes through."""
    chance = random.Random(seed)
    # What SQLite did not do when it returned, it does not do later.
    faults = [fault for fault in LIVE_FAULTS if kind != "sqlite" or fault is not Fault.LATE]
    with Trial(kind, SCENARIOS[name]) as trial:
        for number in range(2000):
            if chance.random() < 1 / 20:
                trial.plan.inject(number, chance.choice(faults))
        steps = [trial.scenario.write, trial.scenario.finish]
        try:
            while steps:
                try:
                    steps[0](trial.session)
                    del steps[0]
                except vstore.StorageError:
                    trial.verify()
                    if chance.random() < 0.2:
                        trial.plan.land()
                    if trial.session.read_only:
                        break
            acknowledged = trial.session.snapshot_id
            assert acknowledged != trial.before, "it did not commit"
            trial.verify(acknowledged)
            trial.plan.land()
            trial.verify(acknowledged)
        except BaseException as error:
            error.add_note(f"with seed {seed}: {trial.plan.requests}")
            raise


@pytest.mark.parametrize("name", ["small", "several packs"])
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_many_faults_at_once(kind: str, name: str) -> None:
    for seed in range(10):
        storm(kind, name, seed)


@pytest.mark.deep
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_storms_of_faults(kind: str, name: str) -> None:
    for seed in range(100, 250):
        storm(kind, name, seed)
