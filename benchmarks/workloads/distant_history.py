"""D4: far away, many small commits are made one after another; then all but the newest expire and are collected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import distance
from benchmarks.data import check_equal, values
from benchmarks.measure import Metrics
from benchmarks.processes import Case
from benchmarks.scales import KIB, Scale
from benchmarks.systems.base import CollectingSystem, System
from benchmarks.systems.distant import prefix_of
from benchmarks.workloads.base import Column, Context, Stage, Table, Unit, Workload
from benchmarks.workloads.distant import columns, watching
from benchmarks.workloads.history import CHUNK_ITEMS, PATH, SEED

_CHUNKS = 4
"""Which divides the number of commits."""


def cases(scale: Scale) -> Iterator[Case]:
    count = scale.distant_history
    yield {"label": f"{count:,} commits of one chunk of {CHUNK_ITEMS * 4 // KIB} KiB", "commits": count}


def commit(system: System, context: Context) -> Metrics:
    """Commit one chunk after another, those of a short array again and again."""
    assert isinstance(system, CollectingSystem)
    count = context.case["commits"]
    data = _data(context.case)
    system.create()
    system.make_array(PATH, _CHUNKS, CHUNK_ITEMS)
    with watching() as metrics:
        for number in range(count):
            change = system.begin()
            change.write_chunk(PATH, number % _CHUNKS, data[number])
            change.commit(f"commit {number}")
            if number == 0:
                system.mark_oldest()
    return metrics


def collect(system: System, context: Context) -> Metrics:
    """Expire all commits but the newest, and collect what only they needed."""
    assert isinstance(system, CollectingSystem)
    with watching() as metrics:
        for _, act in system.collecting():
            act()
    found = distance.objects_below(prefix_of(system.folder))
    metrics |= {"objects": len(found), "bytes": sum(found.values())}
    newest = _data(context.case)[-_CHUNKS:].reshape(-1)
    check_equal(system.open_array(PATH).read_all(), newest, "the newest state")
    return metrics


def _data(case: Case) -> Any:
    return values(SEED, case["commits"] * CHUNK_ITEMS).reshape(case["commits"], CHUNK_ITEMS)


def _suits(system: type[System]) -> bool:
    return issubclass(system, CollectingSystem)


WORKLOAD = Workload(
    names=("D4",),
    title="expire and gc, far away",
    cases=cases,
    stages={"commit": Stage(commit), "collect": Stage(collect)},
    suits=_suits,
    is_distant=True,
    tables=(
        Table("D4 small commits", columns("commit", "commit")),
        Table(
            "D4 expire all but the newest commit, and collect",
            (
                *columns("collect", "collect"),
                Column("objects left", "collect", "objects"),
                Column("bytes left", "collect", "bytes", Unit.BYTES),
            ),
        ),
    ),
)
