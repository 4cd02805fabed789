"""A snapshot seen through a session's edits, by Zarr keys.

`nodes` finds and edits groups, arrays and plain values; `arrays` resolves and edits the chunk refs of one array;
`contents` says where bytes are; `listing` enumerates keys; `routes` says what a key names; `tree` (class `Worktree`)
reads and edits it. Below: `changes` and `blobs`; above: `store`, `commit`, `session`.
"""

from vstore.worktree.tree import Worktree

__all__ = ["Worktree"]
