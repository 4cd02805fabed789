"""Repositories made to harm: any blobs under their right digests, named by a right snapshot of a right catalog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import vstore
from vstore.blobs.metadata import MetadataBatch
from vstore.blobs.writer import BlobWriter
from vstore.catalog.base import AddSnapshot, Applied, SetRef, Transaction
from vstore.format.envelope import BlobKind
from vstore.format.node import Node, Tiles, encode_node
from vstore.format.page import Child, Entry, Totals, encode_child, encode_page
from vstore.format.record import OperationKind, RefKind, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.format.snapshot import Snapshot, encode_snapshot
from vstore.ids import NodeId, SnapshotId, new_transaction_id

TIME_US = 1_800_000_000_000_000


def update(repository: vstore.Repository, *updates: Any) -> None:
    """Make a transaction, whatever it does."""
    catalog = repository.handle.catalog
    with catalog.reading() as view:
        since = view.sequence
    outcome = catalog.update(
        Transaction(new_transaction_id(), since, OperationKind.COMMIT, TIME_US, "", (), updates)
    )
    assert isinstance(outcome, Applied)


def forge(
    repository: vstore.Repository,
    make_root: Callable[[MetadataBatch], Child | None],
    branch: str = "main",
    metadata: bytes = b"{}",
) -> SnapshotId:
    """Put a snapshot with any tree on a branch."""
    writer = BlobWriter(repository.handle.storage)
    batch = writer.begin_metadata()
    root = make_root(batch)
    ref = batch.add(BlobKind.SNAPSHOT, encode_snapshot(Snapshot((), TIME_US, "forged", metadata, root)))
    entry = SnapshotEntry(ref, (), TIME_US, 0, None, batch.start, batch.length, ("forged", b"{}"))
    writer.finish(batch)
    writer.close()
    update(repository, AddSnapshot(entry), SetRef(RefKind.BRANCH, branch, entry.id))
    return entry.id


def page(batch: MetadataBatch, level: int, entries: Sequence[tuple[bytes, Any]]) -> Child:
    """Add a page of children or of leaf entries."""
    made = [
        value
        if isinstance(value, Entry)
        else Entry(key, 0, encode_child(value) if isinstance(value, Child) else value)
        for key, value in entries
    ]
    return Child(batch.add(BlobKind.PAGE, encode_page(level, made)), 1, Totals(1, 1))


def group(path: str, document: bytes) -> tuple[bytes, Entry]:
    entry = encode_node(path, Node(NodeId(bytes(8)), {"zarr.json": document}))
    return entry.key, entry


def array(path: str, document: bytes, tiles: Tiles) -> tuple[bytes, Entry]:
    entry = encode_node(path, Node(NodeId(b"a" * 8), {"zarr.json": document}, tiles))
    return entry.key, entry


def blob(batch: MetadataBatch, data: bytes) -> BlobRef:
    return batch.add(BlobKind.MANIFEST, data)
