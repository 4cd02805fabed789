"""Edits that no Zarr store can make: nodes and chunks change places, and none is read or written for it.

Below: `worktree.moving` and `worktree.reindexing` do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vstore.errors import NodeNotFoundError
from vstore.keys.zarr import normalize_prefix
from vstore.session.access import Access


class Edits(Access):
    """How a `Session` moves things."""

    def move(self, from_path: str, to_path: str) -> None:
        """Move a node and all below it to another path, whose parent is a group (or the root) and which is free.

        An edit of metadata, whatever the node holds; it keeps its id, so that merges follow it. Raises
        `NodeNotFoundError`, `NodeExistsError`, or `InvalidInputError` for a move into itself or below an array.
        """
        from vstore.worktree.moving import move_node

        move_node(self.tree_for_writing(), normalize_prefix(from_path), normalize_prefix(to_path))

    def shift_array(self, array_path: str, chunk_offset: Sequence[int]) -> None:
        """Move every chunk of an array by so many chunks along each dimension, without reading any.

        What leaves the chunk grid is dropped, what becomes free reads as fill value. A chunk at the array's edge is
        moved whole, with what it holds beyond the edge. Raises `InvalidInputError` for grids that are not regular.
        """
        from vstore.worktree.reindexing import check_index, reindex, require_array, shift_by

        tree, path = self.tree_for_writing(), normalize_prefix(array_path)
        with tree.lock:
            array = require_array(tree, path)[1]
            assert array.spec.grid is not None
            offset = check_index(chunk_offset, array.spec.ndim, path)
            reindex(tree, path, shift_by(offset, array.spec.grid))

    def reindex_array(
        self,
        array_path: str,
        forward: Callable[[tuple[int, ...]], Sequence[int] | None],
        backward: Callable[[tuple[int, ...]], Sequence[int] | None] | None = None,
    ) -> None:
        """Give every chunk the index that `forward` returns for its own; None drops it. No chunk is read.

        A place that no chunk is moved to reads as fill value afterwards. `backward`, if given, must undo `forward`.
        Raises `InvalidInputError`, before anything is changed, if two chunks would get one index, or one lies outside
        the chunk grid, or the grid is not regular. For millions of chunks `shift_array` is faster.
        """
        from vstore.worktree.reindexing import map_each, reindex

        path = normalize_prefix(array_path)
        reindex(self.tree_for_writing(), path, map_each(forward, backward, path))

    def get_node_id(self, path: str) -> str:
        """Return the id of a group or array, which moves and renames keep, as hex text."""
        node = self.tree.nodes.node(normalize_prefix(path))
        if node is None:
            raise NodeNotFoundError(f"there is no group or array at {path!r}.")
        return node.node_id.hex()
