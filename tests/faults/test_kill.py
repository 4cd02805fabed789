"""Writers to an object store, killed at random moments: what they were told is committed is there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.site import Site, far_future
from tests.repositories import contents
from vstore.ops.fsck import check

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
import vstore
from tests import servers
from vstore.storage.base import PackPolicy

url, folder, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
repository = vstore.Repository.open(servers.s3_store(url, folder))
# Packs before the commit, so that the session registers: in some commits.
repository.handle.storage.pack_policy = PackPolicy(20_000, 8_000, None)
repository.handle.catalog.check_writable()
print("ready", flush=True)
for number in range(first, first + 1000):
    session = repository.writable_session("main")
    for part in range(1 + number % 5):
        session.tree_for_writing().set(f"{number}/{part}", bytes([number % 251]) * 9000)
    print(number, session.commit(str(number)), flush=True)
"""


def run_and_kill(site: Site, folder: str, first: int, delay_s: float, *, heard: int) -> list[tuple[int, str]]:
    """Return number and snapshot id of the commits that the writer acknowledged before it was killed.

    That is so long after it has been `heard` so often.
    """
    command = [sys.executable, "-c", WRITER, site.url, folder, str(first)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"ready\n"
            output = b"".join(writer.stdout.readline() for _ in range(heard))
            time.sleep(delay_s)
        finally:
            writer.kill()
        output += writer.stdout.read()
    whole = output[: output.rfind(b"\n") + 1].decode().splitlines()
    return [(int(line.split()[0]), line.split()[1]) for line in whole]


def verify(site: Site, folder: str, acknowledged: list[tuple[int, str]], newest_before: int) -> int:
    """Check the repository as the killed writer left it; return the number of its newest commit."""
    with site.open(folder) as repository:
        history = {info.id: info.message for info in repository.ancestry(branch="main")}
        for number, snapshot_id in acknowledged:
            assert history.get(snapshot_id) == str(number), f"commit {number} was acknowledged and is lost"
        newest = int(repository.lookup_snapshot(repository.lookup_branch("main")).message)
        # One commit may have landed unheard.
        assert newest - newest_before in (len(acknowledged), len(acknowledged) + 1)
        found = contents(repository.readonly_session("main"))
        assert {int(key.split("/")[0]) for key in found} == set(range(newest + 1))
        assert check(repository, data=True).damages == []
        for session in repository.list_sessions():
            repository.abandon_session(session)
        for _ in range(2):
            repository.garbage_collect(far_future())
        assert repository.garbage_collect(far_future(), dry_run=True).garbage_packs == 0
        assert check(repository, data=True).damages == []
        assert contents(repository.readonly_session("main")) == found
    return newest


def kill_writers(site: Site, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    folder, _ = site.copy("numbered")
    newest = 0
    for number in range(rounds):
        # Every other one is killed also before it has done anything.
        acknowledged = run_and_kill(site, folder, newest + 1, chance.uniform(0, 0.3), heard=number % 2)
        newest = verify(site, folder, acknowledged, newest)
    assert newest


def test_killed_writers_lose_nothing_that_was_acknowledged(ministack: Site) -> None:
    kill_writers(ministack, rounds=3, seed=1)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_killed_writers(ministack: Site, seed: int) -> None:
    kill_writers(ministack, rounds=15, seed=seed)
