"""W4: a long history of small commits; then it is opened, read, walked, and its oldest state is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from statistics import median
from typing import TypeVar

from benchmarks.data import ITEM_BYTES, check, check_equal, expect, values
from benchmarks.measure import Metrics, disk_usage, measuring
from benchmarks.processes import Case
from benchmarks.scales import KIB, Scale
from benchmarks.systems.base import System, VersionedSystem
from benchmarks.systems.repositories import RepositorySystem
from benchmarks.workloads.base import (
    Against,
    Column,
    Context,
    Stage,
    Table,
    Unit,
    Workload,
    common,
    requests_each,
)

T = TypeVar("T")

PATH = "history"
CHUNK_BYTES = 4 * KIB
CHUNK_ITEMS = CHUNK_BYTES // ITEM_BYTES
SEED = 4
_MIDDLE = "middle"
"""The file that says when half of the commits were made."""
_PAGE = 20
"""Commits that a page of a history shows."""


def cases(scale: Scale) -> Iterator[Case]:
    count = scale.history_commits
    yield {"label": f"{count:,} commits of one chunk of 4 KiB", "commits": count}
    # Long enough to show what grows; others need minutes for it.
    count = scale.long_history_commits
    label = f"{count:,} commits of one chunk of 4 KiB"
    yield {"label": label, "commits": count, "systems": ["vstore"], "is_long": True}


def commit(system: System, context: Context) -> Metrics:
    """Commit each chunk of an array by itself."""
    assert isinstance(system, VersionedSystem)
    count = context.case["commits"]
    data = values(SEED, count * CHUNK_ITEMS).reshape(count, CHUNK_ITEMS)
    system.create()
    system.make_array(PATH, count, CHUNK_ITEMS)
    before = dict(system.requests())
    times = []
    with measuring() as measured:
        for number in range(count):
            start = time.perf_counter()
            change = system.begin()
            change.write_chunk(PATH, number, data[number])
            change.commit(f"commit {number}")
            times.append(time.perf_counter() - start)
            if number == 0:
                system.mark_oldest()
            if number == count // 2:
                (context.folder / _MIDDLE).write_text(datetime.now(UTC).isoformat())
    metrics = common(measured, system, before)
    tenth = max(1, count // 10)
    metrics |= {
        "commits_per_s": count / measured.seconds,
        "commit_cpu_s": measured.cpu_seconds / count,
        "first_tenth_s": median(times[:tenth]),
        "last_tenth_s": median(times[-tenth:]),
    }
    if measured.written_bytes is not None and system.is_persistent:
        metrics["overhead_written_bytes"] = measured.written_bytes / count - CHUNK_BYTES
    metrics |= requests_each(system, before, count)
    return metrics


def look(system: System, context: Context) -> Metrics:
    """Open the store and read its newest state, its history and its oldest state."""
    assert isinstance(system, VersionedSystem)
    count = context.case["commits"]
    metrics: Metrics = {}
    _, metrics["open_s"] = _timed(system.open)
    chunk, metrics["head_s"] = _timed(lambda: system.open_array(PATH).read_chunk(count - 1))
    data = values(SEED, count * CHUNK_ITEMS)
    check_equal(chunk, data[-CHUNK_ITEMS:], "the newest chunk")
    if system.can_list_history:
        found, metrics["ancestry_s"] = _timed(system.count_history)
        expect(found == count + 1, f"the history has {found} commits, not {count + 1}")
    if isinstance(system, RepositorySystem):
        page, metrics["page_s"] = _timed(lambda: system.newest_commits(_PAGE))
        expect(len(page) == min(_PAGE, count + 2), "the first page of the history is short")
        middle = count // 2
        moment = datetime.fromisoformat((context.folder / _MIDDLE).read_text())
        chunk, metrics["as_of_s"] = _timed(lambda: system.open_as_of(moment, PATH).read_chunk(middle))
        check_equal(chunk, data[middle * CHUNK_ITEMS :][:CHUNK_ITEMS], "the chunk of the moment")
    oldest, metrics["oldest_s"] = _timed(lambda: system.open_oldest(PATH).read_chunk(0))
    check_equal(oldest, data[:CHUNK_ITEMS], "the oldest chunk")
    later = system.open_oldest(PATH).read_chunk(1)
    expect(not later.any(), "the oldest state has a chunk that was committed later")
    check(system.open_array(PATH).read_all(), SEED, "the newest state")
    if system.is_persistent:
        size, files = disk_usage(system.folder)
        metrics |= {"overhead_bytes": size / count - CHUNK_BYTES, "files": files / count}
    return metrics


def _timed(act: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = act()
    return result, time.perf_counter() - start


def suits(system: type[System]) -> bool:
    return issubclass(system, VersionedSystem)


WORKLOAD = Workload(
    names=("W4",),
    title="a history of small commits",
    cases=cases,
    stages={"commit": Stage(commit), "look": Stage(look)},
    suits=suits,
    rounds=lambda scale, rounds: rounds * scale.repeats_of_short,
    tables=(
        Table(
            "W4 small commits (each with a session, opening the array, the chunk)",
            (
                Column("commits/s", "commit", "commits_per_s"),
                Column("x ice", "commit", "commits_per_s", against=Against.BASELINE, higher_is_better=True),
                Column("CPU ms", "commit", "commit_cpu_s", Unit.MILLISECONDS),
                Column("first tenth ms", "commit", "first_tenth_s", Unit.MILLISECONDS),
                Column("last tenth ms", "commit", "last_tenth_s", Unit.MILLISECONDS),
                Column("kept beside chunk", "look", "overhead_bytes", Unit.BYTES),
                Column("written beside chunk", "commit", "overhead_written_bytes", Unit.BYTES),
                Column("files", "look", "files"),
                Column("requests", "commit", "requests_each"),
            ),
        ),
        Table(
            "W4 after them",
            (
                Column("open ms", "look", "open_s", Unit.MILLISECONDS),
                Column("read head ms", "look", "head_s", Unit.MILLISECONDS),
                Column("x ice", "look", "head_s", against=Against.BASELINE),
                Column("full ancestry ms", "look", "ancestry_s", Unit.MILLISECONDS),
                Column("first page ms", "look", "page_s", Unit.MILLISECONDS),
                Column("as_of ms", "look", "as_of_s", Unit.MILLISECONDS),
                Column("oldest tag ms", "look", "oldest_s", Unit.MILLISECONDS),
            ),
        ),
    ),
)
