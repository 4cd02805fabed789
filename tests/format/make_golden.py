"""Makes the golden files of format version 1: `python tests/format/make_golden.py FOLDER` writes them there.

The files under golden/v1 are what vstore wrote when version 1 was settled: all later versions must read them, so they
are never made again. A new format version gets a folder and a builder of its own. What is built is the same every
time but for zstd frames, which differ between releases of the zstd library.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from vstore.format.envelope import BlobKind, Section, decode_envelope, encode_envelope
from vstore.format.manifest import ChunkKind, Manifest, encode_manifest
from vstore.format.node import (
    Layer,
    Node,
    TilePointer,
    Tiles,
    encode_node,
    encode_pointer,
    encode_value,
    node_key,
    tile_key,
)
from vstore.format.pack import PACK_HEADER, Footer, check_table, encode_ending
from vstore.format.page import Child, Entry, Totals, encode_child, encode_page
from vstore.format.record import (
    ExpiredEntry,
    Operation,
    OperationKind,
    PackMark,
    PackState,
    RefChange,
    RefKind,
    SessionEntry,
    SnapshotEntry,
    entry_to_wire,
    expired_to_wire,
    operation_to_wire,
    session_to_wire,
)
from vstore.format.refs import BlobRef, pack_message
from vstore.format.snapshot import Snapshot, encode_snapshot
from vstore.ids import Digest, NodeId, PackId, SessionId, SnapshotId, TransactionId, blake3_digest

GOLDEN = Path(__file__).parent / "golden" / "v1"

PACK_A = PackId(bytes(range(16)))
PACK_B = PackId(bytes(range(100, 116)))
TIME_US = 1_764_000_000_123_456


def digest(text: str) -> Digest:
    return blake3_digest(text.encode())


# --- manifests -----------------------------------------------------------------------------------------------


def manifest_of(
    rows: list[tuple[int, ChunkKind, int, int, int, int, bytes]],
    inline: bytes = b"",
    packs: tuple[PackId, ...] = (),
    locations: tuple[str, ...] = (),
    checksums: tuple[str | int, ...] = (),
) -> Manifest:
    """Return the manifest of rows (position, kind, source, offset, length, check, digest)."""
    columns = list(zip(*rows, strict=True)) or [()] * 7
    digests = b"".join(row[6] or bytes(32) for row in rows)
    return Manifest(
        np.array(columns[0], np.uint16),
        np.array(columns[1], np.uint8),
        np.array(columns[2], np.uint32),
        np.array(columns[3], np.uint64),
        np.array(columns[4], np.uint64),
        np.array(columns[5], np.uint32),
        np.frombuffer(digests, np.uint8).reshape(len(rows), 32),
        inline,
        packs,
        locations,
        checksums,
    )


ONE_REF = manifest_of([(7, ChunkKind.STORED, 0, 16, 1000, 0, digest("chunk 7"))], packs=(PACK_A,))

MIXED = manifest_of(
    [
        (0, ChunkKind.STORED, 0, 16, 70_000, 0, digest("chunk 0")),
        (1, ChunkKind.INLINE, 0, 0, 5, 0, b""),
        (2, ChunkKind.VIRTUAL, 0, 4096, 50_000, 1, b""),
        (3, ChunkKind.VIRTUAL, 0, 54_096, 50_001, 1, b""),
        (5, ChunkKind.DELETED, 0, 0, 0, 0, b""),
        (8, ChunkKind.VIRTUAL, 1, 0, 0, 2, b""),
        (13, ChunkKind.STORED, 1, 2**40, 123, 0, digest("chunk 13")),
        (21, ChunkKind.INLINE, 0, 5, 0, 0, b""),
        (34, ChunkKind.STORED, 0, 70_024, 1, 0, digest("chunk 34")),
        (55, ChunkKind.INLINE, 0, 5, 3, 0, b""),
        (89, ChunkKind.VIRTUAL, 1, 7, 2**33, 0, b""),
        (16_383, ChunkKind.DELETED, 0, 0, 0, 0, b""),
    ],
    inline=b"helloabc",
    packs=(PACK_A, PACK_B),
    locations=("s3://bucket/one.nc", "vstore+container://models/zwei-\u00e4.nc"),
    checksums=('"0123456789abcdef"', TIME_US),
)

VIRTUAL = manifest_of(
    [
        (i, ChunkKind.VIRTUAL, 0, 8192 + 1000 * i + 64 * (i // 50), 1000 - i % 3, 1, b"")
        for i in range(0, 400, 2)
    ],
    locations=("file:///data/a.h5",),
    checksums=("etag",),
)

NO_REF = manifest_of([])

# --- nodes, values, tile pointers ----------------------------------------------------------------------------

GROUP = Node(NodeId(b"group-01"), {"zarr.json": b'{"zarr_format":3,"node_type":"group"}'})


def uncompressed(manifest: Manifest) -> bytes:
    """Return the manifest's envelope without zstd, so that the entry that holds it is the same every time."""
    envelope = decode_envelope(encode_manifest(manifest), BlobKind.MANIFEST, 1)
    return encode_envelope(BlobKind.MANIFEST, 1, tuple(Section(envelope.section(i)) for i in range(3)))


