"""What a node's metadata documents say: is it a group or an array, what is its chunk grid, how are its keys spelt.

Documents are kept verbatim; this only looks at them. A document that does not parse as what its name says is not a
node's: it is a plain value. v3 (`zarr.json`) goes before v2 (`.zarray`, `.zgroup`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from vstore.format.node import MAX_DIMENSIONS
from vstore.keys.zarr import ZARR_JSON, ZARRAY, ZATTRS, ZGROUP, ChunkKeyEncoding

_MAX_EXTENT = 2**62


class ArraySpec(msgspec.Struct, frozen=True):
    """What vstore needs to know of an array.

    `grid` is the number of chunks (shards, where sharded) along each dimension, None for an unknown kind of grid,
    which then has no bounds. `encoding` is None for an unknown chunk key encoding: its chunks are plain values.
    `identity` is equal for two arrays whose chunks mean the same bytes: dtype, codecs and chunk grid. `is_regular`
    tells whether all chunks have one shape, so that any may take the place of any other.
    """

    ndim: int
    grid: tuple[int, ...] | None
    encoding: ChunkKeyEncoding | None
    identity: str
    is_regular: bool

    def contains(self, index: tuple[int, ...]) -> bool:
        """Tell whether `index` is within the grid."""
        return self.grid is None or all(i < bound for i, bound in zip(index, self.grid, strict=True))


class NodeSpec(msgspec.Struct, frozen=True):
    """A node's kind (`array` is None for a group) and the names of the documents that belong to it."""

    array: ArraySpec | None
    documents: frozenset[str]


def parse_documents(documents: Mapping[str, bytes]) -> NodeSpec | None:
    """Return what these documents, by name, make of their path; None if they make no node."""
    try:
        return _parse_documents(documents)
    except RecursionError:
        # Nested as deeply as can just be read.
        return None


def _parse_documents(documents: Mapping[str, bytes]) -> NodeSpec | None:
    parsed = {name: _parse_object(data) for name, data in documents.items()}
    found: dict[str, ArraySpec | None] = {}
    v3 = _parse_v3(parsed.get(ZARR_JSON))
    if v3 is not None:
        found[ZARR_JSON] = v3[0]
    v2 = _parse_v2_array(parsed.get(ZARRAY))
    if v2 is not None:
        found[ZARRAY] = v2
    group = parsed.get(ZGROUP)
    if group is not None and group.get("zarr_format") == 2:
        found[ZGROUP] = None
    if not found:
        return None
    names = frozenset(found) | ({ZATTRS} if parsed.get(ZATTRS) is not None else frozenset())
    first = next(name for name in (ZARR_JSON, ZARRAY, ZGROUP) if name in found)
    return NodeSpec(found[first], names)


def _parse_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parse_v3(document: dict[str, Any] | None) -> tuple[ArraySpec | None] | None:
    if document is None or document.get("zarr_format") != 3:
        return None
    if document.get("node_type") == "group":
        return (None,)
    if document.get("node_type") != "array":
        return None
    shape = _sizes(document.get("shape"))
    if shape is None or "data_type" not in document:
        return None
    grid = _parse_grid(document.get("chunk_grid"), shape)
    if grid is _INVALID:
        return None
    identity = {
        name: document.get(name) for name in ("data_type", "codecs", "chunk_grid", "storage_transformers")
    }
    identity["chunk_grid"] = _grid_identity(document["chunk_grid"])
    encoding = _parse_encoding(document.get("chunk_key_encoding"), len(shape))
    is_regular = document["chunk_grid"].get("name") == "regular"
    return (ArraySpec(len(shape), grid, encoding, _canonical(("v3", identity)), is_regular),)


_INVALID: Any = object()


def _parse_grid(chunk_grid: Any, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the grid's shape, None if its kind is unknown, _INVALID if it is malformed."""
    if not isinstance(chunk_grid, dict):
        return _INVALID  # type: ignore[no-any-return]
    configuration = chunk_grid.get("configuration")
    name = chunk_grid.get("name")
    if name == "regular":
        chunks = _sizes(configuration.get("chunk_shape")) if isinstance(configuration, dict) else None
        return _regular_grid(shape, chunks)
    if name == "rectilinear":
        dimensions = configuration.get("chunk_shapes") if isinstance(configuration, dict) else None
        if not isinstance(dimensions, list) or len(dimensions) != len(shape):
            return _INVALID  # type: ignore[no-any-return]
        counts = [_count_chunks(dimension, size) for dimension, size in zip(dimensions, shape, strict=True)]
        return _INVALID if None in counts else tuple(counts)  # type: ignore[arg-type]
    return None


def _regular_grid(shape: tuple[int, ...], chunks: tuple[int, ...] | None) -> tuple[int, ...]:
    if (
        chunks is None
        or len(chunks) != len(shape)
        or any(c == 0 and s for c, s in zip(chunks, shape, strict=True))
    ):
        return _INVALID  # type: ignore[no-any-return]
    return tuple(-(-size // max(chunk, 1)) for size, chunk in zip(shape, chunks, strict=True))


def _count_chunks(dimension: Any, size: int) -> int | None:
    """Return how many chunks of a rectilinear dimension start before `size`; None if it is malformed.

    A dimension is an edge length that repeats, or a list of edge lengths and [length, count] runs.
    """
    if type(dimension) is int:
        return -(-size // dimension) if dimension > 0 else None
    if not isinstance(dimension, list):
        return None
    count = position = 0
    for item in dimension:
        run = (item, 1) if type(item) is int else tuple(item) if isinstance(item, list) else ()
        if len(run) != 2 or not all(type(number) is int and number > 0 for number in run):
            return None
        length, repeats = run
        if position >= size:
            continue
        used = min(repeats, -(-(size - position) // length))
        count += used
        position += used * length
    return count


def _grid_identity(chunk_grid: dict[str, Any]) -> Any:
    # A rectilinear grid grows by listing more edges; that does not change what the chunks so far mean.
    return {"name": "rectilinear"} if chunk_grid.get("name") == "rectilinear" else chunk_grid


def _parse_encoding(encoding: Any, ndim: int) -> ChunkKeyEncoding | None:
    if not isinstance(encoding, dict):
        return None
    configuration = encoding.get("configuration")
    settings = configuration if isinstance(configuration, dict) else encoding
    name = encoding.get("name")
    separator = settings.get("separator", "." if name == "v2" else "/")
    if name not in ("default", "v2") or separator not in (".", "/"):
        return None
    return ChunkKeyEncoding("c" if name == "default" else "", separator, ndim)


def _parse_v2_array(document: dict[str, Any] | None) -> ArraySpec | None:
    if document is None or document.get("zarr_format") != 2 or "dtype" not in document:
        return None
    shape = _sizes(document.get("shape"))
    if shape is None:
        return None
    grid = _regular_grid(shape, _sizes(document.get("chunks")))
    if grid is _INVALID:
        return None
    separator = document.get("dimension_separator", ".")
    encoding = ChunkKeyEncoding("", separator, len(shape)) if separator in (".", "/") else None
    identity = {name: document.get(name) for name in ("dtype", "compressor", "filters", "chunks", "order")}
    return ArraySpec(len(shape), grid, encoding, _canonical(("v2", identity)), True)


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return None
    if not all(type(size) is int and 0 <= size < _MAX_EXTENT for size in value):
        return None
    return tuple(value)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
