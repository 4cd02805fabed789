"""What zarr asks of the pipeline: a list of chunks, each with its key, its selection, and its place in an array.

A `Batch` is such a list that can be done here: all chunks on one vstore store, codecs and data type known, buffers
that are numpy arrays. `PipelineState` makes it, and keeps per array what requests have in common.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from zarr.buffer import cpu
from zarr.storage import StorePath

from vstore.blobs.waiting import run_waiting
from vstore.store import SessionStore
from vstore.zarr_pipeline.coder import Array, ChunkCoder, ChunkLayout, coder_for

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec

T = TypeVar("T")

Request: TypeAlias = tuple[Any, "ArraySpec", Any, Any, bool]
"""(store path, spec of the chunk, selection in the chunk, selection in the array outside, whole chunk?)."""

QUICK_BYTES = 1024 * 1024
"""Up to so much is done on the event loop itself: a thread costs 60 us, these bytes take 500 us or less."""
QUICK_CHUNKS = 64
"""The same for the number of chunks: 4 to 8 us each, without their bytes."""
QUICK_CODED_BYTES = 64 * 1024
"""The same where chunks are compressed, which takes 1 to 5 us per KiB."""
_KNOWN_LAYOUTS = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests on one store, their keys, and how each chunk lies."""

    store: SessionStore
    coder: ChunkCoder
    requests: Sequence[Request]
    keys: list[str]
    layouts: list[ChunkLayout]
    size_bytes: int

    def part(self, rows: Sequence[int], size_bytes: int) -> Batch:
        """Return the batch of some of the requests."""
        return Batch(
            self.store,
            self.coder,
            [self.requests[row] for row in rows],
            [self.keys[row] for row in rows],
            [self.layouts[row] for row in rows],
            size_bytes,
        )

    @property
    def is_local(self) -> bool:
        return bool(self.store.session.tree.blobs.storage.is_local)

    @property
    def is_quick(self) -> bool:
        """Whether the batch is soon done and waits for nothing, so that it need not leave the event loop."""
        limit = QUICK_CODED_BYTES if self.coder.compresses else QUICK_BYTES
        return self.is_local and self.size_bytes <= limit and len(self.keys) <= QUICK_CHUNKS

    @property
    def chunk_bytes(self) -> int:
        return self.size_bytes // len(self.requests)


async def run_beside(batch: Batch, function: Callable[..., T], *args: Any) -> T:
    """Call `function` in a thread: for an object store in one of those that are there to wait.

    The event loop has a few for each processor, which would be all the requests of an application's many threads.
    """
    if batch.is_local:
        return await asyncio.to_thread(function, *args)
    return await run_waiting(function, *args)


class PipelineState:
    """What the pipeline of one array knows: its coder, and the layouts of its chunks' shapes. Thread-safe."""

    def __init__(self, coder: ChunkCoder | None) -> None:
        self._coder = coder
        self._layouts: dict[tuple[int, ...], tuple[ArraySpec, ChunkLayout | None]] = {}

    @classmethod
    def of(cls, stock: Any) -> PipelineState:
        """Return the state for the array of a stock pipeline."""
        try:
            codecs = list(stock)
        except TypeError:
            return cls(None)
        return cls(coder_for(codecs))

    def batch(self, requests: Sequence[Request]) -> Batch | None:
        """Return the requests as a batch, None if they must be left to the stock pipeline."""
        coder = self._coder
        if coder is None or type(requests[0][0]) is not StorePath:
            return None
        store = requests[0][0].store
        if not isinstance(store, SessionStore):
            return None
        layouts = self._layouts_of(requests)
        if layouts is None:
            return None
        keys = []
        for path, *_ in requests:
            if path.store is not store:
                return None
            keys.append(path.path)
        if layouts[0] is layouts[-1] and len(self._layouts) == 1:
            size = len(layouts) * layouts[0].size_bytes
        else:
            size = sum(layout.size_bytes for layout in layouts)
        return Batch(store, coder, requests, keys, layouts, size)

    def _layouts_of(self, requests: Sequence[Request]) -> list[ChunkLayout] | None:
        """Return the chunks' layouts, None if one of them has none."""
        layouts: list[ChunkLayout] = []
        last: ArraySpec | None = None
        layout: ChunkLayout | None = None
        for _, spec, *_ in requests:
            if spec is not last:
                last, layout = spec, self._layout(spec)
                if layout is None:
                    return None
            layouts.append(layout)  # type: ignore[arg-type]
        return layouts

    def _layout(self, spec: ArraySpec) -> ChunkLayout | None:
        known = self._layouts.get(spec.shape)
        if known is not None and _is_same(known[0], spec):
            return known[1]
        prototype = spec.prototype
        layout = None
        if prototype.nd_buffer is cpu.NDBuffer and prototype.buffer is cpu.Buffer and self._coder is not None:
            layout = self._coder.layout(spec)
        if len(self._layouts) >= _KNOWN_LAYOUTS:
            self._layouts.clear()
        self._layouts[spec.shape] = (spec, layout)
        return layout


def _is_same(one: ArraySpec, other: ArraySpec) -> bool:
    """Tell whether two specs of one shape are alike; their parts are mostly the very objects of the array."""
    return one is other or (
        one.dtype is other.dtype
        and one.fill_value is other.fill_value
        and one.config == other.config
        and one.prototype == other.prototype
    )


def as_array(buffer: Any) -> Array | None:
    """Return a buffer's numpy array, None if it is anything else."""
    if type(buffer) is not cpu.NDBuffer:
        return None
    array = buffer.as_numpy_array()
    if isinstance(array, np.memmap):
        array = np.asarray(array)
    return array if type(array) is np.ndarray else None
