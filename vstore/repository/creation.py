"""How a repository comes to be: an empty first snapshot, and a catalog whose first transaction names it.

The snapshot is durable before the catalog is there, and the repository is there from the moment when its catalog is.
A crash in between leaves one small pack, which the next try passes over. Below: `catalog.location` makes the catalog.
"""

from __future__ import annotations

from contextlib import suppress

from vstore.blobs.spill import PackSpill
from vstore.blobs.uploads import UploadTries
from vstore.blobs.writer import BlobWriter
from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    FORMAT_VERSION,
    AddSnapshot,
    Catalog,
    Identity,
    RefIs,
    SetRef,
    SetValue,
    Transaction,
)
from vstore.catalog.location import create_catalog, find_catalog
from vstore.clock import SYSTEM_CLOCK, Clock
from vstore.config import RepositoryConfig
from vstore.errors import (
    AlreadyExistsError,
    InvalidInputError,
    OutcomeUnknownError,
    RepositoryExistsError,
    StorageError,
    UnsafeStorageError,
)
from vstore.format.envelope import BlobKind
from vstore.format.record import OperationKind, RefKind, SnapshotEntry
from vstore.format.snapshot import Snapshot, encode_snapshot
from vstore.ids import new_repository_id, new_transaction_id
from vstore.keys.objects import LATEST, PACK_PREFIX, pack_name
from vstore.refs import MAIN
from vstore.storage.base import Storage, require_writable

ROOT_MESSAGE = "Repository initialized"
_LARGEST_FIRST_PACK = 4096


def create(
    storage: Storage, config: RepositoryConfig, author: str, kind: str | None, clock: Clock
) -> Catalog:
    """Make a repository in `storage` and return its catalog; `Repository.create` documents it."""
    require_writable(storage)
    if find_catalog(storage, PackSpill(storage)) is not None:
        raise RepositoryExistsError(
            f"{storage.url} already holds a repository. Open it with Repository.open, or choose another place."
        )
    _require_no_data(storage)
    identity = Identity(new_repository_id(), FORMAT_VERSION, (), clock.now_us())
    first = first_transaction(storage, identity, config, author, clock)
    try:
        return create_catalog(storage, identity, first, PackSpill(storage), kind=kind, clock=clock)
    except (AlreadyExistsError, InvalidInputError, UnsafeStorageError):
        # Refused: nothing can ever name the snapshot that was written for it.
        packs = [update.entry.ref.pack for update in first.updates if isinstance(update, AddSnapshot)]
        with suppress(StorageError):
            storage.delete(list(map(pack_name, packs)))
        raise


def _require_no_data(storage: Storage) -> None:
    """Raise `RepositoryExistsError` where more lies than a `create` that was interrupted can have left."""
    if storage.size(LATEST) is not None or any(
        info.size > _LARGEST_FIRST_PACK for info in storage.list(PACK_PREFIX)
    ):
        raise RepositoryExistsError(
            f"{storage.url} holds what is left of a repository whose catalog is gone; a new one would take it for "
            "garbage. Restore the catalog from a backup, or have vstore.rebuild_catalog make one of the packs. For a "
            "new repository choose another place."
        )


def first_transaction(
    storage: Storage, identity: Identity, config: RepositoryConfig, author: str, clock: Clock = SYSTEM_CLOCK
) -> Transaction:
    """Write the empty first snapshot and return the transaction that makes it branch "main"."""
    snapshot = Snapshot((), identity.created_us, ROOT_MESSAGE, b"{}", None)
    tries = UploadTries(storage, clock)
    while True:
        writer = BlobWriter(storage)
        batch = writer.begin_metadata()
        ref = batch.add(BlobKind.SNAPSHOT, encode_snapshot(snapshot))
        entry = SnapshotEntry(
            ref,
            (),
            snapshot.time_us,
            0,
            None,
            batch.start,
            batch.length,
            (snapshot.message, snapshot.metadata),
        )
        try:
            writer.finish(batch)
            break
        except OutcomeUnknownError as error:
            # Its name is in doubt, and a name is put once.
            if not tries.wait():
                raise StorageError(
                    f"the first snapshot could not be uploaded: {error.message} No repository was made; call create "
                    "again when the storage is well."
                ) from error
    return Transaction(
        new_transaction_id(),
        0,
        OperationKind.CREATE_REPOSITORY,
        identity.created_us,
        author,
        (RefIs(RefKind.BRANCH, MAIN, ABSENT),),
        (AddSnapshot(entry), SetRef(RefKind.BRANCH, MAIN, entry.id), SetValue(CONFIG, config.to_json())),
    )
