"""The reader written from docs/format.md alone agrees with vstore on golden files and on trees made here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.format import independent_reader as reader
from tests.format import make_golden as golden
from tests.format.decoders import PACKS, flips, open_pack, read
from tests.unit.format.strategies import blob_refs, manifests, nodes, snapshots
from vstore.format.columns import decode_column, encode_column
from vstore.format.envelope import BlobKind
from vstore.format.manifest import ChunkKind, Manifest, decode_manifest, encode_manifest
from vstore.format.node import (
    Layer,
    Node,
    TilePointer,
    Tiles,
    encode_node,
    encode_pointer,
    encode_value,
    measure_node,
    measure_pointer,
    tile_key,
)
from vstore.format.page import Child, Entry, Totals, decode_page, encode_page
from vstore.format.refs import BlobRef, check_table_size
from vstore.format.snapshot import Snapshot, decode_snapshot, encode_snapshot
from vstore.ids import NodeId, PackId, blake3_digest
from vstore.tree.writing import Change, TreePolicy, update

SOURCE = Path(reader.__file__)


def test_it_is_short_and_independent():
    text = SOURCE.read_text()
    assert len(text.splitlines()) < 200
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names == {"blake3", "crc32c", "msgspec", "numcodecs"}


# --- the same values as vstore -------------------------------------------------------------------------------


def refs_of(manifest: Manifest) -> list[reader.Ref]:
    """Return a manifest as the independent reader's rows."""
    found = []
    for row in range(len(manifest)):
        kind, source = int(manifest.kinds[row]), int(manifest.sources[row])
        offset, length = int(manifest.offsets[row]), int(manifest.lengths[row])
        check = int(manifest.checks[row])
        names: Any = {ChunkKind.STORED: manifest.packs, ChunkKind.VIRTUAL: manifest.locations}.get(kind)
        found.append(
            reader.Ref(
                int(manifest.positions[row]),
                kind,
                names[source] if names else None,
                offset,
                length,
                bytes(manifest.digests[row]) if kind == ChunkKind.STORED else None,
                manifest.checksums[check - 1] if check else None,
                manifest.inline[offset : offset + length] if kind == ChunkKind.INLINE else None,
            )
        )
    return found


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), max_size=40))
def test_columns(values):
    encoded = encode_column(np.array(values, np.uint64))
    assert reader.read_column(encoded, len(values)) == decode_column(encoded, len(values)).tolist() == values


@given(manifests())
def test_manifests(manifest):
    data = encode_manifest(manifest)
    assert reader.read_manifest(data) == refs_of(decode_manifest(data)) == refs_of(manifest)


@given(st.lists(nodes, max_size=5))
def test_pages(written):
    entries = [encode_node(f"node-{i}", node) for i, node in enumerate(written)]
    assert reader.read_page(encode_page(0, entries)) == (0, [tuple(entry) for entry in entries])


@given(snapshots)
def test_snapshots(snapshot):
    found = reader.read_snapshot_blob(encode_snapshot(snapshot))
    assert tuple(found["parents"]) == snapshot.parents
    assert (found["time"], found["message"], found["metadata"]) == (
        snapshot.time_us,
        snapshot.message,
        snapshot.metadata,
    )
    root = snapshot.root
    assert found["root"] == (None if root is None else [list(root.ref), root.entries, *root.totals])


@pytest.mark.parametrize("name", ["one", "mixed", "virtual", "none"])
def test_golden_manifests(name):
    data = read(f"manifest-{name}.bin")
    assert reader.read_manifest(data) == refs_of(decode_manifest(data))


@pytest.mark.parametrize("name", ["leaf", "inner", "tiles"])
def test_golden_pages(name):
    data = read(f"page-{name}.bin")
    page = decode_page(data)
    expected = list(zip(page.keys, page.tags, page.values, strict=True))
    assert reader.read_page(data) == (page.level, expected)


def test_golden_snapshots():
    for name in ("snapshot.bin", "snapshot-first.bin"):
        found, expected = reader.read_snapshot_blob(read(name)), decode_snapshot(read(name))
        assert (found["message"], tuple(found["parents"])) == (expected.message, expected.parents)


