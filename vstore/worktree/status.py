"""What a worktree changed, compared with its base by content. Reads metadata only."""

from __future__ import annotations

from vstore.changes.diff import Diff
from vstore.changes.pending import PendingKind
from vstore.changes.tiling import join_indices
from vstore.format.node import tile_of
from vstore.worktree.arrays import ArrayState
from vstore.worktree.contents import ChunkSource, Content, OwnBlob, StoredChunk
from vstore.worktree.nodes import NodeState, NodeTable
from vstore.worktree.tree import Worktree


def status_of(tree: Worktree) -> Diff:
    """Return what the worktree changed since its base snapshot."""
    with tree.lock:
        return _Status(tree).diff()


class _Status:
    def __init__(self, tree: Worktree) -> None:
        self._tree = tree
        self._base = NodeTable(tree.blobs, tree.contents, tree.nodes.root, tree.lock)

    def diff(self) -> Diff:
        names: dict[str, set[str]] = {name: set() for name in Diff.__dataclass_fields__}
        chunks: dict[str, list[tuple[int, ...]]] = {}
        for path in self._edited_paths():
            before, after = self._base.node(path), self._tree.nodes.node(path)
            self._sort_node(f"/{path}", before, after, names)
            if after is not None and after.array is not None and after.array.is_edited:
                indices = self._changed_chunks(after.array)
                if indices:
                    chunks[f"/{path}"] = indices
        names["changed_values"] = {key for key in self._edited_values() if self._value_changed(key)}
        del names["updated_chunks"]
        return Diff(**{name: frozenset(found) for name, found in names.items()}, updated_chunks=chunks)

    def _edited_paths(self) -> list[str]:
        paths = set(self._tree.nodes.drafts)
        for folder in self._tree.nodes.hidden:
            paths |= {folder, *self._tree.nodes.iter_base_nodes(f"{folder}/" if folder else "")}
        return sorted(paths)

    def _edited_values(self) -> list[str]:
        keys = set(self._tree.nodes.values)
        for folder in self._tree.nodes.hidden:
            keys |= set(self._tree.nodes.iter_base_values(f"{folder}/" if folder else ""))
        return sorted(keys)

    def _sort_node(
        self, name: str, before: NodeState | None, after: NodeState | None, names: dict[str, set[str]]
    ) -> None:
        if before is not None and (after is None or after.node_id != before.node_id):
            names["deleted_groups" if before.array is None else "deleted_arrays"].add(name)
            before = None
        if after is None:
            return
        noun = "groups" if after.array is None else "arrays"
        if before is None:
            names[f"new_{noun}"].add(name)
        elif not self._same_documents(before, after):
            names[f"updated_{noun}"].add(name)

    def _same_documents(self, before: NodeState, after: NodeState) -> bool:
        return before.documents.keys() == after.documents.keys() and all(
            _same_content(before.documents[name], after.documents[name]) for name in before.documents
        )

    def _value_changed(self, key: str) -> bool:
        before, after = self._base.value(key), self._tree.nodes.value(key)
        return (
            not (before is not None and after is not None and _same_content(before, after))
            and before != after
        )

    def _changed_chunks(self, array: ArrayState) -> list[tuple[int, ...]]:
        keys = set(array.pending)
        if array.cleared or array.limit is not None:
            keys.update(key for key, _ in array.iter_base_pointers())
        changed: list[tuple[int, ...]] = []
        for key in sorted(keys):
            positions = set()
            if key in array.pending:
                written, rows = array.pending[key].to_rows()
                positions |= set(written[rows["kind"] != PendingKind.UNCHANGED].tolist())
            base = array.base_tile(key)
            if base is not None and (array.cleared or array.limit is not None):
                positions |= set(base.manifest.positions.tolist())
            changed += [
                index for index in _indices(key, positions, array) if self._chunk_changed(array, index)
            ]
        return changed

    def _chunk_changed(self, array: ArrayState, index: tuple[int, ...]) -> bool:
        before = array.find_base(*array.locate(index))
        after = array.find(index, self._tree.dictionaries)
        return not _same_source(before, after)


def _indices(key: bytes, positions: set[int], array: ArrayState) -> list[tuple[int, ...]]:
    import numpy as np

    ordered = np.array(sorted(positions), dtype=np.uint16)
    return [tuple(index) for index in join_indices(tile_of(key), ordered, array.extents).tolist()]


def _same_content(one: Content, other: Content) -> bool:
    if isinstance(one, bytes) or isinstance(other, bytes):
        return one == other
    return one.digest == other.digest


def _same_source(one: ChunkSource | None, other: ChunkSource | None) -> bool:
    first, second = _identity(one), _identity(other)
    return first == second


def _identity(source: ChunkSource | None) -> object:
    if isinstance(source, StoredChunk):
        return source.ref.digest
    return source.digest if isinstance(source, OwnBlob) else source
