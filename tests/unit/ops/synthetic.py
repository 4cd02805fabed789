"""A repository with millions of chunk refs, made without its chunks: packs whose blobs are holes, and true metadata."""

from __future__ import annotations

import numpy as np

import vstore
from tests.repositories import GROUP, array_document
from vstore.blobs.reader import BlobReader
from vstore.blobs.writer import BlobWriter
from vstore.catalog.base import AddSnapshot, Applied, SetRef, Transaction
from vstore.changes.tiling import choose_extents
from vstore.format.envelope import BlobKind
from vstore.format.manifest import MAX_TILE_CHUNKS, ChunkKind, Manifest, encode_manifest
from vstore.format.node import (
    Layer,
    Node,
    TilePointer,
    Tiles,
    encode_node,
    encode_pointer,
    node_key,
    tile_key,
)
from vstore.format.pack import HEADER_SIZE, PACK_HEADER, Footer, encode_ending
from vstore.format.page import Totals
from vstore.format.record import OperationKind, RefKind, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.format.snapshot import Snapshot, encode_snapshot
from vstore.ids import Digest, PackId, new_node_id, new_pack_id, new_transaction_id
from vstore.tree.writing import Change, update
from vstore.worktree.encode import NODE_POLICY, TILE_POLICY

CHUNK = 4096
PACK_BLOBS = 2**17


def make_synthetic(repository: vstore.Repository, refs: int) -> BlobRef:
    """Commit array "large" with `refs` chunks, one of which is in no footer; return that one."""
    digests = np.random.Generator(np.random.PCG64(5)).integers(0, 256, (refs, 32), dtype=np.uint8)
    storage = repository.handle.storage
    lost = refs // 3
    packs = []
    for start in range(0, refs, PACK_BLOBS):
        rows = np.arange(start, min(start + PACK_BLOBS, refs))
        packs.append(_sparse_pack(repository, digests, rows[rows != lost], start))
    writer = BlobWriter(storage)
    batch = writer.begin_metadata()
    changes = []
    extents = choose_extents((refs,))
    for tile, start in enumerate(range(0, refs, MAX_TILE_CHUNKS)):
        rows = np.arange(start, min(start + MAX_TILE_CHUNKS, refs))
        manifest = _manifest(digests, rows, packs)
        ref = batch.add(BlobKind.MANIFEST, encode_manifest(manifest))
        totals = Totals(len(rows), CHUNK * len(rows))
        pointer = encode_pointer(tile_key((tile,)), TilePointer((Layer(ref, len(rows)),), totals))
        changes.append(Change(pointer.key, pointer))
    reader = BlobReader(storage)
    root = update(reader, batch, None, sorted(changes, key=lambda change: change.key), TILE_POLICY)
    nodes = [
        encode_node("", Node(new_node_id(), {"zarr.json": GROUP})),
        encode_node(
            "large", Node(new_node_id(), {"zarr.json": array_document((refs,))}, Tiles(extents, {}, root))
        ),
    ]
    hierarchy = update(reader, batch, None, [Change(node.key, node) for node in nodes], NODE_POLICY)
    with repository.handle.catalog.reading() as view:
        (first,) = view.iter_snapshots()
        since = view.sequence
    snapshot = Snapshot((first.id,), first.time_us + 1, "synthetic", b"{}", hierarchy)
    made = batch.add(BlobKind.SNAPSHOT, encode_snapshot(snapshot))
    entry = SnapshotEntry(
        made, snapshot.parents, snapshot.time_us, 1, first.id, batch.start, batch.length, ("synthetic", b"{}")
    )
    writer.finish(batch)
    transaction = Transaction(
        new_transaction_id(),
        since,
        OperationKind.COMMIT,
        snapshot.time_us,
        "",
        (),
        (AddSnapshot(entry), SetRef(RefKind.BRANCH, "main", entry.id)),
    )
    assert isinstance(repository.handle.catalog.update(transaction), Applied)
    assert node_key("large") == nodes[1].key
    offset = HEADER_SIZE + CHUNK * (lost % PACK_BLOBS)
    return BlobRef(Digest(digests[lost].tobytes()), packs[lost // PACK_BLOBS], offset, CHUNK)


def _sparse_pack(repository: vstore.Repository, digests: np.ndarray, rows: np.ndarray, start: int) -> PackId:
    offsets = (HEADER_SIZE + CHUNK * (rows - start)).astype(np.uint64)
    footer = Footer(
        np.full(len(rows), BlobKind.CHUNK, np.uint8),
        digests[rows],
        offsets,
        np.full(len(rows), CHUNK, np.uint64),
    )
    sink = repository.handle.storage.open_pack(new_pack_id())
    end = int(offsets[-1]) + CHUNK
    ending = encode_ending(sink.pack, footer, end)
    sink.write(0, [PACK_HEADER])
    sink.write(end, [ending])
    sink.seal(end + len(ending))
    return sink.pack


def _manifest(digests: np.ndarray, rows: np.ndarray, packs: list[PackId]) -> Manifest:
    zeros = np.zeros(len(rows), np.uint32)
    sources = rows // PACK_BLOBS
    names, numbers = np.unique(sources, return_inverse=True)
    return Manifest(
        (rows % MAX_TILE_CHUNKS).astype(np.uint16),
        np.full(len(rows), ChunkKind.STORED, np.uint8),
        numbers.astype(np.uint32),
        (HEADER_SIZE + CHUNK * (rows % PACK_BLOBS)).astype(np.uint64),
        np.full(len(rows), CHUNK, np.uint64),
        zeros,
        digests[rows],
        packs=tuple(packs[name] for name in names.tolist()),
    )
