"""Reads requests: all chunks found at once, neighbours fetched together, each decoded into its place in the result.

Quick batches run on the event loop, others in a thread, so that callers' threads do not wait for each other there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from vstore.ids import BytesLike
from vstore.worktree.batch.reading import plan_reads
from vstore.worktree.batch.tasks import ReadTask
from vstore.zarr_pipeline.coder import Array, ChunkCoder, ChunkLayout, CodingError
from vstore.zarr_pipeline.requests import Batch, PipelineState, Request, as_array, run_beside
from vstore.zarr_pipeline.workers import CODING, FETCHING

Results: TypeAlias = tuple[Any, ...]
"""A `GetResult` of zarr for each request; versions before 3.4 have no such type, and ignore what `read` returns."""

_PRESENT: Any = {"status": "present"}
_MISSING: Any = {"status": "missing"}

_RUN_BYTES = 8 * 1024 * 1024
_REMOTE_RUN_BYTES = 4 * 1024 * 1024
"""With as many as are fetched at once, 128 MiB; larger requests are no cheaper, and fewer at once."""
_LEAST_RUN_BYTES = 128 * 1024
_HASHED_CHUNK_BYTES = 256 * 1024
"""From this size on a chunk's digest outweighs what two threads lose by sharing Python's lock."""
_THREADED_BYTES = 256 * 1024


async def read(
    state: PipelineState, requests: Sequence[Request], out: Any, drop_axes: tuple[int, ...]
) -> Results | None:
    """Read chunks into `out`; None if that must be left to the stock pipeline, which may find parts of it done."""
    array = as_array(out)
    batch = None if array is None else state.batch(requests)
    if array is None or batch is None:
        return None
    try:
        if batch.is_quick:
            return _read(batch, array, drop_axes)
        return await run_beside(batch, _read, batch, array, drop_axes)
    except CodingError:
        return None


def _read(batch: Batch, out: Array, drop_axes: tuple[int, ...]) -> Results:
    results = [_PRESENT] * len(batch.requests)
    requests, layouts, coder = batch.requests, batch.layouts, batch.coder

    def take(task: ReadTask) -> None:
        for row, data in task:
            _, _, chunk_selection, out_selection, _ = requests[row]
            if data is None:
                out[out_selection] = layouts[row].fill
                results[row] = _MISSING
                continue
            part = decode(coder, data, layouts[row])[chunk_selection]
            out[out_selection] = np.asanyarray(part).squeeze(axis=drop_axes) if drop_axes else part

    do_tasks(batch, take)
    return tuple(results)


def do_tasks(batch: Batch, take: Any) -> None:
    """Call `take` with the tasks that read a batch, in threads where they pay."""
    may_share = batch.is_local and len(batch.keys) > 1 and batch.size_bytes >= _THREADED_BYTES
    run_bytes = _RUN_BYTES if batch.is_local else _REMOTE_RUN_BYTES
    if may_share:
        run_bytes = min(max(batch.size_bytes // (4 * CODING.count), _LEAST_RUN_BYTES), _RUN_BYTES)
    fetch = None if batch.is_local else FETCHING.map
    tasks = plan_reads(batch.store.session.tree, batch.keys, run_bytes=run_bytes, at_once=fetch)
    if not batch.is_local:
        FETCHING.map(take, tasks)
    elif may_share and (batch.coder.compresses or _are_hashed(batch, tasks)):
        CODING.map(take, tasks)
    else:
        for task in tasks:
            take(task)


def _are_hashed(batch: Batch, tasks: list[ReadTask]) -> bool:
    """Tell whether these are large chunks to be hashed; copying alone gains nothing from a second thread."""
    return batch.chunk_bytes >= _HASHED_CHUNK_BYTES and any(task.checks for task in tasks)


def decode(coder: ChunkCoder, data: BytesLike, layout: ChunkLayout) -> Array:
    """Return the chunk of stored bytes; any trouble is a `CodingError`."""
    try:
        return coder.decode(data, layout)
    except Exception as error:
        raise CodingError(str(error)) from error
