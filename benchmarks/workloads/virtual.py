"""W6: an array of references into another file, as an HDF5 file's chunks would give, is made, committed and read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data import ITEM_BYTES, check_equal, values
from benchmarks.measure import Metrics, disk_usage, measuring
from benchmarks.processes import Case
from benchmarks.scales import MIB, Scale
from benchmarks.systems.base import System, VirtualSystem
from benchmarks.systems.repositories import RepositorySystem
from benchmarks.workloads.base import Against, Column, Context, Stage, Table, Unit, Workload, common

PATH = "virtual"
_READ = (0, 1)
"""The chunks that are read back; only these have the length that the array's chunks have, and bytes in the file."""


def cases(scale: Scale) -> Iterator[Case]:
    count = scale.virtual_refs
    yield {"label": f"{count:,} references", "refs": count}


def refer(system: System, context: Context) -> Metrics:
    """Set all references in one call, and commit."""
    assert isinstance(system, RepositorySystem)
    system.create()
    offsets, lengths = _ranges(context.case["refs"], system.filled_chunk_items * ITEM_BYTES)
    source = system.make_source("source.bin", int(offsets[-1] + lengths[-1]))
    _write_chunks(source, offsets, system.filled_chunk_items)
    before = dict(system.requests())
    size_before = disk_usage(system.folder)[0] if system.is_persistent else 0
    with measuring() as measured:
        system.set_virtual_refs(PATH, source, offsets, lengths)
    metrics = common(measured, system, before)
    if system.is_persistent:
        metrics["bytes_per_ref"] = (disk_usage(system.folder)[0] - size_before) / len(offsets)
    return metrics


def _ranges(count: int, chunk_bytes: int) -> tuple[Any, Any]:
    """Return offsets and lengths like those of compressed chunks in an HDF5 file: about 50 kB each, some gaps."""
    import numpy as np

    generator = np.random.default_rng(6)
    lengths = generator.normal(50_000, 5_000, count).clip(1_000).astype("u8")
    lengths[list(_READ)] = chunk_bytes
    gaps = np.where(generator.random(count) < 0.02, 4_096, 0)
    ends = np.cumsum(lengths + gaps.astype("u8"))
    return (ends - lengths).astype("u8"), lengths


def _write_chunks(source: Path, offsets: Any, items: int) -> None:
    with open(source, "r+b") as file:
        for index in _READ:
            file.seek(int(offsets[index]))
            file.write(values(index, items).tobytes())


def look(system: System, context: Context) -> Metrics:
    """Open the store and read the first chunk, then the next."""
    assert isinstance(system, VirtualSystem)
    before = dict(system.requests())
    times = []
    chunks = []
    with measuring() as measured:
        start = time.perf_counter()
        reader = system.open_array(PATH)
        for index in _READ:
            chunks.append(reader.read_chunk(index))
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
    for index, chunk in zip(_READ, chunks, strict=True):
        check_equal(chunk, values(index, len(chunk)), f"virtual chunk {index}")
    return common(measured, system, before) | {"first_s": times[0], "next_s": times[1]}


def _warm_bytes(case: Case) -> int:
    return min(64 * MIB + 1024 * int(case["refs"]), 1024 * MIB)


def _suits(system: type[System]) -> bool:
    return issubclass(system, VirtualSystem)


WORKLOAD = Workload(
    names=("W6",),
    title="virtual references",
    cases=cases,
    stages={"refer": Stage(refer, _warm_bytes), "look": Stage(look, _warm_bytes)},
    suits=_suits,
    rounds=lambda scale, rounds: rounds * scale.repeats_of_short,
    tables=(
        Table(
            "W6 virtual references",
            (
                Column("set + commit s", "refer", "s", Unit.SECONDS),
                Column("x ice", "refer", "s", against=Against.BASELINE),
                Column("peak", "refer", "peak_bytes", Unit.BYTES),
                Column("bytes per ref", "refer", "bytes_per_ref"),
                Column("open, first chunk ms", "look", "first_s", Unit.MILLISECONDS),
                Column("x ice", "look", "first_s", against=Against.BASELINE),
                Column("next chunk ms", "look", "next_s", Unit.MILLISECONDS),
                Column("peak", "look", "peak_bytes", Unit.BYTES),
            ),
        ),
    ),
)
