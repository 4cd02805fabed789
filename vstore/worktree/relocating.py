"""Taking pending refs to where compact moved their blobs: what a commit does before it is encoded.

A session may point at blobs in packs of other commits (a shifted array, a merge, a cherry-pick). If compact replaced
such a pack meanwhile, a new root must not name it any more: gc is about to delete it, and when nothing else names it,
the catalog forgets where its blobs went. Only pending chunk refs are taken along; all else that a session points at
is held by its parents and sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vstore.changes.pending import PendingKind
from vstore.errors import MissingBlobError
from vstore.ids import PackId
from vstore.keys.objects import pack_name
from vstore.worktree.spilling import pending_tiles, spilled_of, unspill
from vstore.worktree.tree import Worktree


def borrowed_packs(tree: Worktree) -> frozenset[PackId]:
    """Return the packs of others that pending refs may point into, in memory or spilled."""
    packs = set(tree.dictionaries.packs.names)
    with tree.lock:
        for _, _, tile in pending_tiles(tree):
            spilled = spilled_of(tile)
            for layer in () if spilled is None else spilled.layers:
                packs |= layer.packs
    return frozenset(packs)


def relocate_pending(tree: Worktree, moved: Mapping[PackId, PackId]) -> None:
    """Point pending refs into the packs `moved` at their targets. The caller holds the worktree's lock.

    Spilled refs into them come back to memory. Raises `MissingBlobError`, with some refs moved, which is as good as
    none, if a target lacks a blob.
    """
    for _, _, tile in pending_tiles(tree):
        spilled = spilled_of(tile)
        if spilled is not None and any(not layer.packs.isdisjoint(moved) for layer in spilled.layers):
            unspill(tile, tree.dictionaries)
    names = tree.dictionaries.packs.names
    numbers = {number: moved[name] for number, name in enumerate(names) if name in moved}
    if not numbers:
        return
    for _, _, tile in pending_tiles(tree):
        positions, rows = tile.to_rows()
        stored = rows["kind"] == PendingKind.STORED
        touched = stored & np.isin(rows["source"], list(numbers))
        if not touched.any():
            continue
        rows = rows.copy()
        for number in np.unique(rows["source"][touched]).tolist():
            _move(tree, rows, touched & (rows["source"] == number), numbers[number])
        tile.set_many(positions, rows)


def _move(tree: Worktree, rows: npt.NDArray[Any], mask: npt.NDArray[np.bool_], target: PackId) -> None:
    indexed = tree.blobs.footer(target)
    digests = np.ascontiguousarray(rows["digest"][mask])
    found = indexed.find_many(digests)
    if (found < 0).any():
        lost = digests[int(np.flatnonzero(found < 0)[0])].tobytes()
        raise MissingBlobError(
            f"blob {lost.hex()}, which this session points at, was left behind when its pack was replaced by "
            f"{pack_name(target)}: no snapshot held it any more. Nothing was committed; run the writes again in a "
            "new session."
        )
    rows["at"][mask] = indexed.footer.offsets[found]
    rows["source"][mask] = tree.dictionaries.packs.number(target)
