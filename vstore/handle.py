"""What an open repository works with: its storage, catalog, reader of virtual chunks, clock and settings.

One `Handle` is shared by a repository object and its sessions. It also answers the question that a blob reader asks
when a pack is gone: the catalog may say that compact moved its blobs.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from fnmatch import fnmatchcase
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from vstore.blobs.reader import BlobReader
from vstore.blobs.virtual import VirtualReader
from vstore.catalog.base import (
    ABSENT,
    PROTECTED,
    STATUS,
    Absent,
    Applied,
    Catalog,
    CatalogView,
    CloseSession,
    DropRef,
    OpenSession,
    Outcome,
    Precondition,
    SetRef,
    SetValue,
    Transaction,
    Update,
    ValueIs,
)
from vstore.catalog.handover import moved_to
from vstore.clock import SYSTEM_CLOCK, Clock
from vstore.config import RepositoryConfig, load_json, load_object
from vstore.errors import (
    CorruptionError,
    MissingBlobError,
    ProtectedBranchError,
    ReadOnlyError,
    SnapshotExpiredError,
    StorageError,
)
from vstore.format.record import Operation, OperationKind, SnapshotEntry, relocations
from vstore.format.refs import BlobRef
from vstore.ids import PackId, SnapshotId, new_transaction_id
from vstore.locks import ForkSafeLock
from vstore.storage.base import Storage

if TYPE_CHECKING:
    from vstore.blobs.fetching import PackFetcher

_SINGLE_LOOKS = 8
"""Replaced packs that a reader asks for one by one before it asks for all."""
_MAX_DOUBTS = 64


class Doubts:
    """Changes whose outcome was unknown, by what was asked for, so that asking again finds out first. Thread-safe.

    A doubt lasts until the same handle has changed the same once more: who asks again after that means a new change.
    Only the newest are kept. Copies that come through pickle start with none.
    """

    def __init__(self) -> None:
        self._transactions: dict[Hashable, Transaction] = {}
        self._lock = ForkSafeLock(threading.Lock)

    def note(self, request: Hashable, transaction: Transaction) -> None:
        with self._lock:
            self._transactions[request] = transaction
            while len(self._transactions) > _MAX_DOUBTS:
                del self._transactions[next(iter(self._transactions))]

    def get(self, request: Hashable) -> Transaction | None:
        try:
            hash(request)
        except TypeError:
            # A list where a name belongs: it was never asked for, and what it is asked of says what is wrong.
            return None
        with self._lock:
            return self._transactions.get(request)

    def forget(self, request: Hashable, transaction: Transaction) -> None:
        """Forget a doubt, unless it is another call's by now."""
        with self._lock:
            if self._transactions.get(request) is transaction:
                del self._transactions[request]

    def rivals(self, transaction: Transaction) -> list[Transaction]:
        """Return the other doubts that, if they were applied, changed what `transaction` is about."""
        with self._lock:
            return [
                each
                for each in self._transactions.values()
                if each is not transaction and _overtakes(each, transaction)
            ]

    def overtake(self, made: Transaction, done: Operation) -> None:
        """Forget the doubts about what `made` has changed since; `done` is the operation that it became."""
        with self._lock:
            for request, each in list(self._transactions.items()):
                # What was decided later on is not overtaken: an earlier change may turn out only now to be done.
                if each.since < done.sequence and _overtakes(made, each):
                    del self._transactions[request]

    def __reduce__(self) -> tuple[type[Doubts], tuple[()]]:
        return Doubts, ()


_ANY_REF = "any ref"
_GONE_ON_FROM = (OperationKind.MERGE, OperationKind.CHERRY_PICK, OperationKind.REVERT)


def _overtakes(made: Transaction, doubtful: Transaction) -> bool:
    """Tell whether who asks for `doubtful` again, after `made`, means a new change."""
    if made.kind == OperationKind.COMMIT and doubtful.kind in _GONE_ON_FROM:
        # A commit goes on from a pick, a revert or a merge, and takes nothing of it back.
        return False
    return not _changed(made).isdisjoint(_about(doubtful))


def _changed(transaction: Transaction) -> set[Hashable]:
    """Return the refs, values and sessions that a transaction changes; of protection, the pattern."""
    subjects: set[Hashable] = set()
    for update in transaction.updates:
        match update:
            case SetRef(kind, name) | DropRef(kind, name):
                subjects |= {(kind, name), _ANY_REF}
            case SetValue(name):
                subjects.add((name, transaction.details.get("pattern")))
            case OpenSession(entry):
                subjects.add(entry.session)
            case CloseSession(session):
                subjects.add(session)
    return subjects


def _about(transaction: Transaction) -> set[Hashable]:
    """Return what a transaction goes by: undo and restore look at all refs, whichever they change."""
    looks_at_all = transaction.kind in (OperationKind.UNDO, OperationKind.RESTORE)
    return _changed(transaction) - (set() if looks_at_all else {_ANY_REF})


class MisledError(StorageError):
    """The state of the catalog that was looked at was never this repository's: look again."""


