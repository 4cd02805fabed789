"""A few refs as tuples say the same as many in columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.changes.dictionaries import Dictionaries
from vstore.changes.few import (
    DELETED_REF,
    FEW_REFS,
    Ref,
    is_same,
    manifest_of,
    merge_few,
    pending_refs,
    ref_at,
    refs_of,
)
from vstore.changes.layering import merge_manifests, same_refs
from vstore.changes.pending import PendingKind, PendingRef, PendingTile
from vstore.format.manifest import ChunkKind, decode_manifest, encode_manifest
from vstore.ids import PackId

PACKS = [PackId(bytes([number]) * 16) for number in range(3)]

stored = st.builds(
    lambda pack, offset, length, digest: Ref(0, pack, offset, length, None, bytes([digest]) * 32),
    st.sampled_from(PACKS),
    st.integers(0, 2**40),
    st.integers(1, 2**20),
    st.integers(0, 2),
)
inline = st.binary(min_size=1, max_size=9).map(lambda data: Ref(1, None, 0, len(data), None, data))
virtual = st.builds(
    lambda place, offset, length, check: Ref(2, place, offset, length, check, b""),
    st.sampled_from(["file:///a", "file:///b"]),
    st.integers(0, 2**40),
    st.integers(1, 3),
    st.sampled_from([None, "etag", 17]),
)
refs = st.dictionaries(
    st.integers(0, 40) | st.integers(0, 16_383),
    stored | inline | virtual | st.just(DELETED_REF),
    max_size=FEW_REFS,
)


@given(refs)
def test_a_manifest_of_refs_gives_them_back(chosen):
    manifest = manifest_of(chosen)
    assert manifest.positions.tolist() == sorted(chosen)
    assert refs_of(manifest) == chosen
    assert {int(p): ref_at(manifest, row) for row, p in enumerate(manifest.positions)} == chosen
    if chosen:
        assert refs_of(decode_manifest(encode_manifest(manifest))) == chosen


@given(st.lists(refs, min_size=1, max_size=4), st.booleans())
def test_merging_is_that_of_columns(layers, drop_deleted):
    by_columns = merge_manifests(list(map(manifest_of, layers)), drop_deleted=drop_deleted)
    assert merge_few(layers, drop_deleted=drop_deleted) == refs_of(by_columns)


@given(stored | inline | virtual | st.just(DELETED_REF), stored | inline | virtual | st.just(DELETED_REF))
def test_sameness_is_that_of_columns(one, other):
    pairs = manifest_of({5: one}), manifest_of({5: other})
    row = np.array([0])
    assert is_same(one, other) == bool(same_refs(pairs[0], row, pairs[1], row)[0])


@given(refs)
def test_the_bytes_are_those_of_columns(chosen):
    from vstore.format import manifest as format_

    if not chosen:
        return
    manifest = manifest_of(chosen)
    assert decode_manifest(encode_manifest(manifest)).offsets.tolist() == manifest.offsets.tolist()
    few, many = format_._encode_few(manifest), format_._encode_many(manifest)
    assert few == many


def test_pending_rows_become_refs():
    dictionaries = Dictionaries()
    tile = PendingTile()
    digest = b"d" * 32
    tile.set(9, PendingRef(PendingKind.OWN, 4, 100, digest=digest))
    tile.set(1, PendingRef(PendingKind.UNCHANGED))
    tile.set(2, PendingRef(PendingKind.DELETED))
    tile.set_inline(3, b"abc")
    tile.set(4, PendingRef(PendingKind.STORED, 7, 8, dictionaries.packs.number(PACKS[1]), 0, digest))
    location, check = dictionaries.locations.number("file:///a"), dictionaries.checksum_number("etag")
    tile.set(5, PendingRef(PendingKind.VIRTUAL, 7, 8, location, check))
    positions, rows = tile.to_rows()
    found = pending_refs(positions.tolist(), rows, tile.inline, dictionaries, {4: (PACKS[2], 33)}.__getitem__)
    assert found == {
        1: None,
        2: DELETED_REF,
        3: Ref(ChunkKind.INLINE, None, 0, 3, None, b"abc"),
        4: Ref(ChunkKind.STORED, PACKS[1], 7, 8, None, digest),
        5: Ref(ChunkKind.VIRTUAL, "file:///a", 7, 8, "etag", b""),
        9: Ref(ChunkKind.STORED, PACKS[2], 33, 100, None, digest),
    }


@pytest.mark.parametrize("kind", ChunkKind)
def test_the_kinds_are_the_persisted_ones(kind):
    assert {"STORED": 0, "INLINE": 1, "VIRTUAL": 2, "DELETED": 3}[kind.name] == kind
