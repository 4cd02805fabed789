"""What is at the place that a repository is to be copied to: nothing, a part of a copy, a copy, or something else.

The object `repo`, with the repository's identity, is made before anything else there: a place that has it, and no
catalog, is an unfinished copy of that repository, and is gone on with. A place with a catalog is a copy if it is of the
same repository and of a state that the source was in; nobody may have committed to it since. What only keeps a copy
well (gc, compact, leases) is no obstacle.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import NamedTuple

from vstore.blobs.spill import PackSpill
from vstore.catalog.base import Catalog, CatalogView, Identity
from vstore.catalog.handover import CatalogKind
from vstore.catalog.location import find_catalog, open_catalog
from vstore.catalog.log_patience import Patience
from vstore.catalog.state import decode_identity, encode_identity
from vstore.clock import Clock
from vstore.errors import (
    AlreadyExistsError,
    ConflictError,
    FormatError,
    InvalidInputError,
    ObjectExistsError,
    OutcomeUnknownError,
    RepositoryExistsError,
    RepositoryNotFoundError,
)
from vstore.format.log_record import MAX_RECORD_BYTES, decode_identity_object, encode_identity_object
from vstore.format.record import Operation, OperationKind, PackMark, PackState
from vstore.ids import TransactionId
from vstore.keys.objects import PROBE_PREFIX, REPO, SQLITE_FILE, STAGING_PREFIX
from vstore.storage.base import Storage, read_twice
from vstore.storage.local import LocalStorage
from vstore.transfer.catalogs import NOTHING

_HOUSEKEEPING = frozenset(
    {
        OperationKind.COLLECT,
        OperationKind.COMPACT,
        OperationKind.NO_OPERATION,
        OperationKind.OPEN_SESSION,
        OperationKind.CLOSE_SESSION,
    }
)
_OWN_NAMES = {"repo", "latest", "log", "packs", "staging", "probe", "sessions", "lost+found"}


class Copy(NamedTuple):
    """A copy as it was found; `newest` is `NOTHING` if it has no catalog yet.

    `own` tells whether operations of its own housekeeping may follow the last one that came from the source, which is
    number `common`. `deleting` are packs that a gc was deleting, `moved` those that compact replaced.
    """

    kind: CatalogKind | None
    newest: int = NOTHING
    newest_transaction: TransactionId | None = None
    common: int = NOTHING
    common_transaction: TransactionId | None = None
    epoch: int = 0
    deleting: tuple[PackState, ...] = ()
    moved: tuple[PackState, ...] = ()


class Relation(NamedTuple):
    """How a copy stands to a state of the source: behind it, or not; and whether it has operations of its own."""

    is_behind: bool
    has_own: bool


def look_at(storage: Storage, identity: Identity, clock: Clock) -> Copy:
    """Return what is in `storage`; raise if it is neither empty nor a copy of this repository, nor a part of one."""
    kind = find_catalog(storage, PackSpill(storage))
    if kind is not None:
        try:
            catalog = open_catalog(storage, PackSpill(storage), clock=clock)
        except RepositoryNotFoundError:
            # The last step of a first copy was interrupted; a log's number 0 is there already.
            _require_same(_claimed_by(storage), identity, storage)
            return Copy(None)
        try:
            catalog.confirm()
            return _existing(storage, kind, catalog, identity)
        finally:
            catalog.close()
    claimed = _claimed_by(storage)
    if claimed is not None:
        _require_same(claimed, identity, storage)
    else:
        _require_empty(storage)
    return Copy(None)


def claim(storage: Storage, identity: Identity, clock: Clock) -> None:
    """Say that the place is for a copy of this repository."""
    patience = Patience(clock)
    while True:
        try:
            storage.create(REPO, encode_identity_object(encode_identity(identity)))
            return
        except ObjectExistsError:
            found = _claimed_by(storage)
            break
        except OutcomeUnknownError as error:
            found = _claimed_by(storage)
            if found is not None:
                break
            patience.note_trouble(error)
            if patience.is_spent:
                raise
        patience.wait()
    _require_same(found, identity, storage)


def relate(copy: Copy, view: CatalogView, storage: Storage) -> Relation:
    """Compare a copy with the source's state in `view`.

    Raises `ConflictError` if it holds what the source never held, or if its gc is not done.
    """
    if copy.newest == NOTHING:
        return Relation(True, False)
    if _has(view, copy.newest, copy.newest_transaction):
        return Relation(copy.newest < view.sequence, False)
    if not _has(view, copy.common, copy.common_transaction):
        raise ConflictError(
            f"{storage.url} is of the same repository, but was written to since it was copied, or holds a newer state "
            f"(its operation {copy.common} is not the source's). Nothing was changed, as copying would lose that. "
            "Copy to another place, or from there to here."
        )
    marked = set(view.pack_states(frozenset(state.pack for state in copy.deleting)))
    if not marked.issuperset(copy.deleting):
        raise ConflictError(
            f"garbage collection in {storage.url} is not done: packs are still being deleted there. Nothing was "
            "changed; run garbage_collect() on that copy again, then copy."
        )
    return Relation(_newest_of_source(view).sequence > copy.common, True)


def _has(view: CatalogView, sequence: int, transaction: TransactionId | None) -> bool:
    """Tell whether the operation of this number is this one."""
    if sequence > view.sequence:
        return False
    found = next(view.iter_operations(sequence + 1), None)
    return found is not None and found.sequence == sequence and found.transaction == transaction


def _existing(storage: Storage, kind: CatalogKind, catalog: Catalog, identity: Identity) -> Copy:
    _require_same(catalog.identity, identity, storage)
    with catalog.reading() as view:
        newest = next(view.iter_operations())
        common = _newest_of_source(view)
        states = view.pack_states(None)
        return Copy(
            kind,
            newest.sequence,
            newest.transaction,
            common.sequence,
            common.transaction,
            view.epoch,
            tuple(state for state in states if state.mark == PackMark.DELETING),
            tuple(state for state in states if state.mark == PackMark.RELOCATED),
        )


def _newest_of_source(view: CatalogView) -> Operation:
    """Return the newest operation that is not of a copy's own housekeeping."""
    operation = None
    for operation in view.iter_operations():
        if operation.kind not in _HOUSEKEEPING:
            break
    assert operation is not None
    return operation


