"""The repository: what `vstore.open` returns.

Opened or created here, and giving out sessions; the rest of its public methods are in the modules of this package, each
a base of `Repository`: `settings`, `snapshots`, `references`, `merging` and `maintenance`. All share what `opened`
holds. `creation` makes a new one. Every change is one catalog transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from vstore.blobs.spill import PackSpill
from vstore.blobs.virtual import VirtualReader
from vstore.catalog.base import CONFIG
from vstore.catalog.location import find_catalog, open_catalog
from vstore.clock import SYSTEM_CLOCK, Clock, from_datetime
from vstore.config import RepositoryConfig, default_author
from vstore.errors import (
    InternalError,
    InvalidInputError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    SnapshotExpiredError,
    SnapshotNotFoundError,
)
from vstore.format.record import RefKind
from vstore.handle import Handle, MisledError, require_online
from vstore.history import find_as_of, require_branch, require_entry, resolve
from vstore.refs import OperationInfo
from vstore.repository.maintenance import Maintenance
from vstore.repository.merging import Merging
from vstore.repository.opened import decoded_config
from vstore.repository.references import References
from vstore.repository.settings import Settings
from vstore.repository.snapshots import SnapshotInfo, Snapshots
from vstore.session import Session
from vstore.storage.location import open_storage
from vstore.twins import async_twin

# What only some methods need is imported by them, as in `session`.
if TYPE_CHECKING:
    from vstore.merge.solvers import SolverSpec
    from vstore.store import SessionStore

__all__ = ["Location", "OperationInfo", "Repository", "SnapshotInfo", "open"]

_OPENING_TRIES = 5
Location: TypeAlias = Any
"""A path, a URL, or an obstore store."""


class Repository(Settings, Snapshots, References, Merging, Maintenance):
    """A versioned store of Zarr hierarchies at one location. Thread-safe; pickles.

    Make one with `Repository.create`, `open` or `open_or_create`. `location` is a path, a URL (`file://`, `s3://`,
    `gs://`, `az://`, `http(s)://`, `memory://`) with `storage_options` for obstore, or an obstore store.
    """

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
        from vstore.repository import creation

        virtual = VirtualReader(authorize_virtual_chunk_access or ())
        storage = open_storage(location, options=storage_options, create=True)
        config = config or RepositoryConfig()
        name = default_author() if author is None else author
        made = creation.create(storage, config, name, catalog, clock)
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
                config = decoded_config(stored)
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

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored, (self._opened, self._default_metadata, self._is_config_recalled))

    readonly_session_async = async_twin(readonly_session)
    writable_session_async = async_twin(writable_session)


def open(location: Location, **options: Any) -> Repository:  # noqa: A001
    """Open the repository at a path, a URL or in an obstore store: `Repository.open` by a shorter name."""
    return Repository.open(location, **options)


def _restored(handle: Handle, default_metadata: dict[str, Any], is_config_recalled: bool) -> Repository:
    return Repository(handle, default_metadata, is_config_recalled=is_config_recalled)
