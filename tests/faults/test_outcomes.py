"""Every request of every operation meets every fault, on real servers: the outcome is known, or resolves.

By default all of a small commit, and a sample of the rest; with --deep everything. `trial` says what is checked.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.cases import Case, iter_cases, sample, sample_pairs
from tests.faults.operations import OPERATIONS
from tests.faults.site import Site
from tests.faults.trial import run_cleanly, try_fault
from vstore.testing.proxy import DROP_AFTER, answer, hold

pytestmark = pytest.mark.server

SAMPLED = 2
COLLECTED = 8
"""One trial in so many is also collected after, which takes the most requests."""
PARTS = 7


def try_all(site: Site, name: str, cases: list[Case], *, collects_each: int = COLLECTED) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for number, case in enumerate(cases):
        outcomes[
            try_fault(
                site,
                name,
                case.number,
                case.fault,
                outage=case.outage,
                lands_first=case.lands_first,
                collects=number % collects_each == 0,
            )
        ] += 1
    # Shown with -rP.
    print(f"{name}: {sum(outcomes.values())} trials, {dict(outcomes)}")
    return outcomes


@pytest.mark.parametrize("number", range(6))
def test_each_request_of_a_commit_meets_each_fault(ministack: Site, number: int) -> None:
    requests = run_cleanly(ministack, "commit").requests
    cases = [case for case in iter_cases(requests) if case.number == number]
    if requests[number].method == "GET":
        cases = [case for case in cases if case.is_quick]
    lasting = sample([case for case in cases if case.outage and case.is_quick], 2, f"commit {number}")
    outcomes = try_all(ministack, "commit", [case for case in cases if not case.outage] + lasting)
    assert outcomes["landed"]


def test_a_commit_makes_the_requests_that_are_counted(ministack: Site) -> None:
    requests = [
        (each.method, each.path.split("/", 3)[-1].split("/")[0])
        for each in run_cleanly(ministack, "commit").requests
    ]
    writes = [request for request in requests if request[0] == "PUT"]
    assert writes == [("PUT", "packs"), ("PUT", "log"), ("PUT", "latest")]
    # The newest record is looked for twice, and a page is read again, as nothing is cached.
    assert len(requests) == 6


def test_the_unknown_comes_about_and_resolves_both_ways(ministack: Site) -> None:
    """Else the rest would prove little."""
    log_put = next(
        number
        for number, each in enumerate(run_cleanly(ministack, "commit").requests)
        if each.method == "PUT" and "/log/" in each.path
    )
    landed = [Case(log_put, DROP_AFTER, outage=True), Case(log_put, answer(500, applied=True), outage=True)]
    late = [Case(log_put, hold(1000, drops=True), True, lands_first) for lands_first in (True, False)]
    assert try_all(ministack, "commit", landed) == {"unknown, and it had landed": 2}
    assert try_all(ministack, "commit", late) == {"unknown": 1, "unknown, and it had landed": 1}


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "commit"])
def test_a_sample_of_every_operation(ministack: Site, name: str) -> None:
    quick = [case for case in iter_cases(run_cleanly(ministack, name).requests) if case.is_quick]
    try_all(ministack, name, sample(quick, SAMPLED, name))


@pytest.mark.parametrize("name", ["commit", "reset branch", "collect"])
def test_a_sample_on_azure(azurite: Site, name: str) -> None:
    quick = [case for case in iter_cases(run_cleanly(azurite, name).requests) if case.is_quick]
    try_all(azurite, name, sample(quick, SAMPLED, f"azure {name}"))


def try_pairs(site: Site, name: str, count: int) -> None:
    for number, (one, other) in enumerate(sample_pairs(run_cleanly(site, name).requests, count, name)):
        try_fault(
            site,
            name,
            one.number,
            one.fault,
            lands_first=one.lands_first,
            collects=number % COLLECTED == 0,
            second=(other.number, other.fault),
        )


def test_two_faults_in_one_commit(ministack: Site) -> None:
    try_pairs(ministack, "commit", 8)


@pytest.mark.deep
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", ["ministack", "azurite"])
def test_pairs_of_faults(request: pytest.FixtureRequest, kind: str, name: str) -> None:
    try_pairs(request.getfixturevalue(kind), name, 150)


@pytest.mark.deep
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", ["ministack", "azurite"])
def test_every_request_of_every_operation(
    request: pytest.FixtureRequest, kind: str, name: str, part: int
) -> None:
    site: Site = request.getfixturevalue(kind)
    every = list(iter_cases(run_cleanly(site, name).requests))
    try_all(site, name, every[part::PARTS], collects_each=2)
