"""Comparing snapshots and sessions with each other, down to the cells of arrays where that is wanted.

Below: `worktree.compare`, which compares by content; above: `session`, `repository`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from vstore.changes.boxes import Box
from vstore.changes.diff import Diff, ValueChange
from vstore.format.node import node_key, path_of, subtree_bounds, value_key
from vstore.format.record import SnapshotEntry
from vstore.handle import Handle
from vstore.merge.cells import ChunkCodec, differing, read_cells
from vstore.tree.differences import iter_differences
from vstore.worktree import Worktree
from vstore.worktree.arrays import ArrayState
from vstore.worktree.compare import TreeDelta, compare, diff_trees, iter_chunk_changes, same_node
from vstore.worktree.listing import iter_keys
from vstore.worktree.nodes import NodeState


def snapshot_tree(handle: Handle, entry: SnapshotEntry) -> Worktree:
    """Return a snapshot as a worktree that can only be read."""
    blobs = handle.open_snapshot(entry)
    return Worktree(blobs, blobs.snapshot(entry.ref).root, virtual=handle.virtual)


def diff(before: Worktree, after: Worktree, *, values: bool = False) -> Diff:
    """Return what differs; with `values`, also how the cells of changed arrays do, which reads the changed chunks."""
    found = diff_trees(before, after)
    if not values:
        return found
    delta = compare(before, after)
    changes = {}
    for path in found.chunk_boxes:
        change = _value_change(before, after, path.lstrip("/"), delta)
        if change is not None:
            changes[path] = change
    return replace(found, values=changes)


def _value_change(before: Worktree, after: Worktree, path: str, delta: TreeDelta) -> ValueChange | None:
    """Return how the cells of an array that both states have changed; None if they can't be compared."""
    new = after.nodes.node(path)
    old = None if new is None else delta.before.get(new.node_id)
    if new is None or old is None or new.array is None or old.array is None:
        return None
    if new.array.spec.encoding is None or new.array.spec.encoding != old.array.spec.encoding:
        return None
    pair = _ArrayCells(before, old, old.array), _ArrayCells(after, new, new.array)
    if pair[0].meaning != pair[1].meaning:
        return None
    total = _CellCount(len(pair[1].shape))
    common = tuple(map(min, pair[0].shape, pair[1].shape))
    for indices in iter_chunk_changes(before, old, after, new):
        for index in map(tuple, indices.tolist()):
            origin = pair[1].codec.origin(index)
            inside = tuple(
                slice(0, max(limit - start, 0)) for start, limit in zip(origin, common, strict=True)
            )
            total.add(origin, pair[0].read(index)[inside], pair[1].read(index)[inside])
    return total.result()


class _ArrayCells:
    """The cells of one array's chunks."""

    def __init__(self, tree: Worktree, node: NodeState, array: ArrayState) -> None:
        self._tree = tree
        self._node = node
        documents = tree.documents(node)
        fields = json.loads(documents.get("zarr.json") or documents[".zarray"])
        self.shape = tuple(fields["shape"])
        self.codec = ChunkCodec(documents, array.spec)
        # Other codecs may spell the same values, other chunks and dtypes can't be compared chunk by chunk.
        names = ("data_type", "chunk_grid", "dtype", "chunks")
        self.meaning = [fields.get(name) for name in names]

    def read(self, index: tuple[int, ...]) -> Any:
        return read_cells(self._tree, self._node, self.codec, index)


class _CellCount:
    """Adds up how cells changed, a chunk at a time."""

    def __init__(self, ndim: int) -> None:
        self._cells = 0
        self._largest: float | None = None
        self._low: list[int] | None = None
        self._high = [0] * ndim

    def add(self, origin: tuple[int, ...], old: Any, new: Any) -> None:
        different = differing(old, new)
        count = int(np.count_nonzero(different))
        if not count:
            return
        self._cells += count
        self._measure(old[different], new[different])
        cells = np.argwhere(different)
        low = [int(a) + o for a, o in zip(cells.min(axis=0), origin, strict=True)]
        high = [int(a) + o + 1 for a, o in zip(cells.max(axis=0), origin, strict=True)]
        self._low = low if self._low is None else list(map(min, self._low, low))
        self._high = list(map(max, self._high, high))

    def _measure(self, old: Any, new: Any) -> None:
        if old.dtype.kind not in "biufc":
            return
        exact = np.complex128 if old.dtype.kind == "c" else np.float64
        differences = np.abs(new.astype(exact) - old.astype(exact))
        finite = differences[~np.isnan(differences)]
        if len(finite):
            self._largest = max(self._largest or 0.0, float(finite.max()))

    def result(self) -> ValueChange:
        box = None if self._low is None else Box(tuple(self._low), tuple(self._high))
        return ValueChange(self._cells, self._largest, box)


class PathHistory:
    """Follows one path back through history, also where the node was moved, and says which snapshots changed it."""

    def __init__(self, handle: Handle, start: SnapshotEntry, path: str) -> None:
        self._handle = handle
        self._paths = {start.id: path}

    def changed_by(self, entry: SnapshotEntry, parents: list[SnapshotEntry]) -> bool:
        """Tell whether a snapshot changed what is at and below the path; its descendants must have been asked before.

        A merge did if the result differs from every parent's. The first snapshot did if it has something there.
        """
        path = self._paths.pop(entry.id, None)
        if path is None:
            return False
        tree = snapshot_tree(self._handle, entry)
        changes = [self._changed_since(parent, tree, path) for parent in parents]
        if not parents:
            return next(iter_keys(tree, path), None) is not None
        return all(changes)

    def _changed_since(self, parent: SnapshotEntry, tree: Worktree, path: str) -> bool:
        older = snapshot_tree(self._handle, parent)
        changed = _differs_at(older, tree, path)
        origin = path
        now, before = tree.nodes.node(path), older.nodes.node(path)
        if changed and now is not None and (before is None or before.node_id != now.node_id):
            delta = compare(older, tree)
            origin = _origin(delta, path) or path
        self._paths.setdefault(parent.id, origin)
        return changed


def _origin(delta: TreeDelta, path: str) -> str | None:
    """Return where the node at `path` was before, if it was moved."""
    for node_id, state in delta.after.items():
        if state.path == path and node_id in delta.before:
            return delta.before[node_id].path
    return None


def _differs_at(before: Worktree, after: Worktree, path: str) -> bool:
    """Tell whether two snapshots differ at or below a path, by content."""
    for bounds in _ranges(path):
        roots = before.nodes.root, after.nodes.root
        for difference in iter_differences(before.blobs, roots[0], after.blobs, roots[1], *bounds):
            if difference.key[:1] != b"n":
                return True
            name = path_of(difference.key)
            old, new = before.nodes.node(name), after.nodes.node(name)
            if old is None or new is None or not same_node(before, old, after, new):
                return True
    return False


def _ranges(path: str) -> list[tuple[bytes, bytes]]:
    """Return the ranges [start, stop) of the node tree that hold what is at and below a path."""
    found = []
    for key in (node_key(path), value_key(path)):
        found += [(key, key + b"\0"), subtree_bounds(key)]
    return found
