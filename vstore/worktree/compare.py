"""What differs between two worktrees, by content: the one comparison behind diff, status, rebase and merge.

Parts that both have in common are skipped by the digests of their pages and tile pointers, so that the cost follows
the difference. Reads metadata only, but for documents that are too long to lie in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vstore.changes.boxes import boxes_of
from vstore.changes.dictionaries import Dictionaries
from vstore.changes.diff import Diff
from vstore.changes.metadata import diff_documents
from vstore.changes.rows import NO_ROWS, ChunkRows, changed_positions
from vstore.changes.tiling import join_indices
from vstore.format.node import Tiles, path_of, tile_of
from vstore.ids import NodeId
from vstore.keys.zarr import iter_ancestors, join_key
from vstore.tree.differences import iter_differences
from vstore.worktree.arrays import ArrayState, expecting_tiles, unshared_positions
from vstore.worktree.contents import Content
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree


@dataclass(frozen=True, slots=True)
class TreeDelta:
    """What changed from one worktree to another: nodes by id, plain values by key.

    A node is in `before` if the older state had it and it changed or is gone, in `after` if the newer one has it and
    it changed or is new. Of those that are in both, `documents` and `chunks` are the ones whose documents or chunks
    differ; others have another path. `values` holds the two contents, None for none.
    """

    before: dict[NodeId, NodeState] = field(default_factory=dict)
    after: dict[NodeId, NodeState] = field(default_factory=dict)
    documents: set[NodeId] = field(default_factory=set)
    chunks: set[NodeId] = field(default_factory=set)
    values: dict[str, tuple[Content | None, Content | None]] = field(default_factory=dict)

    def is_empty(self) -> bool:
        return not (self.before or self.after or self.values)

    @property
    def created(self) -> list[NodeId]:
        return [node for node in self.after if node not in self.before]

    @property
    def deleted(self) -> list[NodeId]:
        return [node for node in self.before if node not in self.after]


def compare(before: Worktree, after: Worktree) -> TreeDelta:
    """Return what differs between two worktrees; an edited one is seen with its edits."""
    delta = TreeDelta()
    paths, keys = _candidates(before, after)
    for path in sorted(paths):
        old, new = before.nodes.node(path), after.nodes.node(path)
        if old is not None:
            delta.before[old.node_id] = old
        if new is not None:
            delta.after[new.node_id] = new
    for node in delta.before.keys() & delta.after.keys():
        old, new = delta.before[node], delta.after[node]
        if not same_documents(old, new):
            delta.documents.add(node)
        if next(iter_chunk_changes(before, old, after, new), None) is not None:
            delta.chunks.add(node)
        if old.path == new.path and node not in delta.documents and node not in delta.chunks:
            del delta.before[node], delta.after[node]
    for key in sorted(keys):
        contents = before.nodes.value(key), after.nodes.value(key)
        if not same_content(*contents):
            delta.values[key] = contents
    return delta


def _candidates(before: Worktree, after: Worktree) -> tuple[set[str], set[str]]:
    """Return the paths of nodes and the keys of plain values that may differ."""
    paths: set[str] = set()
    keys: set[str] = set()
    roots = before.nodes.root, after.nodes.root
    for difference in iter_differences(before.blobs, roots[0], after.blobs, roots[1]):
        found = paths if difference.key[:1] == b"n" else keys
        found.add(path_of(difference.key))
    for tree in (before, after):
        with tree.lock:
            drafts, values, hidden = set(tree.nodes.drafts), set(tree.nodes.values), set(tree.nodes.hidden)
        paths |= drafts
        keys |= values
        for folder in hidden:
            prefix = f"{folder}/" if folder else ""
            paths |= {folder, *tree.nodes.iter_base_nodes(prefix)}
            keys |= set(tree.nodes.iter_base_values(prefix))
    return paths, keys


def same_node(before: Worktree, old: NodeState, after: Worktree, new: NodeState) -> bool:
    """Tell whether two states are of one node, with equal documents and equal chunks."""
    if old.node_id != new.node_id:
        return False
    return same_documents(old, new) and next(iter_chunk_changes(before, old, after, new), None) is None


def same_documents(one: NodeState, other: NodeState) -> bool:
    """Tell whether two nodes have the same documents, byte by byte."""
    return one.documents.keys() == other.documents.keys() and all(
        same_content(one.documents[name], other.documents[name]) for name in one.documents
    )


def same_content(one: Content | None, other: Content | None) -> bool:
    """Tell whether two documents or plain values have the same bytes, without reading them."""
    if one is None or other is None or isinstance(one, bytes) or isinstance(other, bytes):
        return one == other
    return one.digest == other.digest


# --- chunks --------------------------------------------------------------------------------------------------


def iter_changed_tiles(before: ArrayState | None, after: ArrayState | None) -> Iterator[bytes]:
    """Yield, in order, the keys of the tiles in which two arrays of equal tile extents may differ."""
    keys = set(_base_differences(before, after))
    for array in (before, after):
        if array is not None and array.is_edited:
            keys.update(array.pending)
            if array.cleared or array.limit is not None:
                keys.update(key for key, _ in array.iter_base_pointers())
    yield from sorted(keys)


def _base_differences(before: ArrayState | None, after: ArrayState | None) -> Iterator[bytes]:
    one = before.base if before is not None else None
    other = after.base if after is not None else None
    if one == other:
        return
    if before is not None and after is not None and _is_paged(one) and _is_paged(other):
        assert one is not None
        assert other is not None
        for difference in iter_differences(before.reader, one.root, after.reader, other.root):
            yield difference.key
        return
    pointers = dict(before.iter_base_pointers()) if before is not None else {}
    others = dict(after.iter_base_pointers()) if after is not None else {}
    yield from (key for key in {*pointers, *others} if pointers.get(key) != others.get(key))


def _is_paged(tiles: Tiles | None) -> bool:
    return tiles is not None and tiles.root is not None


def iter_chunk_changes(
    before: Worktree, old: NodeState | None, after: Worktree, new: NodeState | None
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the indices i64[n, d] of the chunks that differ between two states of an array, tile by tile.

    None stands for an array without chunks. Two arrays of different tile extents are compared by all their chunks.
    """
    one, other = _array(old), _array(new)
    if one is None and other is None:
        return
    if one is not None and other is not None and one.extents != other.extents:
        # Not two states of one array: everything of both.
        for array in (one, other):
            yield from (indices for indices, _ in array.iter_indices())
        return
    extents = (one or other).extents  # type: ignore[union-attr]
    dictionaries = Dictionaries()
    for key in expecting_tiles((one, other), iter_changed_tiles(one, other)):
        suspects = suspect_positions(one, other, key)
        old_rows = tile_rows(before, one, key, dictionaries, suspects)
        positions = changed_positions(old_rows, tile_rows(after, other, key, dictionaries, suspects))
        if len(positions):
            yield join_indices(tile_of(key), positions, extents)


