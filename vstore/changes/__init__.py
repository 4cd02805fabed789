"""The pure algebra of changes: what a session edited, how refs are layered and merged. No I/O.

`documents` reads what a node's metadata documents say, `tiling` cuts chunk grids into tiles, `pending` holds the
chunk refs that a session wrote, `layering` merges manifests, `diff` is what a comparison returns. The edits of a
session as a whole are kept by the `worktree`.
"""
