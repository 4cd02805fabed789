"""vstore on an object store that is 50 ms away: requests, and what they take.

    python -m benchmarks.distant [--latency-ms 50]

The store is obstore's in memory behind `vstore.testing.latency`: what counts is how many requests wait for each other.
Each step begins with nothing kept in memory. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zarr

import vstore
import vstore.zarr_pipeline
from vstore.blobs.cache import CACHE
from vstore.storage.objects import ObjectStorage
from vstore.testing.latency import LatencyStore

CHUNKS = 2_000
SIZES = {"4 KiB": 1_024, "64 KiB": 16 * 1_024}
"""Items of a chunk, of four bytes each."""
PIPELINES = {
    "zarr's default": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarr's fused": "zarr.core.codec_pipeline.FusedCodecPipeline",
    "vstore's own": "vstore.zarr_pipeline.VstoreCodecPipeline",
}


class Distant:
    """A repository on a distant store, and the rows of the table."""

    def __init__(self, latency_s: float) -> None:
        from obstore.store import MemoryStore

        self.store = LatencyStore(MemoryStore(), latency_s)
        vstore.Repository.create(self.location())

    def location(self) -> Any:
        return ObjectStorage(self.store)  # type: ignore[arg-type]

    def measure(self, what: str, act: Callable[[], object]) -> None:
        """Do it, and print its row."""
        CACHE.clear()
        self.store.reset()
        start = time.perf_counter()
        act()
        seconds = time.perf_counter() - start
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.store.requests.items()))
        print(
            f"| {what} | {seconds:.2f} | {self.store.total} ({kinds}) | {self.store.most_at_once} |",
            flush=True,
        )


def write(repository: vstore.Repository, name: str, values: Any) -> None:
    session = repository.writable_session("main")
    chunks = (1, values.shape[1])
    array = zarr.create_array(
        session.store,
        name=name,
        shape=values.shape,
        chunks=chunks,
        dtype="f4",
        compressors=None,
        overwrite=True,
    )
    array[:] = values
    session.commit(name)


def read(repository: vstore.Repository, name: str, values: Any, rows: Any = ...) -> None:
    array = zarr.open_array(repository.readonly_session("main").store, path=name, mode="r")
    if not np.array_equal(array[rows], values[rows]):
        raise RuntimeError("what was read is not what was written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--latency-ms", type=float, default=50)
    distant = Distant(parser.parse_args().latency_ms / 1000)
    print("| what | s | requests | at once |")
    print("| --- | --- | --- | --- |")
    known = vstore.Repository.open(distant.location())
    known.writable_session("main")
    for size, items in SIZES.items():
        for number, (title, path) in enumerate(PIPELINES.items()):
            # Not the same again, which would be written to no pack.
            values = np.random.default_rng(number).random((CHUNKS, items), dtype="f4")
            with zarr.config.set({"codec_pipeline.path": path}):
                distant.measure(
                    f"write and commit {CHUNKS:,} chunks of {size}, {title} pipeline",
                    lambda values=values: write(known, "a", values),
                )
                distant.measure(
                    f"open, and read them, {title} pipeline",
                    lambda values=values: read(vstore.Repository.open(distant.location()), "a", values),
                )
        distant.measure(
            f"open, and read one chunk of {size}",
            lambda values=values: read(vstore.Repository.open(distant.location()), "a", values, 1234),
        )


if __name__ == "__main__":
    main()
