"""Layers: merging against a dict, when to merge, look-ups, and comparing refs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vstore.changes.layering import (
    IndexedLayer,
    LayeredTile,
    count_to_merge,
    merge_manifests,
    same_refs,
    select_rows,
)
from vstore.format.manifest import ChunkKind, Manifest, decode_manifest, encode_manifest


def random_manifest(rng: np.random.Generator, count: int) -> Manifest:
    """Return `count` refs of all kinds at random positions below 200."""
    positions = np.sort(rng.choice(200, count, replace=False)).astype(np.uint16)
    kinds = rng.choice([0, 0, 0, 1, 2, 2, 3], count).astype(np.uint8)
    stored, inline, virtual = (
        kinds == kind for kind in (ChunkKind.STORED, ChunkKind.INLINE, ChunkKind.VIRTUAL)
    )
    sources = np.select([stored, virtual], [rng.integers(0, 3, count), rng.integers(0, 4, count)], 0)
    lengths = np.select(
        [stored | virtual, inline], [rng.integers(1, 10**6, count), rng.integers(1, 5, count)], 0
    )
    inline_lengths = np.where(inline, lengths, 0)
    offsets = np.select(
        [stored | virtual, inline],
        [rng.integers(0, 2**40, count), np.cumsum(inline_lengths) - inline_lengths],
        0,
    )
    digests = np.where(stored[:, None], rng.integers(0, 256, (count, 32)), 0).astype(np.uint8)
    return Manifest(
        positions,
        kinds,
        sources.astype(np.uint32),
        offsets.astype(np.uint64),
        lengths.astype(np.uint64),
        np.where(virtual, rng.integers(0, 3, count), 0).astype(np.uint32),
        digests,
        rng.bytes(int(inline_lengths.sum())),
        tuple(rng.bytes(16) for _ in range(3)),  # type: ignore[misc]
        tuple(rng.choice(list("abcdefgh"), 4, replace=False).tolist()),
        ("etag", int(rng.integers(5))),
    )


def as_dict(manifest: Manifest) -> dict[int, Any]:
    """Return what each ref says, with its dictionaries looked up."""
    found: dict[int, Any] = {}
    for row, position in enumerate(manifest.positions.tolist()):
        kind, source = int(manifest.kinds[row]), int(manifest.sources[row])
        offset, length = int(manifest.offsets[row]), int(manifest.lengths[row])
        if kind == ChunkKind.STORED:
            found[position] = (manifest.packs[source], offset, length, manifest.digests[row].tobytes())
        elif kind == ChunkKind.INLINE:
            found[position] = manifest.inline[offset : offset + length]
        elif kind == ChunkKind.VIRTUAL:
            check = int(manifest.checks[row])
            checksum = manifest.checksums[check - 1] if check else None
            found[position] = (manifest.locations[source], offset, length, checksum)
        else:
            found[position] = None
    return found


@pytest.mark.parametrize("seed", range(40))
def test_merging_is_what_a_dict_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [random_manifest(rng, int(rng.integers(0, 100))) for _ in range(int(rng.integers(1, 5)))]
    expected: dict[int, Any] = {}
    for layer in reversed(layers):
        expected |= as_dict(layer)
    merged = merge_manifests(layers, drop_deleted=False)
    assert as_dict(merged) == expected
    assert as_dict(decode_manifest(encode_manifest(merged))) == expected
    live = {position: ref for position, ref in expected.items() if ref is not None}
    bottom = merge_manifests(layers, drop_deleted=True)
    assert as_dict(bottom) == live
    tile = LayeredTile([IndexedLayer(layer) for layer in layers])
    assert as_dict(tile.merged()) == live
    for position in range(200):
        found = tile.find(position)
        assert (found is not None) == (position in live)
        assert found is None or found[0].manifest.positions[found[1]] == position
    for count in (0, 1, 5, 60, 200):
        wanted = np.sort(rng.choice(200, count, replace=False)).astype(np.uint16)
        assert as_dict(tile.at(wanted)) == {p: live[p] for p in wanted.tolist() if p in live}


@pytest.mark.parametrize("seed", range(10))
def test_equal_refs_are_the_same_whatever_their_dictionaries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = random_manifest(rng, 80)
    other = merge_manifests([one, random_manifest(rng, 120)], drop_deleted=False)
    _, rows_one, rows_other = np.intersect1d(one.positions, other.positions, return_indices=True)
    assert same_refs(one, rows_one, other, rows_other).all()
    different = merge_manifests([random_manifest(rng, 150)], drop_deleted=False)
    _, rows_one, rows_other = np.intersect1d(one.positions, different.positions, return_indices=True)
    refs_one, refs_other = as_dict(one), as_dict(different)
    expected = [refs_one[p] == refs_other[p] for p in one.positions[rows_one].tolist()]
    assert same_refs(one, rows_one, different, rows_other).tolist() == expected


def test_selecting_rows_drops_what_nothing_uses() -> None:
    manifest = random_manifest(np.random.default_rng(3), 60)
    rows = np.flatnonzero(manifest.kinds == ChunkKind.STORED)[:1]
    selected = select_rows(manifest, rows)
    assert (len(selected), len(selected.packs), selected.locations, selected.inline) == (1, 1, (), b"")


def test_a_layer_is_merged_while_it_is_not_much_smaller() -> None:
    assert count_to_merge([1]) == 1
    assert count_to_merge([1, 4]) == 2
    assert count_to_merge([1, 5]) == 1
    assert count_to_merge([1, 4, 20, 16_000]) == 3
