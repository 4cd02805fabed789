"""A worktree's edits as a value that pickles: what a copy of a session in another process reads.

Bytes that are in a pack, sealed or staged on a local disk, are read from there; the rest comes along.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from vstore.blobs.slots import WriterState
from vstore.blobs.writer import BlobWriter
from vstore.changes.dictionaries import Dictionaries
from vstore.changes.documents import parse_documents
from vstore.changes.pending import PendingTile
from vstore.errors import InternalError, ObjectNotFoundError
from vstore.format.node import Tiles
from vstore.ids import NodeId
from vstore.keys.objects import pack_name, staging_name
from vstore.keys.zarr import join_key
from vstore.storage.base import Storage
from vstore.worktree.arrays import ArrayState
from vstore.worktree.contents import Content
from vstore.worktree.nodes import NodeState
from vstore.worktree.spilling import spilled_of
from vstore.worktree.tree import Worktree


@dataclass(frozen=True, slots=True)
class FrozenArray:
    """An array's edits."""

    extents: tuple[int, ...]
    base: Tiles | None
    cleared: bool
    limit: tuple[int, ...] | None
    pending: dict[bytes, PendingTile]


@dataclass(frozen=True, slots=True)
class FrozenNode:
    """An edited node."""

    node_id: NodeId
    documents: dict[str, Content]
    array: FrozenArray | None


@dataclass(frozen=True, slots=True)
class FrozenChanges:
    """All edits of a worktree, and its own blobs."""

    nodes: dict[str, FrozenNode | None]
    values: dict[str, Content | None]
    hidden: frozenset[str]
    dictionaries: Dictionaries
    mutations: int
    own: WriterState


class FrozenBlobs:
    """Reads the blobs of a session whose writer is in another process."""

    def __init__(self, storage: Storage, state: WriterState) -> None:
        self.state = state
        self._storage = storage

    def read(self, slot: int, length: int) -> memoryview:
        """Return a blob's bytes."""
        data = self.state.in_memory.get(slot)
        if data is not None:
            return memoryview(data)
        pack = self.state.pack_ids[self.state.packs[slot]]
        offset = self.state.offsets[slot]
        # The writer may seal the pack, which renames it, between one look and the next.
        for name in (pack_name(pack), staging_name(pack)):
            with contextlib.suppress(ObjectNotFoundError):
                return self._storage.read(name, offset, length)
        return self._storage.read(pack_name(pack), offset, length)


def freeze(tree: Worktree) -> FrozenChanges:
    """Return the edits of a worktree."""
    with tree.lock:
        if isinstance(tree.own, BlobWriter):
            own = tree.own.slots.state()
        elif isinstance(tree.own, FrozenBlobs):
            own = tree.own.state
        else:
            raise InternalError("a worktree with edits has no blobs of its own")
        return FrozenChanges(
            {path: None if node is None else _freeze_node(node) for path, node in tree.nodes.drafts.items()},
            dict(tree.nodes.values),
            frozenset(tree.nodes.hidden),
            tree.dictionaries,
            tree.mutations,
            own,
        )


def _freeze_node(node: NodeState) -> FrozenNode:
    array = node.array
    if array is None:
        return FrozenNode(node.node_id, node.documents, None)
    frozen = FrozenArray(array.extents, array.base, array.cleared, array.limit, array.pending)
    return FrozenNode(node.node_id, node.documents, frozen)


def thaw(tree: Worktree, changes: FrozenChanges) -> Worktree:
    """Return a worktree like `tree`, a clean one on the same base, with `changes`; it can only be read."""
    thawed = Worktree(
        tree.blobs,
        tree.nodes.root,
        virtual=tree.contents.virtual,
        own=FrozenBlobs(tree.blobs.storage, changes.own),
    )
    thawed.dictionaries = changes.dictionaries
    thawed.mutations = changes.mutations
    thawed.nodes.hidden = set(changes.hidden)
    thawed.nodes.values = dict(changes.values)
    for path, node in changes.nodes.items():
        thawed.nodes.drafts[path] = None if node is None else _thaw_node(thawed, path, node)
    return thawed


def _thaw_node(tree: Worktree, path: str, frozen: FrozenNode) -> NodeState:
    texts = {n: tree.read_content(c, join_key(path, n)) for n, c in frozen.documents.items()}
    spec = parse_documents(texts)
    if spec is None:
        raise InternalError(f"the documents of {path!r} in a pickled session make no node")
    array = None
    if frozen.array is not None and spec.array is not None:
        tiles = frozen.array.base
        array = ArrayState(tree.blobs, frozen.node_id, spec.array, frozen.array.extents, tiles, tree.lock)
        array.cleared, array.limit = frozen.array.cleared, frozen.array.limit
        array.pending = frozen.array.pending
        for tile in array.pending.values():
            spilled = spilled_of(tile)
            if spilled is not None:
                tile.spilled = replace(spilled, own=tree.own)
    return NodeState(path, frozen.node_id, frozen.documents, spec, array)
