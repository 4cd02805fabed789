"""One large job in a fresh process: prints as JSON by how much its memory grew, and what it found.

python -m tests.scale.worker JOB FOLDER COUNT PENDING_BYTES
"""

from __future__ import annotations

import json
import resource
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from zarr.core.sync import sync

import vstore
from tests.repositories import array_document, write
from vstore.blobs.cache import CACHE
from vstore.session import Session
from vstore.storage.local import LocalStorage
from vstore.worktree import spilling
from vstore.worktree.listing import iter_keys

BATCH = 1_000_000
SAMPLE = 100_000
CHUNK = 40
STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    if STATUS.exists():
        # getrusage would count what the parent had when it started this process.
        return status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def own_bytes() -> int:
    """Return the memory that this process has now, without mapped packs, whose pages the kernel takes back at will."""
    return status_bytes("RssAnon") if STATUS.exists() else peak_bytes()


def status_bytes(name: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if name in line) * 1024


class Reads:
    """Counts reads and bytes of local storage."""

    def __init__(self) -> None:
        self.calls = self.bytes = 0
        read = LocalStorage.read

        def counted(storage: LocalStorage, name: str, offset: int, length: int) -> memoryview:
            self.calls += 1
            self.bytes += length
            return read(storage, name, offset, length)

        LocalStorage.read = counted  # type: ignore[method-assign]

    def take(self) -> tuple[int, int]:
        taken = self.calls, self.bytes
        self.calls = self.bytes = 0
        return taken


def pack_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "repository" / "packs").rglob("*") if file.is_file())


def set_virtual(session: Session, source: str, count: int) -> None:
    """Point all chunks into one file, as an HDF5 file's index would."""
    generator = np.random.default_rng(6)
    end = 0
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        lengths = generator.normal(50_000, 5_000, size).clip(1_000).astype(np.uint64)
        ends = np.cumsum(lengths + np.where(generator.random(size) < 0.02, 4_096, 0).astype(np.uint64)) + end
        offsets, end = ends - lengths, int(ends[-1])
        session.store.set_virtual_refs_arr(
            "a", (size,), [source] * size, offsets, lengths, arr_offset=(start,)
        )


def set_inline(session: Session, count: int) -> None:
    tail = bytes(CHUNK - 8)
    for index in range(count):
        session.tree_for_writing().set(f"a/c/{index}", index.to_bytes(8, "little") + tail)


def small_commits(repository: vstore.Repository, folder: Path, count: int, found: dict[str, Any]) -> None:
    """Look at one chunk and commit a few into an array that is there."""
    reads = Reads()
    CACHE.clear()
    session = repository.writable_session("main")
    assert session.tree.find(f"a/c/{count // 2}") is not None
    found["first_chunk"] = reads.take()
    sizes = [pack_bytes(folder)]
    write(session, {f"a/c/{count // 3}": b"x" * 600})
    session.commit("one")
    found["one_commit"] = reads.take()
    sizes.append(pack_bytes(folder))
    session = repository.writable_session("main")
    write(session, {f"a/c/{n * (count // 100)}": b"%d" % n * 600 for n in range(100)})
    session.commit("spread")
    found["spread_commit"] = reads.take()
    sizes.append(pack_bytes(folder))
    found["written"] = [after - before for before, after in pairwise(sizes)]


def list_all(repository: vstore.Repository, found: dict[str, Any]) -> None:
    before = most = own_bytes()
    store = repository.readonly_session("main").store

    async def count_names() -> int:
        return sum([1 async for _ in store.list_dir("a/c")]) if found["count"] < BATCH else found["count"]

    found["keys"] = 0
    for _ in iter_keys(store.session.tree, "a/c/"):
        found["keys"] += 1
        if found["keys"] % SAMPLE == 0:
            most = max(most, own_bytes())
    found["names"] = sync(count_names())
    found["list_growth"] = max(most, own_bytes()) - before


def warm_up(repository: vstore.Repository) -> None:
    """Load all code that is loaded when it is first needed."""
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": array_document((100,)), **{f"a/c/{n}": b"%d" % n for n in range(100)}})
    spilling.spill(session.tree)
    session.flush("warm")


def main(job: str, folder: Path, count: int, pending_bytes: int) -> dict[str, Any]:
    spilling.MAX_PENDING_BYTES = pending_bytes
    repository = vstore.Repository.create(folder / "repository")
    warm_up(repository)
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": array_document((count,))})
    before = peak_bytes()
    found: dict[str, Any] = {"count": count}
    if job == "virtual":
        set_virtual(session, (folder / "source").as_uri(), count)
    else:
        set_inline(session, count)
    found["set_growth"] = peak_bytes() - before
    session.commit("all")
    found["growth"] = peak_bytes() - before
    found["bytes_per_ref"] = pack_bytes(folder) / count
    small_commits(repository, folder, count, found)
    list_all(repository, found)
    found["chunks"] = repository.readonly_session("main").totals("a").chunks
    repository.close()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