def suspect_positions(
    one: ArrayState | None, other: ArrayState | None, key: bytes
) -> npt.NDArray[np.uint16] | None:
    """Return the only positions at which two states of an array's tile can differ; None: any."""
    arrays = [array for array in (one, other) if array is not None]
    if one is None or other is None or any(array.cleared or array.limit is not None for array in arrays):
        return None
    pointers = [array.base_pointer(key) for array in arrays]
    suspects = unshared_positions(one.reader, pointers[0], other.reader, pointers[1])
    written = [array.written_positions(key) for array in arrays]
    return np.unique(np.concatenate([suspects, *written]))


def tile_rows(
    tree: Worktree,
    array: ArrayState | None,
    key: bytes,
    dictionaries: Dictionaries,
    positions: npt.NDArray[np.uint16] | None = None,
) -> ChunkRows:
    """Return what a tile of an array shows, at all or only some positions; nothing for no array."""
    return NO_ROWS if array is None else array.rows(key, tree.dictionaries, dictionaries, positions)


def _array(node: NodeState | None) -> ArrayState | None:
    return None if node is None else node.array


# --- the diff that users see ---------------------------------------------------------------------------------


def diff_trees(before: Worktree, after: Worktree) -> Diff:
    """Return what differs between two worktrees, as users see it."""
    delta = compare(before, after)
    names: dict[tuple[str, bool], set[str]] = {
        (title, is_array): set() for title in ("new", "deleted", "updated") for is_array in (False, True)
    }
    attributes: dict[str, dict[str, tuple[object, object]]] = {}
    fields: dict[str, dict[str, tuple[object, object]]] = {}
    boxes = {}
    for node_id in sorted({*delta.before, *delta.after}, key=lambda node: _path(delta, node)):
        old, new = delta.before.get(node_id), delta.after.get(node_id)
        state = new or old
        assert state is not None
        name, is_array = f"/{state.path}", state.array is not None
        if old is None or new is None:
            names["new" if old is None else "deleted", is_array].add(name)
        elif not same_documents(old, new):
            names["updated", is_array].add(name)
            _add_metadata(name, before.documents(old), after.documents(new), attributes, fields)
        if new is not None and new.array is not None:
            found = list(iter_chunk_changes(before, old, after, new))
            if found:
                boxes[name] = boxes_of(np.concatenate(found))
    moves = elementary_moves(before, after, delta)
    return Diff(
        new_groups=frozenset(names["new", False]),
        new_arrays=frozenset(names["new", True]),
        deleted_groups=frozenset(names["deleted", False]),
        deleted_arrays=frozenset(names["deleted", True]),
        updated_groups=frozenset(names["updated", False]),
        updated_arrays=frozenset(names["updated", True]),
        moved_nodes=tuple(sorted((f"/{old}", f"/{new}") for old, new in moves.values())),
        updated_attributes=attributes,
        updated_fields=fields,
        chunk_boxes=boxes,
        changed_values=frozenset(delta.values),
    )


