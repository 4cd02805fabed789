"""Chunk keys to places, quickly: what `Worktree.route` finds out once for an array serves all of its chunk keys.

An array is remembered by its path while no node lies below it: then it is the nearest array above every key there, and
whatever its encoding makes a chunk of is one. Neighbours: `nodes` forgets what was remembered when any node changes,
`tree` asks here first and routes what is not found.
"""

from __future__ import annotations

from typing import TypeAlias

from vstore.format.node import tile_key
from vstore.worktree.arrays import ArrayState
from vstore.worktree.nodes import NodeState

Place: TypeAlias = tuple[NodeState, ArrayState, bytes, int]
"""A chunk: its node, the array in it, the key of its tile, and its position in the tile."""

_NO_BOUND = 10**18
"""No index with more digits is a chunk's (`vstore.keys.zarr`)."""
_MAX_TILE_KEYS = 1024
_MAX_DEPTH = 6
"""How many folders above a key are tried; deeper chunk keys are still found by routing."""


class ChunkKeys:
    """How the chunk keys of one array, without its path, name places. Thread-safe; stays as the array was when made."""

    __slots__ = ("_dimensions", "_head", "_separator", "_tile_keys", "array", "node")

    def __init__(self, node: NodeState, array: ArrayState) -> None:
        encoding = array.spec.encoding
        assert encoding is not None
        self.node = node
        self.array = array
        self._head = encoding.leading + encoding.separator if encoding.leading else ""
        self._separator = encoding.separator
        grid = (_NO_BOUND,) * array.spec.ndim if array.spec.grid is None else array.spec.grid
        bounds = [min(bound, _NO_BOUND) for bound in grid]
        self._dimensions = tuple(zip(bounds, array.extents, strict=True))
        self._tile_keys: dict[tuple[int, ...], bytes] = {}

    def place(self, text: str) -> Place | None:
        """Return the place that a key below the array names, or None if it is no chunk's or may not be."""
        head = self._head
        if head:
            if not text.startswith(head):
                return None
            text = text[len(head) :]
        parts = text.split(self._separator)
        if len(parts) != len(self._dimensions):
            return None
        position = 0
        tile: tuple[int, ...] = ()
        for part, (bound, extent) in zip(parts, self._dimensions, strict=True):
            try:
                index = int(part)
            except ValueError:
                return None
            # Only as Zarr writes it: int() also takes "01", "+1", "1_0", " 1" and digits of other scripts.
            if not 0 <= index < bound or str(index) != part:
                return None
            tile += (index // extent,)
            position = position * extent + index % extent
        key = self._tile_keys.get(tile)
        if key is None:
            if len(self._tile_keys) >= _MAX_TILE_KEYS:
                self._tile_keys.clear()
            key = self._tile_keys[tile] = tile_key(tile)
        return self.node, self.array, key, position


def find_place(known: dict[str, ChunkKeys], key: str) -> Place | None:
    """Return the place of a chunk of a remembered array; None says nothing about `key`."""
    if not known:
        return None
    # Most keys are in the default encoding: "a/b/c/0/1", and "c/0/1" of an array at the root.
    at = key.rfind("/c/")
    if at > 0:
        keys = known.get(key[:at])
        if keys is not None:
            return keys.place(key[at + 1 :])
    at = len(key)
    for _ in range(_MAX_DEPTH):
        at = key.rfind("/", 0, at)
        if at <= 0:
            keys = known.get("")
            return None if keys is None else keys.place(key)
        keys = known.get(key[:at])
        if keys is not None:
            return keys.place(key[at + 1 :])
    return None
