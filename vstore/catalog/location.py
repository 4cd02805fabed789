"""Which catalog a location has, and which one a new repository gets.

A directory on a local file system gets SQLite. Shared and unknown file systems, where SQLite's locks can't be
trusted, and object stores get the log. Neighbours: `sqlite` and `log`; the repository calls this.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, TypeAlias

from vstore.catalog.base import Catalog, Identity, Transaction
from vstore.errors import CorruptionError, InvalidInputError, RepositoryExistsError, RepositoryNotFoundError
from vstore.keys.objects import SQLITE_FILE, log_name
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.storage.mounts import is_local_filesystem

if TYPE_CHECKING:
    from vstore.catalog.log import SpillStore

CatalogKind: TypeAlias = Literal["sqlite", "log"]


def find_catalog(storage: Storage) -> CatalogKind | None:
    """Return which catalog `storage` holds, or None; `CorruptionError` if it holds both."""
    directory = _directory_of(storage)
    has_sqlite = directory is not None and _sqlite_exists(directory)
    # Number 0 is the first object of a log, and is never freed. Asked, as of SQLite, without loading the catalog.
    has_log = storage.size(log_name(0)) is not None
    if has_sqlite and has_log:
        raise CorruptionError(
            f"{storage.url!r} holds two catalogs, {SQLITE_FILE!r} and 'log/': which one is current can't be told. "
            "Move the one that is out of date out of the folder, then check the repository with vstore.ops.fsck."
        )
    return "sqlite" if has_sqlite else "log" if has_log else None


def open_catalog(storage: Storage, spill: SpillStore, *, look: bool = True) -> Catalog:
    """Open the catalog in `storage`; nothing is written.

    Without `look`, that of an object store is not asked what is newest: its first view will be.
    One on a file system where it can't be written safely is opened all the same: `check_writable` says so.
    """
    directory = _directory_of(storage)
    # Without asking first where there is no choice: on an object store each question is a round trip.
    kind = "log" if directory is None else find_catalog(storage)
    if kind is None:
        raise RepositoryNotFoundError(
            f"there is no repository at {storage.url!r}. Check the location; create() makes a new one."
        )
    if directory is None or kind == "log":
        from vstore.catalog.log import LogCatalog

        return LogCatalog.open(storage, spill, look=look or storage.is_local)
    from vstore.catalog.sqlite import SqliteCatalog

    return SqliteCatalog.open(directory)


def create_catalog(
    storage: Storage,
    identity: Identity,
    first: Transaction,
    spill: SpillStore,
    *,
    kind: str | None = None,
) -> Catalog:
    """Make a catalog of this kind ("sqlite", "log"; None: what suits the storage); `first` is its operation 0."""
    if kind not in (None, "sqlite", "log"):
        raise InvalidInputError(f"{kind!r} is no kind of catalog: choose 'sqlite' or 'log'.")
    if find_catalog(storage) is not None:
        raise RepositoryExistsError(
            f"{storage.url!r} already holds a repository. Open it, or choose another location."
        )
    directory = _directory_of(storage)
    if kind is None:
        kind = "sqlite" if directory is not None and is_local_filesystem(directory) else "log"
    if kind == "log":
        from vstore.catalog.log import LogCatalog

        return LogCatalog.create(storage, identity, first, spill)
    if directory is None:
        raise InvalidInputError(
            f"{storage.url!r} is no directory, so it can't hold an SQLite catalog: choose 'log'."
        )
    from vstore.catalog.sqlite import SqliteCatalog

    return SqliteCatalog.create(directory, identity, first)


def _directory_of(storage: Storage) -> str | None:
    return storage.root if isinstance(storage, LocalStorage) else None


def _sqlite_exists(directory: str) -> bool:
    # Asked without loading sqlite3.
    return os.path.lexists(os.path.join(directory, SQLITE_FILE))
