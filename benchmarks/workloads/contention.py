"""W8: several processes commit to one branch at once, each to an array of its own; none of it may be lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.data import ITEM_BYTES, values
from benchmarks.measure import Metrics
from benchmarks.processes import Case, Worker
from benchmarks.scales import KIB, Scale
from benchmarks.systems.base import System, VersionedSystem
from benchmarks.workloads.base import Against, Column, Context, Stage, Table, Unit, Workload

if TYPE_CHECKING:
    from benchmarks.data import Values

CHUNK_ITEMS = 4 * KIB // ITEM_BYTES
_GO = "go"
_WAIT_S = 60.0


def cases(scale: Scale) -> Iterator[Case]:
    yield {
        "label": f"{scale.writers} processes of {scale.commits_per_writer} commits",
        "writers": scale.writers,
        "commits": scale.commits_per_writer,
    }


def prepare(system: System, context: Context) -> Metrics:
    """Make the array of each writer."""
    assert isinstance(system, VersionedSystem)
    system.create()
    for writer in range(context.case["writers"]):
        system.make_array(_path(writer), context.case["commits"], CHUNK_ITEMS)
    return {}


def contend(system: System, context: Context) -> Metrics:
    """Start the writers, let them go together, wait for all."""
    case = context.case
    workers = [
        Worker(replace(context.task, stages=("writer",), case=case | {"writer": writer}, profile=False))
        for writer in range(case["writers"])
    ]
    # wait() hands the task over and blocks: each worker needs a thread that waits for it.
    with ThreadPoolExecutor(len(workers)) as pool:
        waiting = [pool.submit(worker.wait) for worker in workers]
        _wait_for([context.folder / f"ready-{writer}" for writer in range(case["writers"])])
        (context.folder / _GO).touch()
        outcomes = [future.result() for future in waiting]
    failures = [outcome.error for outcome in outcomes if outcome.error]
    if failures:
        raise RuntimeError(failures[0])
    results = [outcome.stages["writer"] for outcome in outcomes]
    seconds = max(result["end"] or 0 for result in results) - min(result["start"] or 0 for result in results)
    total = case["writers"] * case["commits"]
    slowest = max(result["slowest_s"] or 0 for result in results)
    return {"s": seconds, "commits_per_s": total / seconds, "slowest_s": slowest}


def writer(system: System, context: Context) -> Metrics:
    """Be one of the writers: commit each chunk of one array by itself."""
    assert isinstance(system, VersionedSystem)
    case = context.case
    number = case["writer"]
    data = _data(number, case["commits"])
    system.open()
    system.open_array(_path(number))
    (context.folder / f"ready-{number}").touch()
    _wait_for([context.folder / _GO])
    start = before = time.monotonic()
    slowest = 0.0
    for index in range(case["commits"]):
        change = system.begin()
        change.write_chunk(_path(number), index, data[index])
        change.commit(f"writer {number}, commit {index}")
        now = time.monotonic()
        slowest, before = max(slowest, now - before), now
    return {"start": start, "end": before, "slowest_s": slowest}


def count(system: System, context: Context) -> Metrics:
    """Count the commits whose data are not there, and those that the history lacks."""
    import numpy as np

    assert isinstance(system, VersionedSystem)
    case = context.case
    lost = 0
    for number in range(case["writers"]):
        reader = system.open_array(_path(number))
        data = _data(number, case["commits"])
        lost += sum(not np.array_equal(reader.read_chunk(i), data[i]) for i in range(case["commits"]))
    metrics: Metrics = {"lost": lost}
    if system.can_list_history:
        system.open()
        expected = case["writers"] * (case["commits"] + 1)
        metrics["lost_history"] = expected - system.count_history()
    return metrics


def _path(writer: int) -> str:
    return f"writer{writer}"


def _data(writer: int, commits: int) -> Values:
    return values(100 + writer, commits * CHUNK_ITEMS).reshape(commits, CHUNK_ITEMS)


def _wait_for(files: list[Path]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not all(file.exists() for file in files):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{[file.name for file in files]} did not appear in {_WAIT_S:.0f} s")
        time.sleep(0.001)


def _suits(system: type[System]) -> bool:
    return issubclass(system, VersionedSystem) and system.is_persistent


WORKLOAD = Workload(
    names=("W8",),
    title="several writers",
    cases=cases,
    stages={
        "prepare": Stage(prepare),
        "contend": Stage(contend, is_cold=True),
        "writer": Stage(writer, is_helper=True),
        "count": Stage(count),
    },
    suits=_suits,
    rounds=lambda scale, rounds: rounds * scale.repeats_of_short,
    tables=(
        Table(
            "W8 several writers on one branch",
            (
                Column("commits/s", "contend", "commits_per_s"),
                Column("x ice", "contend", "commits_per_s", against=Against.BASELINE, higher_is_better=True),
                Column("slowest commit ms", "contend", "slowest_s", Unit.MILLISECONDS),
                Column("lost from data", "count", "lost"),
                Column("lost from history", "count", "lost_history"),
            ),
        ),
    ),
)
