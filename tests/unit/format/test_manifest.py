from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from tests.unit.format.strategies import as_values, manifests
from vstore.errors import CorruptionError, InternalError
from vstore.format.envelope import BlobKind, Section, decode_envelope, encode_envelope
from vstore.format.manifest import (
    MAX_DICTIONARY,
    MAX_TILE_CHUNKS,
    ChunkKind,
    Manifest,
    decode_manifest,
    empty_manifest,
    encode_manifest,
)
from vstore.format.refs import pack_message, unpack_message
from vstore.ids import PackId

PACK = PackId(bytes(16))


@given(manifests())
def test_encode_then_decode(manifest):
    assert as_values(decode_manifest(encode_manifest(manifest))) == as_values(manifest)


@given(manifests())
def test_counts(manifest):
    live = [kind != ChunkKind.DELETED for kind in manifest.kinds]
    assert len(manifest) == len(live)
    assert manifest.live_count == sum(live)
    assert manifest.live_bytes == sum(manifest.lengths.tolist()) % 2**64


def test_empty_manifest():
    found = decode_manifest(encode_manifest(empty_manifest()))
    assert as_values(found) == as_values(empty_manifest())
    assert (len(found), found.live_count, found.live_bytes) == (0, 0, 0)


def virtual(offsets: np.ndarray, lengths: np.ndarray) -> Manifest:
    n = len(offsets)
    zeros = np.zeros(n, np.uint32)
    return Manifest(
        np.arange(n, dtype=np.uint16),
        np.full(n, ChunkKind.VIRTUAL, np.uint8),
        zeros,
        offsets.astype(np.uint64),
        lengths.astype(np.uint64),
        zeros,
        np.zeros((n, 32), np.uint8),
        locations=("file:///data.h5",),
    )


def columns_of(data: bytes) -> dict[str, Any]:
    return unpack_message(decode_envelope(data, BlobKind.MANIFEST, 1).section(0), "manifest")


def test_contiguous_refs_take_almost_no_room():
    data = encode_manifest(virtual(np.arange(MAX_TILE_CHUNKS) * 4096, np.full(MAX_TILE_CHUNKS, 4096)))
    assert columns_of(data)["pred"] is True
    assert len(data) < 250


def test_virtual_refs_of_one_file_take_a_few_bytes_each():
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(50_000, 5_000, MAX_TILE_CHUNKS), 1, None).astype(np.uint64)
    gaps = np.where(random.random(MAX_TILE_CHUNKS) < 0.02, np.uint64(2096), np.uint64(0))
    data = encode_manifest(virtual(np.cumsum(lengths + gaps) - lengths, lengths))
    assert len(data) / MAX_TILE_CHUNKS < 2.5


def test_refs_that_jump_to_and_fro_are_not_predicted():
    offsets = np.arange(1000) * 100 + np.where(np.arange(1000) % 2, 2**40, 0)
    manifest = virtual(offsets, np.full(1000, 100))
    data = encode_manifest(manifest)
    assert columns_of(data)["pred"] is False
    assert as_values(decode_manifest(data)) == as_values(manifest)


def test_prediction_follows_each_source_on_its_own():
    n = 600
    sources = np.arange(n, dtype=np.uint32) % 3
    manifest = Manifest(
        np.arange(n, dtype=np.uint16),
        np.full(n, ChunkKind.VIRTUAL, np.uint8),
        sources,
        (2**40 * sources.astype(np.uint64) + np.arange(n, dtype=np.uint64) // 3 * 500),
        np.full(n, 500, np.uint64),
        np.zeros(n, np.uint32),
        np.zeros((n, 32), np.uint8),
        locations=("a", "b", "c"),
    )
    data = encode_manifest(manifest)
    assert columns_of(data)["pred"] is True
    residual = columns_of(data)["off"]
    assert residual[0] == 2  # zero but for the first ref of each source
    assert as_values(decode_manifest(data)) == as_values(manifest)


def test_only_stored_refs_have_digests():
    manifest = Manifest(
        np.array([1, 2, 3], np.uint16),
        np.array([ChunkKind.STORED, ChunkKind.DELETED, ChunkKind.STORED], np.uint8),
        np.zeros(3, np.uint32),
        np.array([16, 0, 20], np.uint64),
        np.array([4, 0, 4], np.uint64),
        np.zeros(3, np.uint32),
        np.stack([np.full(32, 7), np.zeros(32), np.full(32, 9)]).astype(np.uint8),
        packs=(PACK,),
    )
    data = encode_manifest(manifest)
    section = decode_envelope(data, BlobKind.MANIFEST, 1).section(1)
    assert bytes(section) == b"\x07" * 32 + b"\x09" * 32
    assert as_values(decode_manifest(data)) == as_values(manifest)


# --- what is refused -----------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "n": 4,
    "pos": [2, 0, 1, bytes([1, 2, 3, 9])],
    "kind": [2, 0, 1, bytes([0, 1, 2, 3])],
    "src": [0, 0, 0, b""],
    "off": [2, 0, 1, bytes([16, 0, 5, 0])],
    "len": [2, 0, 1, bytes([4, 2, 6, 0])],
    "chk": [2, 0, 1, bytes([0, 0, 1, 0])],
    "pred": False,
    "packs": bytes(16),
    "locs": ["a"],
    "checks": ["etag"],
}


