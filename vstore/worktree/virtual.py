"""Setting virtual chunk refs in bulk: columns in, one manifest or block of rows for each tile, no object per chunk.

Many refs go to manifests of the session at once (`spilling`) and never lie in memory as pending rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import index
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.virtual import file_path
from vstore.changes.dictionaries import Dictionaries
from vstore.changes.pending import ROW_DTYPE, PendingKind
from vstore.errors import InvalidInputError, NodeNotFoundError
from vstore.format.manifest import Checksum, ChunkKind, Manifest
from vstore.format.node import tile_key
from vstore.ids import DIGEST_SIZE
from vstore.worktree.arrays import ArrayState
from vstore.worktree.spilling import count_refs, make_room, spill_manifest
from vstore.worktree.tree import Worktree

_MANY = 65_536
"""A call with fewer refs leaves them in memory: their manifests then lie with the commit's other metadata."""
_FEWEST_IN_MANIFEST = 64


class TilePart(NamedTuple):
    """The refs that fall into one tile: increasing `positions`, u16[n], and columns as those of `VirtualColumns`."""

    key: bytes
    positions: npt.NDArray[np.uint16]
    numbers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]
    checks: npt.NDArray[np.int32]

    def present(self) -> TilePart:
        """Return only the refs that have a location."""
        keep = self.numbers >= 0
        if keep.all():
            return self
        columns = (self.numbers[keep], self.offsets[keep], self.lengths[keep], self.checks[keep])
        return TilePart(self.key, self.positions[keep], *columns)


