"""Setting virtual chunk refs in bulk: columns in, pending rows out, no Python object per chunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from vstore.blobs.virtual import file_path
from vstore.changes.pending import ROW_DTYPE, PendingKind
from vstore.changes.tiling import split_indices
from vstore.errors import InvalidInputError, NodeNotFoundError
from vstore.format.manifest import Checksum
from vstore.format.node import tile_key
from vstore.worktree.arrays import ArrayState
from vstore.worktree.tree import Worktree


@dataclass(frozen=True, slots=True)
class VirtualColumns:
    """Virtual refs of a box of chunks: one row for each that has a location.

    `indices` i64[n, d] relative to the array; `names` the distinct locations and `numbers` i64[n] into them;
    `checksums` is one for all, or one for each row.
    """

    indices: npt.NDArray[np.int64]
    names: list[str]
    numbers: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]
    checksums: Checksum | list[Checksum | None] | None

    @classmethod
    def build(
        cls,
        grid: tuple[int, ...],
        locations: Sequence[str] | npt.NDArray[Any],
        offsets: npt.NDArray[Any],
        lengths: npt.NDArray[Any],
        start: tuple[int, ...] | None,
        checksum: Checksum | Sequence[Checksum | None] | None,
    ) -> VirtualColumns:
        """Check and number what the user gave; raise `InvalidInputError` for anything that does not fit."""
        count = math.prod(grid)
        names, numbers = _number_locations(locations)
        sizes = (_column(offsets, "offsets"), _column(lengths, "lengths"))
        if not len(numbers) == len(sizes[0]) == len(sizes[1]) == count:
            raise InvalidInputError(
                f"a box of {grid} chunks has {count} references; got {len(numbers)} locations, {len(sizes[0])} "
                f"offsets and {len(sizes[1])} lengths"
            )
        first = _offset(start, len(grid))
        present = np.flatnonzero(numbers >= 0)
        if (sizes[1][present] == 0).any():
            raise InvalidInputError("a virtual chunk has length 0; leave its location empty instead")
        indices = (
            np.stack(np.unravel_index(present, grid), axis=-1)
            if grid
            else np.zeros((len(present), 0), np.int64)
        )
        indices = indices.astype(np.int64) + np.array(first, dtype=np.int64)
        checks: Checksum | list[Checksum | None] | None
        if isinstance(checksum, Sequence | np.ndarray) and not isinstance(checksum, str):
            if len(checksum) != count:
                raise InvalidInputError(f"got {len(checksum)} checksums for {count} references")
            checks = [_checksum(checksum[row]) for row in present.tolist()]
        else:
            checks = _checksum(checksum)
        return cls(indices, names, numbers[present], sizes[0][present], sizes[1][present], checks)


def _offset(start: tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    if start is None:
        return (0,) * ndim
    try:
        first = tuple(map(index, start))
    except TypeError:
        raise InvalidInputError(f"arr_offset {start!r} is not a tuple of integers") from None
    if len(first) != ndim or min(first, default=0) < 0 or max(first, default=0) >= 2**61:
        raise InvalidInputError(f"arr_offset {start} does not fit a box of {ndim} dimensions")
    return first


def _checksum(checksum: Any) -> Checksum | None:
    """Return a checksum as it is stored, or raise `InvalidInputError`."""
    if checksum is None:
        return None
    if isinstance(checksum, int | np.integer) and not isinstance(checksum, bool) and 0 <= checksum < 2**62:
        return int(checksum)
    if isinstance(checksum, str) and checksum.isprintable():
        return checksum
    raise InvalidInputError(
        f"{checksum!r} is no checksum: give an etag, or a modification time in whole microseconds since 1970"
    )


def _column(values: npt.NDArray[Any], what: str) -> npt.NDArray[np.uint64]:
    column = np.asarray(values).ravel()
    if column.dtype.kind not in "iu" or (len(column) and int(np.min(column)) < 0):
        raise InvalidInputError(f"{what} must be integers of 0 and more")
    if len(column) and int(np.max(column)) >= 2**61:
        raise InvalidInputError(f"{what} must be less than 2**61")
    return column.astype(np.uint64)


def _number_locations(locations: Sequence[str] | npt.NDArray[Any]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the distinct locations, each checked once, and each row's number among them (-1: empty)."""
    numbers: dict[str, int] = {"": -1}
    runs: list[int] = []
    lengths: list[int] = []
    items = locations.ravel().tolist() if isinstance(locations, np.ndarray) else locations
    # Neighbouring chunks mostly lie in one file: a dictionary look-up for each run, not for each chunk.
    for name, run in groupby(items):
        number = numbers.get(name)
        if number is None:
            file_path(name)
            number = numbers[name] = len(numbers) - 1
        runs.append(number)
        lengths.append(sum(1 for _ in run))
    del numbers[""]
    return list(numbers), np.repeat(np.array(runs, dtype=np.int64), lengths)


