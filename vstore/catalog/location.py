"""Which catalog a location has, and which one a new repository gets.

A directory on a local file system gets SQLite. Shared and unknown file systems, where SQLite's locks can't be
trusted, and object stores get the log. Neighbours: `sqlite` and `log`; the repository calls this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vstore.catalog import handover
from vstore.catalog.base import Catalog, Identity, Transaction
from vstore.catalog.handover import CatalogKind
from vstore.clock import SYSTEM_CLOCK, Clock
from vstore.errors import (
    AccessDeniedError,
    CorruptionError,
    InvalidInputError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    UnsafeStorageError,
)
from vstore.keys.objects import SQLITE_FILE, log_name
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.storage.mounts import is_local_filesystem

if TYPE_CHECKING:
    from vstore.catalog.log_pages import SpillStore


def find_catalog(storage: Storage, spill: SpillStore | None = None) -> CatalogKind | None:
    """Return which catalog counts in `storage`, or None; `CorruptionError` if it holds two that are not related."""
    has_sqlite = isinstance(storage, LocalStorage) and handover.has_sqlite(storage.root)
    # Number 0 is the first object of a log, and is never freed. Asked, as of SQLite, without loading the catalog.
    has_log = storage.size(log_name(0)) is not None
    if has_sqlite and has_log:
        # One of them was converted to the other.
        assert isinstance(storage, LocalStorage)
        has_log = _log_counts(storage, spill)
        has_sqlite = not has_log
    return "sqlite" if has_sqlite else "log" if has_log else None


def _log_counts(storage: LocalStorage, spill: SpillStore | None) -> bool:
    counts = handover.log_counts(storage, spill)
    if counts is None:
        raise CorruptionError(
            f"{storage.url!r} holds two catalogs, {SQLITE_FILE!r} and 'log/': which one is current can't be told. "
            "Move the one that is out of date out of the folder, then check the repository with vstore.ops.fsck."
        )
    return counts


def open_catalog(
    storage: Storage, spill: SpillStore, *, clock: Clock = SYSTEM_CLOCK, looks: bool = True
) -> Catalog:
    """Open the catalog in `storage`; nothing is written.

    Unless it `looks`, that of an object store is not asked what is newest: its first view will be.
    One on a file system where it can't be written safely is opened all the same: `check_writable` says so.
    """
    directory = _directory_of(storage)
    # Without asking first where there is no choice: on an object store each question is a round trip.
    kind = "log" if directory is None else find_catalog(storage, spill)
    if kind is None:
        from vstore.catalog.log_head import not_found

        raise not_found(storage)
    if directory is None or kind == "log":
        from vstore.catalog.log import LogCatalog

        try:
            return LogCatalog.open(storage, spill, clock=clock, looks=looks or storage.is_local)
        except (RepositoryNotFoundError, AccessDeniedError):
            _refuse_sqlite(storage)
            raise
    from vstore.catalog.sqlite import SqliteCatalog

    return SqliteCatalog.open(directory)


def create_catalog(
    storage: Storage,
    identity: Identity,
    first: Transaction,
    spill: SpillStore,
    *,
    kind: str | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Catalog:
    """Make a catalog of this kind ("sqlite", "log"; None: what suits the storage); `first` is its operation 0."""
    if kind not in (None, "sqlite", "log"):
        raise InvalidInputError(f"{kind!r} is no kind of catalog: choose 'sqlite' or 'log'.")
    if find_catalog(storage, spill) is not None:
        raise RepositoryExistsError(
            f"{storage.url!r} already holds a repository. Open it, or choose another location."
        )
    directory = _directory_of(storage)
    if kind is None:
        kind = default_kind(storage)
    if kind == "log":
        from vstore.catalog.log import LogCatalog

        return LogCatalog.create(storage, identity, first, spill, clock=clock)
    if directory is None:
        raise InvalidInputError(
            f"{storage.url!r} is no directory, so it can't hold an SQLite catalog: choose 'log'."
        )
    from vstore.catalog.sqlite import SqliteCatalog

    return SqliteCatalog.create(directory, identity, first)


def default_kind(storage: Storage) -> CatalogKind:
    """Return the kind of catalog that suits a storage."""
    directory = _directory_of(storage)
    return "sqlite" if directory is not None and is_local_filesystem(directory) else "log"


def _refuse_sqlite(storage: Storage) -> None:
    """Raise `UnsafeStorageError` if what is served, or was copied to an object store, is the other kind."""
    ask = getattr(storage, "has_sqlite_catalog", None)
    if ask is not None and ask():
        raise UnsafeStorageError(
            f"the repository at {storage.url!r} has an SQLite catalog, which can be used only in a directory of its "
            'own machine. Where that directory is, repo.convert_catalog("log") makes a catalog that can be read from '
            "here; then open this again."
        )


def _directory_of(storage: Storage) -> str | None:
    return storage.root if isinstance(storage, LocalStorage) else None