class Handle(msgspec.Struct, frozen=True):
    """The parts of an open repository."""

    storage: Storage
    catalog: Catalog
    virtual: VirtualReader
    config: RepositoryConfig
    author: str
    clock: Clock = SYSTEM_CLOCK
    doubts: Doubts = msgspec.field(default_factory=Doubts)
    fetcher: PackFetcher | None = None
    """What makes the requests of all readers; None on a local disk."""

    def __post_init__(self) -> None:
        if self.fetcher is None and not self.storage.is_local:
            from vstore.blobs.fetching import PackFetcher

            msgspec.structs.force_setattr(self, "fetcher", PackFetcher(self.storage))

    def blobs_for(self, snapshot: SnapshotId | None) -> BlobReader:
        """Return a reader for what `snapshot` holds, which can say whether that has expired."""
        asked = count()

        def recover(ref: BlobRef, what: str) -> dict[PackId, PackId]:
            # Who meets a few replaced packs will meet many; who reads one chunk need not know of all.
            return self._find_moved(ref, what, snapshot, None if next(asked) >= _SINGLE_LOOKS else {ref.pack})

        return BlobReader(self.storage, recover, self.fetcher)

    def _find_moved(
        self, ref: BlobRef, what: str, snapshot: SnapshotId | None, packs: set[PackId] | None
    ) -> dict[PackId, PackId]:
        """Return where `packs` (None: all that were replaced) are now; that of `ref` is among them."""
        with self.catalog.reading() as view:
            if snapshot is not None and view.snapshot(snapshot) is None:
                raise SnapshotExpiredError(
                    f"{what} can't be read: snapshot {snapshot.hex()} has expired and its data was deleted. "
                    "Open a session on a newer snapshot."
                )
            states = view.pack_states(None if packs is None else frozenset(packs))
        moved = relocations(states)
        if ref.pack in moved:
            return moved
        if not self.catalog.confirm():
            raise MisledError(
                f"{what} was looked for by a hint in {self.storage.url} that is not of this repository, and is not "
                "believed any more. Look again."
            )
        raise MissingBlobError(
            f"{what} is missing: pack {ref.pack.hex()} in {self.storage.url} should hold blob {ref.digest.hex()} "
            f"({ref.length} bytes at {ref.offset}), but there is no such pack. "
            "repo.fsck() names all that is damaged; restore the pack from a copy of the repository."
        )

    def open_snapshot(self, entry: SnapshotEntry) -> BlobReader:
        """Return a reader for a snapshot, with its commit's metadata fetched ahead where that saves requests."""
        blobs = self.blobs_for(entry.id)
        blobs.prefetch(entry.ref, entry.stretch_offset, entry.stretch_length)
        return blobs

    def expect(self, entry: SnapshotEntry) -> None:
        """Begin to fetch the metadata of a snapshot that is likely to be opened next; does not wait."""
        self.blobs_for(None).prefetch(entry.ref, entry.stretch_offset, entry.stretch_length)

    def close(self) -> None:
        """Let go of files, maps, threads and connections; they are made again if the handle is used afterwards."""
        if self.fetcher is not None:
            self.fetcher.close()
        self.catalog.close()
        self.storage.close()

    def update_online(
        self,
        kind: OperationKind,
        conditions: tuple[Precondition, ...],
        updates: tuple[Update, ...],
        details: dict[str, Any],
    ) -> Outcome:
        """Ask the catalog for one update, given that the repository is not read-only, else `ReadOnlyError`."""
        self.catalog.check_writable()
        with self.catalog.reading() as view:
            online, since = require_online(view), view.sequence
        transaction = Transaction(
            new_transaction_id(),
            since,
            kind,
            self.clock.now_us(),
            self.author,
            (online, *conditions),
            updates,
            details,
        )
        outcome = self.catalog.update(transaction)
        if isinstance(outcome, Applied):
            self.doubts.overtake(transaction, outcome.operation)
        return outcome

    def with_config(self, config: RepositoryConfig) -> Handle:
        return msgspec.structs.replace(self, config=config)

    def with_catalog(self, catalog: Catalog) -> Handle:
        return msgspec.structs.replace(self, catalog=catalog)


def require_online(view: CatalogView) -> ValueIs:
    """Raise `ReadOnlyError` if the repository was set read-only; else return the precondition that it stays online."""
    status = view.value(STATUS)
    require_not_moved(status)
    if status is not None:
        fields = load_object(status, "the repository's status")
        if fields.get("availability") == "read_only":
            reason = fields.get("reason")
            raise ReadOnlyError(
                "this repository was set read-only" + (f" ({reason})" if reason else "") + ". "
                "repo.set_status('online') makes it writable again."
            )
    return _value_is(STATUS, status)


def require_not_moved(status: bytes | None) -> None:
    """Raise `ReadOnlyError` if this is the status of a catalog that hands over to another."""
    if status is not None and moved_to(status) is not None:
        reason = load_object(status, "the repository's status").get("reason")
        raise ReadOnlyError(f"nothing can be changed in this repository as it was opened: {reason}.")


def require_unprotected(view: CatalogView, branch: str) -> ValueIs:
    """Raise `ProtectedBranchError` if the branch is protected; else return the precondition that it stays so."""
    value = view.value(PROTECTED)
    patterns = [pattern for pattern in protected_patterns(value) if fnmatchcase(branch, pattern)]
    if patterns:
        by = "" if patterns == [branch] else f" by {', '.join(map(repr, patterns))}"
        raise ProtectedBranchError(
            f"branch {branch!r} is protected{by}: commits may be added to it, but it is not moved back or deleted. "
            f"repo.unprotect_branch({patterns[0]!r}) lifts that."
        )
    return _value_is(PROTECTED, value)


def protected_patterns(value: bytes | None) -> list[str]:
    """Return the names and globs in the catalog's value `PROTECTED`, sorted."""
    found = [] if value is None else load_json(value, "the list of protected branches")
    if not isinstance(found, list):
        raise CorruptionError(
            "the list of protected branches is none. repo.fsck() names all that is damaged."
        )
    return list(map(str, found))


def _value_is(name: str, value: bytes | None) -> ValueIs:
    expected: bytes | Absent = ABSENT if value is None else value
    return ValueIs(name, expected)
