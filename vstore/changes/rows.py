"""The chunk refs of one tile as rows that can be compared, merged and moved to another tile, many at a time.

A `ChunkRows` is what a tile shows: no tombstones, no layers. Two refs are the same if they stand for the same bytes:
stored, inline and a session's own blobs are compared by digest and length, virtual ones by source, range and
checksum. Below: `pending` (the row), `dictionaries` (what rows name by number); above: `worktree`, `merge`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from vstore.changes.dictionaries import Dictionaries, Numbering
from vstore.changes.pending import ROW_DTYPE, PendingKind
from vstore.changes.tiling import split_indices
from vstore.format.manifest import ChunkKind, Manifest
from vstore.format.node import tile_key
from vstore.ids import blake3_digest

Positions: TypeAlias = npt.NDArray[np.uint16]
Mask: TypeAlias = npt.NDArray[np.bool_]
Identities: TypeAlias = npt.NDArray[np.uint64]
"""u64[n, 8]: a row's bytes with what does not matter set to zero. Equal rows stand for equal bytes."""

_WORDS = ROW_DTYPE.itemsize // 8


class ChunkRows(msgspec.Struct, frozen=True):
    """Chunk refs at `positions` u16[n] (increasing) of a tile: `rows` of `ROW_DTYPE`, [n], none deleted or unchanged.

    Offsets of inline rows are into `inline`; numbers are those of one `Dictionaries`.
    """

    positions: Positions
    rows: npt.NDArray[Any]
    inline: bytes | bytearray = b""

    def __len__(self) -> int:
        return len(self.positions)


NO_ROWS = ChunkRows(np.zeros(0, np.uint16), np.zeros(0, ROW_DTYPE))


def from_manifest(manifest: Manifest, dictionaries: Dictionaries) -> ChunkRows:
    """Return the live refs of a merged manifest, numbered by `dictionaries`."""
    every = with_deleted(manifest, dictionaries)
    return select(every, manifest.kinds != ChunkKind.DELETED)


def with_deleted(manifest: Manifest, dictionaries: Dictionaries) -> ChunkRows:
    """Return all refs of a manifest, tombstones among them, numbered by `dictionaries`."""
    rows = np.zeros(len(manifest), ROW_DTYPE)
    rows["digest"] = manifest.digests
    rows["at"] = manifest.offsets
    rows["length"] = manifest.lengths
    rows["kind"] = manifest.kinds
    stored, virtual = manifest.kinds == ChunkKind.STORED, manifest.kinds == ChunkKind.VIRTUAL
    rows["source"][stored] = dictionaries.packs.numbers(manifest.packs)[manifest.sources[stored]]
    if virtual.any():
        rows["source"][virtual] = dictionaries.locations.numbers(manifest.locations)[
            manifest.sources[virtual]
        ]
        checks = np.array([0, *map(dictionaries.checksum_number, manifest.checksums)], dtype=np.uint32)
        rows["check"] = checks[manifest.checks]
    return ChunkRows(manifest.positions, rows, manifest.inline)


def translate(content: ChunkRows, numbered_by: Dictionaries, dictionaries: Dictionaries) -> ChunkRows:
    """Return the same refs, numbered by other dictionaries."""
    if numbered_by is dictionaries or not len(content):
        return content
    rows = content.rows.copy()
    stored, virtual = rows["kind"] == PendingKind.STORED, rows["kind"] == PendingKind.VIRTUAL
    _renumber(rows["source"], stored, numbered_by.packs, dictionaries.packs)
    _renumber(rows["source"], virtual, numbered_by.locations, dictionaries.locations)
    checked = virtual & (rows["check"] > 0)
    rows["check"] -= checked
    _renumber(rows["check"], checked, numbered_by.checksums, dictionaries.checksums)
    rows["check"] += checked
    return ChunkRows(content.positions, rows, content.inline)


def _renumber(numbers: npt.NDArray[np.uint32], mask: Mask, old: Numbering[Any], new: Numbering[Any]) -> None:
    """Give the numbers under a mask, in place, those that another numbering has for the same names."""
    if mask.any():
        used, places = np.unique(numbers[mask], return_inverse=True)
        numbers[mask] = new.numbers([old.names[number] for number in used.tolist()])[places]


def select(content: ChunkRows, keep: Mask) -> ChunkRows:
    """Return the rows under a mask."""
    return content if keep.all() else ChunkRows(content.positions[keep], content.rows[keep], content.inline)


def overlay(
    below: ChunkRows, positions: Positions, rows: npt.NDArray[Any], inline: bytes | bytearray
) -> ChunkRows:
    """Return `below` with a session's edits on top: `rows` may be deleted or unchanged ones."""
    if not len(positions):
        return below
    written = positions[rows["kind"] != PendingKind.UNCHANGED]
    kept = select(below, ~np.isin(below.positions, written))
    live = (rows["kind"] != PendingKind.UNCHANGED) & (rows["kind"] != PendingKind.DELETED)
    return join([kept, ChunkRows(positions[live], rows[live], inline)])


