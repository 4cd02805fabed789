"""The manifest: the chunk refs of one tile in one layer, sorted by position, as columns.

An envelope of kind MANIFEST with three sections: the columns (msgpack, zstd), the digests of the stored refs end to
end (they do not compress), and the bytes of the inline chunks end to end (zstd). The columns map:

    n         how many refs
    pos       position in the tile (row-major over the tile's extents), strictly increasing
    kind      ChunkKind
    src       stored: index into packs; virtual: index into locs; else 0
    off       stored: offset in the pack; virtual: offset in the file; inline: offset in section 2; else 0
    len       length in bytes; deleted: 0
    chk       virtual: 0 or 1 + index into checks; else 0
    pred      whether `off` holds, instead of each offset, its difference to the end of the previous ref of the
              same kind and src (0 before the first), modulo 2**64
    packs     pack ids, 16 bytes each, end to end
    locs      locations (URLs)
    checks    checksums of sources: a str is an etag, an int a last-modified time in microseconds

Above: `changes.layering` merges them, `blobs` reads what they point to.
"""

from __future__ import annotations

import itertools
import struct
from enum import IntEnum
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from vstore.errors import FormatError, InternalError
from vstore.format.columns import U64, EncodedColumn, decode_column, encode_column, encode_few, is_few
from vstore.format.envelope import BlobKind, Envelope, Section, decode_envelope, encode_envelope
from vstore.format.refs import expect, guard, message_shape, pack_message, unpack_message
from vstore.ids import DIGEST_SIZE, PACK_ID_SIZE, BytesLike, PackId

MANIFEST_VERSION = 1
MAX_TILE_CHUNKS = 16_384
MAX_INLINE_BYTES = 4096
"""No inline chunk is longer, whatever a repository's threshold."""
MAX_LOCATION_BYTES = 4096
MAX_DICTIONARY = 65_536
"""Neither `packs` nor `locs` nor `checks` is longer; a tile needs no more than `MAX_TILE_CHUNKS` of each."""

_PACK_ID = struct.Struct(f"{PACK_ID_SIZE}s")

Checksum: TypeAlias = str | int
_Dictionary = msgspec.Meta(max_length=MAX_DICTIONARY)


class _Columns(msgspec.Struct):
    """The first section's message; fields that this version does not know are ignored."""

    n: int
    pos: EncodedColumn
    kind: EncodedColumn
    src: EncodedColumn
    off: EncodedColumn
    len: EncodedColumn
    chk: EncodedColumn
    pred: bool
    packs: bytes
    locs: Annotated[list[str], _Dictionary]
    checks: Annotated[list[Checksum], _Dictionary]


_COLUMNS = message_shape(_Columns)


class ChunkKind(IntEnum):
    """Where a chunk's bytes are. Persisted: never renumber."""

    STORED = 0
    INLINE = 1
    VIRTUAL = 2
    DELETED = 3


