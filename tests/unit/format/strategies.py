"""Hypothesis strategies for the values of vstore.format, and how to compare those that hold arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from vstore.format.manifest import MAX_TILE_CHUNKS, ChunkKind, Manifest
from vstore.format.node import Layer, Node, TilePointer, Tiles, tile_key
from vstore.format.page import Child, Totals
from vstore.format.refs import BlobRef
from vstore.format.snapshot import Snapshot
from vstore.ids import Digest, NodeId, PackId, SnapshotId

digests = st.binary(min_size=32, max_size=32).map(Digest)
pack_ids = st.binary(min_size=16, max_size=16).map(PackId)
sizes = st.integers(0, 2**50) | st.integers(0, 1000)
blob_refs = st.builds(BlobRef, digests, pack_ids, sizes, sizes)
totals = st.builds(Totals, st.integers(0, 2**40), st.integers(0, 2**63), st.booleans())
children = st.builds(Child, blob_refs, st.integers(0, 2**63), totals)

# No surrogates, which UTF-8 can't spell, and no zero character, which keys may not hold.
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
parts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=6)
paths = st.lists(parts, max_size=4).map("/".join)

contents = st.binary(max_size=200) | blob_refs
layers = st.builds(Layer, blob_refs | st.binary(max_size=120), st.integers(0, MAX_TILE_CHUNKS))
pointers = st.builds(TilePointer, st.lists(layers, min_size=1, max_size=8).map(tuple), totals)


@st.composite
def tile_sets(draw: st.DrawFn) -> Tiles:
    """Draw an array's tiles: a few pointers, or a root."""
    extents = tuple(draw(st.lists(st.integers(1, 6), max_size=5)))
    if draw(st.booleans()):
        return Tiles(extents, {}, draw(children))
    keys = st.tuples(*(st.integers(0, 2**64 - 1) | st.integers(0, 300) for _ in extents)).map(tile_key)
    return Tiles(extents, draw(st.dictionaries(keys, pointers, max_size=4)))


nodes = st.builds(
    Node,
    st.binary(min_size=8, max_size=8).map(NodeId),
    st.dictionaries(st.sampled_from(["zarr.json", ".zarray", ".zattrs", ".zgroup"]), contents),
    st.none() | tile_sets(),
)

snapshots = st.builds(
    Snapshot,
    st.lists(digests.map(SnapshotId), max_size=3).map(tuple),
    st.integers(0, 253_402_300_799_999_999),
    names,
    st.sampled_from([b"{}", b'{"a": [1, 2.5, null]}', '{"\u00e4": {"b": "c"}}'.encode()]),
    st.none() | children,
)


@st.composite
def manifests(draw: st.DrawFn, max_refs: int = 40) -> Manifest:
    """Draw a legal manifest with refs of all kinds."""
    positions = sorted(draw(st.sets(st.integers(0, MAX_TILE_CHUNKS - 1), max_size=max_refs)))
    packs = tuple(draw(st.lists(pack_ids, min_size=1, max_size=3)))
    locations = tuple(draw(st.lists(names, min_size=1, max_size=3)))
    checksums = tuple(draw(st.lists(names | st.integers(0, 2**62), max_size=3)))
    inline = bytearray()
    rows = []
    # Runs of one kind and source, end to end, are what real manifests hold.
    end: dict[tuple[ChunkKind, int], int] = {}
    for _ in positions:
        kind = draw(st.sampled_from(ChunkKind))
        count = {ChunkKind.STORED: len(packs), ChunkKind.VIRTUAL: len(locations)}.get(kind, 1)
        source = draw(st.integers(0, count - 1))
        length = 0 if kind == ChunkKind.DELETED else draw(st.integers(0, 9) | st.integers(0, 2**61))
        offset, check, digest = 0, 0, bytes(32)
        if kind == ChunkKind.INLINE:
            length %= 10
            offset = len(inline)
            inline += bytes(length)
        elif kind != ChunkKind.DELETED:
            offset = draw(st.just(end.get((kind, source), 0) % 2**61) | st.integers(0, 2**61))
            end[kind, source] = offset + length
        if kind == ChunkKind.VIRTUAL:
            check = draw(st.integers(0, len(checksums)))
        if kind == ChunkKind.STORED:
            digest = draw(digests)
        rows.append((kind, source, offset, length, check, digest))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    return Manifest(
        np.array(positions, np.uint16),
        np.array(columns[0], np.uint8),
        np.array(columns[1], np.uint32),
        np.array(columns[2], np.uint64),
        np.array(columns[3], np.uint64),
        np.array(columns[4], np.uint32),
        np.frombuffer(b"".join(columns[5]), np.uint8).reshape(len(rows), 32),
        bytes(inline),
        packs,
        locations,
        checksums,
    )


def as_values(value: Any) -> Any:
    """Return a manifest or footer in a form that == compares, with the types of its arrays."""
    fields = {name: getattr(value, name) for name in type(value).__slots__}
    return {k: (v.dtype.name, v.tolist()) if isinstance(v, np.ndarray) else v for k, v in fields.items()}
