"""D1: far away, an array is written and committed; then others read a chunk, all of it, and here and there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import mean

from benchmarks.data import ITEM_BYTES, check, check_equal, values
from benchmarks.measure import Metrics
from benchmarks.processes import Case
from benchmarks.scales import Scale
from benchmarks.systems.base import System, VersionedSystem
from benchmarks.workloads.base import Context, Stage, Table, Workload, any_system
from benchmarks.workloads.bulk import PATH, bulk_case, data_bytes, warm_bytes
from benchmarks.workloads.distant import columns, watching


def cases(scale: Scale) -> Iterator[Case]:
    for chunk_bytes, chunks in scale.distant_bulk:
        yield bulk_case(chunk_bytes, chunks) | {
            "commits": scale.distant_commits,
            "threads": scale.distant_threads,
            "reads": scale.distant_reads,
        }


def write(system: System, context: Context) -> Metrics:
    """Write the array into a new store, and commit."""
    case = context.case
    system.create()
    data = values(case["chunks"], data_bytes(case) // ITEM_BYTES)
    with watching() as metrics:
        system.write_array(PATH, data, case["chunk_bytes"] // ITEM_BYTES)
    return metrics


def one(system: System, context: Context) -> Metrics:
    """Open the store and read one chunk."""
    case = context.case
    index = case["chunks"] // 3
    with watching() as metrics:
        found = system.open_array(PATH).read_chunk(index)
    _check_chunks(case, {index: found})
    return metrics


def read(system: System, context: Context) -> Metrics:
    """Open the store and read all of the array."""
    with watching() as metrics:
        found = system.open_array(PATH).read_all()
    check(found, context.case["chunks"], "the array")
    return metrics


def threads(system: System, context: Context) -> Metrics:
    """Open the store, and read chunks here and there in several threads."""
    case = context.case
    order = random.Random(0).sample(range(case["chunks"]), case["threads"] * case["reads"])
    parts = [order[start :: case["threads"]] for start in range(case["threads"])]
    with watching() as metrics, ThreadPoolExecutor(case["threads"]) as pool:
        reader = system.open_array(PATH)
        read = pool.map(lambda part: [reader.read_chunk(index) for index in part], parts)
        found = [dict(zip(part, chunks, strict=True)) for part, chunks in zip(parts, read, strict=True)]
    for chunks in found:
        _check_chunks(case, chunks)
    return metrics


def commit(system: System, context: Context) -> Metrics:
    """Change one chunk and commit, a few times, after a first time that is not counted."""
    case = context.case
    assert isinstance(system, VersionedSystem)
    items = case["chunk_bytes"] // ITEM_BYTES
    data = values(case["chunks"] + 1, items)
    each: list[Metrics] = []
    for number in range(case["commits"] + 1):
        with watching() as metrics:
            change = system.begin()
            change.write_chunk(PATH, number, data)
            change.commit(f"change {number}")
        each.append(metrics)
    check_equal(system.open_array(PATH).read_chunk(case["commits"]), data, "the last chunk")
    names = {name: None for metrics in each[1:] for name in metrics}
    return {name: mean(metrics.get(name) or 0 for metrics in each[1:]) for name in names}


def _check_chunks(case: Case, found: dict[int, object]) -> None:
    items = case["chunk_bytes"] // ITEM_BYTES
    data = values(case["chunks"], data_bytes(case) // ITEM_BYTES).reshape(case["chunks"], items)
    for index, chunk in found.items():
        check_equal(chunk, data[index], f"chunk {index}")  # type: ignore[arg-type]


WORKLOAD = Workload(
    names=("D1",),
    title="bulk, far away",
    cases=cases,
    stages={
        "write": Stage(write, warm_bytes),
        "one": Stage(one),
        "read": Stage(read, warm_bytes),
        "threads": Stage(threads),
        "commit": Stage(commit, systems=VersionedSystem),
    },
    suits=any_system,
    with_pipelines=True,
    is_distant=True,
    tables=(
        Table("D1 write and commit", columns("write", "write")),
        Table("D1 open and read one chunk", columns("one", "one")),
        Table("D1 open and read all", columns("read", "read")),
        Table("D1 read chunks here and there in 8 threads", columns("threads", "threads")),
        Table("D1 change one chunk and commit, known to the process", columns("commit", "commit")),
    ),
)
