"""A long history costs no more: what is read of the catalog does not grow with the number of commits."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

import vstore
from vstore.catalog.sqlite.connection import Connection

FEW, MANY = 20, 180


class Reads:
    """Counts statements and the rows that they return."""

    def __init__(self) -> None:
        self.statements = self.rows = 0

    def taken(self) -> tuple[int, int]:
        found = self.statements, self.rows
        self.statements = self.rows = 0
        return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counted = Reads()
    rows = Connection.rows

    def count(self, statement, *parameters):
        found = rows(self, statement, *parameters)
        counted.statements += 1
        counted.rows += len(found)
        return found

    monkeypatch.setattr(Connection, "rows", count)
    return counted


class Ticking:
    """A clock on which each look is a second later."""

    def __init__(self) -> None:
        self.now = 1_000_000_000_000_000

    def now_us(self) -> int:
        self.now += 1_000_000
        return self.now

    def monotonic_s(self) -> float:
        return self.now / 1e6

    def sleep(self, duration_s: float) -> None:
        pass


def commit(repo: vstore.Repository, key: str) -> None:
    with repo.writable_session("main") as session:
        session.tree.set(key, b"x")
        session.commit(key)


def costs(path: str, reads: Reads, oldest: datetime) -> dict[str, tuple[int, int]]:
    """Return what each act of a fresh handle, and then a commit of a warm one, reads."""
    found = {}
    with vstore.Repository.open(path) as repo:
        reads.taken()
        repo.readonly_session("main")
        found["open"] = reads.taken()
        list(itertools.islice(repo.ancestry(branch="main"), 10))
        found["ancestry"] = reads.taken()
        repo.readonly_session("main", as_of=oldest)
        found["as_of"] = reads.taken()
    with vstore.Repository.open(path) as repo:
        count = sum(1 for _ in repo.ancestry(branch="main"))
        commit(repo, f"warm {count}")
        reads.taken()
        commit(repo, f"again {count}")
        found["commit"] = reads.taken()
    return found


def test_reads_do_not_grow_with_the_history(tmp_path, reads):
    path = str(tmp_path / "repo")
    clock = Ticking()
    with vstore.Repository.create(path, clock=clock) as repo:
        commit(repo, "first")
        oldest = datetime.fromtimestamp(clock.now / 1e6, UTC) + timedelta(microseconds=1)
        for number in range(FEW):
            commit(repo, f"k{number}")
        few = costs(path, reads, oldest)
        for number in range(MANY):
            commit(repo, f"k{number}x")
    many = costs(path, reads, oldest)
    assert many["open"] == few["open"]
    # A jump pointer is made from one or two entries.
    assert many["commit"][0] <= few["commit"][0] + 2
    # A page of ancestry is 256 entries at most, as_of takes a number of jumps that is logarithmic.
    assert many["ancestry"][1] <= 256 + 8
    assert many["as_of"][1] <= few["as_of"][1] + 20


def test_a_small_commit_asks_the_catalog_little(tmp_path, reads):
    with vstore.Repository.create(str(tmp_path / "repo")) as repo:
        commit(repo, "warm")
        reads.taken()
        commit(repo, "again")
        # Session 6, probe 7, transaction 12, with their BEGIN, COMMIT and ROLLBACK.
        assert reads.taken()[0] <= 20