def join(parts: Sequence[ChunkRows]) -> ChunkRows:
    """Return the rows of several parts, which share no position, as one."""
    parts = [part for part in parts if len(part)]
    if len(parts) <= 1:
        return parts[0] if parts else NO_ROWS
    pieces, inline = [], bytearray()
    for part in parts:
        rows = part.rows
        is_inline = rows["kind"] == PendingKind.INLINE
        if is_inline.any():
            rows = rows.copy()
            rows["at"][is_inline] += np.uint64(len(inline))
            inline += part.inline
        pieces.append(rows)
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions)
    return ChunkRows(positions[order], np.concatenate(pieces)[order], bytes(inline))


def pack_inline(content: ChunkRows) -> ChunkRows:
    """Return the same refs with only the inline bytes that they use."""
    where = np.flatnonzero(content.rows["kind"] == PendingKind.INLINE)
    if not len(where):
        return ChunkRows(content.positions, content.rows)
    rows = content.rows.copy()
    rows["at"][where] = np.cumsum(rows["length"][where]) - rows["length"][where]
    return ChunkRows(content.positions, rows, b"".join(_inline_pieces(content, where)))


def _inline_pieces(content: ChunkRows, where: npt.NDArray[np.int64]) -> Iterator[bytes]:
    """Yield the bytes of the inline chunks in some rows."""
    inline = bytes(content.inline)
    starts, lengths = content.rows["at"][where].tolist(), content.rows["length"][where].tolist()
    for start, length in zip(starts, lengths, strict=True):
        yield inline[start : start + length]


def identities(content: ChunkRows) -> Identities:
    """Return what each row stands for, comparable with rows of the same dictionaries."""
    rows = content.rows.copy()
    virtual = rows["kind"] == PendingKind.VIRTUAL
    where = np.flatnonzero(rows["kind"] == PendingKind.INLINE)
    if len(where):
        digests = b"".join(map(blake3_digest, _inline_pieces(content, where)))
        rows["digest"][where] = np.frombuffer(digests, np.uint8).reshape(len(where), -1)
    data = ~virtual
    for name in ("at", "source", "check"):
        rows[name][data] = 0
    rows["kind"][data] = PendingKind.STORED
    rows["digest"][virtual] = 0
    rows["pad"] = 0
    return rows.view(np.uint64).reshape(len(rows), _WORDS)


class Aligned(msgspec.Struct, frozen=True):
    """Several contents side by side: `positions` of any of them, and what each holds there.

    `numbers[k]` i64[n] is the row of content k, or -1; `same(j, k)` tells where two of them agree.
    """

    positions: Positions
    numbers: tuple[npt.NDArray[np.int64], ...]
    words: tuple[Identities, ...]

    def has(self, which: int) -> Mask:
        """Return where a content has a ref."""
        return self.numbers[which] >= 0

    def same(self, one: int, other: int) -> Mask:
        """Return where two contents hold the same bytes, or both nothing."""
        equal: Mask = (self.words[one] == self.words[other]).all(axis=1)
        return equal


def align(contents: Sequence[ChunkRows]) -> Aligned:
    """Return contents of one tile side by side."""
    positions = np.unique(np.concatenate([content.positions for content in contents]))
    numbers, words = [], []
    for content in contents:
        number = np.full(len(positions), -1, dtype=np.int64)
        word = np.full((len(positions), _WORDS), np.uint64(2**64 - 1), dtype=np.uint64)
        at = np.searchsorted(positions, content.positions)
        number[at] = np.arange(len(content))
        if len(content):
            word[at] = identities(content)
        numbers.append(number)
        words.append(word)
    return Aligned(positions, tuple(numbers), tuple(words))


def changed_positions(before: ChunkRows, after: ChunkRows) -> Positions:
    """Return the positions whose bytes differ."""
    aligned = align((before, after))
    return aligned.positions[~aligned.same(0, 1)]


def iter_tiles(
    indices: npt.NDArray[np.int64], extents: tuple[int, ...]
) -> Iterator[tuple[bytes, Positions, npt.NDArray[np.int64]]]:
    """Yield the key of each tile that chunk indices i64[n, d] fall into, increasing positions, and rows of `indices`.

    The indices must be distinct.
    """
    if not len(indices):
        return
    tiles, positions = split_indices(indices, extents)
    if not extents:
        yield tile_key(()), positions, np.arange(len(indices))
        return
    _, first, group = np.unique(tiles, axis=0, return_index=True, return_inverse=True)
    order = np.lexsort((positions, group.reshape(-1)))
    bounds = np.flatnonzero(np.diff(group.reshape(-1)[order])) + 1
    for number, chosen in enumerate(np.split(order, bounds)):
        yield tile_key(tuple(tiles[first[number]].tolist())), positions[chosen], chosen
