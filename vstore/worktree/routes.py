"""What a key names: a chunk of an array, a document of a node, or a plain value."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from vstore.keys.zarr import NotAChunk
from vstore.worktree.arrays import ArrayState
from vstore.worktree.nodes import NodeState


class Chunk(msgspec.Struct, frozen=True):
    """A key that names the chunk `at` this index of the array in `node`."""

    node: NodeState
    array: ArrayState
    at: tuple[int, ...]

    @property
    def path(self) -> str:
        return self.node.path


class Document(msgspec.Struct, frozen=True):
    """A key that names a document of the node at `path`, if there is one."""

    path: str
    name: str


class Value(msgspec.Struct, frozen=True):
    """A key that belongs to no node; `why` says why it names no chunk of the array above it, if that matters."""

    key: str
    why: str | None


Route: TypeAlias = Chunk | Document | Value


def route_in_array(key: str, owner: NodeState) -> Chunk | str | None:
    """Return the chunk of `owner` that `key` names, or why it names none although it looks like it."""
    array = owner.array
    if array is None or array.spec.encoding is None:
        return None
    index = array.spec.encoding.decode(key[len(owner.path) + 1 if owner.path else 0 :])
    if index is NotAChunk.WRONG_DIMENSIONS:
        return f"it should have {array.spec.ndim} chunk indices, as array {owner.path!r} has dimensions"
    if isinstance(index, NotAChunk):
        return None
    if not array.spec.contains(index):
        return f"chunk {index} is outside the chunk grid {array.spec.grid} of array {owner.path!r}"
    return Chunk(owner, array, index)
