"""Merging the chunks of one array: three-way by content, a tile's refs at a time.

A chunk that only one side changed is that side's; one that both changed to the same bytes is no conflict; for all
others the solver is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.blobs.writer import BlobWriter
from vstore.changes.documents import ArraySpec
from vstore.changes.metadata import MISSING
from vstore.changes.pending import ROW_DTYPE, PendingKind, PendingRef
from vstore.changes.rows import Aligned, ChunkRows, align, pack_inline
from vstore.changes.tiling import join_indices
from vstore.errors import InternalError, SessionStateError
from vstore.format.node import tile_of
from vstore.ids import blake3_digest
from vstore.merge.conflicts import CLASHED, UseValue
from vstore.worktree.arrays import ArrayState, expecting_tiles, ref_source
from vstore.worktree.compare import iter_changed_tiles, suspect_positions, tile_rows
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree

Mask: TypeAlias = npt.NDArray[np.bool_]
Load: TypeAlias = Callable[[int, tuple[int, ...]], Any]
Origin: TypeAlias = Callable[[tuple[int, ...]], tuple[int, ...]]
DecideChunks: TypeAlias = Callable[
    [str, npt.NDArray[np.int64], Load, Origin], Iterator[tuple[slice, bool | UseValue]]
]
BASE, ONTO, INCOMING = 0, 1, 2


class Cut(NamedTuple):
    """A grid that one side made smaller while the other wrote outside it, and which side holds.

    `spec` is what the array is then; `grid` the smaller grid, outside which all chunks are the winning side's.
    """

    spec: ArraySpec
    keeps_onto: bool
    grid: tuple[int, ...]


class ArrayMerge(NamedTuple):
    """An array to be merged: its states in the base and on the incoming side, and in the result, which is onto's."""

    path: str
    base: NodeState | None
    incoming: NodeState
    result: NodeState
    documents: dict[str, bytes]
    cut: Cut | None