class Manifest(msgspec.Struct, frozen=True):
    """Chunk refs as columns of equal length n, sorted by `positions` without repeats.

    `positions` u16[n], `kinds` u8[n], `sources` u32[n], `offsets` and `lengths` u64[n], `checks` u32[n],
    `digests` u8[n, 32] (zero but for stored refs), `inline` the inline chunks' bytes.
    `packs`, `locations` and `checksums` are the dictionaries that `sources` and `checks` index.
    """

    positions: npt.NDArray[np.uint16]
    kinds: npt.NDArray[np.uint8]
    sources: npt.NDArray[np.uint32]
    offsets: U64
    lengths: U64
    checks: npt.NDArray[np.uint32]
    digests: npt.NDArray[np.uint8]
    inline: bytes = b""
    packs: tuple[PackId, ...] = ()
    locations: tuple[str, ...] = ()
    checksums: tuple[Checksum, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def live_count(self) -> int:
        """How many refs are not tombstones."""
        return int(np.count_nonzero(self.kinds != ChunkKind.DELETED))

    @property
    def live_bytes(self) -> int:
        """The bytes that the refs stand for."""
        return int(self.lengths.sum())


def empty_manifest() -> Manifest:
    """Return a manifest without refs."""
    return Manifest(
        np.zeros(0, np.uint16),
        np.zeros(0, np.uint8),
        np.zeros(0, np.uint32),
        np.zeros(0, np.uint64),
        np.zeros(0, np.uint64),
        np.zeros(0, np.uint32),
        np.zeros((0, DIGEST_SIZE), np.uint8),
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest's envelope; zstd level 1 (level 3 was measured to gain under 1.5 %)."""
    if max(len(manifest.packs), len(manifest.locations), len(manifest.checksums)) > MAX_DICTIONARY:
        raise InternalError("a manifest's dictionaries exceed the format's limit")
    columns = _encode_few(manifest) if is_few(manifest) else _encode_many(manifest)
    columns |= {
        "packs": b"".join(manifest.packs),
        "locs": manifest.locations,
        "checks": manifest.checksums,
    }
    stored = manifest.kinds == ChunkKind.STORED
    digests = manifest.digests if stored.all() else manifest.digests[stored]
    return encode_envelope(
        BlobKind.MANIFEST,
        MANIFEST_VERSION,
        (
            Section(pack_message(columns), level=1),
            Section(digests.tobytes()),
            Section(manifest.inline, level=1),
        ),
    )


def _encode_many(manifest: Manifest) -> dict[str, Any]:
    ends = _previous_ends(manifest.kinds, manifest.sources, manifest.offsets, manifest.lengths)
    residual = manifest.offsets - ends
    predicted = _mean_magnitude(residual) < _mean_magnitude(manifest.offsets)
    return {
        "n": len(manifest),
        "pos": encode_column(manifest.positions),
        "kind": encode_column(manifest.kinds),
        "src": encode_column(manifest.sources),
        "off": encode_column(residual if predicted else manifest.offsets),
        "len": encode_column(manifest.lengths),
        "chk": encode_column(manifest.checks),
        "pred": predicted,
    }


def _encode_few(manifest: Manifest) -> dict[str, Any]:
    """Do the same, with the same result, for few refs."""
    kinds, sources = manifest.kinds.tolist(), manifest.sources.tolist()
    offsets, lengths = manifest.offsets.tolist(), manifest.lengths.tolist()
    ends: dict[tuple[int, int], int] = {}
    residual = []
    for kind, source, offset, length in zip(kinds, sources, offsets, lengths, strict=True):
        residual.append(offset - ends.get((kind, source), 0))
        ends[kind, source] = offset + length
    predicted = sum(map(abs, residual)) < sum(offsets)
    return {
        "n": len(kinds),
        "pos": encode_few(manifest.positions.tolist()),
        "kind": encode_few(kinds),
        "src": encode_few(sources),
        "off": encode_few([value % 2**64 for value in residual] if predicted else offsets),
        "len": encode_few(lengths),
        "chk": encode_few(manifest.checks.tolist()),
        "pred": predicted,
    }


def decode_manifest(data: BytesLike) -> Manifest:
    """Return the manifest in `data`, with every index and range checked."""
    try:
        return _decode(data)
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise guard(error, "manifest") from None


def _decode(data: BytesLike) -> Manifest:
    envelope = decode_envelope(data, BlobKind.MANIFEST, MANIFEST_VERSION)
    expect(len(envelope) == 3, "a manifest has three sections")
    columns: _Columns = unpack_message(envelope.section(0), "manifest", _COLUMNS)
    count = columns.n
    expect(0 <= count <= MAX_TILE_CHUNKS, "a manifest holds more refs than a tile")
    positions = decode_column(columns.pos, count)
    kinds = decode_column(columns.kind, count)
    sources = decode_column(columns.src, count)
    lengths = decode_column(columns.len, count)
    offsets = decode_column(columns.off, count)
    checks = decode_column(columns.chk, count)
    packs = _split_packs(columns.packs)
    locations = tuple(columns.locs)
    checksums = tuple(columns.checks)
    _check_columns(positions, kinds, sources, checks, (len(packs), len(locations), len(checksums)))
    if columns.pred:
        offsets = _undo_prediction(kinds, sources, offsets, lengths)
    inline = _inline_bytes(envelope, kinds)
    _check_ranges(kinds, offsets, lengths, len(inline))
    return Manifest(
        positions.astype(np.uint16),
        kinds.astype(np.uint8),
        sources.astype(np.uint32),
        offsets,
        lengths,
        checks.astype(np.uint32),
        _spread_digests(envelope.plain_section(1), kinds),
        inline,
        packs,
        locations,
        checksums,
    )


def _inline_bytes(envelope: Envelope, kinds: U64) -> bytes:
    """Return the third section, which holds no more than the inline chunks can be."""
    if envelope.is_empty(2):
        return bytes(envelope.section(2, 0))
    limit = MAX_INLINE_BYTES * int(np.count_nonzero(kinds == ChunkKind.INLINE))
    return bytes(envelope.section(2, limit))


def _groups(kinds: npt.NDArray[Any], sources: npt.NDArray[Any]) -> U64:
    return sources.astype(np.uint64) * np.uint64(4) + kinds.astype(np.uint64)


def _previous_ends(kinds: npt.NDArray[Any], sources: npt.NDArray[Any], offsets: U64, lengths: U64) -> U64:
    """Return, for each ref, where the previous ref of its kind and source ends (0 for the first)."""
    groups = _groups(kinds, sources)
    if len(groups) == 0 or (groups == groups[0]).all():
        previous = np.zeros(len(groups), dtype=np.uint64)
        previous[1:] = (offsets + lengths)[:-1]
        return previous
    order = np.argsort(groups, kind="stable")
    ends = (offsets + lengths)[order]
    same = groups[order][1:] == groups[order][:-1]
    previous = np.zeros(len(groups), dtype=np.uint64)
    previous[order[1:][same]] = ends[:-1][same]
    return previous


def _undo_prediction(kinds: U64, sources: U64, residual: U64, lengths: U64) -> U64:
    """Return the offsets whose differences to the previous ends are `residual`."""
    groups = _groups(kinds, sources)
    order = np.argsort(groups, kind="stable")
    # offset[i] = sum of residual[0..i] + lengths[0..i-1] within the group, modulo 2**64.
    residual_sorted, lengths_sorted = residual[order], lengths[order]
    before = np.zeros_like(lengths_sorted)
    before[1:] = lengths_sorted[:-1]
    running = np.cumsum(residual_sorted + before, dtype=np.uint64)
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = groups[order][1:] != groups[order][:-1]
    first = np.flatnonzero(starts)
    # What had accumulated before each group's first ref, the length of its foreign predecessor included.
    base = running[first] - residual_sorted[first]
    offsets = np.empty_like(residual)
    offsets[order] = running - np.repeat(base, np.diff(np.append(first, len(order))))
    return offsets


def _mean_magnitude(values: U64) -> float:
    return float(np.abs(values.view(np.int64).astype(np.float64)).mean()) if len(values) else 0.0


def _split_packs(data: bytes) -> tuple[PackId, ...]:
    expect(len(data) % PACK_ID_SIZE == 0, "a manifest's pack ids are cut")
    expect(len(data) <= MAX_DICTIONARY * PACK_ID_SIZE, "a manifest names too many packs")
    # A tile may name a pack for each of its chunks: in one call, a tenth of the time of slicing.
    return tuple(itertools.chain.from_iterable(_PACK_ID.iter_unpack(data)))


def _check_columns(
    positions: U64, kinds: U64, sources: U64, checks: U64, sizes: tuple[int, int, int]
) -> None:
    if len(positions) == 0:
        return
    packs, locations, checksums = sizes
    expect(
        int(positions[-1]) < MAX_TILE_CHUNKS and bool((positions[1:] > positions[:-1]).all()),
        "a manifest's positions are not increasing within a tile",
    )
    expect(int(np.max(kinds)) <= max(ChunkKind), "a manifest holds a chunk ref of unknown kind")
    limits = np.array([packs, 1, locations, 1], dtype=np.uint64)
    expect(bool((sources < limits[kinds.astype(np.intp)]).all()), "a manifest's ref has an unknown source")
    allowed = np.where(kinds == ChunkKind.VIRTUAL, np.uint64(checksums), np.uint64(0))
    expect(bool((checks <= allowed).all()), "a manifest's ref has an unknown checksum")


def _check_ranges(kinds: U64, offsets: U64, lengths: U64, inline_size: int) -> None:
    if len(kinds) == 0:
        return
    limit = np.uint64(2**62)
    expect(
        bool((offsets < limit).all() and (lengths < limit).all()), "a manifest's ref has an impossible range"
    )
    inline = kinds == ChunkKind.INLINE
    ends = offsets + lengths
    expect(bool((ends[inline] <= np.uint64(inline_size)).all()), "an inline chunk lies outside its section")
    expect(not lengths[kinds == ChunkKind.DELETED].any(), "a deleted chunk has a length")


def _spread_digests(section: memoryview, kinds: U64) -> npt.NDArray[np.uint8]:
    stored = kinds == ChunkKind.STORED
    count = int(np.count_nonzero(stored))
    expect(len(section) == count * DIGEST_SIZE, "a manifest's digests do not match its stored refs")
    digests = np.frombuffer(section, dtype=np.uint8).reshape(count, DIGEST_SIZE)
    if count == len(kinds):
        return digests
    spread = np.zeros((len(kinds), DIGEST_SIZE), dtype=np.uint8)
    spread[stored] = digests
    return spread