@pytest.mark.parametrize("name", PACKS)
def test_golden_packs(name):
    data = read(name)
    pack, blobs = reader.read_pack(data)
    trailer, footer = open_pack(data)
    assert pack == trailer.pack
    assert [blob[0] for blob in blobs] == footer.kinds.tolist()
    assert [blob[1] for blob in blobs] == [bytes(row) for row in footer.digests]
    assert [blob[2] for blob in blobs] == footer.offsets.tolist()
    assert [blob[3] for blob in blobs] == footer.lengths.tolist()


def test_it_notices_every_flip_in_a_pack():
    data = read("pack-tiny.bin")
    for _, damaged in flips(data):
        with pytest.raises((ValueError, RuntimeError)):
            reader.read_pack(damaged)


# --- whole snapshots -----------------------------------------------------------------------------------------


class Repository:
    """Packs in memory, made with vstore's encoders."""

    def __init__(self) -> None:
        self.pack = PackId(bytes(range(16)))
        self.blobs: list[tuple[BlobKind, bytes]] = []
        self.end = 16
        self.read = 0

    def add(self, kind: BlobKind, data: bytes) -> BlobRef:
        ref = BlobRef(blake3_digest(data), self.pack, self.end, len(data))
        self.blobs.append((kind, data))
        self.end += len(data) + check_table_size(len(data))
        return ref

    def add_page(self, data: bytes, page: object = None) -> BlobRef:
        return self.add(BlobKind.PAGE, data)

    def page(self, ref: BlobRef) -> Any:
        raise AssertionError("a tree made at once reads no page")

    def tree(self, entries: list[Entry], policy: TreePolicy) -> Child:
        return update(self, self, None, [Change(entry.key, entry) for entry in sorted(entries)], policy)

    def get_pack_bytes(self, pack: bytes) -> bytes:
        assert pack == self.pack
        self.read += 1
        return self.bytes

    def finish(self) -> None:
        self.bytes = golden.pack_of(self.pack, self.blobs)[0]


NODE_POLICY = TreePolicy(leaf_bytes=500, leaf_entries=8, measure=measure_node)
TILE_POLICY = TreePolicy(leaf_bytes=500, leaf_entries=4, measure=measure_pointer)


def stored(repository: Repository, chunks: dict[int, bytes | None]) -> Manifest:
    """Return a layer with these chunks by position: stored, or inline if short, or deleted."""
    rows, inline = [], b""
    for position, chunk in sorted(chunks.items()):
        if chunk is None:
            rows.append((position, ChunkKind.DELETED, 0, 0, 0, 0, b""))
        elif len(chunk) < 8:
            rows.append((position, ChunkKind.INLINE, 0, len(inline), len(chunk), 0, b""))
            inline += chunk
        else:
            ref = repository.add(BlobKind.CHUNK, chunk)
            rows.append((position, ChunkKind.STORED, 0, ref.offset, ref.length, 0, ref.digest))
    return golden.manifest_of(rows, inline, packs=(repository.pack,))


def layer_of(repository: Repository, manifest: Manifest, *, inline: bool = False) -> Layer:
    data = encode_manifest(manifest)
    return Layer(data if inline else repository.add(BlobKind.MANIFEST, data), len(manifest))


def array_of(number: int, documents: dict[str, Any], tiles: Tiles) -> Node:
    return Node(NodeId(number.to_bytes(8, "big")), documents, tiles)


