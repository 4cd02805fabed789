"""Which keys a worktree has: enumeration, folders and sizes. Reads metadata only, never chunk bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vstore.errors import InternalError
from vstore.format.page import Totals
from vstore.keys.zarr import ChunkKeyEncoding, is_canonical_index, join_key
from vstore.worktree.arrays import ArrayState
from vstore.worktree.contents import content_length
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree


def iter_keys(tree: Worktree, prefix: str) -> Iterator[str]:
    """Yield every key that starts with the string `prefix`, in no special order."""
    folder = prefix.rpartition("/")[0]
    for node in _nodes_around(tree, folder) if prefix else []:
        yield from (key for key in _keys_of(node) if key.startswith(prefix))
    for path in tree.nodes.iter_nodes(prefix):
        found = tree.nodes.node(path)
        if found is not None:
            yield from _keys_of(found)
    yield from tree.nodes.iter_values(prefix)


def list_folder(tree: Worktree, folder: str) -> set[str]:
    """Return the names right below `folder`: of nodes, documents, plain values and parts of chunk keys."""
    names = tree.nodes.child_names(folder)
    for node in _nodes_around(tree, folder):
        if node.path == folder:
            names |= set(node.documents)
        if node.array is not None and node.array.spec.encoding is not None:
            inside = folder[len(node.path) :].strip("/")
            names |= _chunk_children(node.array, node.array.spec.encoding, inside)
    return names


def size_below(tree: Worktree, folder: str) -> int:
    """Return the bytes of everything below `folder`; chunks count from the totals kept for them."""
    prefix = f"{folder}/" if folder else ""
    size = sum(_value_size(tree, key) for key in tree.nodes.iter_values(prefix))
    for node in _nodes_around(tree, folder):
        if node.path == folder:
            size += _node_size(node)
        else:
            size += _chunks_size_below(node, prefix)
    for path in tree.nodes.iter_nodes(prefix):
        found = tree.nodes.node(path)
        if found is not None and path != folder:
            size += _node_size(found)
    return size


def totals_below(tree: Worktree, folder: str) -> Totals:
    """Return the count and bytes of the chunks of all arrays at and below `folder`."""
    total = Totals()
    prefix = f"{folder}/" if folder else ""
    nodes = [tree.nodes.node(path) for path in {folder, *tree.nodes.iter_nodes(prefix)}]
    for node in nodes:
        if node is not None and node.array is not None:
            total += node.array.totals()
    return total


def is_folder_empty(tree: Worktree, folder: str) -> bool:
    """Tell whether no key lies below `folder`."""
    return next(iter_keys(tree, f"{folder}/" if folder else ""), None) is None


def _nodes_around(tree: Worktree, folder: str) -> list[NodeState]:
    """Return the node at `folder`, and the array above whose chunks may lie in it."""
    found = [tree.nodes.node(folder), tree.nodes.owner(folder) if folder else None]
    return [node for node in found if node is not None]


def _keys_of(node: NodeState) -> Iterator[str]:
    for name in node.documents:
        yield join_key(node.path, name)
    array = node.array
    if array is None or array.spec.encoding is None:
        return
    for indices, _ in array.iter_indices():
        for index in map(tuple, indices.tolist()):
            yield join_key(node.path, array.spec.encoding.encode(index))


def _chunk_children(array: ArrayState, encoding: ChunkKeyEncoding, inside: str) -> set[str]:
    """Return the parts of chunk keys that come right after the folder `inside` of an array."""
    parts = inside.split("/") if inside else []
    if encoding.leading and encoding.separator == "/":
        if not parts:
            return {encoding.leading} if any(True for _ in array.iter_visible()) else set()
        if parts.pop(0) != encoding.leading:
            return set()
    elif encoding.separator != "/" or encoding.ndim == 0:
        return set() if parts else set(_relative_keys(array, encoding))
    if len(parts) >= encoding.ndim or not all(map(is_canonical_index, parts)):
        return set()
    wanted = np.array(list(map(int, parts)), dtype=np.int64)
    names: set[str] = set()
    for indices, _ in array.iter_indices():
        inside_rows = (indices[:, : len(parts)] == wanted).all(axis=1)
        names |= set(map(str, np.unique(indices[inside_rows, len(parts)]).tolist()))
    return names


def _relative_keys(array: ArrayState, encoding: ChunkKeyEncoding) -> Iterator[str]:
    for indices, _ in array.iter_indices():
        for index in map(tuple, indices.tolist()):
            yield encoding.encode(index)


def _node_size(node: NodeState) -> int:
    documents = sum(map(content_length, node.documents.values()))
    return documents + (node.array.totals().bytes if node.array is not None else 0)


def _value_size(tree: Worktree, key: str) -> int:
    content = tree.nodes.value(key)
    if content is None:
        raise InternalError(f"plain value {key!r} was listed but is not there")
    return content_length(content)


def _chunks_size_below(node: NodeState, prefix: str) -> int:
    array = node.array
    if array is None or array.spec.encoding is None:
        return 0
    encoding = array.spec.encoding
    if encoding.separator != "/":
        # Such an array's chunks lie in no folder inside it.
        return 0
    if encoding.leading and prefix == f"{join_key(node.path, encoding.leading)}/":
        return array.totals().bytes
    size = 0
    for indices, lengths in array.iter_indices():
        for index, length in zip(map(tuple, indices.tolist()), lengths.tolist(), strict=True):
            size += length if join_key(node.path, encoding.encode(index)).startswith(prefix) else 0
    return size
