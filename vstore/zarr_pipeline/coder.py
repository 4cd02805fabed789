"""What a chain of zarr codecs does to one chunk, without zarr's machinery around it: array to bytes and back.

`coder_for` knows transpose, bytes, zstd, blosc, gzip and crc32c, and Zarr v2's compressors and filters; it returns
None for a chain that holds anything else. A `ChunkLayout` says how the chunks of one shape lie in memory and in
storage. Encoded bytes are those of zarr's codecs, bit for bit: both call numcodecs with the same settings.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numcodecs
import numpy as np
import numpy.typing as npt
from numcodecs.compat import ensure_bytes, ensure_ndarray_like
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from vstore.ids import BytesLike

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec

Array: TypeAlias = npt.NDArray[Any]

_V2_CODECS = frozenset(
    (
        "adler32",
        "astype",
        "bitround",
        "blosc",
        "bz2",
        "crc32",
        "crc32c",
        "delta",
        "fixedscaleoffset",
        "fletcher32",
    )
    + ("gzip", "lz4", "lzma", "packbits", "quantize", "shuffle", "zlib", "zstd")
)
"""Compressors and filters of numcodecs that turn numbers and bytes into bytes, the same in every process."""
_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
_NUMBERS = "biufc"


class CodingError(Exception):
    """A chunk can't be encoded or decoded here; zarr's own codecs will tell why."""


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """How the chunks of one shape lie: `dtype` in memory, `stored` (another byte order, maybe) in storage.

    `fill` is what an absent chunk reads as. A chunk whose first item is not it is not empty: `first_fill` is that item
    as Python has it, where the data type allows such a look (None elsewhere).
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    order: str
    fill: Any
    first_fill: Any
    write_empty: bool
    prototype: Any
    size_bytes: int
    casts: bool
    """Whether Python itself can see a chunk's memory as bytes, which is the quickest way to them."""

    def is_empty(self, chunk: Array) -> bool:
        """Tell whether zarr stores no chunk for this one, as it holds nothing but the fill value."""
        if self.write_empty:
            return False
        if self.first_fill is not None:
            first = chunk.item(0)
            # NaN, of whatever bits, counts as equal to NaN: only zarr's own comparison knows all such rules.
            if first != self.first_fill and first == first:
                return False
        return bool(self.prototype.nd_buffer.from_ndarray_like(chunk).all_equal(self.fill))


class ChunkCoder(ABC):
    """Encodes and decodes chunks of one array. `compresses` tells whether that is work worth a thread."""

    compresses: bool

    def layout(self, spec: ArraySpec) -> ChunkLayout | None:
        """Return how chunks of a spec lie; None for data types that are left to zarr's codecs."""
        dtype = spec.dtype.to_native_dtype()
        if dtype.hasobject or dtype.itemsize == 0 or dtype.kind in "OT" or not all(spec.shape):
            return None
        if dtype.kind in "mM" and np.datetime_data(dtype)[0] == "generic":  # type: ignore[arg-type]
            return None
        fill = spec.dtype.default_scalar() if spec.fill_value is None else spec.fill_value
        is_number = dtype.kind in _NUMBERS and isinstance(fill, np.generic) and fill.dtype.kind == dtype.kind
        return ChunkLayout(
            shape=spec.shape,
            dtype=dtype,
            stored=self.stored_dtype(dtype),
            order=spec.order,
            fill=fill,
            first_fill=np.asarray(fill).item() if is_number else None,
            write_empty=spec.config.write_empty_chunks,
            prototype=spec.prototype,
            size_bytes=math.prod(spec.shape) * dtype.itemsize,
            casts=dtype.isnative and dtype.char in "?bBhHiIlLqQfd",
        )

    @abstractmethod
    def stored_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Return the data type as it lies in storage, before compression."""

    @abstractmethod
    def encode(self, chunk: Array, layout: ChunkLayout) -> BytesLike:
        """Return a chunk's stored bytes; they may be the chunk's own memory."""

    @abstractmethod
    def decode(self, data: BytesLike, layout: ChunkLayout) -> Array:
        """Return the chunk of stored bytes, as an array of the layout's shape; it may be a view of `data`."""


BytesToBytes: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class BytesStep:
    """One bytes-to-bytes codec; both functions take bytes or a u8 array."""

    encode: BytesToBytes
    decode: BytesToBytes


