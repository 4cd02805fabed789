"""Memory and bytes stay bounded whatever an array's size: measured in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vstore.worktree.spilling import MAX_PENDING_BYTES

MIB = 1024 * 1024
ROOT = Path(__file__).parents[2]


def run(job: str, folder: Path, count: int, pending_bytes: int = MAX_PENDING_BYTES) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.scale.worker", job, str(folder), str(count), str(pending_bytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["chunks"] == found["keys"] == found["names"] == count
    return found


def check_small_accesses(found: dict[str, Any], tile_bytes: int) -> None:
    """One chunk costs the pages above it and its tile's manifest, whatever the array's size."""
    assert found["first_chunk"][0] <= 9
    assert found["first_chunk"][1] < tile_bytes + 32 * 1024
    assert found["one_commit"][1] < 2 * tile_bytes + 64 * 1024
    assert found["spread_commit"][1] < 101 * tile_bytes + 1024 * 1024
    assert found["written"][0] < 12_000
    # 120 kB are the chunks; the rest are pages of tile pointers, nearly all of which a spread commit touches.
    assert found["written"][1] < 300_000 + found["count"] // 500


def test_virtual_refs_take_no_memory_of_their_own(tmp_path: Path) -> None:
    found = run("virtual", tmp_path, 300_000)
    # The caller's own columns and the numbers they are made of take about half of it.
    assert found["growth"] < 40 * MIB
    assert found["bytes_per_ref"] < 3
    check_small_accesses(found, 64 * 1024)


def test_pending_refs_are_bounded(tmp_path: Path) -> None:
    """150,000 chunks of 40 bytes take 16 MB in memory and as much for their commit, unless they are spilled at 1 MB.

    What is left is what it takes to merge one tile.
    """
    for name in ("kept", "spilled"):
        (tmp_path / name).mkdir()
    kept = run("inline", tmp_path / "kept", 150_000)
    spilled = run("inline", tmp_path / "spilled", 150_000, MIB)
    assert kept["growth"] > 24 * MIB
    assert spilled["growth"] < 18 * MIB
    check_small_accesses(spilled, 512 * 1024)


@pytest.mark.deep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [10_000_000, 100_000_000])
def test_many_virtual_refs(tmp_path: Path, count: int) -> None:
    found = run("virtual", tmp_path, count)
    assert found["growth"] < 256 * MIB
    assert found["list_growth"] < 64 * MIB
    check_small_accesses(found, 64 * 1024)


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_ten_million_chunks(tmp_path: Path) -> None:
    found = run("inline", tmp_path, 10_000_000)
    assert found["growth"] < MAX_PENDING_BYTES + 256 * MIB
    assert found["list_growth"] < 64 * MIB
    check_small_accesses(found, 512 * 1024)
