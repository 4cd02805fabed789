"""Many chunks of one array in one call: looked up by columns, read in runs, set under one lock.

What comes out is what `Worktree.find`, `set` and `delete` give key by key; keys that are not plain chunks of one array
inside its grid, and batches too small to gain anything, take that way. `plan_reads` gives independent tasks, which
the caller runs in turn or in threads; `set_many` stores or deletes. Above: `vstore.zarr_pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from vstore.blobs.buffers import OverwrittenError
from vstore.blobs.cache import cached_blob
from vstore.blobs.runs import (
    LOCAL_GAP_BYTES,
    REMOTE_GAP_BYTES,
    RUN_BYTES,
    BlobColumns,
    Run,
    iter_run,
    plan_runs,
)
from vstore.changes.documents import ArraySpec
from vstore.changes.layering import IndexedLayer, LayeredTile
from vstore.changes.pending import ROW_DTYPE, PendingKind, PendingTile
from vstore.changes.tiling import split_indices
from vstore.format.manifest import ChunkKind
from vstore.format.node import tile_key
from vstore.ids import DIGEST_SIZE, BytesLike, PackId, blake3_digest
from vstore.keys.zarr import ChunkKeyEncoding
from vstore.worktree.arrays import ArrayState, ref_source
from vstore.worktree.contents import ChunkSource
from vstore.worktree.tree import Chunk, Worktree

FEW = 4
"""So many chunks are handled one by one: setting columns up costs as much as ten look-ups."""
MAX_SET_BYTES = 8 * 1024 * 1024
MAX_SET_CHUNKS = 16_384
"""Larger sets are made in parts of at most so much: bounds how far a pack may exceed its target."""


# --- which chunks keys name ----------------------------------------------------------------------------------


class TilePart(NamedTuple):
    """The keys of a batch that lie in one tile: their rows (indices into the batch) and positions u16."""

    key: bytes
    rows: npt.NDArray[np.intp]
    positions: npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Located:
    """The chunks that a batch of keys names: `indices` i64[n, d] of one array, by tile, inside the grid of `spec`."""

    chunk: Chunk
    spec: ArraySpec
    indices: npt.NDArray[np.int64]
    parts: list[TilePart]


def locate(tree: Worktree, keys: Sequence[str]) -> Located | None:
    """Return what `keys` name if they are distinct chunks of one array inside its grid, else None."""
    first = tree.route(keys[0])
    if not isinstance(first, Chunk) or first.array.spec.encoding is None:
        return None
    spec = first.array.spec
    indices = decode_indices(first.array.spec.encoding, f"{first.path}/" if first.path else "", keys)
    if indices is None or _has_nodes_below(tree, first.path):
        return None
    if spec.grid is not None and (indices >= np.array(spec.grid, dtype=np.int64)).any():
        return None
    tiles, positions = split_indices(indices, first.array.extents)
    parts = _by_tile(tiles, positions)
    if any(len(np.unique(part.positions)) < len(part.positions) for part in parts):
        return None
    return Located(first, spec, indices, parts)


def decode_indices(
    encoding: ChunkKeyEncoding, prefix: str, keys: Sequence[str]
) -> npt.NDArray[np.int64] | None:
    """Return the chunk indices i64[n, d] that `keys` spell behind `prefix`, None if any of them spells none."""
    if encoding.ndim == 0:
        return None
    if encoding.leading:
        prefix += encoding.leading + encoding.separator
    start = len(prefix)
    separators = encoding.ndim - 1
    texts = [key[start:] for key in keys if key.startswith(prefix)]
    if len(texts) < len(keys):
        return None
    parts = texts
    if separators:
        if any(text.count(encoding.separator) != separators for text in texts):
            return None
        parts = encoding.separator.join(texts).split(encoding.separator)
    try:
        numbers = list(map(int, parts))
        # Only the canonical spelling names a chunk: int() takes others too.
        if list(map(str, numbers)) != parts or min(numbers) < 0:
            return None
        return np.array(numbers, dtype=np.int64).reshape(-1, encoding.ndim)
    except (ValueError, OverflowError):
        return None


def _has_nodes_below(tree: Worktree, path: str) -> bool:
    """Tell whether nodes lie below an array's path: the nearer one may own some of the keys."""
    prefix = f"{path}/" if path else ""
    return any(below != path for below in tree.nodes.iter_nodes(prefix))


def _by_tile(tiles: npt.NDArray[np.int64], positions: npt.NDArray[np.uint16]) -> list[TilePart]:
    if (tiles == tiles[0]).all():
        return [TilePart(tile_key(tuple(tiles[0].tolist())), np.arange(len(tiles)), positions)]
    order = np.lexsort(tiles.T[::-1])
    ordered = tiles[order]
    firsts = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1)))
    return [
        TilePart(tile_key(tuple(ordered[first].tolist())), rows, positions[rows])
        for first, rows in zip(firsts.tolist(), np.split(order, firsts[1:]), strict=True)
    ]