ARRAY = Node(
    NodeId(b"array-02"),
    {
        ".zarray": b'{"zarr_format":2}',
        ".zattrs": BlobRef(digest("long attributes"), PACK_B, 12_345, 6789),
    },
    Tiles(
        (128, 64, 2),
        {
            tile_key((0, 0, 0)): TilePointer(
                (
                    Layer(uncompressed(manifest_of([(3, ChunkKind.INLINE, 0, 0, 2, 0, b"")], b"hi")), 1),
                    Layer(BlobRef(digest("layer"), PACK_A, 16, 300), 16_384),
                ),
                Totals(16_384, 2**34, True),
            ),
            tile_key((0, 300, 1)): TilePointer(
                (Layer(BlobRef(digest("other layer"), PACK_B, 400, 40), 2),), Totals(2, 2000, False)
            ),
        },
    ),
)

TILE_ROOT = Child(BlobRef(digest("tile root"), PACK_B, 500, 4000), 70_000, Totals(10**9, 10**15, False))
LARGE_ARRAY = Node(NodeId(b"array-03"), {"zarr.json": b"{}"}, Tiles((16_384,), {}, TILE_ROOT))
SCALAR_ARRAY = Node(
    NodeId(b"array-04"),
    {"zarr.json": b"{}"},
    Tiles((), {b"": TilePointer((Layer(BlobRef(digest("scalar"), PACK_A, 16, 90), 1),), Totals(1, 8, True))}),
)

INLINE_VALUE = b"any bytes \x00\xff"
LONG_VALUE = BlobRef(digest("value"), PACK_A, 16, 5000)

POINTER = TilePointer((Layer(BlobRef(digest("top"), PACK_A, 2**32, 77), 1),), Totals(5, 500, True))

# --- pages ---------------------------------------------------------------------------------------------------

LEAF = [
    encode_node("", GROUP),
    encode_node("a", ARRAY),
    encode_node("a-b", LARGE_ARRAY),
    encode_node("a/deep/\u00fc", SCALAR_ARRAY),
    encode_value("a/README", INLINE_VALUE),
    encode_value("big", LONG_VALUE),
]
LEAF.sort()

CHILDREN = [
    Child(BlobRef(digest("left"), PACK_A, 16, 4000), 100, Totals(3, 300, True)),
    Child(BlobRef(digest("right"), PACK_B, 2**35, 4001), 2, Totals(2**40, 2**62, False)),
]
INNER = [
    Entry(key, 0, encode_child(child)) for key, child in zip((b"n", node_key("m")), CHILDREN, strict=True)
]

TILES = [
    encode_pointer(tile_key((tile, 2)), POINTER._replace(totals=Totals(tile, tile * 10, True)))
    for tile in (0, 1, 255, 256, 70_000)
]

# --- snapshots -----------------------------------------------------------------------------------------------

SNAPSHOT = Snapshot(
    (SnapshotId(digest("first parent")), SnapshotId(digest("second parent"))),
    TIME_US,
    "Merge the m\u00e4rz run",
    b'{"run": 3, "who": null}',
    CHILDREN[1],
)
FIRST_SNAPSHOT = Snapshot((), 0, "", b"{}", None)

# --- packs ---------------------------------------------------------------------------------------------------


def pack_of(pack: PackId, blobs: list[tuple[BlobKind, bytes]]) -> tuple[bytes, Footer]:
    """Return a pack's bytes and what its footer lists."""
    body = bytearray(PACK_HEADER)
    rows = []
    for kind, blob in blobs:
        rows.append((kind, blake3_digest(blob), len(body), len(blob)))
        body += blob + check_table(blob)
    kinds, digests, offsets, lengths = zip(*rows, strict=True) if rows else [()] * 4
    footer = Footer(
        np.array(kinds, np.uint8),
        np.frombuffer(b"".join(digests), np.uint8).reshape(len(rows), 32),
        np.array(offsets, np.uint64),
        np.array(lengths, np.uint64),
    )
    return bytes(body) + encode_ending(pack, footer, len(body)), footer


