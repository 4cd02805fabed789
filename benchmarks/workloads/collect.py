"""W7: all but the newest of many small commits expire; what is left is compared with a fresh copy of it."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.data import check, values
from benchmarks.measure import Metrics, measuring
from benchmarks.processes import Case
from benchmarks.scales import KIB, Scale
from benchmarks.systems.base import CollectingSystem, System
from benchmarks.workloads.base import Against, Column, Context, Stage, Table, Unit, Workload, common
from benchmarks.workloads.history import CHUNK_ITEMS, PATH, SEED, commit


def cases(scale: Scale) -> Iterator[Case]:
    count = scale.history_commits
    yield {"label": f"{count:,} commits of one chunk of {CHUNK_ITEMS * 4 // KIB} KiB", "commits": count}


def collect(system: System, context: Context) -> Metrics:
    """Expire all but the newest commit, collect, compact, and collect again."""
    assert isinstance(system, CollectingSystem)
    metrics: Metrics = {}
    before = dict(system.requests())
    size, files = system.used()
    metrics |= {"before_bytes": size, "before_files": files}
    with measuring() as measured:
        for name, act in system.collecting():
            with measuring(peak=False) as part:
                act()
            metrics[f"{name}_s"] = part.seconds
    metrics |= common(measured, system, before)
    data = values(SEED, context.case["commits"] * CHUNK_ITEMS)
    check(system.open_array(PATH).read_all(), SEED, "the newest state")
    system.close()
    fresh = system.fresh_copy()
    fresh.create()
    fresh.write_array(PATH, data, CHUNK_ITEMS)
    fresh.close()
    size, files = system.used()
    fresh_size, fresh_files = fresh.used()
    return metrics | {
        "bytes": size,
        "files": files,
        "fresh_bytes": fresh_size,
        "fresh_files": fresh_files,
        "bytes_over_fresh": size / fresh_size,
        "files_over_fresh": files / fresh_files,
        "data_over_fresh": system.used_by_data() / fresh.used_by_data(),
    }


def _suits(system: type[System]) -> bool:
    return issubclass(system, CollectingSystem) and system.is_persistent


WORKLOAD = Workload(
    names=("W7",),
    title="expire and gc after many commits",
    cases=cases,
    stages={"commit": Stage(commit), "collect": Stage(collect)},
    suits=_suits,
    rounds=lambda scale, rounds: rounds * scale.repeats_of_short,
    tables=(
        Table(
            "W7 all but the newest commit expired and collected",
            (
                Column("s", "collect", "s"),
                Column("x ice", "collect", "s", against=Against.BASELINE),
                Column("bytes before", "collect", "before_bytes", Unit.BYTES),
                Column("after", "collect", "bytes", Unit.BYTES),
                Column("/ fresh copy", "collect", "bytes_over_fresh"),
                Column("data / fresh copy", "collect", "data_over_fresh"),
                Column("files before", "collect", "before_files"),
                Column("after", "collect", "files"),
                Column("/ fresh copy", "collect", "files_over_fresh"),
            ),
        ),
    ),
)
