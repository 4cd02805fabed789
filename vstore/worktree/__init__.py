"""A snapshot seen through a session's edits, by Zarr keys.

`nodes` finds and edits groups, arrays and plain values; `arrays` resolves and edits the chunk refs of one array;
`contents` says where bytes are; `listing` enumerates keys; `tree` (class `Worktree`) routes keys to them. Below:
`changes` and `blobs`; above: `store`, `commit`, `session`.
"""

from vstore.worktree.tree import Worktree

__all__ = ["Worktree"]
