"""Arrays whose meaning or grid changed on one side while the other wrote chunks: who holds, and what is cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.changes.documents import ArraySpec
from vstore.keys.zarr import ZARR_JSON, ZARRAY
from vstore.merge.cells import ChunkCodec, differing, read_cells
from vstore.merge.chunks import Cut
from vstore.merge.conflicts import Conflict, ConflictType
from vstore.merge.questions import Questions, metadata_key
from vstore.merge.sides import NodeStates, Side, same_format
from vstore.worktree.compare import iter_chunk_changes


class GridRules:
    """The rules for arrays of one merge."""

    def __init__(self, onto: Side, incoming: Side, questions: Questions) -> None:
        self._onto = onto
        self._incoming = incoming
        self._questions = questions

    def whole_from_incoming(self, states: NodeStates) -> bool | None:
        """Tell whose array holds whole, if one side changed what chunks mean and the other wrote chunks.

        True for incoming's, False for onto's, None if nothing of that kind happened.
        """
        if not same_format(states.onto, states.incoming):
            return self._whole_of_other_format(states)
        base, onto, incoming = (
            None if state is None else state.array for state in (states.base, states.onto, states.incoming)
        )
        if base is None or onto is None or incoming is None:
            return None
        meanings = [array.spec.identity for array in (base, onto, incoming)]
        if meanings[1] == meanings[2]:
            return None
        clashes = (meanings[1] != meanings[0] and self._incoming.chunks_changed(states.node)) or (
            meanings[2] != meanings[0] and self._onto.chunks_changed(states.node)
        )
        return self.ask_whole(states) if clashes else None

    def _whole_of_other_format(self, states: NodeStates) -> bool | None:
        """Ask who holds if one side made a node of another Zarr format of it: documents of both are not one node."""
        sides = self._onto, self._incoming
        if not all(side.documents_changed(states.node) or side.chunks_changed(states.node) for side in sides):
            return None
        conflict = Conflict(ConflictType.ZarrMetadataDoubleUpdate, f"/{states.path}", field="zarr_format")
        return self._questions.is_incoming(self._questions.ask(("format", states.node), conflict))

    def ask_whole(self, states: NodeStates) -> bool:
        """Ask which side's array holds whole; tell whether it is incoming's."""
        conflict = Conflict(ConflictType.ChunksUpdatedInUpdatedArray, f"/{states.path}")
        return self._questions.is_incoming(self._questions.ask(("meaning", states.node), conflict))

    def cut(self, states: NodeStates, merged: ArraySpec | None, shapes: Shapes) -> Cut | None:
        """Return what a smaller shape cuts off and should not, or where the other side wrote; None if nothing is."""
        if merged is None or merged.grid is None or states.base is None or states.base.array is None:
            return None
        base = states.base.array.spec
        arrays = states.onto.array, states.incoming.array
        if any(array is None or array.spec.identity != base.identity for array in arrays):
            # Their grids do not compare; chunks that such a change dropped are deleted ones.
            return None
        if self._is_shape_open(states.path):
            return None
        for state, shape, other in (
            (states.onto, shapes.onto, self._incoming),
            (states.incoming, shapes.incoming, self._onto),
        ):
            assert state.array is not None
            grid = state.array.spec.grid
            if grid is None or all(n >= o for n, o in zip(shape, shapes.base, strict=True)):
                continue
            if any(n < m for n, m in zip(grid, merged.grid, strict=True)):
                # The other side's shape holds: what this one cut off for its own is not deleted.
                return Cut(merged, state is states.incoming, grid)
            chunks = _written_outside(states, other, merged.grid, shapes.merged)
            if len(chunks):
                return self._ask_cut(states, chunks, merged, shrinks_onto=state is states.onto)
        return None

    def _ask_cut(
        self, states: NodeStates, chunks: npt.NDArray[np.int64], merged: ArraySpec, *, shrinks_onto: bool
    ) -> Cut:
        """Ask whether the smaller grid holds, or what the other side wrote outside it."""
        assert merged.grid is not None
        conflict = Conflict(
            ConflictType.ChunksUpdatedInUpdatedArray,
            f"/{states.path}",
            conflicted_chunks=tuple(map(tuple, chunks.tolist())),
        )
        onto_holds = not self._questions.is_incoming(self._questions.ask(("cut", states.node), conflict))
        if onto_holds == shrinks_onto:
            return Cut(merged, onto_holds, merged.grid)
        writer = (states.onto if onto_holds else states.incoming).array
        assert writer is not None
        return Cut(writer.spec, onto_holds, merged.grid)

    def _is_shape_open(self, path: str) -> bool:
        """Tell whether the sides gave an array two shapes and nobody says which holds."""
        keys = (metadata_key(path, document, "shape", None) for document in (ZARR_JSON, ZARRAY))
        return any(map(self._questions.is_open, keys))


def _written_outside(
    states: NodeStates, side: Side, grid: tuple[int, ...], shape: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Return the indices of the chunks in which a side wrote cells outside a grid and a shape."""
    none = np.zeros((0, len(grid)), np.int64)
    after = side.after.get(states.node)
    if after is None or after.array is None or states.node not in side.before:
        return none
    changes = iter_chunk_changes(side.base, side.before[states.node], side.tree, after)
    indices = np.concatenate([none, *changes])
    outside = np.asarray((indices >= np.array(grid, dtype=np.int64)).any(axis=1))
    edges = _EdgeChunks(states, side, shape)
    cut = [
        after.array.find(index, side.tree.dictionaries) is not None if is_outside else edges.lose(index)
        for index, is_outside in zip(map(tuple, indices.tolist()), outside.tolist(), strict=True)
    ]
    kept: npt.NDArray[np.int64] = indices[np.array(cut, dtype=bool)]
    return kept


