"""What the tests of deleting share."""

from __future__ import annotations

from datetime import UTC, datetime

import vstore
from vstore.catalog.base import Applied, DropSnapshots, NotHeld, Transaction
from vstore.format.record import OperationKind, PackMark
from vstore.ids import SnapshotId, new_transaction_id
from vstore.keys.objects import PACK_PREFIX

FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


def snapshot_id(text: str) -> SnapshotId:
    return SnapshotId(bytes.fromhex(text))


def expire(repository: vstore.Repository, *snapshots: str) -> None:
    """Let snapshots expire that no ref holds."""
    ids = tuple(map(snapshot_id, snapshots))
    with repository.handle.catalog.reading() as view:
        since = view.sequence
    transaction = Transaction(
        new_transaction_id(),
        since,
        OperationKind.EXPIRE,
        0,
        "",
        (NotHeld(frozenset(ids), 0),),
        (DropSnapshots(ids),),
    )
    assert isinstance(repository.handle.catalog.update(transaction), Applied)


def packs(repository: vstore.Repository, prefix: str = PACK_PREFIX) -> dict[str, int]:
    """Return the names and sizes of the packs."""
    return {info.name: info.size for info in repository.handle.storage.list(prefix)}


def marks(repository: vstore.Repository) -> set[PackMark]:
    with repository.handle.catalog.reading() as view:
        return {state.mark for state in view.pack_states(None)}
