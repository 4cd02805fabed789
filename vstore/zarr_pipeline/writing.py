"""Writes requests: chunks cut from the value, or merged into what is stored, encoded and set in groups.

A group is at most 8 MiB of items, so that memory does not grow with the request. The rules (what is empty, what is
merged into what) are those of zarr's stock pipeline; where it matters, its own functions decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vstore.ids import BytesLike
from vstore.worktree.batch.tasks import ReadTask
from vstore.worktree.batch.writing import set_many
from vstore.zarr_pipeline.coder import Array, ChunkCoder, ChunkLayout, CodingError
from vstore.zarr_pipeline.reading import decode, do_tasks
from vstore.zarr_pipeline.requests import Batch, PipelineState, Request, as_array, run_beside
from vstore.zarr_pipeline.workers import CODING

_GROUP_BYTES = 8 * 1024 * 1024
_THREADED_BYTES = 128 * 1024


async def write(
    state: PipelineState, requests: Sequence[Request], value: Any, drop_axes: tuple[int, ...]
) -> bool:
    """Write a value's chunks; False if that must be left to the stock pipeline, which may find parts of it done."""
    array = as_array(value)
    batch = None if array is None else state.batch(requests)
    if array is None or batch is None or not _fits(array, batch.layouts[0]):
        return False
    try:
        if batch.is_quick:
            _write(batch, array, drop_axes)
        else:
            await run_beside(batch, _write, batch, array, drop_axes)
    except CodingError:
        return False
    return True


def _fits(value: Array, layout: ChunkLayout) -> bool:
    """Tell whether the value's items are the array's but for the byte order; zarr compares only the types' names."""
    if value.dtype == layout.dtype:
        return True
    return value.dtype.names is None and value.dtype.newbyteorder("=") == layout.dtype.newbyteorder("=")


def _write(batch: Batch, value: Array, drop_axes: tuple[int, ...]) -> None:
    batch.store._check_writable()
    tree = batch.store.session.tree_for_writing()
    for group in _groups(batch):
        set_many(tree, group.keys, _encode_group(group, value, drop_axes))


def _groups(batch: Batch) -> Iterator[Batch]:
    if batch.size_bytes <= _GROUP_BYTES:
        yield batch
        return
    start = size = 0
    for row, layout in enumerate(batch.layouts):
        if size and size + layout.size_bytes > _GROUP_BYTES:
            yield batch.part(range(start, row), size)
            start, size = row, 0
        size += layout.size_bytes
    yield batch.part(range(start, len(batch.layouts)), size)


def _encode_group(group: Batch, value: Array, drop_axes: tuple[int, ...]) -> list[BytesLike | None]:
    """Return each chunk's stored bytes, None for what is not stored."""
    existing = _read_existing(group)
    requests, layouts, coder = group.requests, group.layouts, group.coder
    is_scalar = value.shape == ()

    def encode_rows(rows: range) -> list[BytesLike | None]:
        values: list[BytesLike | None] = []
        for row in rows:
            layout = layouts[row]
            _, _, _, out_selection, is_whole = requests[row]
            chunk = value[out_selection] if is_whole and not is_scalar else None
            # A chunk at the array's edge counts as whole for zarr, but the value has only its inside.
            if chunk is None or chunk.shape != layout.shape:
                chunk = _merged(existing.get(row), requests[row], layout, value, drop_axes)
            values.append(None if layout.is_empty(chunk) else _encode(coder, chunk, layout))
        return values

    rows = range(len(requests))
    if not coder.compresses or group.size_bytes < _THREADED_BYTES:
        return encode_rows(rows)
    step = max(1, len(rows) // (4 * CODING.count))
    parts = CODING.map(encode_rows, [rows[start : start + step] for start in range(0, len(rows), step)])
    return [encoded for part in parts for encoded in part]


def _encode(coder: ChunkCoder, chunk: Array, layout: ChunkLayout) -> BytesLike:
    try:
        return coder.encode(chunk, layout)
    except Exception as error:
        raise CodingError(str(error)) from error


def _read_existing(group: Batch) -> dict[int, Array]:
    """Return what is stored of the chunks that are written in part."""
    rows = [row for row, (*_, is_whole) in enumerate(group.requests) if not is_whole]
    if not rows:
        return {}
    found: dict[int, Array] = {}
    partial = group.part(rows, sum(group.layouts[row].size_bytes for row in rows))

    def take(task: ReadTask) -> None:
        for at, data in task:
            if data is not None:
                # A copy: what was decoded may be a view of the pack.
                found[rows[at]] = decode(partial.coder, data, partial.layouts[at]).copy()

    do_tasks(partial, take)
    return found


def _merged(
    existing: Array | None, request: Request, layout: ChunkLayout, value: Array, drop_axes: tuple[int, ...]
) -> Array:
    """Return a whole chunk: what is stored, or the fill value, with the value's part put in."""
    _, _, chunk_selection, out_selection, _ = request
    chunk = existing
    if chunk is None:
        made = layout.prototype.nd_buffer.create(
            shape=layout.shape, dtype=layout.dtype, order=layout.order, fill_value=layout.fill
        )
        chunk = made.as_numpy_array()
    part = value
    if chunk_selection != () and value.shape != ():
        part = value[out_selection]
        if drop_axes:
            part = part[
                tuple(None if axis in drop_axes else slice(None) for axis in range(len(layout.shape)))
            ]
    chunk[chunk_selection] = part
    return chunk
