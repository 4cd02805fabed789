"""S1: arrays of millions of chunks are filled as a stream, opened, read, listed as a stream, and changed a little.

Only vstore: at 1,000,000 chunks W3 and W6 compare, and beyond that a system that holds all refs in memory needs more
of it than most machines have.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.data import ITEM_BYTES, check_equal, expect, values
from benchmarks.measure import Metrics, disk_usage, measuring
from benchmarks.processes import Case
from benchmarks.scales import MIB, Scale
from benchmarks.systems.base import System
from benchmarks.systems.repositories import RepositorySystem
from benchmarks.systems.vstore import VStore
from benchmarks.systems.zarr_systems import ZarrSystem, make_zarr_array
from benchmarks.workloads.base import Column, Context, Stage, Table, Unit, Workload, common
from benchmarks.workloads.commits import PATH, change_one, change_spread

_BLOCK = 1 << 20
"""References that are made and set at a time."""
_MAX_GAP_BYTES = 64 * 1024
_SEED = 11


def cases(scale: Scale) -> Iterator[Case]:
    for count in scale.large:
        yield {
            "label": f"{count:,} chunks",
            "chunks": count,
            "spread": scale.spread_chunks,
            "commits": scale.commits_to_large,
            "is_listed": count <= scale.listed_chunks,
        }


def fill(system: System, context: Context) -> Metrics:
    """Set all references, a block at a time, in one session, and commit."""
    assert isinstance(system, RepositorySystem)
    count, items = context.case["chunks"], system.filled_chunk_items
    system.create()
    source = system.make_source("large.bin", count * (items * ITEM_BYTES + _MAX_GAP_BYTES))
    location = source.absolute().as_uri()
    with measuring() as measured:
        store = system.writable_store()
        make_zarr_array(store, PATH, count * items, items)
        end = 0
        for start in range(0, count, _BLOCK):
            end = _set_block(store, location, start, min(_BLOCK, count - start), end, items * ITEM_BYTES)
        set_s = time.perf_counter()
        system.commit("fill")
        commit_s = time.perf_counter() - set_s
    _write_first(source, items)
    metrics = common(measured, system, {})
    size = disk_usage(system.folder)[0]
    return metrics | {"commit_s": commit_s, "ref_s": measured.seconds / count, "bytes_per_ref": size / count}


def _set_block(store: object, location: str, start: int, count: int, end: int, chunk_bytes: int) -> int:
    """Set `count` references from chunk `start` on, to ranges behind `end`; return where the last one ends."""
    import numpy as np

    gaps = np.random.default_rng([_SEED, start]).integers(0, _MAX_GAP_BYTES, count, dtype="u8")
    if start == 0:
        gaps[0] = 0
    offsets = end + np.cumsum(gaps + np.uint64(chunk_bytes)) - np.uint64(chunk_bytes)
    lengths = np.full(count, chunk_bytes, "u8")
    set_refs = store.set_virtual_refs_arr  # type: ignore[attr-defined]
    set_refs(PATH, (count,), [location] * count, offsets.astype("u8"), lengths, arr_offset=(start,))
    return int(offsets[-1]) + chunk_bytes


def _write_first(source: Path, items: int) -> None:
    with open(source, "r+b") as file:
        file.write(values(_SEED, items).tobytes())


def look(system: System, context: Context) -> Metrics:
    """Open the array in a fresh process and read its first chunk, its last, and its first again."""
    assert isinstance(system, RepositorySystem)
    last = context.case["chunks"] - 1
    times = []
    found = []
    with measuring() as measured:
        start = time.perf_counter()
        reader = system.open_array(PATH)
        for index in (0, last, 0):
            found.append(reader.read_chunk(index))
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
    for chunk in (found[0], found[2]):
        check_equal(chunk, values(_SEED, len(chunk)), "the first chunk")
    expect(not found[1].any(), "the last chunk is not the hole in its file")
    return common(measured, system, {}) | {"first_s": times[0], "last_s": times[1], "again_s": times[2]}


def listing(system: System, context: Context) -> Metrics:
    """List all keys of the array as a stream."""
    assert isinstance(system, ZarrSystem)
    with measuring() as measured:
        count, first_s = asyncio.run(_count_keys(system.readable_store()))
    expect(count == context.case["chunks"] + 1, f"{count} keys are listed")
    return common(measured, system, {}) | {"first_key_s": first_s, "key_s": measured.seconds / count}


async def _count_keys(store: object) -> tuple[int, float]:
    start = time.perf_counter()
    count, first_s = 0, 0.0
    async for _ in store.list_prefix(f"{PATH}/"):  # type: ignore[attr-defined]
        if count == 0:
            first_s = time.perf_counter() - start
        count += 1
    return count, first_s


def _suits(system: type[System]) -> bool:
    return issubclass(system, VStore) and system.is_persistent


WORKLOAD = Workload(
    names=("S1",),
    title="large arrays",
    cases=cases,
    stages={
        "fill": Stage(fill, lambda _: 256 * MIB),
        "look": Stage(look, lambda _: 64 * MIB),
        "one": Stage(change_one, lambda _: 64 * MIB),
        "spread": Stage(change_spread, lambda _: 64 * MIB),
        "list": Stage(listing, lambda _: 64 * MIB, applies=lambda case: bool(case["is_listed"])),
    },
    suits=_suits,
    tables=(
        Table(
            "S1 large arrays: made",
            (
                Column("set + commit s", "fill", "s", Unit.SECONDS),
                Column("commit s", "fill", "commit_s", Unit.SECONDS),
                Column("a ref us", "fill", "ref_s", Unit.MICROSECONDS),
                Column("peak", "fill", "peak_bytes", Unit.BYTES),
                Column("bytes per ref", "fill", "bytes_per_ref"),
                Column("list s", "list", "s", Unit.SECONDS),
                Column("first key ms", "list", "first_key_s", Unit.MILLISECONDS),
                Column("peak", "list", "peak_bytes", Unit.BYTES),
            ),
        ),
        Table(
            "S1 large arrays: used",
            (
                Column("open, first chunk ms", "look", "first_s", Unit.MILLISECONDS),
                Column("last chunk ms", "look", "last_s", Unit.MILLISECONDS),
                Column("peak", "look", "peak_bytes", Unit.BYTES),
                Column("commit one ms", "one", "commit_s", Unit.MILLISECONDS),
                Column("CPU ms", "one", "commit_cpu_s", Unit.MILLISECONDS),
                Column("written", "one", "overhead_bytes", Unit.BYTES),
                Column("commit spread ms", "spread", "commit_s", Unit.MILLISECONDS),
                Column("written", "spread", "overhead_bytes", Unit.BYTES),
                Column("peak", "spread", "peak_bytes", Unit.BYTES),
            ),
        ),
    ),
)
