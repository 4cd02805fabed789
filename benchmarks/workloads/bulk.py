"""W1, W2: a whole array is written and committed; another process reads it, again, and then single chunks."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from statistics import median

from benchmarks.data import ITEM_BYTES, check, check_equal, values
from benchmarks.measure import Metrics, measuring
from benchmarks.processes import Case
from benchmarks.scales import KIB, MIB, Scale
from benchmarks.systems.base import System
from benchmarks.workloads.base import (
    Against,
    Column,
    Context,
    Stage,
    Table,
    Unit,
    Workload,
    any_system,
    common,
)

PATH = "bulk"
_SINGLE_READS = 200
_MAX_WARM_BYTES = 1536 * MIB


def cases(scale: Scale) -> Iterator[Case]:
    for chunk_bytes, chunks in scale.bulk:
        yield bulk_case(chunk_bytes, chunks)


def bulk_case(chunk_bytes: int, chunks: int) -> Case:
    """Return the parameters of an array of `chunks` chunks."""
    size = f"{chunk_bytes // MIB} MiB" if chunk_bytes >= MIB else f"{chunk_bytes // KIB} KiB"
    return {"label": f"{chunks:,} chunks of {size}", "chunk_bytes": chunk_bytes, "chunks": chunks}


def data_bytes(case: Case) -> int:
    return int(case["chunk_bytes"] * case["chunks"])


def warm_bytes(case: Case) -> int:
    return min(3 * data_bytes(case) + 64 * MIB, _MAX_WARM_BYTES)


def write(system: System, context: Context) -> Metrics:
    """Write the array into a new store, and commit."""
    case = context.case
    system.create()
    data = values(case["chunks"], data_bytes(case) // ITEM_BYTES)
    before = dict(system.requests())
    with measuring() as measured:
        system.write_array(PATH, data, case["chunk_bytes"] // ITEM_BYTES)
    metrics = common(measured, system, before)
    metrics["chunk_s"] = measured.seconds / case["chunks"]
    metrics["bytes_per_s"] = data_bytes(case) / measured.seconds
    return metrics


def read(system: System, context: Context) -> Metrics:
    """Read all of it twice, then single chunks; compare each with what was written."""
    case = context.case
    chunks = case["chunks"]
    before = dict(system.requests())
    start = time.perf_counter()
    reader = system.open_array(PATH)
    open_s = time.perf_counter() - start
    with measuring() as measured:
        found = reader.read_all()
    metrics = common(measured, system, before)
    metrics |= {"open_s": open_s, "first_chunk_s": measured.seconds / chunks}
    check(found, chunks, "the first read")
    # Two results at once would measure how fast new memory is to be had.
    del found
    with measuring(peak=False) as measured:
        found = reader.read_all()
    metrics["again_chunk_s"] = measured.seconds / chunks
    check(found, chunks, "the second read")
    items = case["chunk_bytes"] // ITEM_BYTES
    times = []
    order = random.Random(0)
    for _ in range(_SINGLE_READS):
        index = order.randrange(chunks)
        start = time.perf_counter()
        chunk = reader.read_chunk(index)
        times.append(time.perf_counter() - start)
        check_equal(chunk, found[index * items : (index + 1) * items], f"chunk {index}")
    metrics["one_p50_s"] = median(times)
    return metrics


def _both(header: str, stage: str, metric: str) -> tuple[Column, Column]:
    return (
        Column(header, stage, metric, Unit.MICROSECONDS),
        Column("x ice", stage, metric, against=Against.BASELINE),
    )


WORKLOAD = Workload(
    names=("W1", "W2"),
    title="bulk write, bulk read",
    cases=cases,
    stages={"write": Stage(write, warm_bytes), "read": Stage(read, warm_bytes)},
    suits=any_system,
    with_pipelines=True,
    tables=(
        Table(
            "W1 bulk write, per chunk",
            (
                *_both("write us", "write", "chunk_s"),
                Column("over limit us", "write", "chunk_s", Unit.MICROSECONDS, Against.LIMIT),
                Column("CPU s", "write", "cpu_s", Unit.SECONDS),
                Column("peak", "write", "peak_bytes", Unit.BYTES),
                Column("on disk", "write", "disk_bytes", Unit.BYTES),
                Column("files", "write", "disk_files"),
                Column("requests", "write", "requests"),
            ),
        ),
        Table(
            "W2 bulk read, per chunk",
            (
                *_both("first us", "read", "first_chunk_s"),
                *_both("again us", "read", "again_chunk_s"),
                *_both("one chunk p50 us", "read", "one_p50_s"),
                Column("open ms", "read", "open_s", Unit.MILLISECONDS),
                Column("peak", "read", "peak_bytes", Unit.BYTES),
                Column("requests", "read", "requests"),
            ),
        ),
    ),
)