# --- looking up ----------------------------------------------------------------------------------------------


class _BaseRefs(NamedTuple):
    """What a base tile holds at some positions: the layer's number (-1: nothing), and the row in its manifest."""

    layers: Sequence[IndexedLayer]
    layer: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]

    def digests(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """Return the digests of these; zeros where there is no stored chunk."""
        found = np.zeros((len(rows), DIGEST_SIZE), dtype=np.uint8)
        for number, layer in enumerate(self.layers):
            here = np.flatnonzero(self.layer[rows] == number)
            at = self.row[rows[here]]
            stored = layer.manifest.kinds[at] == ChunkKind.STORED
            found[here[stored]] = layer.manifest.digests[at[stored]]
        return found

    def inline(self, row: int) -> bytes | None:
        """Return the bytes of an inline chunk."""
        if self.layer[row] < 0:
            return None
        manifest = self.layers[int(self.layer[row])].manifest
        at = int(self.row[row])
        if int(manifest.kinds[at]) != ChunkKind.INLINE:
            return None
        start = int(manifest.offsets[at])
        return manifest.inline[start : start + int(manifest.lengths[at])]


def _base_refs(tile: LayeredTile | None, positions: npt.NDArray[np.uint16]) -> _BaseRefs:
    found = np.full(len(positions), -1, dtype=np.int64)
    rows = np.zeros(len(positions), dtype=np.int64)
    layers = [] if tile is None else list(tile.layers)
    deleted = np.zeros(len(positions), dtype=bool)
    for number, layer in enumerate(layers):
        manifest = layer.manifest
        if not len(manifest):
            continue
        at = np.minimum(np.searchsorted(manifest.positions, positions), len(manifest) - 1)
        hit = (manifest.positions[at] == positions) & (found < 0) & ~deleted
        gone = manifest.kinds[at] == ChunkKind.DELETED
        deleted |= hit & gone
        hit &= ~gone
        found[hit], rows[hit] = number, at[hit]
    return _BaseRefs(layers, found, rows)


@dataclass(slots=True)
class _Stored:
    """Chunks in packs, found so far: columns by chunk, and where the mark of what was verified is."""

    packs: dict[PackId, int] = field(default_factory=dict)
    columns: list[tuple[npt.NDArray[Any], ...]] = field(default_factory=list)
    marks: list[tuple[bytearray | None, npt.NDArray[np.int64]]] = field(default_factory=list)

    def add_layer(self, layer: IndexedLayer, rows: npt.NDArray[np.intp], at: npt.NDArray[np.int64]) -> None:
        """Add the chunks in rows `at` of a layer's manifest, which are `rows` of the batch."""
        manifest = layer.manifest
        numbers = np.array(
            [self.packs.setdefault(pack, len(self.packs)) for pack in manifest.packs], np.uint32
        )
        verified = np.array(layer.verified, dtype=np.uint8)[at].astype(bool)
        sources = numbers[manifest.sources[at]]
        self.columns.append(
            (rows, sources, manifest.offsets[at], manifest.lengths[at], manifest.digests[at], verified)
        )
        self.marks.append((layer.verified, at))

    def add_pending(
        self, rows: npt.NDArray[np.intp], found: npt.NDArray[Any], packs: Sequence[PackId]
    ) -> None:
        """Add pending refs of sealed packs."""
        numbers = [
            self.packs.setdefault(packs[source], len(self.packs)) for source in found["source"].tolist()
        ]
        none = np.zeros(len(rows), dtype=bool)
        sources = np.array(numbers, dtype=np.uint32)
        self.columns.append((rows, sources, found["at"], found["length"], found["digest"], none))
        self.marks.append((None, np.zeros(len(rows), np.int64)))


class _Found(NamedTuple):
    """Where the chunks of a batch are: in packs by columns, elsewhere as a source, or nowhere (None)."""

    others: list[tuple[int, ChunkSource | None]]
    stored: _Stored


def _find(tree: Worktree, located: Located) -> _Found:
    others: list[tuple[int, ChunkSource | None]] = []
    stored = _Stored()
    for part in located.parts:
        _find_in_tile(tree, located, part, others, stored)
    return _Found(others, stored)


def _find_in_tile(
    tree: Worktree,
    located: Located,
    part: TilePart,
    others: list[tuple[int, ChunkSource | None]],
    stored: _Stored,
) -> None:
    array = located.chunk.array
    with tree.lock:
        pending = array.pending.get(part.key)
        chunks = None
        if pending is not None and pending.spilled is not None:
            chunks = [array.pending_chunk(part.key, at, tree.dictionaries) for at in part.positions.tolist()]
        else:
            shows = base_shows(array, located.indices[part.rows])
            if pending is not None:
                _take_pending(tree, pending, part, shows, others, stored)
            else:
                others += [(row, None) for row in part.rows[~shows].tolist()]
    if chunks is not None:
        # What a session wrote so long ago that it was spilled is hardly ever read back by it.
        for row, at, chunk in zip(part.rows.tolist(), part.positions.tolist(), chunks, strict=True):
            others.append((row, array.resolve(part.key, at, chunk)))
    elif shows.any():
        _find_in_base(array, part, np.flatnonzero(shows), others, stored)


def _take_pending(
    tree: Worktree,
    pending: PendingTile,
    part: TilePart,
    shows: npt.NDArray[np.bool_],
    others: list[tuple[int, ChunkSource | None]],
    stored: _Stored,
) -> None:
    """Take what the session wrote; `shows`, where the base shows through, is brought up to date by it."""
    written, rows = pending.rows_at(part.positions)
    kinds = rows["kind"]
    shows[written] = kinds == PendingKind.UNCHANGED
    packed = kinds == PendingKind.STORED
    stored.add_pending(part.rows[written[packed]], rows[packed], tree.dictionaries.packs.names)
    for at in np.flatnonzero(~packed & (kinds != PendingKind.UNCHANGED)).tolist():
        row = int(part.rows[written[at]])
        ref = pending.get(int(part.positions[written[at]]))
        assert ref is not None, "rows_at found it under the same lock"
        others.append((row, ref_source(ref, pending.inline, tree.dictionaries)))
    hidden = np.ones(len(part.rows), dtype=bool)
    hidden[written] = False
    others += [(row, None) for row in part.rows[hidden & ~shows].tolist()]


def _find_in_base(
    array: ArrayState,
    part: TilePart,
    shown: npt.NDArray[np.intp],
    others: list[tuple[int, ChunkSource | None]],
    stored: _Stored,
) -> None:
    tile = array.base_tile(part.key)
    refs = _base_refs(tile, part.positions[shown])
    others += [(row, None) for row in part.rows[shown[refs.layer < 0]].tolist()]
    for number, layer in enumerate(refs.layers):
        here = np.flatnonzero(refs.layer == number)
        at = refs.row[here]
        packed = layer.manifest.kinds[at] == ChunkKind.STORED
        if packed.any():
            stored.add_layer(layer, part.rows[shown[here[packed]]], at[packed])
        for index in here[~packed].tolist():
            position = int(part.positions[shown[index]])
            others.append((int(part.rows[shown[index]]), array.find_base(part.key, position)))


def base_shows(array: ArrayState, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell at which indices the base's chunks show where the session wrote nothing. The caller holds the lock."""
    if array.base is None or array.cleared:
        return np.zeros(len(indices), dtype=bool)
    if array.limit is None:
        return np.ones(len(indices), dtype=bool)
    inside: npt.NDArray[np.bool_] = np.all(indices < np.array(array.limit, dtype=np.int64), axis=1)
    return inside


# --- reading -------------------------------------------------------------------------------------------------


class ReadTask(Protocol):
    """A part of a batch: reads its chunks and yields (row of the batch, bytes, or None where there are none).

    Bytes are valid for as long as they are held. Errors name the chunk's key.
    """

    @property
    def checks(self) -> bool:
        """Whether neighbours must be hashed, which is most of the work of large ones."""

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]: ...


def plan_reads(
    tree: Worktree,
    keys: Sequence[str],
    *,
    run_bytes: int = RUN_BYTES,
    at_once: Callable[[Callable[[TilePart], object], Sequence[TilePart]], object] | None = None,
) -> list[ReadTask]:
    """Return tasks that together read the chunk of each key, in any order; may wait for metadata.

    A task holds at most `run_bytes`, or one chunk, in memory beside what it yielded. `at_once` applies a function to
    many items in threads: where manifests must be fetched, several come at once. Raises what a look-up raises.
    """
    located = locate(tree, keys) if len(keys) > FEW else None
    if located is None:
        return [_Singles(tree, keys)]
    array = located.chunk.array
    if at_once is not None and len(located.parts) > 1 and array.base is not None and not array.cleared:
        # Into the cache, that is, from which the look-up takes them.
        at_once(lambda part: array.base_tile(part.key), located.parts)
    others, stored = _find(tree, located)
    tasks: list[ReadTask] = [_Others(tree, keys, others)] if others else []
    if stored.columns:
        tasks += _plan_stored(tree, keys, stored, run_bytes)
    return tasks


def _plan_stored(tree: Worktree, keys: Sequence[str], stored: _Stored, run_bytes: int) -> list[ReadTask]:
    rows, sources, offsets, lengths, digests, verified = map(
        np.concatenate, zip(*stored.columns, strict=True)
    )
    is_local = tree.blobs.storage.is_local
    # What lies on a local disk is trusted once it was verified; what comes over a network is not.
    trusted = verified if is_local else np.zeros(len(rows), dtype=bool)
    marks = [mark for mark, at in stored.marks for _ in range(len(at))]
    mark_rows = np.concatenate([at for _, at in stored.marks])
    tasks: list[ReadTask] = []
    if not is_local:
        kept, left = _find_kept(rows, digests, run_bytes)
        if kept:
            tasks += kept
            columns = (rows, sources, offsets, lengths, digests, trusted, mark_rows)
            rows, sources, offsets, lengths, digests, trusted, mark_rows = (each[left] for each in columns)
            marks = list(compress(marks, left.tolist()))
    blobs = BlobColumns(list(stored.packs), sources, offsets, lengths, digests, trusted)
    context = _Context(tree, keys, blobs, rows.tolist(), marks, mark_rows.tolist())
    gap = LOCAL_GAP_BYTES if is_local else REMOTE_GAP_BYTES
    tasks += [_RunTask(context, run) for run in plan_runs(blobs, gap_bytes=gap, run_bytes=run_bytes)]
    return tasks


def _find_kept(
    rows: npt.NDArray[np.intp], digests: npt.NDArray[np.uint8], task_bytes: int
) -> tuple[list[_Kept], npt.NDArray[np.bool_]]:
    """Return tasks for the chunks that the process keeps in memory, and which are left to be fetched."""
    left = np.ones(len(rows), dtype=bool)
    tasks: list[_Kept] = []
    size = task_bytes
    for at, row in enumerate(rows.tolist()):
        data = cached_blob(digests[at].tobytes())
        if data is None:
            continue
        left[at] = False
        if size >= task_bytes:
            tasks.append(_Kept([]))
            size = 0
        tasks[-1].chunks.append((row, data))
        size += len(data)
    return tasks, left


@dataclass(frozen=True, slots=True)
class _Kept:
    """Chunks of an object store that were read, and checked, before."""

    chunks: list[tuple[int, memoryview]]
    checks: ClassVar[bool] = False

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]:
        return iter(self.chunks)