@dataclass(frozen=True, slots=True)
class VirtualColumns:
    """Virtual refs of a box of chunks of shape `grid` from index `start`; columns have that shape.

    `names` are the distinct locations and `numbers` (i32) say which, -1 for none; `checksums` and `checks` likewise,
    but `checks` may be one for all.
    """

    grid: tuple[int, ...]
    start: tuple[int, ...]
    names: list[str]
    numbers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.uint64]
    lengths: npt.NDArray[np.uint64]
    checksums: list[Checksum]
    checks: npt.NDArray[np.int32]

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
        if ((sizes[1] == 0) & (numbers >= 0)).any():
            raise InvalidInputError("a virtual chunk has length 0; leave its location empty instead")
        checksums, checks = _number_checksums(checksum, count, numbers)
        checks = checks.reshape(grid) if len(checks) == count else checks
        boxes = numbers.reshape(grid), sizes[0].reshape(grid), sizes[1].reshape(grid)
        return cls(grid, first, names, *boxes, checksums, checks)

    def is_inside(self, grid: tuple[int, ...]) -> bool:
        """Tell whether all refs lie in an array's chunk grid; empty locations may lie outside."""
        for dimension, (first, bound) in enumerate(zip(self.start, grid, strict=True)):
            beyond = (slice(None),) * dimension + (slice(max(bound - first, 0), None),)
            if (self.numbers[beyond] >= 0).any():
                return False
        return True

    def iter_parts(self, extents: tuple[int, ...]) -> Iterator[TilePart]:
        """Yield what falls into each tile; tiles without any ref are left out."""
        if not self.numbers.size:
            return
        spans = [
            [
                _Span.build(tile, extent, first, size)
                for tile in range(first // extent, -(-(first + size) // extent))
            ]
            for first, size, extent in zip(self.start, self.grid, extents, strict=True)
        ]
        for tile in itertools.product(*spans):
            box = tuple(span.chunks for span in tile)
            positions = np.zeros(1, dtype=np.int64)
            for span, extent in zip(tile, extents, strict=True):
                positions = (positions[:, None] * extent + span.inside).ravel()
            checks = self.checks[box] if self.checks.shape == self.grid else self.checks
            part = TilePart(
                tile_key(tuple(span.tile for span in tile)),
                positions.astype(np.uint16),
                self.numbers[box].ravel(),
                self.offsets[box].ravel(),
                self.lengths[box].ravel(),
                np.broadcast_to(checks.ravel(), len(positions)),
            )
            if (part.numbers >= 0).any():
                yield part.present()


class _Span(NamedTuple):
    """Where a box and a tile meet along one dimension: the box's chunks, and their coordinates in the tile."""

    tile: int
    chunks: slice
    inside: npt.NDArray[np.int64]

    @classmethod
    def build(cls, tile: int, extent: int, first: int, size: int) -> _Span:
        low, high = max(tile * extent, first), min((tile + 1) * extent, first + size)
        return cls(tile, slice(low - first, high - first), np.arange(low, high) - tile * extent)


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
    return column.astype(np.uint64, copy=False)


def _number_locations(locations: Sequence[str] | npt.NDArray[Any]) -> tuple[list[str], npt.NDArray[np.int32]]:
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
    return list(numbers), np.repeat(np.array(runs, dtype=np.int32), lengths)


def _number_checksums(
    checksum: Any, count: int, numbers: npt.NDArray[np.int32]
) -> tuple[list[Checksum], npt.NDArray[np.int32]]:
    """Return the distinct checksums, and each row's number among them or the one of all rows (0: none, else from 1)."""
    if not isinstance(checksum, Sequence | np.ndarray) or isinstance(checksum, str):
        one = _checksum(checksum)
        return ([], np.zeros(1, np.int32)) if one is None else ([one], np.ones(1, np.int32))
    if len(checksum) != count:
        raise InvalidInputError(f"got {len(checksum)} checksums for {count} references")
    found: dict[Checksum | None, int] = {None: 0}
    checks = np.zeros(count, dtype=np.int32)
    for row in np.flatnonzero(numbers >= 0).tolist():
        checks[row] = found.setdefault(_checksum(checksum[row]), len(found))
    del found[None]
    return [one for one in found if one is not None], checks


def set_virtual_refs(tree: Worktree, path: str, columns: VirtualColumns) -> None:
    """Point the chunks of `columns` at their sources.

    Raises before anything is changed, unless the array is deleted or the session committed by another thread meanwhile.
    """
    with tree.lock:
        array = _require_array(tree, path)
        _check_box(path, array, columns)
        tree.begin_edit()
    is_many = columns.numbers.size >= _MANY
    for part in columns.iter_parts(array.extents):
        if is_many and len(part.positions) >= _FEWEST_IN_MANIFEST:
            spill_manifest(tree, path, array, part.key, _manifest(columns, part))
        else:
            _set_rows(tree, path, array, columns, part)
    if tree.mutations >= tree.room_until:
        make_room(tree)


def _require_array(tree: Worktree, path: str) -> ArrayState:
    node = tree.nodes.node(path)
    if node is None or node.array is None:
        raise NodeNotFoundError(f"there is no array at {path!r}; create it first")
    return node.array


def _check_box(path: str, array: ArrayState, columns: VirtualColumns) -> None:
    spec = array.spec
    if len(columns.grid) != spec.ndim:
        raise InvalidInputError(
            f"array {path!r} has {spec.ndim} dimensions; the references have {len(columns.grid)}"
        )
    if spec.grid is not None and not columns.is_inside(spec.grid):
        raise InvalidInputError(f"some references lie outside the chunk grid {spec.grid} of array {path!r}")


def _manifest(columns: VirtualColumns, part: TilePart) -> Manifest:
    count = len(part.positions)
    used, sources = _used(part.numbers)
    checks_used, checks = _used(part.checks)
    has_none = int(len(checks_used) > 0 and checks_used[0] == 0)
    return Manifest(
        part.positions,
        np.full(count, ChunkKind.VIRTUAL, np.uint8),
        sources,
        part.offsets,
        part.lengths,
        # 0 stands for none, whether any ref has none or not.
        checks + np.uint32(1 - has_none),
        np.zeros((count, DIGEST_SIZE), np.uint8),
        b"",
        (),
        tuple(columns.names[number] for number in used.tolist()),
        tuple(columns.checksums[number - 1] for number in checks_used[has_none:].tolist()),
    )


def _used(numbers: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32]]:
    """Return the distinct numbers, increasing, and the place of each row's number among them."""
    # Neighbours mostly have the same: what is sorted is one of each run.
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    used, places = np.unique(numbers[starts], return_inverse=True)
    return used, np.repeat(places.astype(np.uint32), np.diff(starts, append=len(numbers)))


def _set_rows(tree: Worktree, path: str, array: ArrayState, columns: VirtualColumns, part: TilePart) -> None:
    with tree.lock:
        tree.begin_chunk_edits(path, array)
        rows = _rows(tree.dictionaries, columns, part)
        tile = array.tile_for_edit(part.key)
        positions, old = tile.to_rows()
        gone = np.isin(positions, part.positions) & (old["kind"] == PendingKind.OWN)
        tree.writer.release_many(old["at"][gone])
        tile.set_many(part.positions, rows)
        count_refs(tree, len(rows))


def _rows(dictionaries: Dictionaries, columns: VirtualColumns, part: TilePart) -> npt.NDArray[Any]:
    rows = np.zeros(len(part.positions), dtype=ROW_DTYPE)
    used, places = _used(part.numbers)
    rows["source"] = dictionaries.locations.numbers([columns.names[n] for n in used.tolist()])[places]
    rows["at"], rows["length"] = part.offsets, part.lengths
    rows["kind"] = PendingKind.VIRTUAL
    used, places = _used(part.checks)
    checks = [dictionaries.checksum_number(columns.checksums[n - 1]) if n else 0 for n in used.tolist()]
    rows["check"] = np.array(checks, dtype=np.uint32)[places]
    return rows
