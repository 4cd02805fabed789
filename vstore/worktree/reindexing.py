"""Giving chunks other indices: whole chunks change places, none is read or written.

The refs of many tiles are renumbered at once, as columns. Only where every chunk has the same shape does a chunk fit
any place, so other grids are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from operator import index as to_int
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.changes.pending import PendingKind, PendingTile
from vstore.changes.rows import ChunkRows, iter_tiles, pack_inline, select
from vstore.changes.tiling import join_indices
from vstore.errors import InvalidInputError, NodeNotFoundError
from vstore.format.node import tile_of
from vstore.worktree import spilling
from vstore.worktree.arrays import ArrayState
from vstore.worktree.compare import iter_changed_tiles
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree

_TILES_AT_ONCE = 32
"""Half a million refs: about 100 MiB while they are being sorted."""

Indices: TypeAlias = npt.NDArray[np.int64]
"""Chunk indices i64[n, d]."""
Renumber: TypeAlias = Callable[[Indices], tuple[Indices, npt.NDArray[np.bool_]]]
"""Returns the new indices i64[n, d] of chunks, and which of them (bool[n]) are kept."""


def reindex(tree: Worktree, path: str, renumber: Renumber) -> None:
    """Give every chunk of the array at `path` the index that `renumber` says; where no chunk ends up, there is none.

    Raises `InvalidInputError`, before anything is changed, if a kept index is outside the grid or given twice.
    """
    with tree.lock:
        node, array = require_array(tree, path)
        moved = _Moved(tree, array, path)
        dropped = [np.zeros(0, np.uint64)]
        keys = iter_changed_tiles(None, array)
        while some := list(islice(keys, _TILES_AT_ONCE)):
            indices, content = _chunks_of(tree, array, some)
            targets, keep = renumber(indices)
            moved.put(targets[keep], select(content, keep))
            gone = content.rows[~keep]
            dropped.append(gone["at"][gone["kind"] == PendingKind.OWN])
        tree.begin_edit()
        tree.writer.release_many(np.concatenate(dropped))
        array.pending = moved.tiles
        array.cleared = array.base is not None
        tree.nodes.drafts[path] = node


class _Moved:
    """The chunks of an array at their new places; refs that take too much memory are spilled as they come."""

    def __init__(self, tree: Worktree, array: ArrayState, path: str) -> None:
        self._tree = tree
        self._path = path
        self._array = ArrayState(array.reader, array.node_id, array.spec, array.extents, None, tree.lock)
        self._taken: dict[bytes, bytes] = {}
        self._held_bytes = 0

    @property
    def tiles(self) -> dict[bytes, PendingTile]:
        return self._array.pending

    def put(self, targets: Indices, content: ChunkRows) -> None:
        """Put chunks at indices i64[n, d]; raise if those lie outside the grid or are taken."""
        _check_targets(self._array, self._path, targets)
        for key, positions, chosen in iter_tiles(targets, self._array.extents):
            self._take(key, positions)
            part = pack_inline(ChunkRows(positions, content.rows[chosen], content.inline))
            tile = self._array.tile_for_edit(key)
            rows = part.rows.copy()
            rows["at"][rows["kind"] == PendingKind.INLINE] += np.uint64(len(tile.inline))
            tile.inline += part.inline
            tile.set_many(part.positions, rows)
            self._held_bytes += rows.nbytes + len(part.inline)
        if self._held_bytes > spilling.MAX_PENDING_BYTES // 2:
            spilling.spill_array(self._tree, self._array)
            self._held_bytes = 0

    def _take(self, key: bytes, positions: npt.NDArray[np.uint16]) -> None:
        bits = spilling.to_bits(self._taken.get(key, b""))
        if bits[positions].any():
            raise _given_twice(self._path)
        bits[positions] = True
        self._taken[key] = np.packbits(bits).tobytes()


def require_array(tree: Worktree, path: str) -> tuple[NodeState, ArrayState]:
    """Return the array at `path`, if its chunks can change places; else raise what is wrong."""
    node = tree.nodes.node(path)
    if node is None:
        raise NodeNotFoundError(f"there is no array at {f'/{path}'!r}.")
    if node.array is None:
        raise InvalidInputError(f"{f'/{path}'!r} is a group and has no chunks. Name an array.")
    spec = node.array.spec
    if not spec.is_regular or spec.grid is None or spec.encoding is None:
        raise InvalidInputError(
            f"the chunks of {f'/{path}'!r} can't change places: its chunk grid is not regular, so that a chunk fits "
            "only where it is."
        )
    return node, node.array


def _chunks_of(tree: Worktree, array: ArrayState, keys: list[bytes]) -> tuple[Indices, ChunkRows]:
    """Return the chunks of some tiles: their indices, and their rows (with positions that mean nothing)."""
    indices, rows, inline = [], [], bytearray()
    for key in keys:
        content = array.rows(key, tree.dictionaries, tree.dictionaries)
        part = content.rows.copy()
        part["at"][part["kind"] == PendingKind.INLINE] += np.uint64(len(inline))
        inline += content.inline
        rows.append(part)
        indices.append(join_indices(tile_of(key), content.positions, array.extents))
    every = np.concatenate(rows)
    return np.concatenate(indices), ChunkRows(np.zeros(len(every), np.uint16), every, bytes(inline))


def _check_targets(array: ArrayState, path: str, targets: Indices) -> None:
    assert array.spec.grid is not None
    outside = ((targets < 0) | (targets >= np.array(array.spec.grid, dtype=np.int64))).any(axis=1)
    if outside.any():
        raise InvalidInputError(
            f"chunk {tuple(targets[outside][0].tolist())} is outside the chunk grid {array.spec.grid} of "
            f"{f'/{path}'!r}. Nothing was changed."
        )
    if len(np.unique(targets, axis=0)) != len(targets):
        raise _given_twice(path)


def _given_twice(path: str) -> InvalidInputError:
    return InvalidInputError(f"two chunks of {f'/{path}'!r} would get the same index. Nothing was changed.")


def shift_by(offset: tuple[int, ...], grid: tuple[int, ...]) -> Renumber:
    """Return what moves every chunk by `offset`, in chunks; those that leave the grid are dropped."""
    # Further than the whole grid is as far as that, and fits 64 bits.
    offset = tuple(max(-bound, min(step, bound)) for step, bound in zip(offset, grid, strict=True))

    def renumber(indices: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
        targets = indices + np.array(offset, dtype=np.int64)
        inside = (targets >= 0) & (targets < np.array(grid, dtype=np.int64))
        return targets, np.asarray(inside.all(axis=1), dtype=bool)

    return renumber


_OUTSIDE = 2**62
"""No grid reaches so far, and it fits 64 bits."""

Move: TypeAlias = Callable[[tuple[int, ...]], Sequence[int] | None]
"""Returns a chunk's new index, or None for none."""