@dataclass(frozen=True, slots=True)
class _Singles:
    """Keys that are found and read one by one."""

    tree: Worktree
    keys: Sequence[str]
    checks: ClassVar[bool] = False

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]:
        for row, key in enumerate(self.keys):
            source = self.tree.find(key)
            yield row, None if source is None else self.tree.contents.read(source, None, f"key {key!r}")


@dataclass(frozen=True, slots=True)
class _Others:
    """Chunks that are absent, at hand, in this session's writer, or in somebody else's files."""

    tree: Worktree
    keys: Sequence[str]
    sources: list[tuple[int, ChunkSource | None]]
    checks: ClassVar[bool] = False

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]:
        read = self.tree.contents.read
        for row, source in self.sources:
            key = self.keys[row]
            try:
                data = None if source is None else read(source, None, f"key {key!r}")
            except OverwrittenError:
                data = self.tree.read(key)
            yield row, data


@dataclass(frozen=True, slots=True)
class _Context:
    """What the runs of one batch share; `rows`, `marks` and `mark_rows` go by the blobs' rows."""

    tree: Worktree
    keys: Sequence[str]
    blobs: BlobColumns
    rows: list[int]
    marks: list[bytearray | None]
    mark_rows: list[int]


@dataclass(frozen=True, slots=True)
class _RunTask:
    """Neighbours in a pack, read at once."""

    context: _Context
    run: Run

    @property
    def checks(self) -> bool:
        return not self.context.blobs.trusted[self.run.rows].all()

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]:
        tree, keys, blobs, rows, marks, mark_rows = (
            self.context.tree,
            self.context.keys,
            self.context.blobs,
            self.context.rows,
            self.context.marks,
            self.context.mark_rows,
        )
        for at, data in iter_run(tree.blobs, self.run, blobs, lambda at: f"key {keys[rows[at]]!r}"):
            mark = marks[at]
            if mark is not None:
                mark[mark_rows[at]] = 1
            yield rows[at], data


# --- writing -------------------------------------------------------------------------------------------------


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
    others, stored = _find(tree, Located(located.chunk, located.spec, located.indices, parts))
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
        refs = _base_refs(array.base_tile(part.key), part.positions)
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