def manifest_bytes(
    digests: bytes = bytes(32), inline: bytes = b"hi", sections: int = 3, **changes: Any
) -> bytes:
    columns = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    parts = (Section(pack_message(columns)), Section(digests), Section(inline), Section(b""))[:sections]
    return encode_envelope(BlobKind.MANIFEST, 1, parts)


def test_the_base_of_the_next_tests_is_good():
    found = decode_manifest(manifest_bytes())
    assert found.positions.tolist() == [1, 2, 3, 9]
    assert found.kinds.tolist() == [0, 1, 2, 3]


def test_fields_of_later_versions_are_ignored():
    assert as_values(decode_manifest(manifest_bytes(statistics=[{"min": 1}]))) == as_values(
        decode_manifest(manifest_bytes())
    )


def test_numbers_wrap_where_offsets_are_predicted():
    # 16 is predicted for the stored ref from 0; each other is the first of its source.
    found = decode_manifest(manifest_bytes(pred=True))
    assert found.offsets.tolist() == [16, 0, 5, 0]


VALUES = [None, True, -1, 2**63, 1.5, "text", b"bytes", [], {}, [0, 0, 0], [9, 0, 0, b""]]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [..., *VALUES], ids=repr)
def test_wrong_types_are_refused(name, value):
    if (name, value) in [("pred", True), ("checks", [0, 0, 0])]:
        decode_manifest(manifest_bytes(**{name: value}))
        return
    with pytest.raises(CorruptionError):
        decode_manifest(manifest_bytes(**{name: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 5},
        {"n": 3},
        {"n": MAX_TILE_CHUNKS + 1, "pos": [1, 0, 1, b""]},
        {"n": 2**63 - 1, "pos": [1, 0, 1, b""]},
        {"pos": [0, 1, 0, b""]},
        {"pos": [1, 9, -1, b""]},
        {"pos": [2, 0, 1, bytes([1, 3, 3, 9])]},
        {"pos": [1, MAX_TILE_CHUNKS - 3, 1, b""]},
        {"pos": [1, 2**64 - 2, 1, b""]},
        {"kind": [2, 0, 1, bytes([0, 1, 2, 4])]},
        {"kind": [0, 2**63, 0, b""]},
        {"src": [2, 0, 1, bytes([1, 0, 0, 0])]},
        {"src": [2, 0, 1, bytes([0, 1, 0, 0])]},
        {"src": [2, 0, 1, bytes([0, 0, 1, 0])]},
        {"src": [2, 0, 1, bytes([0, 0, 0, 1])]},
        {"src": [0, 2**64 - 1, 0, b""]},
        {"chk": [2, 0, 1, bytes([1, 0, 1, 0])]},
        {"chk": [2, 0, 1, bytes([0, 1, 1, 0])]},
        {"chk": [2, 0, 1, bytes([0, 0, 2, 0])]},
        {"chk": [2, 0, 1, bytes([0, 0, 1, 1])]},
        {"len": [2, 0, 1, bytes([4, 3, 6, 0])]},
        {"len": [2, 0, 1, bytes([4, 2, 6, 1])]},
        {"len": [0, 2**62, 0, b""]},
        {"len": [0, 2**64 - 1, 0, b""]},
        {"off": [2, 0, 1, bytes([16, 1, 5, 0])]},
        {"off": [0, 2**62, 0, b""]},
        {"off": [0, 2**64 - 1, 0, b""]},
        {"packs": b""},
        {"packs": bytes(15)},
        {"packs": bytes(16 * (MAX_DICTIONARY + 1))},
        {"locs": []},
        {"locs": [b"a"]},
        {"locs": ["a"] * (MAX_DICTIONARY + 1)},
        {"checks": []},
        {"checks": [b"etag"]},
        {"checks": [1.5]},
        {"checks": ["a"] * (MAX_DICTIONARY + 1)},
        {"digests": b""},
        {"digests": bytes(31)},
        {"digests": bytes(64)},
        {"inline": b"h"},
        {"sections": 2},
        {"sections": 4},
    ],
    ids=repr,
)
def test_broken_rules_are_refused(changes):
    with pytest.raises(CorruptionError):
        decode_manifest(manifest_bytes(**changes))


def test_dictionaries_that_could_not_be_read_are_not_written():
    manifest = empty_manifest()
    for columns in ({"locations": ("a",)}, {"packs": (PACK,)}, {"checksums": (1,)}):
        ((name, value),) = columns.items()
        fields = {slot: getattr(manifest, slot) for slot in Manifest.__slots__}
        with pytest.raises(InternalError):
            encode_manifest(Manifest(**{**fields, name: value * (MAX_DICTIONARY + 1)}))


def test_kinds_never_change():
    assert {kind.name: kind.value for kind in ChunkKind} == {
        "STORED": 0,
        "INLINE": 1,
        "VIRTUAL": 2,
        "DELETED": 3,
    }
