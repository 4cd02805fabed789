"""Which keys a worktree has: enumeration, folders and sizes. Reads metadata only, never chunk bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
import numpy.typing as npt

from vstore.errors import InternalError
from vstore.format.page import Totals
from vstore.keys.zarr import join_key
from vstore.worktree.arrays import ArrayState
from vstore.worktree.contents import content_length
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree


def iter_keys(tree: Worktree, prefix: str) -> Iterator[str]:
    """Yield every key that starts with the string `prefix`, in no special order."""
    folder = prefix.rpartition("/")[0]
    for node in _nodes_around(tree, folder) if prefix else []:
        yield from (key for key in _keys_of(node, folder) if key.startswith(prefix))
    for path in tree.nodes.iter_nodes(prefix):
        found = tree.nodes.node(path)
        if found is not None:
            yield from _keys_of(found, path)
    yield from tree.nodes.iter_values(prefix)


def iter_folder(tree: Worktree, folder: str) -> Iterator[str]:
    """Yield the names right below `folder`, each once: of nodes, documents, plain values and parts of chunk keys.

    Parts of chunk keys come last, and are not held in memory.
    """
    names = tree.nodes.child_names(folder)
    nodes = _nodes_around(tree, folder)
    for node in nodes:
        if node.path == folder:
            names.update(node.documents)
    yield from sorted(names)
    for node in nodes:
        yield from (name for name in _chunk_children(node, _inside(node, folder)) if name not in names)


def list_folder(tree: Worktree, folder: str) -> set[str]:
    """Return the names right below `folder`."""
    return set(iter_folder(tree, folder))


def size_below(tree: Worktree, folder: str) -> int:
    """Return the bytes of everything below `folder`; chunks count from the totals kept for them."""
    prefix = f"{folder}/" if folder else ""
    size = sum(_value_size(tree, key) for key in tree.nodes.iter_values(prefix))
    for node in _nodes_around(tree, folder):
        if node.path == folder:
            size += _node_size(node)
        else:
            size += _chunks_size_below(node, folder)
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


def _inside(node: NodeState, folder: str) -> str:
    """Return a folder at or below a node relative to it."""
    return folder[len(node.path) :].strip("/")


def _keys_of(node: NodeState, folder: str) -> Iterator[str]:
    """Yield a node's own keys; of chunks only those that may lie below `folder`, which is at or below the node."""
    for name in node.documents:
        yield join_key(node.path, name)
    for indices, _ in _chunks_below(node, folder):
        assert node.array is not None
        assert node.array.spec.encoding is not None
        encode = node.array.spec.encoding.encode
        for index in map(tuple, indices.tolist()):
            yield join_key(node.path, encode(index))


def _chunks_below(
    node: NodeState, folder: str
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]]:
    """Yield indices i64[n, d] and lengths u64[n] of a node's chunks whose keys lie below a folder at or below it."""
    array = node.array
    if array is None or array.spec.encoding is None:
        return
    first = array.spec.encoding.first_indices(_inside(node, folder))
    if first is not None:
        yield from array.iter_indices(first)


def _chunk_children(node: NodeState, inside: str) -> Iterator[str]:
    """Yield the parts of chunk keys that come right after the folder `inside` of a node, each once."""
    array = node.array
    encoding = None if array is None else array.spec.encoding
    if array is None or encoding is None:
        return
    if not inside and encoding.leading and encoding.separator == "/":
        if next(array.iter_visible(), None) is not None:
            yield encoding.leading
        return
    first = encoding.first_indices(inside)
    if first is None:
        return
    if encoding.separator != "/" or encoding.ndim == 0:
        for indices, _ in array.iter_indices():
            yield from map(encoding.encode, map(tuple, indices.tolist()))
        return
    # Tiles come in the order of their coordinates: those that may hold equal names follow each other.
    for _, tiles in groupby(_names_by_tile(array, first), lambda pair: pair[0]):
        names: set[int] = set()
        for _, found in tiles:
            yield from (str(name) for name in found if name not in names)
            names.update(found)


def _names_by_tile(array: ArrayState, first: tuple[int, ...]) -> Iterator[tuple[int, list[int]]]:
    """Yield the distinct indices that follow `first`, tile by tile, behind the tile's coordinate in their dimension."""
    dimension = len(first)
    for indices, _ in array.iter_indices(first):
        found = np.unique(indices[:, dimension]).tolist()
        yield found[0] // array.extents[dimension], found


def _node_size(node: NodeState) -> int:
    documents = sum(map(content_length, node.documents.values()))
    return documents + (node.array.totals().bytes if node.array is not None else 0)


def _value_size(tree: Worktree, key: str) -> int:
    content = tree.nodes.value(key)
    if content is None:
        raise InternalError(f"plain value {key!r} was listed but is not there")
    return content_length(content)


def _chunks_size_below(node: NodeState, folder: str) -> int:
    array = node.array
    encoding = None if array is None else array.spec.encoding
    if array is None or encoding is None:
        return 0
    if encoding.separator == "/" and _inside(node, folder) == encoding.leading:
        return array.totals().bytes
    return sum(int(lengths.sum()) for _, lengths in _chunks_below(node, folder))
