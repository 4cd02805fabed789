"""A few chunk refs of a tile as plain tuples by position: what a small commit compares, merges and encodes.

For a handful of refs numpy's calls cost more than the work (measured: 400 us a tile by columns, 40 by tuples). The
rules are those of `layering`, which does the same for many. Neighbours: `layering` above it, `format.manifest` below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from vstore.changes.dictionaries import Dictionaries
from vstore.changes.pending import PendingKind, unpack_rows
from vstore.format.manifest import Checksum, ChunkKind, Manifest
from vstore.ids import DIGEST_SIZE, PackId

FEW_REFS = 32
"""Up to so many refs the tuples are quicker."""

_STORED, _INLINE, _VIRTUAL, _DELETED = map(int, ChunkKind)
_OWN = int(PendingKind.OWN)
_NO_DIGEST = bytes(DIGEST_SIZE)


class Ref(NamedTuple):
    """One chunk ref: `source` is a stored chunk's pack, or a virtual one's location; `content` is digest or bytes."""

    kind: int
    source: Any
    offset: int
    length: int
    checksum: Checksum | None
    content: bytes


Refs: TypeAlias = Mapping[int, Ref]
"""Refs by position, in any order."""

DELETED_REF = Ref(_DELETED, None, 0, 0, None, b"")


def is_same(one: Ref, other: Ref) -> bool:
    """Tell whether two refs stand for the same bytes."""
    if one.kind == _STORED:
        return other.kind == _STORED and one.length == other.length and one.content == other.content
    return one == other


def ref_at(manifest: Manifest, row: int) -> Ref:
    """Return the ref in a row of a manifest."""
    kind, source = int(manifest.kinds[row]), int(manifest.sources[row])
    offset, length = int(manifest.offsets[row]), int(manifest.lengths[row])
    if kind == _STORED:
        return Ref(kind, manifest.packs[source], offset, length, None, manifest.digests[row].tobytes())
    if kind == _INLINE:
        return Ref(kind, None, 0, length, None, manifest.inline[offset : offset + length])
    if kind == _VIRTUAL:
        check = int(manifest.checks[row])
        checksum = manifest.checksums[check - 1] if check else None
        return Ref(kind, manifest.locations[source], offset, length, checksum, b"")
    return DELETED_REF


def refs_of(manifest: Manifest) -> dict[int, Ref]:
    """Return the refs of a manifest."""
    columns = (
        manifest.positions,
        manifest.kinds,
        manifest.sources,
        manifest.offsets,
        manifest.lengths,
        manifest.checks,
    )
    digests = manifest.digests.tobytes()
    refs = {}
    start = 0
    for position, kind, source, offset, length, check in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        if kind == _STORED:
            content = digests[start : start + DIGEST_SIZE]
            refs[position] = Ref(kind, manifest.packs[source], offset, length, None, content)
        elif kind == _INLINE:
            refs[position] = Ref(kind, None, 0, length, None, manifest.inline[offset : offset + length])
        elif kind == _VIRTUAL:
            checksum = manifest.checksums[check - 1] if check else None
            refs[position] = Ref(kind, manifest.locations[source], offset, length, checksum, b"")
        else:
            refs[position] = DELETED_REF
        start += DIGEST_SIZE
    return refs


def pending_refs(
    positions: Iterable[int],
    rows: Any,
    inline: bytes | bytearray,
    dictionaries: Dictionaries,
    own_place: Callable[[int], tuple[PackId, int]],
) -> dict[int, Ref | None]:
    """Return pending rows as refs, None where what was written equals the base.

    `own_place` returns the pack and the offset of one of the session's own blobs, by its slot.
    """
    refs: dict[int, Ref | None] = {}
    for position, (digest, at, length, source, check, kind) in zip(positions, unpack_rows(rows), strict=True):
        if kind == _OWN:
            refs[position] = Ref(_STORED, *own_place(at), length, None, digest)
        elif kind == _INLINE:
            refs[position] = Ref(kind, None, 0, length, None, bytes(inline[at : at + length]))
        elif kind == _STORED:
            refs[position] = Ref(kind, dictionaries.packs.names[source], at, length, None, digest)
        elif kind == _VIRTUAL:
            location = dictionaries.locations.names[source]
            refs[position] = Ref(kind, location, at, length, dictionaries.checksum(check), b"")
        else:
            refs[position] = DELETED_REF if kind == _DELETED else None
    return refs


def merge_few(layers: Sequence[Refs], *, drop_deleted: bool) -> dict[int, Ref]:
    """Return the refs of layers given newest first; `drop_deleted` if nothing lies below them."""
    merged: dict[int, Ref] = {}
    for layer in reversed(layers):
        merged.update(layer)
    if drop_deleted:
        return {position: ref for position, ref in merged.items() if ref.kind != _DELETED}
    return merged


def manifest_of(refs: Refs) -> Manifest:
    """Return a few refs as a manifest."""
    packs: dict[PackId, int] = {}
    locations: dict[str, int] = {}
    checksums: dict[Checksum, int] = {}
    positions = sorted(refs)
    sources, offsets, checks, digests = [], [], [], []
    inline = bytearray()
    chosen = [refs[position] for position in positions]
    for kind, source, offset, _, checksum, content in chosen:
        number = check = 0
        digest = _NO_DIGEST
        if kind == _STORED:
            number, digest = packs.setdefault(source, len(packs)), content
        elif kind == _INLINE:
            offset = len(inline)
            inline += content
        elif kind == _VIRTUAL:
            number = locations.setdefault(source, len(locations))
            check = 0 if checksum is None else checksums.setdefault(checksum, len(checksums)) + 1
        sources.append(number)
        offsets.append(offset)
        checks.append(check)
        digests.append(digest)
    return Manifest(
        np.array(positions, np.uint16),
        np.array([ref.kind for ref in chosen], np.uint8),
        np.array(sources, np.uint32),
        np.array(offsets, np.uint64),
        np.array([ref.length for ref in chosen], np.uint64),
        np.array(checks, np.uint32),
        np.frombuffer(b"".join(digests), np.uint8).reshape(len(chosen), DIGEST_SIZE),
        bytes(inline),
        tuple(packs),
        tuple(locations),
        tuple(checksums),
    )