def _path(delta: TreeDelta, node_id: NodeId) -> str:
    return (delta.after.get(node_id) or delta.before[node_id]).path


def _add_metadata(
    name: str,
    old: dict[str, bytes],
    new: dict[str, bytes],
    attributes: dict[str, dict[str, tuple[object, object]]],
    fields: dict[str, dict[str, tuple[object, object]]],
) -> None:
    for change in diff_documents(old, new):
        values = change.before, change.after
        if change.attribute is not None:
            attributes.setdefault(name, {})[change.attribute] = values
        else:
            fields.setdefault(name, {})[change.field or change.document] = values


def elementary_moves(before: Worktree, after: Worktree, delta: TreeDelta) -> dict[NodeId, tuple[str, str]]:
    """Return the old and new path of each node that was moved itself, not merely along with a group above it.

    A node that stayed where it was while a group above it moved away counts as moved, to where it is.
    """
    moved = {
        old.path: (node_id, delta.after[node_id].path)
        for node_id, old in delta.before.items()
        if node_id in delta.after and delta.after[node_id].path != old.path
    }
    for folder in [path for path in moved if delta.before[moved[path][0]].array is None]:
        for path in before.nodes.iter_nodes(f"{folder}/"):
            stayed = before.nodes.node(path)
            now = after.nodes.node(path)
            if path not in moved and stayed is not None and now is not None and now.node_id == stayed.node_id:
                moved[path] = (stayed.node_id, path)
    found = {}
    for path, (node_id, target) in sorted(moved.items()):
        if carried_to(path, {source: to for source, (_, to) in moved.items()}) != target:
            found[node_id] = (path, target)
    return found


def carried_to(path: str, moved: dict[str, str]) -> str:
    """Return where `path` is after the moves of what lies above it."""
    for above in iter_ancestors(path):
        if above and above in moved:
            return join_key(moved[above], path[len(above) + 1 :])
    return path