def map_each(forward: Move, backward: Move | None, path: str) -> Renumber:
    """Return what asks `forward` for each chunk's new index; None drops the chunk. `backward` must undo it."""

    def renumber(indices: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
        targets, keep = indices.copy(), np.ones(len(indices), dtype=bool)
        for row, index in enumerate(map(tuple, indices.tolist())):
            target = forward(index)
            if target is None:
                keep[row] = False
                continue
            checked = check_index(target, indices.shape[1], path)
            targets[row] = [max(-_OUTSIDE, min(i, _OUTSIDE)) for i in checked]
            if backward is not None:
                origin = backward(checked)
                if origin is None or check_index(origin, indices.shape[1], path) != index:
                    raise InvalidInputError(
                        f"backward({checked}) is {origin!r}, but forward({index}) is {checked}: one does not undo the "
                        "other. Nothing was changed."
                    )
        return targets, keep

    return renumber


def check_index(index: object, ndim: int, path: str) -> tuple[int, ...]:
    """Return a chunk index or offset that a user gave, as a tuple of `ndim` ints; raise `InvalidInputError`."""
    try:
        found = tuple(map(to_int, index))  # type: ignore[call-overload]
    except TypeError:
        found = None
    if found is not None and len(found) == ndim:
        return found
    raise InvalidInputError(f"{index!r} is no chunk index of {f'/{path}'!r}: give {ndim} ints.")
