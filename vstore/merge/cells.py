"""The cells of single chunks: decoded and encoded by zarr itself, and merged element by element.

A chunk is read through an array of one chunk in memory, with the codecs of the array it belongs to; slow, but right
for everything that zarr can read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.changes.boxes import boxes_of
from vstore.changes.documents import ArraySpec
from vstore.changes.metadata import MISSING
from vstore.errors import CorruptionError, SolverError, UnsupportedFormatError, VStoreError
from vstore.ids import BytesLike
from vstore.keys.zarr import ZARR_JSON, ZARRAY
from vstore.merge.conflicts import Conflict, ConflictType, Decision, Undecided, UseValue, VersionSelection
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree

Cells: TypeAlias = npt.NDArray[Any]
_SHOWN_CELLS = 64


class ChunkCodec:
    """Decodes and encodes chunks of one array, given its documents. Not thread-safe."""

    def __init__(self, documents: Mapping[str, bytes], spec: ArraySpec) -> None:
        self._documents = documents
        self._spec = spec
        self._arrays: dict[tuple[int, ...], tuple[_ChunkStore, Any]] = {}
        name = ZARR_JSON if ZARR_JSON in documents else ZARRAY
        self._name, self._document = name, json.loads(documents[name])

    def shape(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the chunk at an index, which edge chunks have in full."""
        return tuple(edges[i] for i, edges in zip(index, self._edges(index), strict=True))

    def origin(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """Return where in the array the chunk starts."""
        return tuple(sum(edges[:i]) for i, edges in zip(index, self._edges(index), strict=True))

    def _edges(self, index: tuple[int, ...]) -> list[list[int]]:
        """Return the edge lengths of the chunks along each dimension, up to the index."""
        if self._name == ZARRAY:
            return [[edge] * (i + 1) for i, edge in zip(index, self._document["chunks"], strict=True)]
        grid = self._document["chunk_grid"]
        if grid["name"] == "regular":
            shape = grid["configuration"]["chunk_shape"]
            return [[edge] * (i + 1) for i, edge in zip(index, shape, strict=True)]
        dimensions = grid["configuration"]["chunk_shapes"]
        return [_edge_lengths(dimension, i) for i, dimension in zip(index, dimensions, strict=True)]

    def decode(self, data: BytesLike | None, index: tuple[int, ...]) -> Cells:
        """Return the cells of the chunk at `index`; those of an absent one have the fill value."""
        store, array, key = self._open(self.shape(index))
        store.clear()
        if data is not None:
            store.put(key, bytes(data))
        try:
            return np.asarray(array[...])
        except Exception as error:
            raise CorruptionError(
                f"chunk {index} can't be decoded with its array's codecs: {error}. Its bytes are those that were "
                "written."
            ) from error

    def encode(self, cells: Any, index: tuple[int, ...]) -> bytes:
        """Return the bytes of a chunk with these cells. Raises `SolverError` if they don't fit."""
        shape = self.shape(index)
        store, array, key = self._open(shape)
        try:
            values = np.asarray(cells)
            if values.shape != shape:
                raise ValueError(f"it has shape {values.shape}, the chunk has {shape}")
            store.clear()
            array[...] = _as_dtype(values, array.dtype)
        except VStoreError:
            raise
        except Exception as error:
            raise SolverError(
                f"what the solver returned for chunk {index} can't be stored: {error}. Nothing was changed."
            ) from error
        return store.get(key)

    def _open(self, shape: tuple[int, ...]) -> tuple[_ChunkStore, Any, str]:
        """Return a store, the array of one chunk in it, and that chunk's key."""
        if shape not in self._arrays:
            self._arrays[shape] = _one_chunk_array(self._documents, self._document, self._name, shape)
        store, array = self._arrays[shape]
        assert self._spec.encoding is not None
        return store, array, self._spec.encoding.encode((0,) * len(shape))


def _one_chunk_array(
    documents: Mapping[str, bytes], document: dict[str, Any], name: str, shape: tuple[int, ...]
) -> tuple[_ChunkStore, Any]:
    import zarr

    changed = {**document, "shape": list(shape)}
    if name == ZARRAY:
        changed["chunks"] = list(shape)
    elif shape or document["chunk_grid"]["name"] != "regular":
        changed["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": list(shape)}}
    store = _ChunkStore()
    store.put(name, json.dumps(changed).encode())
    # Not by open_array's own `config`, which zarr 3.1 ignores.
    try:
        array = zarr.open_array(store.store, mode="r+").with_config({"write_empty_chunks": True})
    except Exception as error:
        raise UnsupportedFormatError(f"zarr can't open the array whose cells are wanted: {error}") from error
    return store, array