class ChunkMerger:
    """Merges chunks into `result`. `decide` says what holds where both sides wrote; it may raise."""

    def __init__(
        self, base: Worktree, onto: Worktree, incoming: Worktree, result: Worktree, decide: DecideChunks
    ) -> None:
        self._trees = (base, onto, incoming)
        self._result = result
        self._decide = decide
        self._put: list[int] = []
        self._mutations = (base.mutations, result.mutations, incoming.mutations)

    def merge(self, task: ArrayMerge) -> None:
        """Put incoming's changes to an array's chunks into the result's array."""
        array = task.result.array
        if array is None or task.incoming.array is None:
            raise InternalError("an array's chunks were to be merged into a group")
        base = None if task.base is None else task.base.array
        keys = set(iter_changed_tiles(base, task.incoming.array))
        if task.cut is not None and not task.cut.keeps_onto:
            # What onto cut off comes back from the incoming side, whether that changed it or not.
            keys |= set(iter_changed_tiles(None, task.incoming.array))
        for key in expecting_tiles((base, task.incoming.array, array), sorted(keys)):
            self._merge_tile(task, array, key)

    def abandon(self) -> None:
        """Let go of the blobs that were made for a merge that failed."""
        for slot in self._put:
            self._result.writer.release(slot)
        self._put.clear()

    def _merge_tile(self, task: ArrayMerge, array: ArrayState, key: bytes) -> None:
        base = None if task.base is None else task.base.array
        # Elsewhere incoming changed nothing.
        suspects = None if task.cut is not None else suspect_positions(base, task.incoming.array, key)
        contents = self._contents(task, array, key, suspects)
        aligned = align(contents)
        changed = ~aligned.same(BASE, INCOMING)
        take = changed & aligned.same(BASE, ONTO)
        clash = changed & ~take & ~aligned.same(ONTO, INCOMING)
        indices = join_indices(tile_of(key), aligned.positions, array.extents)
        if task.cut is not None:
            outside = (indices >= np.array(task.cut.grid, dtype=np.int64)).any(axis=1)
            clash &= ~outside
            take = np.where(outside, not task.cut.keeps_onto, take)
        values: list[tuple[int, UseValue]] = []
        if clash.any():
            rows = np.flatnonzero(clash)
            load = self._loader(task, contents, aligned, indices)
            codec = self._codec(task)
            for part, decision in self._decide(task.path, indices[rows], load, codec.origin):
                if isinstance(decision, UseValue):
                    values += [(row, decision) for row in rows[part].tolist()]
                elif decision:
                    take[rows[part]] = True
        grid = array.spec.grid
        if grid is not None:
            take &= (indices < np.array(grid, dtype=np.int64)).all(axis=1)
        _apply(array, key, aligned, take & ~aligned.same(ONTO, INCOMING), contents[INCOMING])
        for row, value in values:
            self._set(task, array, key, int(aligned.positions[row]), tuple(indices[row].tolist()), value)

    def _contents(
        self, task: ArrayMerge, array: ArrayState, key: bytes, positions: npt.NDArray[np.uint16] | None
    ) -> tuple[ChunkRows, ...]:
        base = None if task.base is None else task.base.array
        sides = (self._trees[BASE], base), (self._result, array), (self._trees[INCOMING], task.incoming.array)
        return tuple(
            tile_rows(tree, state, key, self._result.dictionaries, positions) for tree, state in sides
        )

    # --- cells -----------------------------------------------------------------------------------------------

    def _loader(
        self,
        task: ArrayMerge,
        contents: tuple[ChunkRows, ...],
        aligned: Aligned,
        indices: npt.NDArray[np.int64],
    ) -> Load:
        """Return what decodes the cells that a side has at a chunk index; an absent chunk has the fill value."""
        rows = {tuple(index): row for row, index in enumerate(indices.tolist())}

        def load(which: int, index: tuple[int, ...]) -> Any:
            number = int(aligned.numbers[which][rows[index]])
            if number >= 0 and contents[which].rows["length"][number] == 0:
                # No chunk is empty: the merge bases disagree here.
                return MISSING
            data = None if number < 0 else self._read(task, contents[which], number, which, index)
            return self._codec(task).decode(data, index)

        return load

    def _read(
        self, task: ArrayMerge, content: ChunkRows, number: int, which: int, index: tuple[int, ...]
    ) -> bytes:
        row = content.rows[number]
        ref = PendingRef(
            int(row["kind"]),
            int(row["at"]),
            int(row["length"]),
            int(row["source"]),
            int(row["check"]),
            row["digest"].tobytes(),
        )
        tree = self._result if which == ONTO else self._trees[which]
        if ref.kind == PendingKind.OWN and (tree.mutations != self._mutations[which] or tree.own is None):
            raise SessionStateError(
                f"what the session had in chunk {index} of {task.path!r} is gone: it was changed or closed since. Look "
                "at a conflict's values before that."
            )
        if ref.kind == PendingKind.OWN:
            tree.writer.check_usable()
        source = ref_source(ref, content.inline, self._result.dictionaries)
        if source is None:
            raise InternalError("a deleted chunk was to be read")
        return bytes(tree.contents.read(source, None, f"chunk {index} of {task.path!r}"))

    def _codec(self, task: ArrayMerge) -> Any:
        from vstore.merge.cells import ChunkCodec

        array = task.result.array
        assert array is not None
        return ChunkCodec(task.documents, array.spec)

    def _set(
        self,
        task: ArrayMerge,
        array: ArrayState,
        key: bytes,
        position: int,
        index: tuple[int, ...],
        value: UseValue,
    ) -> None:
        tile = array.tile_for_edit(key)
        if value.value is CLASHED:
            digest = blake3_digest(f"clash at {task.path} {index}".encode())
            tile.set(position, PendingRef(PendingKind.OWN, digest=digest))
            return
        data = self._codec(task).encode(value.value, index)
        if not isinstance(self._result.own, BlobWriter) or len(data) <= self._result.inline_bytes:
            tile.set_inline(position, data)
            return
        digest = blake3_digest(data)
        slot = self._result.writer.put(data, digest)
        self._put.append(slot)
        tile.set(position, PendingRef(PendingKind.OWN, slot, len(data), digest=digest))


def _apply(array: ArrayState, key: bytes, aligned: Aligned, take: Mask, incoming: ChunkRows) -> None:
    """Give the array, at the positions under `take`, what the incoming side has there, tombstones included."""
    if not take.any():
        return
    numbers = aligned.numbers[INCOMING][take]
    positions = aligned.positions[take]
    live = numbers >= 0
    chosen = pack_inline(ChunkRows(positions[live], incoming.rows[numbers[live]], incoming.inline))
    tile = array.tile_for_edit(key)
    rows = np.zeros(len(positions), ROW_DTYPE)
    rows["kind"] = PendingKind.DELETED
    moved = chosen.rows.copy()
    moved["at"][moved["kind"] == PendingKind.INLINE] += np.uint64(len(tile.inline))
    rows[live] = moved
    tile.inline += chosen.inline
    tile.set_many(positions, rows)
