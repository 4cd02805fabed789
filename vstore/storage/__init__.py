"""Bytes under names.

`base` is the contract, `local` a directory, `objects` any obstore store, `location` turns what a user gives (path,
URL, store) into one of them. Knows no Zarr and no snapshots.
"""