class _EdgeChunks:
    """Chunks that a smaller shape cuts in two: only their cells tell whether what a side wrote is cut off."""

    def __init__(self, states: NodeStates, side: Side, shape: tuple[int, ...]) -> None:
        self._trees = side.base, side.tree
        self._nodes = side.before[states.node], side.after[states.node]
        self._shape = shape
        documents = side.tree.documents(self._nodes[1])
        self._seen = shape_of(documents)
        array = self._nodes[1].array
        assert array is not None
        self._codec = ChunkCodec(documents, array.spec)

    def lose(self, index: tuple[int, ...]) -> bool:
        """Tell whether the side wrote cells of a chunk that the shape leaves out."""
        origin = self._codec.origin(index)
        sizes = self._codec.shape(index)
        # What the side itself can see of the chunk, and what is left of that.
        seen = [min(size, end - start) for start, size, end in zip(origin, sizes, self._seen, strict=True)]
        left = [max(end - start, 0) for start, end in zip(origin, self._shape, strict=True)]
        if all(most <= kept for most, kept in zip(seen, left, strict=True)):
            return False
        before, after = (
            read_cells(tree, node, self._codec, index)
            for tree, node in zip(self._trees, self._nodes, strict=True)
        )
        written = differing(before, after)[tuple(slice(0, most) for most in seen)]
        written[tuple(slice(0, kept) for kept in left)] = False
        return bool(written.any())


class Shapes(NamedTuple):
    """An array's shape, in cells, as each side has it and as it is merged."""

    base: tuple[int, ...]
    onto: tuple[int, ...]
    incoming: tuple[int, ...]
    merged: tuple[int, ...]


def shape_of(documents: Mapping[str, bytes]) -> tuple[int, ...]:
    """Return the shape that an array's documents say; () for those of a group."""
    for name in (ZARR_JSON, ZARRAY):
        if name in documents:
            return tuple(json.loads(documents[name]).get("shape", ()))
    return ()


def with_shape(documents: dict[str, bytes], source: dict[str, bytes]) -> dict[str, bytes]:
    """Return documents with the shape (and chunk grid) that `source` has."""
    changed = dict(documents)
    for name, data in documents.items():
        fields = json.loads(data)
        if isinstance(fields, dict) and "shape" in fields and name in source:
            taken = json.loads(source[name])
            fields |= {key: taken[key] for key in ("shape", "chunk_grid") if key in taken}
            changed[name] = json.dumps(fields, indent=2).encode()
    return changed
