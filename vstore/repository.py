"""The repository: what `vstore.open` returns.

Refs, history, sessions and settings; every change is one catalog transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from vstore import refs
from vstore.blobs.spill import PackSpill
from vstore.blobs.virtual import VirtualReader
from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    FORMAT_VERSION,
    METADATA,
    PROTECTED,
    STATUS,
    AddSnapshot,
    CatalogView,
    Identity,
    RefIs,
    SetRef,
    SetValue,
    Transaction,
)
from vstore.catalog.location import create_catalog, find_catalog, open_catalog
from vstore.clock import SYSTEM_CLOCK, Clock, from_datetime, to_datetime
from vstore.config import RepositoryConfig, default_author, encode_metadata, load_object
from vstore.errors import (
    AlreadyExistsError,
    InternalError,
    InvalidInputError,
    OutcomeUnknownError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    SnapshotExpiredError,
    SnapshotNotFoundError,
    StorageError,
    UnsafeStorageError,
)
from vstore.format.envelope import BlobKind
from vstore.format.record import OperationKind, RefKind, SnapshotEntry
from vstore.format.snapshot import Snapshot, encode_snapshot
from vstore.handle import Handle, MisledError, protected_patterns, require_not_moved, require_online
from vstore.history import (
    AncestryWalk,
    find_as_of,
    find_snapshot,
    require_branch,
    require_entry,
    require_tag,
    resolve,
)
from vstore.ids import SnapshotId, new_repository_id, new_transaction_id
from vstore.keys.objects import pack_name
from vstore.keys.zarr import normalize_prefix
from vstore.maintenance import Maintenance
from vstore.refs import MAIN
from vstore.refs import OperationInfo as OperationInfo
from vstore.remains import require_no_data
from vstore.session import Session
from vstore.storage.base import Storage, reads_only, require_writable
from vstore.storage.location import open_storage
from vstore.twins import async_twin

# What only some methods need is imported by them, as in `session`.
if TYPE_CHECKING:
    from vstore.changes.diff import Diff
    from vstore.graph import AncestryGraph, Commit
    from vstore.merge.solvers import SolverSpec
    from vstore.store import SessionStore

ROOT_MESSAGE = "Repository initialized"
_BATCH = 256
_OPENING_TRIES = 5
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


class Repository(Maintenance):
    """A versioned store of Zarr hierarchies at one location. Thread-safe; pickles.

    Make one with `Repository.create`, `open` or `open_or_create`. `location` is a path, a URL (`file://`, `s3://`,
    `gs://`, `az://`, `http(s)://`, `memory://`) with `storage_options` for obstore, or an obstore store.
    """

    def __init__(
        self,
        handle: Handle,
        default_metadata: Mapping[str, Any] | None = None,
        *,
        is_config_recalled: bool = False,
    ) -> None:
        self._opened = handle
        self._default_metadata = dict(default_metadata or {})
        self._is_config_recalled = is_config_recalled

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

        Raises `RepositoryExistsError` if there is one, or what is left of one whose catalog is gone: what creates that
        were interrupted leave is no obstacle. `UnsafeStorageError` if the storage can't make commits safe,
        `BucketNotFoundError` if its bucket is not there.
        """
        storage = open_storage(location, options=storage_options, create=True)
        require_writable(storage)
        if find_catalog(storage, PackSpill(storage)) is not None:
            raise RepositoryExistsError(
                f"{storage.url} already holds a repository. Open it with Repository.open, or choose another place."
            )
        require_no_data(storage)
        config = config or RepositoryConfig()
        name = default_author() if author is None else author
        identity = Identity(new_repository_id(), FORMAT_VERSION, (), clock.now_us())
        first = _first_transaction(storage, identity, config, name, clock)
        try:
            made = create_catalog(storage, identity, first, PackSpill(storage), kind=catalog, clock=clock)
        except (AlreadyExistsError, InvalidInputError, UnsafeStorageError):
            # Refused: nothing can ever name the snapshot that was written for it.
            packs = [update.entry.ref.pack for update in first.updates if isinstance(update, AddSnapshot)]
            with suppress(StorageError):
                storage.delete(list(map(pack_name, packs)))
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
        # On an object store, looking for the newest state is a round trip: the first session, which looks anyway, makes
        # it together with the request for that state's metadata, and sees whether these settings are the newest.
        catalog = open_catalog(storage, PackSpill(storage), clock=clock, looks=False)
        is_recalled = False
        try:
            if config is None:
                seen = None if storage.is_local else catalog.recall()
                stored = None if seen is None else seen.value(CONFIG)
                is_recalled = stored is not None
                if not is_recalled:
                    with catalog.reading() as view:
                        stored = view.value(CONFIG)
                config = _decoded_config(stored)
            name = default_author() if author is None else author
            virtual = VirtualReader(authorize_virtual_chunk_access or ())
        except BaseException:
            catalog.close()
            raise
        handle = Handle(storage, catalog, virtual, config, name, clock)
        return cls(handle, is_config_recalled=is_recalled)

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
        except RepositoryExistsError as error:
            # Somebody else created it in between; or what is left of one is in the way.
            try:
                return cls.open(location, config, authorize_virtual_chunk_access, **shared)
            except RepositoryNotFoundError:
                raise error from None

    @staticmethod
    def exists(location: Location, *, storage_options: Mapping[str, Any] | None = None) -> bool:
        """Tell whether there is a repository at `location`."""
        storage = open_storage(location, options=storage_options)
        kind = find_catalog(storage, PackSpill(storage))
        if kind == "log":
            from vstore.catalog.log_head import is_begun_only

            return not is_begun_only(storage)
        return kind is not None

    def close(self) -> None:
        """Let go of files, maps and connections; the object opens them again if it is used afterwards."""
        self._opened.close()

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<vstore.Repository {self._opened.storage.url}>"

    @property
    def handle(self) -> Handle:
        """The parts that this repository works with, for vstore's own operations."""
        return self._handle

    @property
    def _handle(self) -> Handle:
        """The parts, with settings that are looked for if only a hint has told them; `_opened` asks for nothing."""
        if not reads_only(self._opened.storage):
            self._look_for_config()
        return self._opened

    @_handle.setter
    def _handle(self, handle: Handle) -> None:
        self._opened = handle

    def _look_for_config(self) -> None:
        """See to it that the settings at hand are the newest."""
        if self._is_config_recalled:
            with self._opened.catalog.reading() as view:
                self._settle_config(view)

    def _settle_config(self, view: CatalogView) -> None:
        if self._is_config_recalled:
            self._opened = self._opened.with_config(_decoded_config(view.value(CONFIG)))
            self._is_config_recalled = False

    @property
    def id(self) -> str:
        """The repository's id as hex text; copies of it keep it."""
        return self._opened.catalog.identity.repository.hex()

    # --- sessions --------------------------------------------------------------------------------------------

    def readonly_session(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        as_of: datetime | None = None,
        lease: timedelta | None = None,
    ) -> Session:
        """Open a session that reads one snapshot: give exactly one of branch, tag and snapshot id.

        With `as_of`, an aware datetime: the newest snapshot of the branch (or before the tag) at or before it. A
        snapshot id may be abbreviated to 8 or more hex digits. With `lease` the catalog is told to keep the snapshot
        from expiring for that long, or until the session is closed; `Session.renew_lease` makes it longer.

        Raises `RefNotFoundError`, `SnapshotNotFoundError`, `SnapshotExpiredError` or `InvalidInputError`.
        """
        for tries_left in reversed(range(_OPENING_TRIES)):
            session = self._unmisled(lambda: self._open_readonly(branch, tag, snapshot_id, as_of))
            if lease is None:
                return session
            try:
                session.renew_lease(lease)
                return session
            except SnapshotExpiredError:
                # The branch moved on, and what it held expired, just now.
                if snapshot_id is not None or not tries_left:
                    raise
        raise InternalError("unreachable")

    def _open_readonly(
        self, branch: str | None, tag: str | None, snapshot_id: str | None, as_of: datetime | None
    ) -> Session:
        self._expect(branch if as_of is None else None)
        with self._opened.catalog.reading() as view:
            self._settle_config(view)
            entry = resolve(view, branch, tag, snapshot_id)
            if as_of is not None:
                if snapshot_id is not None:
                    raise InvalidInputError("as_of goes with a branch or a tag, not with a snapshot id")
                found = find_as_of(view, entry.id, from_datetime(as_of))
                if found is None:
                    raise SnapshotNotFoundError(
                        f"{branch or tag!r} has no snapshot at or before {as_of.isoformat()}; ancestry() lists them."
                    )
                entry = found
        return Session(self._opened, entry)

    def _expect(self, branch: str | None) -> None:
        """Begin to fetch what a branch held when the catalog was looked at last, while it is looked at anew."""
        handle = self._opened
        seen = None if branch is None or handle.storage.is_local else handle.catalog.recall()
        head = None if seen is None else seen.ref(RefKind.BRANCH, str(branch))
        entry = None if seen is None or head is None else seen.snapshot(head)
        if entry is not None:
            handle.expect(entry)

    def writable_session(self, branch: str) -> Session:
        """Open a session on a branch's head that can change and commit."""
        self._opened.catalog.check_writable()
        return self._unmisled(lambda: self._open_writable(branch))

    def _unmisled(self, open_session: Callable[[], Session]) -> Session:
        """Open a session; again if what was found was another repository's state."""
        try:
            return open_session()
        except MisledError:
            return open_session()

    def _open_writable(self, branch: str) -> Session:
        # Before anything is built on what only a hint has shown.
        self._opened.catalog.confirm()
        self._expect(branch)
        with self._opened.catalog.reading() as view:
            self._settle_config(view)
            require_online(view)
            entry, epoch = require_entry(view, require_branch(view, branch)), view.epoch
        return Session(
            self._opened, entry, branch=branch, default_metadata=self._default_metadata, epoch=epoch
        )

    @contextmanager
    def transaction(
        self,
        branch: str,
        *,
        message: str,
        metadata: Mapping[str, Any] | None = None,
        rebase_with: SolverSpec = None,
        rebase_tries: int = 1000,
    ) -> Iterator[SessionStore]:
        """Yield a store and commit what was written to it when the block ends; an exception commits nothing.

        `rebase_with` and `rebase_tries` are those of `Session.commit`.
        """
        with self.writable_session(branch) as session:
            yield session.store
            session.commit(message, metadata, rebase_with=rebase_with, rebase_tries=rebase_tries)

    # --- history ---------------------------------------------------------------------------------------------

    def ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> Iterator[SnapshotInfo]:
        """Yield a snapshot and its ancestors, newest first, as a stream: give exactly one argument."""
        with self._handle.catalog.reading() as view:
            start = resolve(view, branch, tag, snapshot_id)
        return map(self._info, self._walk(AncestryWalk(start)))

    def _walk(self, walk: AncestryWalk) -> Iterator[SnapshotEntry]:
        while True:
            # A batch at a time: no view is held open while the caller looks at the results.
            with self._handle.catalog.reading() as view:
                entries = walk.take(view, _BATCH)
            if not entries:
                return
            yield from entries

    def ancestry_graph(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        plain: bool = False,
    ) -> AncestryGraph:
        """Return a picture of history as text, newest first, as `git log --graph` draws it.

        Of all branches and tags, or of what one argument names. `str()` of the result is the text, iterating streams
        its lines, and its `print()` has colours unless `plain`.
        """
        from vstore.graph import AncestryGraph

        labels: dict[SnapshotId, list[str]] = defaultdict(list)
        with self._handle.catalog.reading() as view:
            for kind, prefix in ((RefKind.BRANCH, ""), (RefKind.TAG, "tag: ")):
                for name, snapshot in view.iter_refs(kind):
                    labels[snapshot].append(prefix + name)
            if branch is tag is snapshot_id is None:
                starts = [require_entry(view, snapshot) for snapshot in labels]
            else:
                starts = [resolve(view, branch, tag, snapshot_id)]
        return AncestryGraph(lambda: self._iter_commits(AncestryWalk(*starts)), labels, plain=plain)

    def _iter_commits(self, walk: AncestryWalk) -> Iterator[Commit]:
        from vstore.graph import Commit

        for entry in self._walk(walk):
            yield Commit(entry.id, walk.retained_parents(entry), self._info(entry).message)

    def log(
        self,
        path: str | None = None,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
    ) -> Iterator[SnapshotInfo]:
        """Yield the snapshots, newest first, that changed the node at `path` or what is below it; None: all.

        By content, and also while the node had another path. A merge is listed if its result differs from every
        parent. Give exactly one of the other arguments; without any, branch "main" is meant.
        """
        if branch is tag is snapshot_id is None:
            branch = MAIN
        if path is None:
            yield from self.ancestry(branch=branch, tag=tag, snapshot_id=snapshot_id)
            return
        with self._handle.catalog.reading() as view:
            start = resolve(view, branch, tag, snapshot_id)
        from vstore.comparison import PathHistory

        history = PathHistory(self._handle, start, normalize_prefix(path))
        walk = AncestryWalk(start)
        for entry in self._walk(walk):
            with self._handle.catalog.reading() as view:
                found = [view.snapshot(parent) for parent in walk.retained_parents(entry)]
            if history.changed_by(entry, [parent for parent in found if parent is not None]):
                yield self._info(entry)

    def diff(
        self,
        *,
        from_branch: str | None = None,
        from_tag: str | None = None,
        from_snapshot_id: str | None = None,
        to_branch: str | None = None,
        to_tag: str | None = None,
        to_snapshot_id: str | None = None,
        values: bool = False,
    ) -> Diff:
        """Return what differs between any two snapshots, related or not, by content; give one `from_` and one `to_`.

        The cost follows the difference. With `values`, the changed chunks are read and their cells compared too, one
        chunk at a time.
        """
        from vstore.comparison import diff, snapshot_tree

        with self._handle.catalog.reading() as view:
            older = resolve(view, from_branch, from_tag, from_snapshot_id)
            newer = resolve(view, to_branch, to_tag, to_snapshot_id)
        handle = self._handle
        return diff(snapshot_tree(handle, older), snapshot_tree(handle, newer), values=values)

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
            entry.id.hex(),
            parents,
            to_datetime(entry.time_us),
            message,
            load_object(metadata, "a snapshot's metadata"),
        )

    def ops_log(self) -> Iterator[OperationInfo]:
        """Yield what was done to this repository, newest first, as a stream."""
        return map(refs.operation_info, refs.iter_operations(self._handle))

    def undo(self, *, expected: int | None = None) -> OperationInfo:
        """Put the branches and tags of the newest operation that changed any back to what they held before it.

        Undoing an undo does the operation again. `expected` is the number of the operation that you mean to undo. A
        tag that is deleted by this keeps its name taken, as with `delete_tag`.

        Raises `ConflictError` if that is not the newest one, or a ref moved meanwhile; `ProtectedBranchError` if a
        protected branch would be moved back; `SnapshotExpiredError` if a snapshot is gone. Nothing is changed then.
        """
        return refs.operation_info(refs.undo(self._handle, expected))

    def restore(self, operation: int | OperationInfo) -> OperationInfo:
        """Make all branches and tags what they were right after an operation, in one step that can be undone.

        Settings and metadata stay. If nothing is to be changed, nothing is written and the newest operation is
        returned. Tags that are deleted by this keep their names taken.

        Raises `ConflictError` if a ref moved meanwhile, and otherwise what `undo` raises.
        """
        return refs.operation_info(refs.restore(self._handle, operation))

    # --- merging ---------------------------------------------------------------------------------------------

    def merge(
        self,
        source: str,
        into: str = MAIN,
        *,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        solver: SolverSpec = None,
        fast_forward: bool = True,
        squash: bool = False,
    ) -> str:
        """Merge a branch, tag or snapshot into a branch, and return the id of the branch's head then.

        What only one side changed since their common ancestor is taken, what both changed alike is one change, and
        `solver` decides the rest as for `Session.rebase`, "ours" being branch `into`. The new snapshot has two
        parents, or with `squash` only the branch's. If the branch has nothing of its own it is moved to the source
        (`fast_forward`); if the source is in it already, nothing happens.

        Raises `MergeConflictError`, which has the conflicts, `UnrelatedHistoriesError`, `RefNotFoundError`; nothing
        is changed then.
        """
        from vstore.branching import CommitText, MergeRequest, merge

        request = MergeRequest(source, into, solver, squash)
        text = CommitText(message, metadata)
        return merge(self._handle, request, text, self._default_metadata, fast_forward=fast_forward)

    def merge_session(
        self, source: str, into: str = MAIN, *, solver: SolverSpec = None, squash: bool = False
    ) -> Session:
        """Return a writable session on branch `into` that holds the result of a merge, to be looked at and edited.

        `session.status()` shows it, `session.conflicts` what the solver decided; its commit is the merge. Raises what
        `merge` raises, and `NothingToCommitError` if the source is merged already.
        """
        from vstore.branching import MergeRequest, merge_session

        return merge_session(self._handle, MergeRequest(source, into, solver, squash), self._default_metadata)

    def cherry_pick(
        self,
        snapshot_id: str,
        branch: str = MAIN,
        *,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        solver: SolverSpec = None,
        parent: int | None = None,
    ) -> str:
        """Put what one commit changed onto a branch as a new commit, and return its id.

        `snapshot_id` may be a branch's or tag's name. Of a merge, `parent` says which parent it is compared with,
        counted from 1. The message and metadata are the picked commit's, unless given. If the branch has all of it
        already, its head's id is returned. Raises `MergeConflictError`, as `merge` does.
        """
        from vstore.branching import CommitText, cherry_pick

        text = CommitText(message, metadata)
        return cherry_pick(
            self._handle, snapshot_id, branch, text, self._default_metadata, solver=solver, parent=parent
        )

    def revert(
        self,
        snapshot_id: str,
        branch: str = MAIN,
        *,
        since: str | None = None,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        solver: SolverSpec = None,
        parent: int | None = None,
    ) -> str:
        """Undo what one commit changed, by a new commit on a branch, and return its id.

        With `since`, an ancestor, all commits after that one are undone together. Of a merge, `parent` says which
        parent's state to go back to, counted from 1. Raises `MergeConflictError` if the branch changed the same since.
        """
        from vstore.branching import CommitText, revert

        text = CommitText(message, metadata)
        return revert(
            self._handle,
            snapshot_id,
            branch,
            text,
            self._default_metadata,
            since=since,
            solver=solver,
            parent=parent,
        )

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
        refs.create_branch(self._handle, branch, snapshot_id)

    def create_tag(self, tag: str, snapshot_id: str, *, force: bool = False) -> None:
        """Make a tag, which never moves. The name of a deleted tag stays taken, unless `force`.

        Raises `RefExistsError` if the name is taken.
        """
        refs.create_tag(self._handle, tag, snapshot_id, force=force)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch. Its snapshots stay readable by id until they expire; "main" can't be deleted.

        Raises `ProtectedBranchError` if the branch is protected.
        """
        refs.delete_branch(self._handle, branch)

    def delete_tag(self, tag: str) -> None:
        """Delete a tag. Its name stays taken, so that it never comes to mean something else by accident."""
        refs.delete_tag(self._handle, tag)

    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Point a branch at any snapshot. With `from_snapshot_id`, a full id, only if the branch holds that one.

        Raises `ConflictError` if the branch holds something else, or moved meanwhile, `ProtectedBranchError` if it is
        protected.
        """
        refs.reset_branch(self._handle, branch, snapshot_id, from_snapshot_id)

    def protect_branch(self, pattern: str) -> None:
        """Refuse from now on to reset, delete or undo a branch, by its name or a glob such as "release/*".

        "*" also matches "/". Commits are never refused. Branches need not be there yet; protecting again does
        nothing.
        """
        refs.protect(self._handle, pattern)

    def unprotect_branch(self, pattern: str) -> None:
        """Lift a protection; `pattern` is a name or glob as `list_protected_branches` returns it."""
        refs.unprotect(self._handle, pattern)

    def list_protected_branches(self) -> set[str]:
        """Return the names and globs of protected branches."""
        with self._handle.catalog.reading() as view:
            return set(protected_patterns(view.value(PROTECTED)))

    # --- settings --------------------------------------------------------------------------------------------

    @property
    def config(self) -> RepositoryConfig:
        """The settings that this object works with."""
        self._look_for_config()
        return self._opened.config

    def save_config(self) -> None:
        """Persist this object's settings for everybody who opens the repository from now on."""
        encoded = self._handle.config.to_json
        refs.set_value(
            self._handle, OperationKind.SET_CONFIG, CONFIG, encoded, request=(CONFIG, encoded(None))
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """The repository's own JSON metadata."""
        with self._handle.catalog.reading() as view:
            value = view.value(METADATA)
        return load_object(value, "the repository's metadata")

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the repository's metadata."""
        encoded = encode_metadata(metadata)
        refs.set_value(self._handle, OperationKind.SET_METADATA, METADATA, lambda _: encoded, request=encoded)

    def update_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Merge keys into the repository's metadata, atomically, and return the result."""
        request = ("update", encode_metadata(metadata))

        def merge(old: bytes | None) -> bytes:
            return encode_metadata({**load_object(old, "the repository's metadata"), **metadata})

        made = refs.set_value(self._handle, OperationKind.SET_METADATA, METADATA, merge, request=request)
        return load_object(made, "the repository's metadata")

    @property
    def status(self) -> str:
        """The repository's status: "online" or "read_only"."""
        with self._handle.catalog.reading() as view:
            value = view.value(STATUS)
        return str(load_object(value, "the repository's status").get("availability", "online"))

    def set_status(self, availability: str, *, reason: str | None = None) -> None:
        """Make the repository "read_only" (all commits and changes are refused), or "online" again."""
        if availability not in ("online", "read_only"):
            raise InvalidInputError(f"a repository's status is 'online' or 'read_only', not {availability!r}")
        encoded = encode_metadata({"availability": availability, "reason": reason})

        def change(old: bytes | None) -> bytes:
            require_not_moved(old)
            return encoded

        refs.set_value(self._handle, OperationKind.SET_STATUS, STATUS, change, request=encoded)

    def set_default_commit_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set metadata that is merged under that of each commit of sessions opened from now on by this object."""
        encode_metadata(metadata)
        self._default_metadata = dict(metadata)

    def default_commit_metadata(self) -> dict[str, Any]:
        """Return what `set_default_commit_metadata` set."""
        return dict(self._default_metadata)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored, (self._opened, self._default_metadata, self._is_config_recalled))

    diff_async = async_twin(diff)
    merge_async = async_twin(merge)
    merge_session_async = async_twin(merge_session)
    cherry_pick_async = async_twin(cherry_pick)
    revert_async = async_twin(revert)
    create_branch_async = async_twin(create_branch)
    create_tag_async = async_twin(create_tag)
    delete_branch_async = async_twin(delete_branch)
    delete_tag_async = async_twin(delete_tag)
    reset_branch_async = async_twin(reset_branch)
    protect_branch_async = async_twin(protect_branch)
    unprotect_branch_async = async_twin(unprotect_branch)
    list_protected_branches_async = async_twin(list_protected_branches)
    undo_async = async_twin(undo)
    restore_async = async_twin(restore)
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


def _restored(handle: Handle, default_metadata: dict[str, Any], is_config_recalled: bool) -> Repository:
    return Repository(handle, default_metadata, is_config_recalled=is_config_recalled)


def _decoded_config(stored: bytes | None) -> RepositoryConfig:
    return RepositoryConfig() if stored is None else RepositoryConfig.from_json(stored)


def _first_transaction(
    storage: Storage, identity: Identity, config: RepositoryConfig, author: str, clock: Clock = SYSTEM_CLOCK
) -> Transaction:
    """Write the empty first snapshot and return the transaction that makes it branch "main"."""
    from vstore.blobs.uploads import UploadTries
    from vstore.blobs.writer import BlobWriter

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
