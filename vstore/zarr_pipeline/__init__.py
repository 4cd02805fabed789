"""A codec pipeline for zarr that fetches, decodes, encodes and stores all chunks of a request in one batch.

`enable()` makes zarr use it for arrays that are opened from then on. It works on vstore's stores; every other store
gets zarr's stock pipeline, and so does whatever is not done here: sharding, codecs and data types that `coder` does not
know, buffers that are not in main memory. Results and stored bytes are those of the stock pipeline.

Zarr loads this module, by its entry point, whenever it looks for a pipeline: what does the work is imported when the
first array of a vstore store is opened. Below: `reading` and `writing` do requests, `coder` the bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.abc.codec import CodecPipeline
from zarr.core.config import config
from zarr.registry import register_pipeline

if TYPE_CHECKING:
    from zarr.abc.codec import Codec
    from zarr.abc.store import Store
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

    from vstore.zarr_pipeline.requests import PipelineState, Request

__all__ = ["VstoreCodecPipeline", "enable"]


def enable() -> AbstractContextManager[Any]:
    """Make zarr use this pipeline for the arrays that are opened from now on.

    Used in a `with` statement, it ends with the block. It is one setting of `zarr.config`, process-wide as all of them:
    `zarr.config.set({"codec_pipeline.path": "vstore.zarr_pipeline.VstoreCodecPipeline"})` does the same.
    """
    path = f"{VstoreCodecPipeline.__module__}.{VstoreCodecPipeline.__qualname__}"
    setting: AbstractContextManager[Any] = config.set({"codec_pipeline.path": path})
    return setting


class _Work(NamedTuple):
    """What does the requests of one array: its state, and the modules, which are not imported before."""

    state: PipelineState
    reading: Any
    writing: Any


@dataclass(frozen=True)
class VstoreCodecPipeline(CodecPipeline):
    """Reads and writes the chunks of one array in batches; `stock` is the pipeline that zarr would use.

    Thread-safe. Equal, and the same after pickling, where the stock pipelines are.
    """

    stock: Any
    _work: _Work | None = field(default=None, init=False, repr=False, compare=False)

    # --- making ----------------------------------------------------------------------------------------------

    @classmethod
    def from_array_metadata_and_store(cls, array_metadata: Any, store: Store) -> VstoreCodecPipeline:
        """Return a pipeline for an array on a vstore store.

        Raises `NotImplementedError` for other stores, which makes zarr call `from_codecs`.
        """
        if not _is_vstore(store):
            raise NotImplementedError("only for vstore's stores")
        from zarr.core.array import create_codec_pipeline

        # Without a store zarr asks `from_codecs`, and fits what it gets to the array, as this version does that.
        made = create_codec_pipeline(array_metadata)
        return cls(made.stock if isinstance(made, cls) else made)

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec]) -> Any:
        """Return zarr's stock pipeline: who calls this has no store, or one that is not vstore's."""
        from zarr.core.codec_pipeline import BatchedCodecPipeline

        return BatchedCodecPipeline.from_codecs(codecs)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> VstoreCodecPipeline:
        return type(self)(self.stock.evolve_from_array_spec(array_spec))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.stock,))

    # --- requests --------------------------------------------------------------------------------------------

    async def read(
        self, batch_info: Iterable[Request], out: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> Any:
        # Zarr before 3.4 wants nothing back.
        requests = list(batch_info)
        if not requests:
            return ()
        work = self._work or self._start_work()
        results = await work.reading.read(work.state, requests, out, drop_axes)
        if results is None:
            results = await self.stock.read(requests, out, drop_axes)
        return results

    async def write(
        self, batch_info: Iterable[Request], value: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> None:
        requests = list(batch_info)
        if not requests:
            return
        work = self._work or self._start_work()
        if not await work.writing.write(work.state, requests, value, drop_axes):
            await self.stock.write(requests, value, drop_axes)

    def _start_work(self) -> _Work:
        from vstore.zarr_pipeline import reading, writing
        from vstore.zarr_pipeline.requests import PipelineState

        work = _Work(PipelineState.of(self.stock), reading, writing)
        object.__setattr__(self, "_work", work)
        return work

    # --- what the stock pipeline says ------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Codec]:
        return iter(self.stock)

    @property
    def supports_partial_decode(self) -> bool:
        return bool(self.stock.supports_partial_decode)

    @property
    def supports_partial_encode(self) -> bool:
        return bool(self.stock.supports_partial_encode)

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        self.stock.validate(shape=shape, dtype=dtype, chunk_grid=chunk_grid)

    def compute_encoded_size(self, byte_length: int, array_spec: ArraySpec) -> int:
        return int(self.stock.compute_encoded_size(byte_length, array_spec))

    async def decode(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        decoded: Iterable[NDBuffer | None] = await self.stock.decode(chunk_bytes_and_specs)
        return decoded

    async def encode(
        self, chunk_arrays_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        encoded: Iterable[Buffer | None] = await self.stock.encode(chunk_arrays_and_specs)
        return encoded


def _is_vstore(store: Store) -> bool:
    # A store of ours can't be there before its module was loaded.
    module = sys.modules.get("vstore.store")
    return module is not None and isinstance(store, module.SessionStore)


register_pipeline(VstoreCodecPipeline)