def test_a_whole_snapshot():
    repository = Repository()
    expected: dict[Any, Any] = {}
    entries = []

    def put(path: str, node: Node) -> None:
        entries.append(encode_node(path, node))

    group = b'{"zarr_format": 3, "node_type": "group"}'
    for path in ["", "a", "a/b", "a/b/c", *(f"many/{i:03}" for i in range(100)), "many"]:
        put(path, Node(NodeId(bytes(8)), {"zarr.json": group}))
        expected[f"{path}/zarr.json" if path else "zarr.json"] = group

    # A grid of 4 x 5 tiles of 3 x 2 chunks, in a tree of tiles; layers hide each other.
    extents = (3, 2)
    chunks = {(i, j): b"chunk %d %d" % (i, j) for i in range(12) for j in range(10) if (i + j) % 3}
    chunks[5, 5] = bytes(70_000)
    pointers = []
    for tile in [(i, j) for i in range(4) for j in range(5)]:
        here = {(i % 3) * 2 + j % 2: chunk for (i, j), chunk in chunks.items() if (i // 3, j // 2) == tile}
        older = dict.fromkeys(range(6), b"older, hidden")
        newer = {position: here.get(position) for position in range(6)}
        layers = (
            layer_of(repository, stored(repository, newer)),
            layer_of(repository, stored(repository, older)),
        )
        pointers.append(encode_pointer(tile_key(tile), TilePointer(layers, Totals(len(here)))))
    root = repository.tree(pointers, TILE_POLICY)
    long_document = b'{"long": "' + b"x" * 5000 + b'"}'
    document = repository.add(BlobKind.DOCUMENT, long_document)
    put("a/array", array_of(1, {"zarr.json": document}, Tiles(extents, {}, root)))
    expected["a/array/zarr.json"] = long_document
    expected |= {("a/array", index): chunk for index, chunk in chunks.items()}

    # Few tiles, far away, one of them inline; and virtual chunks.
    far = {
        tile_key((2**40,)): TilePointer(
            (layer_of(repository, stored(repository, {3: b"far"}), inline=True),), Totals(1)
        )
    }
    virtual = golden.manifest_of(
        [(0, ChunkKind.VIRTUAL, 0, 100, 50, 1, b""), (1, ChunkKind.VIRTUAL, 0, 150, 50, 0, b"")],
        locations=("file:///a.nc",),
        checksums=(golden.TIME_US,),
    )
    far[tile_key((0,))] = TilePointer((layer_of(repository, virtual),), Totals(2))
    put("far", array_of(2, {".zarray": b"{}", ".zattrs": b"[]"}, Tiles((16,), far)))
    expected |= {
        "far/.zarray": b"{}",
        "far/.zattrs": b"[]",
        ("far", (2**44 + 3,)): b"far",
        ("far", (0,)): ("file:///a.nc", 100, 50, golden.TIME_US),
        ("far", (1,)): ("file:///a.nc", 150, 50, None),
    }

    scalar = TilePointer((layer_of(repository, stored(repository, {0: b"scalar value"})),), Totals(1))
    put("scalar", array_of(3, {"zarr.json": b"{}"}, Tiles((), {b"": scalar})))
    put("empty", array_of(4, {"zarr.json": b"{}"}, Tiles((5,))))
    expected |= {"scalar/zarr.json": b"{}", ("scalar", ()): b"scalar value", "empty/zarr.json": b"{}"}

    value = repository.add(BlobKind.CHUNK, b"long value" * 1000)
    entries += [encode_value("a/README", b"read me"), encode_value("big", value)]
    expected |= {"a/README": b"read me", "big": b"long value" * 1000}

    tree = repository.tree(entries, NODE_POLICY)
    assert decode_page(next(d for k, d in reversed(repository.blobs) if k == BlobKind.PAGE)).level > 0
    snapshot = Snapshot((), 1, "all of it", b"{}", tree)
    ref = repository.add(BlobKind.SNAPSHOT, encode_snapshot(snapshot))
    repository.finish()
    assert len(reader.read_pack(repository.bytes)[1]) == len(repository.blobs)
    assert reader.read_snapshot(repository.get_pack_bytes, ref) == expected


def test_an_empty_snapshot():
    repository = Repository()
    ref = repository.add(BlobKind.SNAPSHOT, encode_snapshot(Snapshot((), 1, "", b"{}", None)))
    repository.finish()
    assert reader.read_snapshot(repository.get_pack_bytes, ref) == {}


@given(blob_refs)
def test_a_wrong_blob_is_noticed(ref):
    with pytest.raises(ValueError, match="blob digest"):
        reader.read_snapshot(lambda pack: b"something else", ref)
