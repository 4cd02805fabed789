"""Writers at the same time."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from vstore.catalog.base import (
    ABSENT,
    AddSnapshot,
    Applied,
    Catalog,
    RefIs,
    Refused,
    SetRef,
    Transaction,
)
from vstore.ids import (
    SnapshotId,
)
from vstore.testing.catalog_contract.making import (
    BRANCH,
    MAIN,
    RACERS,
    ROOT,
    TAG,
    CatalogTests,
    Reopen,
    check_history,
    commit_many,
    entry_of,
    transaction_of,
)


class RaceTests(CatalogTests):
    """That one wins and nothing that was acknowledged is lost."""

    def test_one_of_racing_threads_wins_each_round(self, catalog: Catalog, reopen: Reopen) -> None:
        handles = [catalog, reopen(), catalog, reopen()]
        rounds = 25
        start = Barrier(RACERS)

        def race(racer: int) -> list[bool]:
            wins = []
            for number in range(rounds):
                expected = ROOT.id if number == 0 else winners[number - 1]
                new = entry_of(f"round {number} racer {racer}", expected)
                start.wait()
                outcome = handles[racer].update(
                    transaction_of(
                        (AddSnapshot(new), SetRef(BRANCH, MAIN, new.id)), (RefIs(BRANCH, MAIN, expected),)
                    )
                )
                wins.append(isinstance(outcome, Applied))
                if wins[-1]:
                    winners[number] = new.id
                start.wait()
                if isinstance(outcome, Refused):
                    assert outcome.refusals[0].found == winners[number]
            return wins

        winners: dict[int, SnapshotId] = {}
        with ThreadPoolExecutor(RACERS) as pool:
            results = list(pool.map(race, range(RACERS)))
        assert [sum(column) for column in zip(*results, strict=True)] == [1] * rounds
        check_history(catalog, range(1, rounds + 1))

    def test_no_commit_of_racing_threads_is_lost(self, catalog: Catalog, reopen: Reopen) -> None:
        handles = [catalog, reopen(), catalog, reopen()]
        with ThreadPoolExecutor(RACERS) as pool:
            jobs = [pool.submit(commit_many, handles[racer], f"racer {racer}", 15) for racer in range(RACERS)]
            acknowledged = [sequence for job in jobs for sequence in job.result()]
        assert len(acknowledged) == RACERS * 15
        check_history(reopen(), acknowledged)

    def test_no_commit_of_racing_processes_is_lost(self, catalog: Catalog, reopen: Reopen) -> None:
        if not self.can_pickle:
            pytest.skip("no other process can reach it")
        jobs = [(catalog, f"process {number}", 15) for number in range(3)]
        with multiprocessing.get_context("spawn").Pool(3) as pool:
            acknowledged = [sequence for numbers in pool.starmap(commit_many, jobs) for sequence in numbers]
            pool.close()
            pool.join()
        assert len(acknowledged) == 45
        check_history(reopen(), acknowledged)

    def test_one_transaction_from_many_threads_is_applied_once(
        self, catalog: Catalog, reopen: Reopen
    ) -> None:
        handles = [catalog, reopen(), catalog, reopen()]
        for number in range(10):
            wanted = transaction_of([SetRef(TAG, f"v{number}", ROOT.id)], [RefIs(TAG, f"v{number}", ABSENT)])
            start = Barrier(RACERS)

            def act(racer: int, wanted: Transaction = wanted, start: Barrier = start) -> object:
                start.wait()
                return handles[racer].update(wanted)

            with ThreadPoolExecutor(RACERS) as pool:
                outcomes = list(pool.map(act, range(RACERS)))
            assert all(isinstance(outcome, Applied) for outcome in outcomes)
            assert outcomes == outcomes[:1] * RACERS
