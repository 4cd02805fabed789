"""Moving nodes to other paths: an edit of metadata, whatever lies in them.

A node keeps its id and its chunks keep their refs, so that a move costs what is below the node in nodes, not in
chunks, and others can tell a move from a deletion. Plain values below a group go along.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from vstore.errors import InvalidInputError, NodeExistsError, NodeNotFoundError
from vstore.format.node import node_key
from vstore.keys.zarr import DOCUMENT_NAMES, iter_ancestors, join_key, parent_path
from vstore.worktree.contents import Content
from vstore.worktree.listing import is_folder_empty
from vstore.worktree.nodes import NodeState
from vstore.worktree.reshape import refuse_shared_keys
from vstore.worktree.tree import Worktree


def move_node(tree: Worktree, source: str, target: str) -> None:
    """Move the node at `source` and all below it to `target`, which must be free, below a group or the root.

    Raises before anything is changed: `NodeNotFoundError`, `NodeExistsError`, `InvalidInputError`.
    """
    with tree.lock:
        node = tree.nodes.node(source)
        if node is None:
            raise NodeNotFoundError(f"there is no group or array at {f'/{source}'!r} to be moved.")
        _check_target(tree, source, target)
        if node.array is not None:
            refuse_shared_keys(tree, target, node.array.spec)
        tree.begin_edit()
        relocate(tree, [(source, target)])


def _check_target(tree: Worktree, source: str, target: str) -> None:
    if not source:
        raise InvalidInputError("the root can't be moved. Move what lies in it.")
    parts = target.split("/")
    if not target or parts[-1] in DOCUMENT_NAMES or any(part in ("", ".", "..") for part in parts):
        raise InvalidInputError(f"{f'/{target}'!r} is no path that a node can have.")
    # Raises for a name that can't be stored.
    node_key(target)
    if target == source or target.startswith(f"{source}/"):
        raise InvalidInputError(f"{f'/{source}'!r} can't be moved into itself, to {f'/{target}'!r}.")
    for above in iter_ancestors(target):
        state = tree.nodes.node(above)
        if state is not None and state.array is not None:
            raise InvalidInputError(f"nothing can be moved to {f'/{target}'!r}: {f'/{above}'!r} is an array.")
    parent = parent_path(target)
    if parent and tree.nodes.node(parent) is None:
        raise NodeNotFoundError(
            f"there is no group {f'/{parent}'!r} to move {f'/{source}'!r} into. Create it first."
        )
    if tree.nodes.node(target) is not None or not is_folder_empty(tree, target):
        raise NodeExistsError(f"there is something at {f'/{target}'!r} already. Move or delete it first.")


class Lifted(NamedTuple):
    """What was taken away from a path: nodes and plain values, by their paths below it ("" is the node itself)."""

    nodes: dict[str, NodeState]
    values: dict[str, Content]


def relocate(tree: Worktree, moves: Iterable[tuple[str, str]]) -> None:
    """Move all that lies at and below each source to its target; first everything is taken, then everything is put.

    A source may lie below another one: it does not go along with that. Nothing is checked. The caller holds the lock.
    """
    for target, lifted in lift_all(tree, moves):
        put(tree, target, lifted)


def lift_all(tree: Worktree, moves: Iterable[tuple[str, str]]) -> list[tuple[str, Lifted]]:
    """Take away what lies at and below each source; return it with the targets, those nearest to the root first."""
    deepest_first = sorted(moves, key=lambda move: move[0].count("/"), reverse=True)
    lifted = [(target, _lift(tree, source)) for source, target in deepest_first]
    return sorted(lifted, key=lambda pair: pair[0].count("/"))


def _lift(tree: Worktree, source: str) -> Lifted:
    nodes, prefix = tree.nodes, f"{source}/"
    lifted = Lifted({}, {})
    for path in [source, *nodes.iter_nodes(prefix)]:
        state = nodes.node(path)
        if state is not None:
            lifted.nodes[path[len(prefix) :]] = state
    for key in list(nodes.iter_values(prefix)):
        content = nodes.value(key)
        if content is not None:
            lifted.values[key[len(prefix) :]] = content
    for path in [path for path in nodes.drafts if path == source or path.startswith(prefix)]:
        del nodes.drafts[path]
    for key in [key for key in nodes.values if key.startswith(prefix)]:
        del nodes.values[key]
    nodes.hidden.add(source)
    return lifted


def put(tree: Worktree, target: str, lifted: Lifted) -> None:
    """Put what was taken away at and below `target`."""
    for path, state in lifted.nodes.items():
        place_node(tree, join_key(target, path) if path else target, state)
    for key, value in lifted.values.items():
        tree.nodes.values[join_key(target, key)] = value


def place_node(tree: Worktree, path: str, state: NodeState) -> None:
    """Put a node of another path, or of another worktree, at `path`."""
    tree.nodes.drafts[path] = replace(state, path=path)
    tree.nodes.moved.add(state.node_id)
