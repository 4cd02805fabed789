"""A commit is all or nothing: it is stopped at each of its requests, in each way a request can go wrong.

Before and after every one of them the repository, looked at by another process, holds the old state or the new one;
what was acknowledged is there; and a session that lives on can be committed again, once.
"""

from __future__ import annotations

import itertools

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

import vstore
from tests.crash.faulty import open_faulty
from tests.repositories import GROUP, KINDS, Place, array_document, commit, contents, quick_folder, write
from vstore.ops.fsck import check
from vstore.session import Session
from vstore.storage.base import PackPolicy
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage, SimulatedCrash

LIVE_FAULTS = (Fault.NOT_APPLIED, Fault.LOST, Fault.APPLIED, Fault.LATE)
CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)

BASE = {
    "zarr.json": GROUP,
    "a/zarr.json": array_document((6000,), (1000,)),
    **{f"a/c/{n}": bytes([n]) * 1000 for n in range(4)},
    "gone/zarr.json": GROUP,
    "value": b"v" * 5000,
}
EDITS = {
    "a/zarr.json": array_document((8000,), (1000,)),
    "a/c/1": b"one" * 400,
    "a/c/7": b"small",
    "b/zarr.json": array_document((1000,), (1000,)),
    "b/c/0": b"b" * 80_000,
    "new value": b"n" * 5000,
}
MANY = {
    "b/zarr.json": array_document((40_000,), (1000,)),
    **{f"b/c/{n}": bytes([n]) * 1000 for n in range(40)},
}


class TinyPacks(FaultyStorage):
    """Seals a pack every few chunks."""

    def __init__(self, inner: Any, plan: FaultPlan) -> None:
        super().__init__(inner, plan)
        self.pack_policy = PackPolicy(target_bytes=12_000, buffer_bytes=5000, direct_bytes=None)


@dataclass
class Scenario:
    """An operation on a repository that holds `BASE`, and what it makes of it."""

    edits: dict[str, bytes]
    deleted: str
    method: str = "commit"
    storage: type[FaultyStorage] = FaultyStorage

    @property
    def after(self) -> dict[str, bytes]:
        kept = {key: value for key, value in BASE.items() if not key.startswith(f"{self.deleted}/")}
        return kept | self.edits

    def write(self, session: Session) -> None:
        session.tree_for_writing().delete_folder(self.deleted)
        write(session, self.edits)

    def finish(self, session: Session) -> str:
        return str(getattr(session, self.method)("the change"))

    def run(self, session: Session) -> str:
        self.write(session)
        return self.finish(session)


SCENARIOS = {
    "small": Scenario(EDITS, "gone"),
    "amend": Scenario(EDITS, "gone", "amend"),
    "flush": Scenario(EDITS, "gone", "flush"),
    "several packs": Scenario(MANY, "gone", storage=TinyPacks),
}


# Every kind of storage and catalog for the plainest one.
CASES = [(kind, name) for name in SCENARIOS for kind in (KINDS if name == "small" else ("sqlite", "memory"))]


class Trial:
    """One run of a scenario, from a fresh repository on, with one fault or none."""

    def __init__(self, kind: str, scenario: Scenario, fault: tuple[int, Fault] | None = None) -> None:
        self.scenario = scenario
        self.fault = fault
        self._folder = quick_folder()
        self.place = Place.new(kind, self._folder.__enter__())
        with self.place.create() as repository:
            self.before = commit(repository, BASE)
        self.plan = FaultPlan()
        self.repository = open_faulty(self.place, self.plan, scenario.storage)
        self.session = self.repository.writable_session("main")
        self.plan.reset()
        if fault is not None:
            self.plan.inject(*fault)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and self.fault is not None:
            number, fault = self.fault
            error.add_note(f"with request {number} of {self.plan.requests} {fault}")
        self.plan.reset()
        self.session.close()
        self.repository.close()
        self._folder.__exit__(None, None, None)

    def made(self, reader: vstore.Repository) -> set[str]:
        """Return the snapshots that the operation may have made: those in the operations log."""
        found = {after for entry in reader.ops_log() for _, _, _, after in entry.changes if after}
        return found - {self.before, *(info.id for info in reader.ancestry(snapshot_id=self.before))}

    def verify(self, acknowledged: str | None = None) -> None:
        """Look at the repository from outside: the old state, or the new one if it was acknowledged."""
        with self.place.open() as reader:
            assert contents(reader.readonly_session(snapshot_id=self.before)) == BASE
            new = self.made(reader)
            assert len(new) <= 1, "the change was made twice"
            head = reader.lookup_branch("main")
            if self.scenario.method == "flush":
                assert head == self.before
            else:
                assert head in ({acknowledged} if acknowledged else {self.before, *new})
            for snapshot_id in new | ({acknowledged} if acknowledged else set()):
                assert contents(reader.readonly_session(snapshot_id=snapshot_id)) == self.scenario.after
                assert reader.lookup_snapshot(snapshot_id).message == "the change"
            report = check(reader, data=True)
            assert report.damages == []


def count_requests(kind: str, scenario: Scenario) -> int:
    with Trial(kind, scenario) as trial:
        made = scenario.run(trial.session)
        count = len(trial.plan.requests)
        trial.verify(made)
    return count


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
            fail_and_try_again(trial)


def fail_and_try_again(trial: Trial) -> None:
    steps = [trial.scenario.write, trial.scenario.finish]
    try:
        for step in list(steps):
            step(trial.session)
            steps.remove(step)
    except vstore.StorageError:
        trial.verify()
        # What failed is done again, and what follows.
        for step in steps:
            step(trial.session)
    acknowledged = trial.session.snapshot_id
    assert acknowledged != trial.before, "it did not commit"
    trial.verify(acknowledged)
    assert contents(trial.session) == trial.scenario.after
    # What was on its way lands at last.
    trial.plan.land()
    trial.verify(acknowledged)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] in ("small", "several packs")])
def test_an_error_that_lasts_leaves_the_old_state_until_it_ends(kind: str, name: str) -> None:
    """From some request on all fail; then none."""
    scenario = SCENARIOS[name]
    for first in range(0, count_requests(kind, scenario), 3):
        with Trial(kind, scenario) as trial:
            for number in range(first, first + 200):
                trial.plan.inject(number, Fault.NOT_APPLIED)
            with pytest.raises(vstore.StorageError):
                scenario.run(trial.session)
            trial.plan.reset()
            trial.verify()
            trial.verify(scenario.run(trial.session))
