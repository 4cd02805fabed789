"""Tiles: fixed blocks of an array's chunk grid, independent of the array's shape.

Extents are chosen once, when the array is created, and kept in its node: small dimensions whole, large ones split
alike, at most 16,384 chunks in all; what room is left goes to the first dimension, along which arrays mostly grow.
No dimension is whole for ever: an index beyond its extent is in the next tile.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vstore.errors import CorruptionError
from vstore.format.manifest import MAX_TILE_CHUNKS

_MAX_INDEX = 2**62
"""No chunk has such an index; indices of whole tiles beyond it would not fit into 64 bits."""


@lru_cache(maxsize=1024)
def choose_extents(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Return tile extents, in chunks, for a chunk grid of this shape."""
    whole = [max(size, 1) for size in grid]
    if not whole:
        return ()
    low, high = 1, MAX_TILE_CHUNKS
    while low < high:
        middle = (low + high + 1) // 2
        if math.prod(min(size, middle) for size in whole) <= MAX_TILE_CHUNKS:
            low = middle
        else:
            high = middle - 1
    extents = [min(size, low) for size in whole]
    extents[0] *= MAX_TILE_CHUNKS // math.prod(extents)
    return tuple(extents)


def split_index(index: tuple[int, ...], extents: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return (tile coordinates, position in the tile) of a chunk."""
    position = 0
    tile = []
    for coordinate, extent in zip(index, extents, strict=True):
        quotient, rest = divmod(coordinate, extent)
        tile.append(quotient)
        position = position * extent + rest
    return tuple(tile), position


def split_indices(
    indices: npt.NDArray[Any], extents: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16]]:
    """Return tile coordinates i64[n, d] and positions u16[n] of chunk indices [n, d]."""
    extent_row = np.array(extents, dtype=np.int64)
    tiles, rest = (
        np.divmod(indices.astype(np.int64), extent_row) if extents else (indices.astype(np.int64),) * 2
    )
    positions = np.zeros(len(indices), dtype=np.int64)
    for dimension, extent in enumerate(extents):
        positions = positions * extent + rest[:, dimension]
    return tiles, positions.astype(np.uint16)


def join_indices(
    tile: tuple[int, ...], positions: npt.NDArray[Any], extents: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Return the chunk indices i64[n, d] at these positions of a tile."""
    rest = positions.astype(np.int64)
    indices = np.empty((len(rest), len(extents)), dtype=np.int64)
    for dimension in reversed(range(len(extents))):
        rest, indices[:, dimension] = np.divmod(rest, extents[dimension])
    first = [t * e for t, e in zip(tile, extents, strict=True)]
    if rest.any() or max(first, default=0) >= _MAX_INDEX:
        raise CorruptionError(f"tile {tile} of an array has chunks where its extents {extents} allow none")
    return indices + np.array(first, dtype=np.int64)


def tile_reaches_into(tile: tuple[int, ...], extents: tuple[int, ...], limit: tuple[int, ...]) -> bool:
    """Tell whether any position of the tile is within a grid of `limit` chunks."""
    return all(t * e < bound for t, e, bound in zip(tile, extents, limit, strict=True))


def tile_is_inside(tile: tuple[int, ...], extents: tuple[int, ...], limit: tuple[int, ...]) -> bool:
    """Tell whether every position of the tile is within a grid of `limit` chunks."""
    return all((t + 1) * e <= bound for t, e, bound in zip(tile, extents, limit, strict=True))
