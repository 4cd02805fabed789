"""Which chunks the keys of a batch name, as columns, by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.changes.documents import ArraySpec
from vstore.changes.tiling import split_indices
from vstore.format.node import tile_key
from vstore.keys.zarr import ChunkKeyEncoding
from vstore.worktree.routes import Chunk
from vstore.worktree.tree import Worktree

FEW = 4
"""So many chunks are handled one by one: setting columns up costs as much as ten look-ups."""


class TilePart(NamedTuple):
    """The keys of a batch that lie in one tile: their rows (indices into the batch) and positions u16."""

    key: bytes
    rows: npt.NDArray[np.intp]
    positions: npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Located:
    """The chunks that a batch of keys names: `indices` i64[n, d] of one array, by tile, inside the grid of `spec`."""

    chunk: Chunk
    spec: ArraySpec
    indices: npt.NDArray[np.int64]
    parts: list[TilePart]


def locate(tree: Worktree, keys: Sequence[str]) -> Located | None:
    """Return what `keys` name if they are distinct chunks of one array inside its grid, else None."""
    first = tree.route(keys[0])
    if not isinstance(first, Chunk) or first.array.spec.encoding is None:
        return None
    spec = first.array.spec
    indices = decode_indices(first.array.spec.encoding, f"{first.path}/" if first.path else "", keys)
    if indices is None or _has_nodes_below(tree, first.path):
        return None
    if spec.grid is not None and (indices >= np.array(spec.grid, dtype=np.int64)).any():
        return None
    tiles, positions = split_indices(indices, first.array.extents)
    parts = _by_tile(tiles, positions)
    if any(len(np.unique(part.positions)) < len(part.positions) for part in parts):
        return None
    return Located(first, spec, indices, parts)


def decode_indices(
    encoding: ChunkKeyEncoding, prefix: str, keys: Sequence[str]
) -> npt.NDArray[np.int64] | None:
    """Return the chunk indices i64[n, d] that `keys` spell behind `prefix`, None if any of them spells none."""
    if encoding.ndim == 0:
        return None
    if encoding.leading:
        prefix += encoding.leading + encoding.separator
    start = len(prefix)
    separators = encoding.ndim - 1
    texts = [key[start:] for key in keys if key.startswith(prefix)]
    if len(texts) < len(keys):
        return None
    parts = texts
    if separators:
        if any(text.count(encoding.separator) != separators for text in texts):
            return None
        parts = encoding.separator.join(texts).split(encoding.separator)
    try:
        numbers = list(map(int, parts))
        # Only the canonical spelling names a chunk: int() takes others too.
        if list(map(str, numbers)) != parts or min(numbers) < 0:
            return None
        return np.array(numbers, dtype=np.int64).reshape(-1, encoding.ndim)
    except (ValueError, OverflowError):
        return None


def _has_nodes_below(tree: Worktree, path: str) -> bool:
    """Tell whether nodes lie below an array's path: the nearer one may own some of the keys."""
    prefix = f"{path}/" if path else ""
    return any(below != path for below in tree.nodes.iter_nodes(prefix))


def _by_tile(tiles: npt.NDArray[np.int64], positions: npt.NDArray[np.uint16]) -> list[TilePart]:
    if (tiles == tiles[0]).all():
        return [TilePart(tile_key(tuple(tiles[0].tolist())), np.arange(len(tiles)), positions)]
    order = np.lexsort(tiles.T[::-1])
    ordered = tiles[order]
    firsts = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1)))
    return [
        TilePart(tile_key(tuple(ordered[first].tolist())), rows, positions[rows])
        for first, rows in zip(firsts.tolist(), np.split(order, firsts[1:]), strict=True)
    ]
