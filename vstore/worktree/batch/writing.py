"""Stores and deletes the chunks of a batch: hashed and put before any lock is taken, noted under one lock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt

from vstore.changes.pending import ROW_DTYPE, PendingKind
from vstore.ids import DIGEST_SIZE, BytesLike, blake3_digest
from vstore.worktree.arrays import ArrayState
from vstore.worktree.batch.keys import FEW, Located, TilePart, locate
from vstore.worktree.batch.lookup import base_refs, find
from vstore.worktree.tree import Worktree

MAX_SET_BYTES = 8 * 1024 * 1024
MAX_SET_CHUNKS = 16_384
"""Larger sets are made in parts of at most so much: bounds how far a pack may exceed its target."""


def set_many(tree: Worktree, keys: Sequence[str], values: Sequence[BytesLike | None]) -> None:
    """Store each value under its key, or delete the key where it is None, as one by one in this order.

    The values are copied or written before this returns. On an error those of some keys may have been stored.
    """
    for start, stop in _parts(values):
        _set_part(tree, keys[start:stop], values[start:stop])


def _parts(values: Sequence[BytesLike | None]) -> Iterator[tuple[int, int]]:
    start = size = 0
    for row, value in enumerate(values):
        length = 0 if value is None else len(value)
        if row - start >= MAX_SET_CHUNKS or (row > start and size + length > MAX_SET_BYTES):
            yield start, row
            start, size = row, 0
        size += length
    if start < len(values):
        yield start, len(values)


def _set_part(tree: Worktree, keys: Sequence[str], values: Sequence[BytesLike | None]) -> None:
    located = (
        locate(tree, keys)
        if len(keys) > FEW and all(value is None or len(value) for value in values)
        else None
    )
    if located is None:
        _set_singly(tree, keys, values)
        return
    edits = _plan_edits(tree, located, values)
    if edits is None:
        return
    if not _apply(tree, located, edits, values):
        # Another thread deleted or replaced the array meanwhile: what the keys name now may be something else.
        for slot in edits.own["at"].tolist():
            tree.writer.release(slot)
        _set_singly(tree, keys, values)


def _set_singly(tree: Worktree, keys: Sequence[str], values: Sequence[BytesLike | None]) -> None:
    for key, value in zip(keys, values, strict=True):
        if value is None:
            tree.delete(key)
        else:
            tree.set(key, value)


@dataclass(frozen=True, slots=True)
class _Edits:
    """What a batch changes: by row of the batch the pending row, if it gets one; `inline` tells which lie inline."""

    rows: npt.NDArray[Any]
    touched: npt.NDArray[np.bool_]
    inline: npt.NDArray[np.bool_]

    @property
    def own(self) -> npt.NDArray[Any]:
        """The rows that hold blobs of the writer."""
        chosen: npt.NDArray[Any] = self.rows[
            self.touched & ~self.inline & (self.rows["kind"] == PendingKind.OWN)
        ]
        return chosen


def _plan_edits(tree: Worktree, located: Located, values: Sequence[BytesLike | None]) -> _Edits | None:
    """Return the edits, their blobs put into the writer; None if there is nothing to do."""
    lengths = np.array([-1 if value is None else len(value) for value in values], dtype=np.int64)
    deleted = lengths < 0
    inline = ~deleted & (lengths <= tree.inline_bytes)
    stored = ~deleted & ~inline
    rows = np.zeros(len(values), dtype=ROW_DTYPE)
    touched = ~deleted
    if deleted.any():
        rows["kind"][deleted] = PendingKind.DELETED
        touched[deleted] = _present(tree, located, deleted)[deleted]
    hashed = np.flatnonzero(stored).tolist()
    blobs: list[BytesLike] = [values[row] for row in hashed]  # type: ignore[misc]
    digests = list(map(blake3_digest, blobs))
    if hashed:
        rows["digest"][hashed] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_SIZE)
    same = _equal_to_base(tree, located, values, rows["digest"], stored, inline)
    if same.any():
        differs = ~same[hashed]
        blobs, digests = list(compress(blobs, differs)), list(compress(digests, differs))
    changed = stored & ~same
    rows["at"][changed] = tree.writer.put_many(blobs, digests)
    rows["kind"][changed] = PendingKind.OWN
    rows["length"][changed] = lengths[changed]
    rows[same] = np.zeros((), ROW_DTYPE)
    rows["kind"][same] = PendingKind.UNCHANGED
    return _Edits(rows, touched, inline & ~same) if touched.any() else None


def _present(tree: Worktree, located: Located, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell which of the wanted chunks there are."""
    parts = []
    for part in located.parts:
        here = np.flatnonzero(wanted[part.rows])
        if len(here):
            parts.append(TilePart(part.key, part.rows[here], part.positions[here]))
    others, stored = find(tree, Located(located.chunk, located.spec, located.indices, parts))
    present = np.zeros(len(wanted), dtype=bool)
    present[[row for row, source in others if source is not None]] = True
    for columns in stored.columns:
        present[columns[0]] = True
    return present


def _equal_to_base(
    tree: Worktree,
    located: Located,
    values: Sequence[BytesLike | None],
    digests: npt.NDArray[np.uint8],
    stored: npt.NDArray[np.bool_],
    inline: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Tell which chunks are what the base holds there, as far as that is known without asking an object store."""
    same = np.zeros(len(values), dtype=bool)
    array = located.chunk.array
    if array.base is None:
        return same
    for part in located.parts:
        if not tree.blobs.storage.is_local and not array.base_tile_is_cached(part.key):
            continue
        refs = base_refs(array.base_tile(part.key), part.positions)
        here = np.flatnonzero(stored[part.rows] & (refs.layer >= 0))
        rows = part.rows[here]
        same[rows] = (refs.digests(here) == digests[rows]).all(axis=1)
        for at in np.flatnonzero(inline[part.rows] & (refs.layer >= 0)).tolist():
            row = int(part.rows[at])
            same[row] = refs.inline(at) == values[row]
    return same


def _apply(tree: Worktree, located: Located, edits: _Edits, values: Sequence[BytesLike | None]) -> bool:
    """Put the edits into the array's tables; False if it is not what its path holds any more."""
    path, array = located.chunk.path, located.chunk.array
    with tree.lock:
        node = tree.nodes.node(path)
        # The grid may have become smaller, too.
        if node is None or node.array is not array or array.spec != located.spec:
            return False
        tree.begin_edit()
        # As many as one by one, for the room that the refs need is made by their number.
        tree.mutations += len(edits.rows) - 1
        tree.nodes.drafts[path] = node
        for part in located.parts:
            touched = edits.touched[part.rows]
            if touched.any():
                _apply_to_tile(tree, array, part, touched, edits, values)
        return True


def _apply_to_tile(
    tree: Worktree,
    array: ArrayState,
    part: TilePart,
    touched: npt.NDArray[np.bool_],
    edits: _Edits,
    values: Sequence[BytesLike | None],
) -> None:
    tile = array.tile_for_edit(part.key)
    if len(tile):
        replaced = tile.rows_at(part.positions[touched])[1]
        for slot in replaced["at"][replaced["kind"] == PendingKind.OWN].tolist():
            tree.writer.release(slot)
    inline = edits.inline[part.rows] & touched
    tile.put_many(part.positions[touched & ~inline], edits.rows[part.rows[touched & ~inline]])
    for at in np.flatnonzero(inline).tolist():
        data = values[int(part.rows[at])]
        assert data is not None, "what is deleted is not inline"
        tile.set_inline(int(part.positions[at]), data)
