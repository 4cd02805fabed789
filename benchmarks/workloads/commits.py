"""W3: one chunk, or some spread ones, are changed and committed in an array of many chunks."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from statistics import mean, median, quantiles

from benchmarks.data import check_equal, values
from benchmarks.measure import Measured, Metrics, disk_usage, measuring
from benchmarks.processes import Case
from benchmarks.scales import MIB, Scale
from benchmarks.systems.base import System, VersionedSystem
from benchmarks.systems.limits import LimitFile
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

PATH = "filled"
REFERRING = ("vstore", "vstore-memory", "icechunk", "icechunk-memory")
"""Systems that can refer to other files, so that filling an array is quick."""
_MAX_S = 5.0
_MIN_COMMITS = 3
_LIMIT_ITEMS = 1024
_TOO_MANY_TO_WRITE = 1_000_000


def cases(scale: Scale) -> Iterator[Case]:
    most = max(scale.existing_chunks)
    for chunks in scale.existing_chunks:
        # A million chunks that have to be written, as ocdbt's must, take it more than a minute.
        others = {} if chunks < _TOO_MANY_TO_WRITE else {"systems": [*REFERRING, LimitFile.name]}
        yield others | {
            "label": f"{chunks:,} chunks",
            "chunks": chunks,
            "spread": scale.spread_chunks if chunks == most else 0,
            "commits": scale.commits_each,
        }


def fill(system: System, context: Context) -> Metrics:
    """Make the array whose chunks are changed later."""
    system.create()
    if not isinstance(system, VersionedSystem):
        return {}
    before = dict(system.requests())
    with measuring() as measured:
        system.fill_array(PATH, context.case["chunks"])
    return common(measured, system, before)


def change_one(system: System, context: Context) -> Metrics:
    """Commit one chunk."""
    return _change(system, context, 1)


def change_spread(system: System, context: Context) -> Metrics:
    """Commit many chunks at once, all over the array."""
    return _change(system, context, context.case["spread"])


def _change(system: System, context: Context, changed: int) -> Metrics:
    """Commit a few times, each time other chunks; at the end look whether all of them are there."""
    assert isinstance(system, VersionedSystem | LimitFile)
    case = context.case
    items = system.filled_chunk_items if isinstance(system, VersionedSystem) else _LIMIT_ITEMS
    order = random.Random(changed)
    fresh = values(changed, items * changed * case["commits"]).reshape(-1, items)
    before = dict(system.requests())
    written: dict[int, int] = {}
    totals: list[Measured] = []
    commits: list[Measured] = []
    files_before = disk_usage(system.folder)[1] if system.is_persistent else 0
    deadline = time.perf_counter() + _MAX_S
    with measuring() as whole:
        for number in range(case["commits"]):
            if number >= _MIN_COMMITS and time.perf_counter() > deadline:
                break
            with measuring(peak=False) as transaction:
                change = system.begin()
                for row in range(number * changed, (number + 1) * changed):
                    index = order.randrange(case["chunks"])
                    change.write_chunk(PATH, index, fresh[row])
                    written[index] = row
                with measuring(peak=False) as measured:
                    change.commit(f"change {number}")
            totals.append(transaction)
            commits.append(measured)
    metrics = common(whole, system, before)
    count = len(commits)
    metrics |= {
        "commits": count,
        "commit_s": median(commit.seconds for commit in commits),
        "first_commit_s": commits[0].seconds,
        "slowest_commit_s": max(commit.seconds for commit in commits),
        "commit_cpu_s": mean(commit.cpu_seconds for commit in commits),
        "p99_cpu_s": p99([commit.cpu_seconds for commit in commits]),
        "total_s": median(total.seconds for total in totals),
        "total_cpu_s": mean(total.cpu_seconds for total in totals),
    }
    if whole.written_bytes is not None and system.is_persistent:
        beside = [(total.written_bytes or 0) - changed * items * 4 for total in totals]
        metrics |= {"overhead_bytes": mean(beside), "p99_bytes": p99(beside)}
    if system.is_persistent:
        metrics["files"] = (disk_usage(system.folder)[1] - files_before) / count
    metrics |= requests_each(system, before, count)
    if isinstance(system, VersionedSystem):
        reader = system.open_array(PATH)
        for index, row in written.items():
            check_equal(reader.read_chunk(index), fresh[row], f"chunk {index}")
    return metrics


def p99(figures: Sequence[float]) -> float:
    """Return what 99 of 100 figures do not exceed; of fewer than 100 the largest."""
    return quantiles(figures, n=100, method="inclusive")[98] if len(figures) >= 100 else max(figures)


def _warm_bytes(case: Case) -> int:
    return min(64 * MIB + 1024 * int(case["chunks"]), 1024 * MIB)


def _suits(system: type[System]) -> bool:
    return issubclass(system, VersionedSystem | LimitFile)


def _columns(stage: str) -> tuple[Column, ...]:
    return (
        Column("commit ms", stage, "commit_s", Unit.MILLISECONDS),
        Column("x ice", stage, "commit_s", against=Against.BASELINE),
        Column("first ms", stage, "first_commit_s", Unit.MILLISECONDS),
        Column("slowest ms", stage, "slowest_commit_s", Unit.MILLISECONDS),
        Column("CPU ms", stage, "commit_cpu_s", Unit.MILLISECONDS),
        Column("p99", stage, "p99_cpu_s", Unit.MILLISECONDS),
        Column("with open, write ms", stage, "total_s", Unit.MILLISECONDS),
        Column("CPU of all ms", stage, "total_cpu_s", Unit.MILLISECONDS),
        Column("written beside chunks", stage, "overhead_bytes", Unit.BYTES),
        Column("p99", stage, "p99_bytes", Unit.BYTES),
        Column("files", stage, "files"),
        Column("requests", stage, "requests_each"),
        Column("peak", stage, "peak_bytes", Unit.BYTES),
    )


WORKLOAD = Workload(
    names=("W3",),
    title="commits to large arrays",
    cases=cases,
    stages={
        "fill": Stage(fill, _warm_bytes),
        "one": Stage(change_one, _warm_bytes),
        "spread": Stage(change_spread, _warm_bytes, applies=lambda case: case["spread"] > 0),
    },
    suits=_suits,
    tables=(
        Table(
            "W3 commit of one chunk",
            (*_columns("one"), Column("fill s", "fill", "s", Unit.SECONDS)),
        ),
        Table("W3 commit of many spread chunks at once", _columns("spread")),
    ),
)