def _claimed_by(storage: Storage) -> Identity | None:
    if storage.size(REPO) is None:
        return None

    def read() -> Identity:
        return decode_identity(decode_identity_object(storage.read_whole(REPO, MAX_RECORD_BYTES)))

    try:
        return read_twice(storage, read)
    except FormatError as error:
        raise type(error)(
            f"{REPO!r} in {storage.url!r}, which says whose copy it is: {error.message}"
        ) from None


def _require_same(found: Identity | None, identity: Identity, storage: Storage) -> None:
    if found is None or found.repository != identity.repository:
        name = "another one" if found is None else f"repository {found.repository.hex()}"
        raise RepositoryExistsError(
            f"{storage.url} holds {name}, not a copy of repository {identity.repository.hex()}. Nothing was changed; "
            "choose another place."
        )


def _require_empty(storage: Storage) -> None:
    # A crash before the place was claimed may have left scratch files.
    objects = (info.name for info in storage.list(""))
    names = list(islice((name for name in objects if not name.startswith((STAGING_PREFIX, PROBE_PREFIX))), 1))
    if not names and isinstance(storage, LocalStorage) and os.path.isdir(storage.root):
        entries = sorted(os.listdir(storage.root))
        names = [name for name in entries if name not in _OWN_NAMES and not name.startswith(SQLITE_FILE)]
    if names:
        raise AlreadyExistsError(
            f"{storage.url} is not empty: it holds {names[0]!r}. Nothing was changed; choose an empty place, or one "
            "that holds a copy of this repository."
        )


def require_elsewhere(source: Storage, target: Storage) -> None:
    """Raise `InvalidInputError` if both are the same place."""
    if isinstance(source, LocalStorage) and isinstance(target, LocalStorage):
        roots = os.path.realpath(source.root), os.path.realpath(target.root)
        if os.path.commonpath(roots) == roots[0] != roots[1]:
            raise InvalidInputError(f"{target.url} is inside the repository: copy it to another place.")
        is_same = roots[0] == roots[1]
    else:
        # Elsewhere two names of one place can't be told; there the copy is found up to date, and nothing is done.
        is_same = source is target
    if is_same:
        raise InvalidInputError(f"{target.url} is the repository itself: copy it to another place.")
