"""Writers killed at random moments: what they were told is committed is there, and the rest does no harm."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vstore
from tests.crash.versions import version, write_version
from tests.repositories import LOCAL_KINDS, Place
from vstore.ops.fsck import check

ROOT = Path(__file__).parents[2]

WRITER = """
import os, sys
import vstore
from tests.crash.versions import COMMITS, write_version

folder, first = sys.argv[1], int(sys.argv[2])
repository = vstore.Repository.open(folder)
print("ready", flush=True)
for number in range(first, first + COMMITS):
    session = repository.writable_session("main")
    write_version(session, number)
    print(number, session.commit(str(number)), flush=True)
"""


def kill_after(
    writer: subprocess.Popen[bytes], delay_s: float, *, heard: bool = False
) -> list[tuple[int, str]]:
    """Let the writer begin, kill it, and return (number, snapshot id) of the commits that it acknowledged.

    With `heard` it is killed after the first of them, however slow the machine is.
    """
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"ready\n"
    first = writer.stdout.readline() if heard else b""
    time.sleep(delay_s)
    writer.send_signal(signal.SIGKILL)
    output = first + writer.stdout.read()
    writer.wait()
    whole = output[: output.rfind(b"\n") + 1].decode().splitlines()
    return [(int(line.split()[0]), line.split()[1]) for line in whole]


def verify(place: Place, acknowledged: list[tuple[int, str]]) -> int:
    """Check the repository as the killed writer left it; return the number of its newest version."""
    with place.open() as repository:
        history = {info.id: info.message for info in repository.ancestry(branch="main")}
        for number, snapshot_id in acknowledged:
            assert history.get(snapshot_id) == str(number), f"commit {number} was acknowledged and is lost"
        newest = int(repository.lookup_snapshot(repository.lookup_branch("main")).message)
        # One commit may have landed unheard.
        assert newest - (acknowledged[-1][0] if acknowledged else newest) in (0, 1)
        tree = repository.readonly_session("main").tree
        for key, value in version(newest).items():
            assert tree.read(key) == value, key
        assert tree.read(f"value {newest - 2}") is None
        report = check(repository, data=True)
        assert report.damages == []
    return newest


def kill_writers(kind: str, folder: Path, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    place = Place.new(kind, folder)
    with place.create() as repository:
        session = repository.writable_session("main")
        write_version(session, 0)
        session.commit("0")
    newest = 0
    for number in range(rounds):
        command = [sys.executable, "-c", WRITER, str(place.location), str(newest + 1)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as writer:
            try:
                acknowledged = kill_after(writer, chance.uniform(0, 0.25), heard=number % 2 == 0)
            finally:
                writer.kill()
        found = verify(place, acknowledged)
        assert found - newest in (len(acknowledged), len(acknowledged) + 1)
        newest = found


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_killed_writers_lose_nothing_that_was_acknowledged(kind: str, tmp_path: Path) -> None:
    kill_writers(kind, tmp_path, rounds=10, seed=1)


@pytest.mark.deep
@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_many_killed_writers(kind: str, tmp_path: Path) -> None:
    for seed in range(15):
        folder = tmp_path / str(seed)
        folder.mkdir()
        kill_writers(kind, folder, rounds=20, seed=seed)


def test_a_killed_writer_does_not_hold_up_the_next(tmp_path: Path) -> None:
    """It held SQLite's lock, or that of its staged pack: the system has let go of both."""
    place = Place.new("sqlite", tmp_path)
    place.create().close()
    writer_code = (
        "import sqlite3, sys, vstore\n"
        "repository = vstore.Repository.open(sys.argv[1])\n"
        "session = repository.writable_session('main')\n"
        "session.tree.set('x', b'x' * 2_000_000)\n"
        "sqlite3.connect(sys.argv[1] + '/catalog.sqlite').execute('BEGIN IMMEDIATE')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", writer_code, str(place.location)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert kill_after(writer, 0) == []
    with place.open() as repository:
        staged = [info.name for info in repository.handle.storage.list("staging/")]
        assert len(staged) == 1
        assert not repository.handle.storage.is_held(staged[0])
        session = repository.writable_session("main")
        session.tree.set("y", b"1")
        session.commit("is not refused for a lock")
        assert check(repository, data=True).damages == []
    assert vstore.Repository.exists(place.location)
