"""Expiry is stopped at each of its requests, in each way a request can go wrong, and then run again.

After every stop the repository is whole, holds nothing less than what the rules keep, and branches and tags that were
to go are there as long as snapshots that they reach are; the next run finishes the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import pytest

import vstore
from tests.crash.faulty import open_faulty
from tests.repositories import KINDS, START_US, HandClock, Place, commit, contents, quick_folder, write
from vstore.clock import to_datetime
from vstore.ops import expire as expire_module
from vstore.ops.fsck import check
from vstore.testing.faults import Fault, FaultPlan, SimulatedCrash

CUTOFF: datetime = to_datetime(START_US - 2_500_000)
LEASE = timedelta(days=1)


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expire_module, "_STEP_CHANGES", 2)


class Trial:
    """One repository whose main has seven snapshots, a second apart, with an old branch and old tags."""

    def __init__(self, place: Place) -> None:
        self.place = place
        clock = HandClock(START_US - 7_000_000)
        with place.create(clock=clock) as repository:
            self.made = [repository.lookup_branch("main")]
            for number in range(6):
                clock.sleep(1)
                self.made.append(commit(repository, {"x": b"%d" % number}))
            repository.create_branch("old", self.made[1])
            with repository.writable_session("old") as session:
                write(session, {"old": b"1"})
                clock.time_us -= 4_000_000
                self.side = session.commit("on old")
            repository.create_tag("v1", self.made[2])
            repository.create_tag("v2", self.made[2])
        self.plan = FaultPlan()
        self.repository = open_faulty(place, self.plan)
        self.plan.reset()

    def expire(self, repository: vstore.Repository) -> Any:
        return repository.expire_snapshots(CUTOFF, delete_expired_branches=True, delete_expired_tags=True)

    def verify(self, *, is_done: bool = False) -> None:
        with self.place.open() as reader:
            with reader.handle.catalog.reading() as view:
                retained = {entry.id.hex() for entry in view.iter_snapshots()}
            kept, everything = set(self.made[5:]), {*self.made, self.side}
            assert retained == kept if is_done else kept <= retained <= everything
            assert reader.list_branches() == {"main"} | (set() if self.side not in retained else {"old"})
            assert (reader.list_tags() == set()) == (self.made[2] not in retained)
            # What a ref reaches goes before it: else the next run would not find it.
            if self.side not in retained or self.made[2] not in retained:
                assert not retained & {self.made[0], self.made[1], *self.made[3:5]}
            for snapshot in retained:
                contents(reader.readonly_session(snapshot_id=snapshot))
            assert [info.id for info in reader.ancestry(branch="main")][:2] == self.made[:4:-1]
            assert check(reader, data=True).damages == []

    def finish(self) -> None:
        with self.place.open(clock=HandClock()) as repository:
            self.expire(repository)
            self.verify(is_done=True)
            assert self.expire(repository).snapshots == ()


@contextmanager
def trial(kind: str) -> Iterator[Trial]:
    with quick_folder() as folder:
        made = Trial(Place.new(kind, folder))
        try:
            yield made
        finally:
            made.plan.reset()
            made.repository.close()


def count_requests(kind: str) -> int:
    with trial(kind) as made:
        report = made.expire(made.repository)
        count = len(made.plan.requests)
        assert (len(report.snapshots), report.branches, report.tags) == (6, ("old",), ("v1", "v2"))
        made.verify(is_done=True)
    return count


FAULTS = (
    Fault.NOT_APPLIED,
    Fault.LOST,
    Fault.APPLIED,
    Fault.LATE,
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_taken_up_after_a_stop_at_any_request(kind: str, fault: Fault) -> None:
    if kind == "sqlite" and fault is Fault.LATE:
        pytest.skip("what SQLite did not do when it returned, it does not do later")
    count = count_requests(kind)
    assert count >= 10, "the plan does not see the requests"
    stopped = 0
    for number in range(count):
        with trial(kind) as made:
            made.plan.inject(number, fault)
            try:
                try:
                    made.expire(made.repository)
                except (vstore.StorageError, SimulatedCrash):
                    stopped += 1
                made.plan.reset() if made.plan.crashed else made.plan.disarm()
                made.verify()
                made.finish()
                made.plan.land()
                made.verify(is_done=True)
            except BaseException as error:
                error.add_note(f"with request {number} of {made.plan.requests} {fault}")
                raise
    assert stopped > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_lease_outlives_faults(kind: str) -> None:
    """However taking it goes, a lease that was given holds, and one that was not is no harm."""
    with trial(kind) as made:
        made.repository.readonly_session(snapshot_id=made.made[1])
        opening = len(made.plan.requests)
        made.plan.reset()
        made.repository.readonly_session(snapshot_id=made.made[1], lease=LEASE)
        count = len(made.plan.requests)
    assert count > opening
    for number in range(count):
        for fault in (Fault.NOT_APPLIED, Fault.APPLIED, Fault.CRASH_AFTER):
            with trial(kind) as made:
                made.plan.inject(number, fault)
                reader = None
                with suppress(vstore.StorageError, SimulatedCrash):
                    reader = made.repository.readonly_session(snapshot_id=made.made[1], lease=LEASE)
                made.plan.reset()
                with made.place.open(clock=HandClock()) as other:
                    leases = other.list_leases()
                    assert len(leases) <= 1
                    made.expire(other)
                    with other.handle.catalog.reading() as view:
                        retained = {entry.id.hex() for entry in view.iter_snapshots()}
                    assert (made.made[1] in retained) == bool(leases)
                if reader is not None:
                    assert leases == [reader.lease]
                    assert contents(reader) == {"x": b"0"}