def set_virtual_refs(tree: Worktree, path: str, columns: VirtualColumns) -> None:
    """Point the chunks of `columns` at their sources."""
    with tree.lock:
        node = tree.nodes.node(path)
        if node is None or node.array is None:
            raise NodeNotFoundError(f"there is no array at {path!r}; create it first")
        array = node.array
        _check_indices(path, array, columns.indices)
        tree.begin_edit()
        tree.nodes.drafts[path] = node
        rows = _rows(tree, columns)
        for key, positions, selected in _by_tile(array, columns.indices):
            tile = array.tile_for_edit(key)
            for position in positions.tolist() if len(tile) else ():
                old = tile.get(position)
                if old is not None:
                    tree.release(old)
            tile.set_many(positions, rows[selected])


def _check_indices(path: str, array: ArrayState, indices: npt.NDArray[np.int64]) -> None:
    spec = array.spec
    if indices.shape[1] != spec.ndim:
        raise InvalidInputError(
            f"array {path!r} has {spec.ndim} dimensions; the references have {indices.shape[1]}"
        )
    if (
        spec.grid is not None
        and len(indices)
        and (indices.max(axis=0) >= np.array(spec.grid, np.int64)).any()
    ):
        raise InvalidInputError(f"some references lie outside the chunk grid {spec.grid} of array {path!r}")


def _rows(tree: Worktree, columns: VirtualColumns) -> npt.NDArray[Any]:
    rows = np.zeros(len(columns.indices), dtype=ROW_DTYPE)
    names = np.array(
        [tree.dictionaries.locations.number(name) for name in columns.names] or [0], dtype=np.uint32
    )
    rows["source"] = names[columns.numbers]
    rows["at"], rows["length"] = columns.offsets, columns.lengths
    rows["kind"] = PendingKind.VIRTUAL
    if isinstance(columns.checksums, list):
        numbers = [tree.dictionaries.checksum_number(checksum) for checksum in columns.checksums]
        rows["check"] = np.array(numbers, dtype=np.uint32)
    else:
        rows["check"] = tree.dictionaries.checksum_number(columns.checksums)
    return rows


def _by_tile(
    array: ArrayState, indices: npt.NDArray[np.int64]
) -> list[tuple[bytes, npt.NDArray[np.uint16], npt.NDArray[np.int64]]]:
    """Return, for each tile, its key, the positions in it, and the rows that go there."""
    if len(indices) == 0:
        return []
    tiles, positions = split_indices(indices, array.extents)
    if tiles.shape[1] == 0:
        return [(tile_key(()), positions, np.arange(len(indices)))]
    order = np.lexsort(tiles.T[::-1])
    changes = np.flatnonzero((tiles[order][1:] != tiles[order][:-1]).any(axis=1)) + 1
    return [
        (tile_key(tuple(tiles[rows[0]].tolist())), positions[rows], rows) for rows in np.split(order, changes)
    ]
