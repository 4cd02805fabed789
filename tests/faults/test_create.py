"""A repository is made as a whole, or not: each request of `create` meets each fault."""

from __future__ import annotations

from collections import Counter

import pytest

import vstore
from tests.faults.cases import Case, iter_cases, sample
from tests.faults.site import IMPATIENT, OPTIONS, QuickClock, Site, far_future
from vstore.keys.objects import PACK_PREFIX, log_name
from vstore.ops.fsck import check
from vstore.storage.objects.options import RequestOptions
from vstore.testing.proxy import DROP_BEFORE, Exchange, hold

pytestmark = pytest.mark.server


def create(site: Site, folder: str, options: RequestOptions = OPTIONS) -> None:
    storage = site.storage(folder, through_proxy=True, options=options)
    vstore.Repository.create(storage, author="ada", clock=QuickClock()).close()


def count_requests(site: Site) -> list[Exchange]:
    site.proxy.reset()
    create(site, site.new_folder())
    return list(site.proxy.exchanges)


def is_there(site: Site, folder: str) -> bool:
    """Look for a repository; one that is there is sound."""
    if not vstore.Repository.exists(site.storage(folder)):
        return False
    with site.open(folder) as repository:
        done = [each.kind for each in repository.ops_log()]
        assert done[-1] == "create-repository"
        assert set(done[:-1]) <= {"collect", "no-operation"}
        assert check(repository, data=True).damages == []
        repository.garbage_collect(far_future())
        assert check(repository, data=True).damages == []
        assert sum(name.startswith(PACK_PREFIX) for name in site.names(folder)) == 1
    return True


def try_case(site: Site, case: Case) -> str:
    site.proxy.reset()
    folder = site.new_folder()
    site.proxy.inject(case.fault, nth=case.number)
    if case.outage:
        site.proxy.choose(lambda _: DROP_BEFORE if len(site.proxy.exchanges) > case.number + 1 else None)
    outcome = "made"
    try:
        create(site, folder, OPTIONS if case.is_quick else IMPATIENT)
    except vstore.CommitOutcomeUnknownError:
        outcome = "unknown"
    except vstore.UnsafeStorageError:
        raise
    except vstore.StorageError:
        outcome = "not made"
    site.proxy.clear()
    if case.lands_first:
        site.proxy.release()
    found = is_there(site, folder)
    if outcome != "unknown":
        assert found == (outcome == "made")
    if not found:
        with vstore.Repository.open_or_create(site.storage(folder, through_proxy=True), author="ada"):
            pass
    site.proxy.release()
    assert is_there(site, folder)
    return outcome + (", and it was there" if found and outcome == "unknown" else "")


def try_all(site: Site, cases: list[Case]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for case in cases:
        try:
            outcomes[try_case(site, case)] += 1
        except BaseException as error:
            error.add_note(f"{case}")
            raise
    print(f"create: {sum(outcomes.values())} trials, {dict(outcomes)}")
    return outcomes


def test_a_sample(ministack: Site) -> None:
    quick = [case for case in iter_cases(count_requests(ministack)) if case.is_quick]
    # The probe's requests come first, and are many.
    last = max(case.number for case in quick) - 4
    cases = sample([case for case in quick if case.number < last], 4, "the probe")
    cases += sample([case for case in quick if case.number >= last], 12, "the rest")
    assert try_all(ministack, cases)["made"]


@pytest.mark.deep
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("kind", ["ministack", "azurite"])
def test_each_request_meets_each_fault(request: pytest.FixtureRequest, kind: str, part: int) -> None:
    site: Site = request.getfixturevalue(kind)
    try_all(site, list(iter_cases(count_requests(site)))[part::8])


@pytest.mark.parametrize("other_wins", [False, True])
def test_who_loses_the_race_for_number_0_cleans_up_only_what_is_his(
    ministack: Site, other_wins: bool
) -> None:
    """The first one's record is on its way when somebody else makes a repository in the same place."""
    site, folder = ministack, ministack.new_folder()
    site.proxy.reset()
    site.proxy.inject(hold(1000, drops=True), "PUT", log_name(0))
    # Nothing else gets through, so that he who asks can't find out.
    site.proxy.choose(
        lambda _: DROP_BEFORE if any("/log/" in e.path and e.fault for e in site.proxy.exchanges) else None
    )
    with pytest.raises(vstore.CommitOutcomeUnknownError):
        create(site, folder)
    site.proxy.clear()
    if not other_wins:
        site.proxy.release()
    if other_wins:
        create(site, folder)
        site.proxy.release()
    else:
        with pytest.raises(vstore.RepositoryExistsError):
            create(site, folder)
    assert is_there(site, folder)
