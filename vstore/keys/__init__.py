"""Names: objects in storage, refs in the catalog, and Zarr's keys.

`objects` spells where things lie in storage, `refs` says which branch and tag names are allowed, `zarr` splits a
key of a Zarr store into a node path and a document or chunk. All pure; used by every layer above.
"""
