"""Many chunks of one array in one call: looked up by columns, read in runs, set under one lock.

What comes out is what `Worktree.find`, `set` and `delete` give key by key; keys that are not plain chunks of one array
inside its grid, and batches too small to gain anything, take that way. `keys` says which chunks are meant, `lookup`
where they are; `reading` plans `tasks`, which the caller runs in turn or in threads; `writing` stores and deletes.
Above: `vstore.zarr_pipeline`.
"""
