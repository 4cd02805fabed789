"""Two writers whose requests fail at random: all that was acknowledged is there once, nothing that was given up."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

import vstore
from tests.faults.cases import FAULTS, is_quick
from tests.faults.site import IMPATIENT, OPTIONS, Site, far_future
from tests.repositories import write
from vstore.ops.fsck import check
from vstore.session import Session
from vstore.testing.proxy import DROP_AFTER, DROP_BEFORE, Exchange, NetworkFault

pytestmark = pytest.mark.server

QUICK = tuple(filter(is_quick, FAULTS))
MAX_TRIES = 200
IN_DOUBT = 5
"""One record in so many."""


@dataclass
class Writer:
    """Commits in its own folder of a branch that others move too, and remembers what it was told."""

    repository: vstore.Repository
    name: str
    chance: random.Random
    acknowledged: dict[str, str] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)

    def run(self, commits: int) -> None:
        for number in range(commits):
            self._commit_one(f"{self.name} {number}", number)

    def _commit_one(self, message: str, number: int) -> None:
        session = self._open()
        write(session, {f"{self.name}/{number}": message.encode() * 300})
        is_unknown = False
        for _ in range(MAX_TRIES):
            try:
                self.acknowledged[message] = session.commit(message, rebase_with="fail")
                self.outcomes["landed"] += 1
                return
            except vstore.CommitOutcomeUnknownError:
                self.outcomes["unknown"] += 1
                is_unknown = True
            except (vstore.StorageError, vstore.FormatError):
                self.outcomes["failed"] += 1
                if not is_unknown and self.chance.random() < 0.5:
                    session.close()
                    self.given_up.add(message)
                    return
        raise AssertionError(f"{message!r} did not come through in {MAX_TRIES} tries")

    def _open(self) -> Session:
        for _ in range(MAX_TRIES):
            try:
                return self.repository.writable_session("main")
            except (vstore.StorageError, vstore.FormatError):
                self.outcomes["not opened"] += 1
        raise AssertionError("no session came about")


def storm(
    site: Site, seed: int, *, commits: int = 6, share: float = 0.15, faults: tuple[NetworkFault, ...] = QUICK
) -> Counter[str]:
    site.proxy.reset()
    folder, _ = site.copy("plain")
    options = OPTIONS if all(map(is_quick, faults)) else IMPATIENT
    chance, lock = random.Random(seed), threading.Lock()

    lost = records = 0

    def choose(exchange: Exchange) -> NetworkFault | None:
        nonlocal lost, records
        with lock:
            if lost:
                lost -= 1
                return DROP_BEFORE
            records += exchange.method == "PUT" and "/log/" in exchange.path
            if records == IN_DOUBT:
                # It lands, and then nothing gets through for a while: so its outcome stays unknown.
                records, lost = 0, 150
                return DROP_AFTER
            return chance.choice(faults) if chance.random() < share else None

    writers = [
        Writer(site.open(folder, through_proxy=True, options=options), name, random.Random(f"{seed} {name}"))
        for name in "ab"
    ]
    site.proxy.choose(choose)
    try:
        with ThreadPoolExecutor(len(writers)) as pool:
            for done in [pool.submit(writer.run, commits) for writer in writers]:
                done.result()
        site.proxy.clear()
        site.proxy.release()
        judge(site, folder, writers)
    except BaseException as error:
        error.add_note(f"with seed {seed}")
        raise
    finally:
        site.proxy.reset()
        for writer in writers:
            writer.repository.close()
    return sum((writer.outcomes for writer in writers), Counter())


def judge(site: Site, folder: str, writers: list[Writer]) -> None:
    with site.open(folder) as repository:
        history = [(info.id, info.message) for info in repository.ancestry(branch="main")]
        messages = Counter(message for _, message in history)
        done = Counter(
            change[3] for entry in repository.ops_log() for change in entry.changes if change[1] == "main"
        )
        tree = repository.readonly_session("main").tree
        for writer in writers:
            for message, snapshot_id in writer.acknowledged.items():
                assert (snapshot_id, message) in history, f"{message!r} was acknowledged and is lost"
                assert messages[message] == 1, f"{message!r} is there twice"
                assert done[snapshot_id] == 1
                key = "/".join(message.split())
                assert tree.read(key) == message.encode() * 300
            for message in writer.given_up:
                assert message not in messages, f"{message!r} was reported as failed, and is there"
        assert check(repository, data=True).damages == []
        for _ in range(2):
            repository.garbage_collect(far_future())
        assert repository.garbage_collect(far_future(), dry_run=True).garbage_packs == 0
        assert check(repository, data=True).damages == []


def test_two_writers_in_a_storm(ministack: Site) -> None:
    outcomes = sum((storm(ministack, seed) for seed in range(2)), Counter())
    print(dict(outcomes))
    assert outcomes["landed"] > 3
    assert outcomes["unknown"]


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(100, 140))
@pytest.mark.parametrize("kind", ["ministack", "azurite"])
def test_many_storms(request: pytest.FixtureRequest, kind: str, seed: int) -> None:
    site: Site = request.getfixturevalue(kind)
    share = random.Random(seed).choice([0.03, 0.1, 0.3])
    print(dict(storm(site, seed, commits=15, share=share, faults=FAULTS if seed % 4 == 0 else QUICK)))