TINY_PACK = [(BlobKind.CHUNK, b"hello")]
LARGE_PACK = [(BlobKind.CHUNK, bytes(range(256)) * 257), (BlobKind.CHUNK, b""), (BlobKind.CHUNK, b"tail")]
FULL_PACK = [
    (BlobKind.CHUNK, b"chunk one"),
    (BlobKind.CHUNK, b"chunk two, a little longer"),
    (BlobKind.DOCUMENT, b'{"long": "document"}'),
    (BlobKind.MANIFEST, encode_manifest(ONE_REF)),
    (BlobKind.PAGE, encode_page(0, LEAF)),
    (BlobKind.SNAPSHOT, encode_snapshot(SNAPSHOT)),
]

# --- the catalog's values ------------------------------------------------------------------------------------

ENTRY = SnapshotEntry(
    ref=BlobRef(digest("snapshot"), PACK_A, 2000, 400),
    parents=SNAPSHOT.parents,
    time_us=TIME_US,
    depth=6,
    jump=SnapshotId(digest("far ancestor")),
    stretch_offset=1000,
    stretch_length=1400,
    info=("a message", b"{}"),
)
FIRST_ENTRY = ENTRY._replace(parents=(), depth=0, jump=None, info=None)

OPERATION = Operation(
    sequence=2**53,
    transaction=TransactionId(bytes(range(16, 32))),
    kind=OperationKind.RESET_BRANCH,
    time_us=TIME_US,
    author="ada@host",
    changes=(
        RefChange(RefKind.BRANCH, "main", SnapshotId(digest("old")), SnapshotId(digest("new"))),
        RefChange(RefKind.TAG, "v1", None, SnapshotId(digest("new"))),
    ),
    details={"reason": "undo", "count": 3},
)
RELOCATED = PackState(PACK_A, PackMark.RELOCATED, 12, PACK_B)
CONDEMNED = PackState(PACK_B, PackMark.CONDEMNED, 2**40, None)
SESSION = SessionEntry(SessionId(bytes(range(32, 48))), 3, TIME_US, TIME_US + 10**12)
LEASE = SESSION._replace(snapshot=ENTRY.id)
EXPIRED = ExpiredEntry(ENTRY.id, ENTRY.parents, ENTRY.time_us, ENTRY.depth, ENTRY.jump)
FIRST_EXPIRED = EXPIRED._replace(parents=(), depth=0, jump=None)


def build() -> dict[str, bytes]:
    """Return the files' bytes by name."""
    return {
        "manifest-one.bin": encode_manifest(ONE_REF),
        "manifest-mixed.bin": encode_manifest(MIXED),
        "manifest-virtual.bin": encode_manifest(VIRTUAL),
        "manifest-none.bin": encode_manifest(NO_REF),
        "page-leaf.bin": encode_page(0, LEAF),
        "page-inner.bin": encode_page(1, INNER),
        "page-tiles.bin": encode_page(0, TILES),
        "node-group.bin": encode_node("", GROUP).value,
        "node-array.bin": encode_node("a", ARRAY).value,
        "node-large-array.bin": encode_node("a", LARGE_ARRAY).value,
        "node-scalar-array.bin": encode_node("a", SCALAR_ARRAY).value,
        "value-inline.bin": encode_value("a", INLINE_VALUE).value,
        "value-long.bin": encode_value("a", LONG_VALUE).value,
        "pointer.bin": encode_pointer(b"", POINTER).value,
        "child.bin": encode_child(CHILDREN[1]),
        "snapshot.bin": encode_snapshot(SNAPSHOT),
        "snapshot-first.bin": encode_snapshot(FIRST_SNAPSHOT),
        "pack-empty.bin": pack_of(PACK_A, [])[0],
        "pack-tiny.bin": pack_of(PACK_A, TINY_PACK)[0],
        "pack-full.bin": pack_of(PACK_A, FULL_PACK)[0],
        "pack-large.bin": pack_of(PACK_B, LARGE_PACK)[0],
        "entry.bin": pack_message(entry_to_wire(ENTRY)),
        "entry-first.bin": pack_message(entry_to_wire(FIRST_ENTRY)),
        "operation.bin": pack_message(operation_to_wire(OPERATION)),
        "pack-relocated.bin": pack_message(tuple(RELOCATED)),
        "pack-condemned.bin": pack_message(tuple(CONDEMNED)),
        "session.bin": pack_message(session_to_wire(SESSION)),
        "lease.bin": pack_message(session_to_wire(LEASE)),
        "expired.bin": pack_message(expired_to_wire(EXPIRED)),
        "expired-first.bin": pack_message(expired_to_wire(FIRST_EXPIRED)),
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in build().items():
        (folder / name).write_bytes(data)
        print(f"{name:24} {len(data):7}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