class V3Coder(ChunkCoder):
    """Transpositions, then items end to end, then compressors and checksums."""

    def __init__(
        self, axes: list[tuple[int, ...]], endian: str | None, steps: list[BytesStep], compresses: bool
    ) -> None:
        self._axes = axes
        self._inverse_axes = [tuple(np.argsort(order).tolist()) for order in reversed(axes)]
        self._endian = endian
        self._steps = steps
        self._undo = [step.decode for step in reversed(steps)]
        self.compresses = compresses

    def stored_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return dtype if self._endian is None else dtype.newbyteorder(self._endian)  # type: ignore[arg-type]

    def encode(self, chunk: Array, layout: ChunkLayout) -> BytesLike:
        for order in self._axes:
            chunk = chunk.transpose(order)
        if chunk.dtype != layout.stored:
            chunk = chunk.astype(layout.stored)
        if not self._steps and layout.casts and chunk.flags.c_contiguous:
            return chunk.data.cast("B")
        # Unlike reshape, ravel never returns items that lie apart.
        data: Any = chunk.ravel().view(np.uint8)
        for step in self._steps:
            data = step.encode(data)
        return data if isinstance(data, bytes) else data.data

    def decode(self, data: BytesLike, layout: ChunkLayout) -> Array:
        for undo in self._undo:
            data = undo(data)
        chunk = np.frombuffer(data, dtype=layout.stored)
        shape = layout.shape
        for order in self._axes:
            shape = tuple(shape[axis] for axis in order)
        if chunk.shape != shape:
            chunk = chunk.reshape(shape)
        for order in self._inverse_axes:
            chunk = chunk.transpose(order)
        return chunk


class V2Coder(ChunkCoder):
    """Filters, then a compressor, over items in the array's own order."""

    def __init__(self, filters: tuple[Any, ...], compressor: Any | None) -> None:
        self._filters = filters
        self._compressor = compressor
        self.compresses = bool(filters) or compressor is not None

    def stored_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return dtype

    def encode(self, chunk: Array, layout: ChunkLayout) -> BytesLike:
        data: Any = chunk.astype(layout.dtype, order=layout.order, copy=False)  # type: ignore[call-overload]
        for step in self._filters:
            data = step.encode(data)
        if self._compressor is not None:
            data = self._compressor.encode(data)
        return bytes(ensure_bytes(data))

    def decode(self, data: BytesLike, layout: ChunkLayout) -> Array:
        chunk: Any = np.frombuffer(data, dtype=np.uint8)
        if self._compressor is not None:
            chunk = self._compressor.decode(chunk)
        for step in reversed(self._filters):
            chunk = step.decode(chunk)
        chunk = ensure_ndarray_like(chunk).view(layout.dtype).reshape(-1, order="A")
        decoded: Array = chunk.reshape(layout.shape, order=layout.order)
        return decoded


def coder_for(codecs: Iterable[Any]) -> ChunkCoder | None:
    """Return what does the same as these codecs of one array, None if some of them are not known here."""
    codecs = list(codecs)
    if len(codecs) == 1 and type(codecs[0]).__name__ == "V2Codec":
        return _v2_coder(codecs[0])
    axes: list[tuple[int, ...]] = []
    while codecs and type(codecs[0]) is TransposeCodec:
        axes.append(tuple(codecs.pop(0).order))
    if not codecs or type(codecs[0]) is not BytesCodec:
        return None
    endian = codecs.pop(0).endian
    steps = [_bytes_step(codec) for codec in codecs]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return None
    compresses = any(type(codec) is not Crc32cCodec for codec in codecs)
    # An enumeration in some versions of zarr, text in others.
    return V3Coder(axes, getattr(endian, "value", endian), known, compresses)


def _v2_coder(codec: Any) -> V2Coder | None:
    filters = tuple(codec.filters or ())
    parts = [*filters, *([] if codec.compressor is None else [codec.compressor])]
    for part in parts:
        if not isinstance(part, numcodecs.abc.Codec) or part.codec_id not in _V2_CODECS:
            return None
    return V2Coder(filters, codec.compressor)


def _bytes_step(codec: Any) -> BytesStep | None:
    kind = type(codec)
    made: Any
    if kind is ZstdCodec:
        made = numcodecs.Zstd(level=codec.level, checksum=codec.checksum)
    elif kind is GzipCodec:
        made = numcodecs.GZip(level=codec.level)
    elif kind is BloscCodec:
        made = _blosc(codec)
    elif kind is Crc32cCodec:
        return BytesStep(_add_crc32c, _take_crc32c)
    else:
        return None
    return BytesStep(made.encode, made.decode)


def _blosc(codec: BloscCodec) -> Any:
    settings = {
        "cname": getattr(codec.cname, "value", codec.cname),
        "clevel": codec.clevel,
        "shuffle": _SHUFFLES.index(getattr(codec.shuffle, "value", codec.shuffle)),
        "blocksize": codec.blocksize,
    }
    version = tuple(map(int, numcodecs.__version__.split(".")[:2]))
    # As zarr does: before 0.16 numcodecs took the size of items from the buffer it was given.
    return numcodecs.Blosc.from_config(
        settings | ({"typesize": codec.typesize} if version >= (0, 16) else {})
    )


def _add_crc32c(data: Any) -> bytes:
    from crc32c import crc32c

    # In this machine's order, as zarr's codec does it.
    return b"".join((data, crc32c(data).to_bytes(4, sys.byteorder)))


def _take_crc32c(data: Any) -> memoryview:
    from crc32c import crc32c

    view = memoryview(data).cast("B")
    if len(view) < 4 or crc32c(view[:-4]).to_bytes(4, sys.byteorder) != view[-4:]:
        raise CodingError("the checksum does not match")
    return view[:-4]