def _as_dtype(values: Cells, dtype: Any) -> Cells:
    """Return values of an array's dtype; raise `ValueError` if that would change them beyond rounding."""
    if values.dtype == dtype:
        return values
    if values.dtype.kind in "iub" and dtype.kind in "iu":
        cast = values.astype(dtype)
        if (cast == values).all():
            return cast
        raise ValueError(f"it has values that {dtype} does not have")
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise ValueError(f"it has dtype {values.dtype}, the array has {dtype}")
    return values


class _ChunkStore:
    """A zarr memory store of one array, of which only the chunk is seen from outside."""

    def __init__(self) -> None:
        from zarr.core.buffer import default_buffer_prototype
        from zarr.storage import MemoryStore

        self._buffers: dict[str, Any] = {}
        self._make = default_buffer_prototype().buffer.from_bytes
        self.store = MemoryStore(self._buffers)

    def put(self, key: str, data: bytes) -> None:
        self._buffers[key] = self._make(data)

    def get(self, key: str) -> bytes:
        return bytes(self._buffers[key].to_bytes())

    def clear(self) -> None:
        """Forget the chunk."""
        for key in [key for key in self._buffers if key not in (ZARR_JSON, ZARRAY)]:
            del self._buffers[key]


def _edge_lengths(dimension: Any, index: int) -> list[int]:
    """Return the edge lengths of a rectilinear dimension, up to the chunk at `index`."""
    if isinstance(dimension, int):
        return [dimension] * (index + 1)
    edges: list[int] = []
    for item in dimension:
        length, repeats = (item, 1) if isinstance(item, int) else item
        edges += [length] * min(repeats, index + 1 - len(edges))
        if len(edges) > index:
            break
    return edges


def read_cells(tree: Worktree, node: NodeState, codec: ChunkCodec, index: tuple[int, ...]) -> Cells:
    """Return the cells of a chunk of an array in a worktree; those of an absent one have the fill value."""
    source = None if node.array is None else node.array.find(index, tree.dictionaries)
    if source is None:
        return codec.decode(None, index)
    return codec.decode(tree.contents.read(source, None, f"chunk {index} of {node.path!r}"), index)


class CellMerge(NamedTuple):
    """Cells merged element by element, and where both sides changed one differently (bool, of the same shape)."""

    cells: Cells
    clashes: npt.NDArray[np.bool_]


def merge_cells(base: Cells, one: Cells, other: Cells) -> CellMerge:
    """Return the three-way merge of equally shaped arrays; a cell is changed if its bytes or its value differ."""
    changed_one, changed_other = differing(base, one), differing(base, other)
    clashes = changed_one & changed_other & differing(one, other)
    return CellMerge(np.where(changed_other, other, one), clashes)


def differing(one: Cells, other: Cells) -> npt.NDArray[np.bool_]:
    """Return where the values of two arrays of one shape and dtype differ; NaN equals NaN."""
    if one.dtype.names is not None:
        fields = [differing(one[name], other[name]) for name in one.dtype.names]
        # A field may itself be an array, in dimensions of its own.
        flat = [field.reshape(*one.shape, -1).any(axis=-1) for field in fields]
        return np.logical_or.reduce(flat) if flat else np.zeros(one.shape, dtype=bool)
    different = np.asarray(one != other, dtype=bool)
    if one.dtype.kind in "fcmMO":
        # Only what is not a number differs from itself.
        different &= ~(np.asarray(one != one, dtype=bool) & np.asarray(other != other, dtype=bool))
    return different


class CellSolver:
    """Merges chunks that both sides wrote, cell by cell; cells that both changed differently stay a conflict."""

    per_chunk: ClassVar[bool] = True

    def solve(self, conflict: Conflict) -> Decision:
        if conflict.conflict_type != ConflictType.ChunkDoubleUpdate:
            return VersionSelection.Fail
        base, ours, theirs = conflict.base, conflict.ours, conflict.theirs
        if base is MISSING or ours is MISSING or theirs is MISSING:
            return VersionSelection.Fail
        merged = merge_cells(base, ours, theirs)
        if not merged.clashes.any():
            return UseValue(merged.cells)
        cells = np.argwhere(merged.clashes)[:_SHOWN_CELLS]
        return Undecided(boxes_of(cells.astype(np.int64)))
