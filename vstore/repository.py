"""The repository: what `vstore.open` returns.

Refs, history, sessions and settings; every change is one catalog transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from vstore.blobs.spill import PackSpill
from vstore.blobs.virtual import VirtualReader
from vstore.blobs.writer import BlobWriter
from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    FORMAT_VERSION,
    METADATA,
    STATUS,
    Absent,
    AddSnapshot,
    Applied,
    CatalogView,
    DropRef,
    Identity,
    NameUnused,
    Precondition,
    RefIs,
    Refusal,
    Retained,
    SetRef,
    SetValue,
    Transaction,
    Update,
    ValueIs,
)
from vstore.catalog.location import create_catalog, find_catalog, open_catalog
from vstore.clock import SYSTEM_CLOCK, Clock, from_datetime, to_datetime
from vstore.config import RepositoryConfig, default_author, encode_metadata
from vstore.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    RefExistsError,
    RefNotFoundError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    SessionStateError,
    SnapshotNotFoundError,
    StorageError,
    UnsafeStorageError,
)
from vstore.format.envelope import BlobKind
from vstore.format.record import Operation, OperationKind, RefKind, SnapshotEntry
from vstore.format.snapshot import Snapshot, encode_snapshot
from vstore.handle import Handle, require_online
from vstore.history import AncestryWalk, find_as_of, find_snapshot, require_branch, require_entry, require_tag
from vstore.ids import new_repository_id, new_transaction_id, parse_snapshot_id
from vstore.keys.objects import pack_name
from vstore.keys.refs import check_ref_name
from vstore.session import Session
from vstore.storage.base import Storage
from vstore.storage.location import open_storage
from vstore.twins import async_twin

if TYPE_CHECKING:
    from vstore.store import SessionStore

MAIN = "main"
ROOT_MESSAGE = "Repository initialized"
_BATCH = 256
Location: TypeAlias = Any
"""A path, a URL, or an obstore store."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What ancestry and look-ups tell of a snapshot. `written_at` is in UTC; ids are hex text."""

    id: str
    parent_ids: tuple[str, ...]
    written_at: datetime
    message: str
    metadata: dict[str, Any]

    @property
    def parent_id(self) -> str | None:
        """The first parent, or None for the first snapshot."""
        return self.parent_ids[0] if self.parent_ids else None


@dataclass(frozen=True, slots=True)
class OperationInfo:
    """One entry of the operations log: who did what when, and the refs before and after."""

    sequence: int
    kind: str
    written_at: datetime
    author: str
    changes: tuple[tuple[str, str, str | None, str | None], ...]


