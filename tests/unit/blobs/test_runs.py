"""Runs of neighbouring blobs: what is read together, and that every blob comes once, checked."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.blobs.reader import BlobReader
from vstore.blobs.runs import BlobColumns, iter_run, plan_runs
from vstore.blobs.writer import BlobWriter
from vstore.errors import CorruptionError
from vstore.format.envelope import BlobKind
from vstore.ids import PackId, blake3_digest
from vstore.storage.local import LocalStorage

PACKS = [PackId(bytes([number]) * 16) for number in range(3)]


def columns(sources: list[int], offsets: list[int], lengths: list[int]) -> BlobColumns:
    n = len(sources)
    return BlobColumns(
        PACKS,
        np.array(sources, np.uint32),
        np.array(offsets, np.uint64),
        np.array(lengths, np.uint64),
        np.zeros((n, 32), np.uint8),
        np.zeros(n, bool),
    )


def test_no_blobs_no_runs() -> None:
    assert plan_runs(columns([], [], []), gap_bytes=10) == []


def test_neighbours_share_a_run_and_others_do_not() -> None:
    blobs = columns([0, 1, 0, 0, 0], [100, 100, 0, 215, 400], [100, 50, 100, 85, 7])
    runs = plan_runs(blobs, gap_bytes=15)
    assert [(run.pack, run.start, run.stop, run.rows.tolist()) for run in runs] == [
        (PACKS[0], 0, 300, [2, 0, 3]),
        (PACKS[0], 400, 407, [4]),
        (PACKS[1], 100, 150, [1]),
    ]
    assert len(plan_runs(blobs, gap_bytes=14)) == 4


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2000), st.integers(1, 300)), min_size=1, max_size=40
    ),
    st.integers(0, 100),
    st.integers(1, 500),
)
def test_every_blob_is_in_one_run_within_bounds(
    blobs: list[tuple[int, int, int]], gap: int, limit: int
) -> None:
    found = columns(*map(list, zip(*blobs, strict=True)))
    runs = plan_runs(found, gap_bytes=gap, run_bytes=limit)
    assert sorted(row for run in runs for row in run.rows.tolist()) == list(range(len(blobs)))
    for run in runs:
        members = [blobs[row] for row in run.rows.tolist()]
        assert {PACKS[source] for source, _, _ in members} == {run.pack}
        assert run.start == members[0][1] == min(offset for _, offset, _ in members)
        assert run.stop == max(offset + length for _, offset, length in members)
        assert run.stop - run.start <= limit + 300
        ends = [offset + length for _, offset, length in members]
        for end, (_, offset, _) in zip(ends[:-1], members[1:], strict=True):
            assert offset - end <= gap


@pytest.fixture
def stored(tmp_path: Path) -> tuple[LocalStorage, BlobColumns, list[bytes]]:
    storage = LocalStorage(os.fspath(tmp_path))
    writer = BlobWriter(storage)
    data = [os.urandom(size) for size in (700, 70_000, 900, 5_000)]
    slots = writer.put_many(data, [blake3_digest(blob) for blob in data])
    writer.flush()
    batch = writer.begin_metadata()
    batch.add(BlobKind.SNAPSHOT, b"snapshot")
    writer.finish(batch)
    packs, offsets = writer.slots.locate(np.array(slots, np.uint64))
    digests = np.frombuffer(b"".join(map(blake3_digest, data)), np.uint8).reshape(-1, 32)
    lengths = np.array(list(map(len, data)), np.uint64)
    return (
        storage,
        BlobColumns(writer.slots.pack_ids, packs, offsets, lengths, digests, np.zeros(4, bool)),
        data,
    )


def test_a_run_yields_its_blobs(stored: tuple[LocalStorage, BlobColumns, list[bytes]]) -> None:
    storage, blobs, data = stored
    (run,) = plan_runs(blobs, gap_bytes=8)
    assert [(row, bytes(blob)) for row, blob in iter_run(BlobReader(storage), run, blobs, str)] == list(
        enumerate(data)
    )


def test_what_is_trusted_is_not_checked_and_all_else_is(
    stored: tuple[LocalStorage, BlobColumns, list[bytes]],
) -> None:
    storage, blobs, data = stored
    wrong = BlobColumns(
        blobs.packs, blobs.sources, blobs.offsets, blobs.lengths, blobs.digests[::-1].copy(), np.ones(4, bool)
    )
    (run,) = plan_runs(wrong, gap_bytes=8)
    assert [bytes(blob) for _, blob in iter_run(BlobReader(storage), run, wrong, str)] == data
    wrong.trusted[2] = False
    with pytest.raises(CorruptionError, match="blob 2 of the test is damaged"):
        list(iter_run(BlobReader(storage), run, wrong, lambda row: f"blob {row} of the test"))