class Repository:
    """A versioned store of Zarr hierarchies at one location. Thread-safe; pickles.

    Make one with `Repository.create`, `open` or `open_or_create`. `location` is a path, a URL (`file://`, `s3://`,
    `gs://`, `az://`, `http(s)://`, `memory://`) with `storage_options` for obstore, or an obstore store.
    """

    def __init__(self, handle: Handle, default_metadata: Mapping[str, Any] | None = None) -> None:
        self._handle = handle
        self._default_metadata = dict(default_metadata or {})

    # --- opening ---------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        location: Location,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Iterable[str] | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        catalog: str | None = None,
        author: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Repository:
        """Make a repository with a branch "main" that holds an empty snapshot.

        `catalog` is "sqlite" or "log"; by default a directory on a local file system gets SQLite, all else a log.
        `authorize_virtual_chunk_access` lists URL prefixes from which virtual chunks may be read.

        Raises `RepositoryExistsError` if there is one, `UnsafeStorageError` if the storage can't make commits safe.
        """
        storage = open_storage(location, options=storage_options, create=True)
        if find_catalog(storage) is not None:
            raise RepositoryExistsError(
                f"{storage.url} already holds a repository. Open it with Repository.open, or choose another place."
            )
        config = config or RepositoryConfig()
        name = default_author() if author is None else author
        identity = Identity(new_repository_id(), FORMAT_VERSION, (), clock.now_us())
        first = _first_transaction(storage, identity, config, name)
        try:
            made = create_catalog(storage, identity, first, PackSpill(storage), kind=catalog)
        except (AlreadyExistsError, InvalidInputError, UnsafeStorageError):
            # Refused: nothing can ever name the snapshot that was written for it.
            storage.delete(
                [
                    pack_name(update.entry.ref.pack)
                    for update in first.updates
                    if isinstance(update, AddSnapshot)
                ]
            )
            raise
        virtual = VirtualReader(authorize_virtual_chunk_access or ())
        return cls(Handle(storage, made, virtual, config, name, clock))

    @classmethod
    def open(
        cls,
        location: Location,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Iterable[str] | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        author: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> Repository:
        """Open an existing repository. A `config` given here holds for this object; `save_config` persists it.

        Raises `RepositoryNotFoundError` if there is none, `UnsupportedFormatError` if it needs a newer vstore.
        """
        storage = open_storage(location, options=storage_options)
        catalog = open_catalog(storage, PackSpill(storage))
        if config is None:
            with catalog.reading() as view:
                stored = view.value(CONFIG)
            config = RepositoryConfig() if stored is None else RepositoryConfig.from_json(stored)
        name = default_author() if author is None else author
        virtual = VirtualReader(authorize_virtual_chunk_access or ())
        return cls(Handle(storage, catalog, virtual, config, name, clock))

    @classmethod
    def open_or_create(
        cls,
        location: Location,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Iterable[str] | None = None,
        **options: Any,
    ) -> Repository:
        """Open the repository at `location`, or create it if there is none; takes the options of both."""
        shared = {name: value for name, value in options.items() if name != "catalog"}
        try:
            return cls.open(location, config, authorize_virtual_chunk_access, **shared)
        except RepositoryNotFoundError:
            pass
        try:
            return cls.create(location, config, authorize_virtual_chunk_access, **options)
        except RepositoryExistsError:
            # Somebody else created it in between.
            return cls.open(location, config, authorize_virtual_chunk_access, **shared)

    @staticmethod
    def exists(location: Location, *, storage_options: Mapping[str, Any] | None = None) -> bool:
        """Tell whether there is a repository at `location`."""
        return find_catalog(open_storage(location, options=storage_options)) is not None

    def close(self) -> None:
        """Let go of files, maps and connections; the object opens them again if it is used afterwards."""
        self._handle.catalog.close()
        self._handle.storage.close()

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<vstore.Repository {self._handle.storage.url}>"

    @property
    def handle(self) -> Handle:
        """The parts that this repository works with, for vstore's own operations."""
        return self._handle

    @property
    def id(self) -> str:
        """The repository's id as hex text; copies of it keep it."""
        return self._handle.catalog.identity.repository.hex()

    # --- sessions --------------------------------------------------------------------------------------------

    def readonly_session(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        as_of: datetime | None = None,
    ) -> Session:
        """Open a session that reads one snapshot: give exactly one of branch, tag and snapshot id.

        With `as_of`, an aware datetime: the newest snapshot of the branch (or before the tag) at or before it. A
        snapshot id may be abbreviated to 8 or more hex digits.

        Raises `RefNotFoundError`, `SnapshotNotFoundError` or `InvalidInputError`.
        """
        with self._handle.catalog.reading() as view:
            entry = _resolve(view, branch, tag, snapshot_id)
            if as_of is not None:
                if snapshot_id is not None:
                    raise InvalidInputError("as_of goes with a branch or a tag, not with a snapshot id")
                found = find_as_of(view, entry.id, from_datetime(as_of))
                if found is None:
                    raise SnapshotNotFoundError(
                        f"{branch or tag!r} has no snapshot at or before {as_of.isoformat()}; ancestry() lists them."
                    )
                entry = found
        return Session(self._handle, entry)

    def writable_session(self, branch: str) -> Session:
        """Open a session on a branch's head that can change and commit."""
        self._handle.catalog.check_writable()
        with self._handle.catalog.reading() as view:
            require_online(view)
            entry = require_entry(view, require_branch(view, branch))
        return Session(self._handle, entry, branch=branch, default_metadata=self._default_metadata)

    @contextmanager
    def transaction(
        self, branch: str, *, message: str, metadata: Mapping[str, Any] | None = None
    ) -> Iterator[SessionStore]:
        """Yield a store and commit what was written to it when the block ends; an exception commits nothing."""
        with self.writable_session(branch) as session:
            yield session.store
            session.commit(message, metadata)

    # --- history ---------------------------------------------------------------------------------------------

    def ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> Iterator[SnapshotInfo]:
        """Yield a snapshot and its ancestors, newest first, as a stream: give exactly one argument."""
        with self._handle.catalog.reading() as view:
            start = _resolve(view, branch, tag, snapshot_id)
        return self._iter_ancestry(AncestryWalk(start))

    def _iter_ancestry(self, walk: AncestryWalk) -> Iterator[SnapshotInfo]:
        while True:
            with self._handle.catalog.reading() as view:
                entries = walk.take(view, _BATCH)
            if not entries:
                return
            yield from map(self._info, entries)

    def lookup_snapshot(self, snapshot_id: str) -> SnapshotInfo:
        """Return what is known of a snapshot; its id may be abbreviated to 8 or more hex digits."""
        with self._handle.catalog.reading() as view:
            return self._info(find_snapshot(view, snapshot_id))

    def _info(self, entry: SnapshotEntry) -> SnapshotInfo:
        if entry.info is None:
            snapshot = self._handle.blobs_for(entry.id).snapshot(entry.ref)
            message, metadata = snapshot.message, snapshot.metadata
        else:
            message, metadata = entry.info
        parents = tuple(parent.hex() for parent in entry.parents)
        return SnapshotInfo(
            entry.id.hex(), parents, to_datetime(entry.time_us), message, json.loads(metadata)
        )

    def ops_log(self) -> Iterator[OperationInfo]:
        """Yield what was done to this repository, newest first, as a stream."""
        before: int | None = None
        while before is None or before > 0:
            # A batch at a time: no view is held open while the caller looks at the results.
            with self._handle.catalog.reading() as view:
                operations = list(islice(view.iter_operations(before), _BATCH))
            yield from map(_operation_info, operations)
            before = operations[-1].sequence if operations else 0

    # --- branches and tags -----------------------------------------------------------------------------------

    def list_branches(self) -> set[str]:
        """Return the names of all branches."""
        return self._list(RefKind.BRANCH)

    def list_tags(self) -> set[str]:
        """Return the names of all tags."""
        return self._list(RefKind.TAG)

    def _list(self, kind: RefKind) -> set[str]:
        with self._handle.catalog.reading() as view:
            return {name for name, _ in view.iter_refs(kind)}

    def lookup_branch(self, branch: str) -> str:
        """Return the id of a branch's snapshot."""
        with self._handle.catalog.reading() as view:
            return require_branch(view, branch).hex()

    def lookup_tag(self, tag: str) -> str:
        """Return the id of a tag's snapshot."""
        with self._handle.catalog.reading() as view:
            return require_tag(view, tag).hex()

    def create_branch(self, branch: str, snapshot_id: str) -> None:
        """Make a branch that holds a snapshot. Raises `RefExistsError` if there is one of this name."""
        self._create_ref(RefKind.BRANCH, branch, snapshot_id, ())

    def create_tag(self, tag: str, snapshot_id: str, *, force: bool = False) -> None:
        """Make a tag, which never moves. The name of a deleted tag stays taken, unless `force`.

        Raises `RefExistsError` if the name is taken.
        """
        unused = () if force else (NameUnused(RefKind.TAG, tag),)
        self._create_ref(RefKind.TAG, tag, snapshot_id, unused)

    def _create_ref(
        self, kind: RefKind, name: str, snapshot_id: str, conditions: tuple[Precondition, ...]
    ) -> None:
        check_ref_name(name)
        with self._handle.catalog.reading() as view:
            snapshot = find_snapshot(view, snapshot_id).id
        operation = OperationKind.CREATE_BRANCH if kind == RefKind.BRANCH else OperationKind.CREATE_TAG
        self._update(
            operation,
            (RefIs(kind, name, ABSENT), Retained((snapshot,)), *conditions),
            (SetRef(kind, name, snapshot),),
        )

    def delete_branch(self, branch: str) -> None:
        """Delete a branch. Its snapshots stay readable by id until they expire; "main" can't be deleted."""
        if branch == MAIN:
            raise SessionStateError(f"branch {MAIN!r} can't be deleted. reset_branch() points it elsewhere.")
        with self._handle.catalog.reading() as view:
            found = require_branch(view, branch)
        condition = RefIs(RefKind.BRANCH, branch, found)
        self._update(OperationKind.DELETE_BRANCH, (condition,), (DropRef(RefKind.BRANCH, branch),))

    def delete_tag(self, tag: str) -> None:
        """Delete a tag. Its name stays taken, so that it never comes to mean something else by accident."""
        with self._handle.catalog.reading() as view:
            found = require_tag(view, tag)
        condition = RefIs(RefKind.TAG, tag, found)
        self._update(OperationKind.DELETE_TAG, (condition,), (DropRef(RefKind.TAG, tag, retire=True),))

    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Point a branch at any snapshot. With `from_snapshot_id`, a full id, only if the branch holds that one.

        Raises `ConflictError` if the branch holds something else, or moved meanwhile.
        """
        with self._handle.catalog.reading() as view:
            snapshot = find_snapshot(view, snapshot_id).id
            held = require_branch(view, branch)
        expected = held if from_snapshot_id is None else parse_snapshot_id(from_snapshot_id)
        self._update(
            OperationKind.RESET_BRANCH,
            (RefIs(RefKind.BRANCH, branch, expected), Retained((snapshot,))),
            (SetRef(RefKind.BRANCH, branch, snapshot),),
        )

    def _update(
        self,
        kind: OperationKind,
        preconditions: tuple[Precondition, ...],
        updates: tuple[Update, ...],
        details: dict[str, Any] | None = None,
    ) -> None:
        """Apply a transaction that only moves refs or values, or raise what its refusal means."""
        with self._handle.catalog.reading() as view:
            online = () if kind == OperationKind.SET_STATUS else (require_online(view),)
            since = view.sequence
        transaction = Transaction(
            new_transaction_id(),
            since,
            kind,
            self._handle.clock.now_us(),
            self._handle.author,
            (*online, *preconditions),
            updates,
            details or {},
        )
        outcome = self._handle.catalog.update(transaction)
        if not isinstance(outcome, Applied):
            _raise_refusal(outcome.refusals[0])

    # --- settings --------------------------------------------------------------------------------------------

    @property
    def config(self) -> RepositoryConfig:
        """The settings that this object works with."""
        return self._handle.config

    def save_config(self) -> None:
        """Persist this object's settings for everybody who opens the repository from now on."""
        self._set_value(OperationKind.SET_CONFIG, CONFIG, lambda _: self._handle.config.to_json())

    @property
    def metadata(self) -> dict[str, Any]:
        """The repository's own JSON metadata."""
        with self._handle.catalog.reading() as view:
            value = view.value(METADATA)
        return {} if value is None else dict(json.loads(value))

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the repository's metadata."""
        encoded = encode_metadata(metadata)
        self._set_value(OperationKind.SET_METADATA, METADATA, lambda _: encoded)

    def update_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Merge keys into the repository's metadata, atomically, and return the result."""
        encode_metadata(metadata)

        def merge(old: bytes | None) -> bytes:
            return encode_metadata({**(json.loads(old) if old else {}), **metadata})

        return dict(json.loads(self._set_value(OperationKind.SET_METADATA, METADATA, merge)))

    @property
    def status(self) -> str:
        """The repository's status: "online" or "read_only"."""
        with self._handle.catalog.reading() as view:
            value = view.value(STATUS)
        return "online" if value is None else str(json.loads(value)["availability"])

    def set_status(self, availability: str, *, reason: str | None = None) -> None:
        """Make the repository "read_only" (all commits and changes are refused), or "online" again."""
        if availability not in ("online", "read_only"):
            raise InvalidInputError(f"a repository's status is 'online' or 'read_only', not {availability!r}")
        encoded = encode_metadata({"availability": availability, "reason": reason})
        self._set_value(OperationKind.SET_STATUS, STATUS, lambda _: encoded)

    def _set_value(self, kind: OperationKind, name: str, change: Any, tries: int = 20) -> bytes:
        """Replace a value by what `change` makes of it, by compare-and-swap."""
        for tries_left in reversed(range(tries)):
            with self._handle.catalog.reading() as view:
                old = view.value(name)
            new: bytes = change(old)
            expected: bytes | Absent = ABSENT if old is None else old
            try:
                self._update(kind, (ValueIs(name, expected),), (SetValue(name, new),))
                return new
            except ConflictError:
                if not tries_left:
                    raise
        raise StorageError("unreachable")

    def set_default_commit_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set metadata that is merged under that of each commit of sessions opened from now on by this object."""
        encode_metadata(metadata)
        self._default_metadata = dict(metadata)

    def default_commit_metadata(self) -> dict[str, Any]:
        """Return what `set_default_commit_metadata` set."""
        return dict(self._default_metadata)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Repository, (self._handle, self._default_metadata))

    create_branch_async = async_twin(create_branch)
    create_tag_async = async_twin(create_tag)
    delete_branch_async = async_twin(delete_branch)
    delete_tag_async = async_twin(delete_tag)
    reset_branch_async = async_twin(reset_branch)
    list_branches_async = async_twin(list_branches)
    list_tags_async = async_twin(list_tags)
    lookup_branch_async = async_twin(lookup_branch)
    lookup_tag_async = async_twin(lookup_tag)
    lookup_snapshot_async = async_twin(lookup_snapshot)
    readonly_session_async = async_twin(readonly_session)
    writable_session_async = async_twin(writable_session)
    save_config_async = async_twin(save_config)
    set_metadata_async = async_twin(set_metadata)
    update_metadata_async = async_twin(update_metadata)
    set_status_async = async_twin(set_status)


def open(location: Location, **options: Any) -> Repository:  # noqa: A001
    """Open the repository at a path, a URL or in an obstore store: `Repository.open` by a shorter name."""
    return Repository.open(location, **options)


def _resolve(
    view: CatalogView, branch: str | None, tag: str | None, snapshot_id: str | None
) -> SnapshotEntry:
    given = [argument for argument in (branch, tag, snapshot_id) if argument is not None]
    if len(given) != 1:
        raise InvalidInputError("give exactly one of branch, tag and snapshot_id")
    if branch is not None:
        return require_entry(view, require_branch(view, branch))
    if tag is not None:
        return require_entry(view, require_tag(view, tag))
    assert snapshot_id is not None
    return find_snapshot(view, snapshot_id)


def _first_transaction(
    storage: Storage, identity: Identity, config: RepositoryConfig, author: str
) -> Transaction:
    """Write the empty first snapshot and return the transaction that makes it branch "main"."""
    writer = BlobWriter(storage)
    batch = writer.begin_metadata()
    snapshot = Snapshot((), identity.created_us, ROOT_MESSAGE, b"{}", None)
    ref = batch.add(BlobKind.SNAPSHOT, encode_snapshot(snapshot))
    entry = SnapshotEntry(
        ref, (), snapshot.time_us, 0, None, batch.start, batch.length, (snapshot.message, snapshot.metadata)
    )
    writer.finish(batch)
    return Transaction(
        new_transaction_id(),
        0,
        OperationKind.CREATE_REPOSITORY,
        identity.created_us,
        author,
        (RefIs(RefKind.BRANCH, MAIN, ABSENT),),
        (AddSnapshot(entry), SetRef(RefKind.BRANCH, MAIN, entry.id), SetValue(CONFIG, config.to_json())),
    )


def _raise_refusal(refusal: Refusal) -> None:
    match refusal.precondition:
        case RefIs(kind, name, expected) if isinstance(expected, Absent):
            raise RefExistsError(f"there is a {kind.name.lower()} {name!r} already; choose another name.")
        case RefIs(kind, name, expected):
            if refusal.found is None:
                raise RefNotFoundError(f"{kind.name.lower()} {name!r} was deleted meanwhile.")
            found = refusal.found.hex() if isinstance(refusal.found, bytes) else str(refusal.found)
            wanted = "" if isinstance(expected, Absent) else expected.hex()
            raise ConflictError(
                f"{kind.name.lower()} {name!r} holds {found}, not {wanted}. Look at it, then decide.",
                expected_parent=wanted,
                actual_parent=found,
            )
        case NameUnused(_, name):
            raise RefExistsError(
                f"a deleted tag was called {name!r}, and its name stays taken. Choose another, or pass force=True."
            )
        case Retained(snapshots):
            raise SnapshotNotFoundError(f"snapshot {snapshots[0].hex()} has expired meanwhile.")
        case ValueIs(name, _):
            raise ConflictError(f"the repository's {name} was changed by somebody else meanwhile. Try again.")
        case other:
            raise StorageError(f"the change was refused ({type(other).__name__}); try again.")


def _operation_info(operation: Operation) -> OperationInfo:
    changes = tuple(
        (
            change.kind.name.lower(),
            change.name,
            None if change.before is None else change.before.hex(),
            None if change.after is None else change.after.hex(),
        )
        for change in operation.changes
    )
    kind = operation.kind.name.lower().replace("_", "-")
    return OperationInfo(operation.sequence, kind, to_datetime(operation.time_us), operation.author, changes)
