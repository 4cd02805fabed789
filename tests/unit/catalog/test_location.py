"""Which catalog a place has, and which one a new repository gets."""

from __future__ import annotations

import os

import pytest
from obstore.store import MemoryStore

from vstore.blobs.spill import PackSpill
from vstore.catalog import location
from vstore.catalog.base import Catalog
from vstore.catalog.location import create_catalog, find_catalog, open_catalog
from vstore.catalog.log import LogCatalog
from vstore.catalog.sqlite import SqliteCatalog
from vstore.errors import (
    CorruptionError,
    InvalidInputError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    UnsafeStorageError,
)
from vstore.keys.objects import SQLITE_FILE
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.storage.objects import ObjectStorage
from vstore.testing.catalog_contract import IDENTITY, MAIN, commit_on, first_transaction
from vstore.testing.faults import FaultyStorage


@pytest.fixture
def local(tmp_path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.fixture
def memory() -> ObjectStorage:
    return ObjectStorage(MemoryStore())


def create(storage: Storage, kind: str | None = None) -> Catalog:
    return create_catalog(storage, IDENTITY, first_transaction(), PackSpill(storage), kind=kind)


def reopen(storage: Storage) -> Catalog:
    return open_catalog(storage, PackSpill(storage))


def on_file_system(monkeypatch: pytest.MonkeyPatch, *, local: bool) -> None:
    monkeypatch.setattr(location, "is_local_filesystem", lambda path: local)
    monkeypatch.setattr(SqliteCatalog.__init__, "__kwdefaults__", {"can_lock": lambda path: local})


def test_a_directory_on_a_local_disk_gets_sqlite(local):
    assert find_catalog(local) is None
    made = create(local)
    assert isinstance(made, SqliteCatalog)
    assert find_catalog(local) == "sqlite"
    found = reopen(local)
    assert isinstance(found, SqliteCatalog)
    assert found.identity == IDENTITY
    found.close()
    made.close()
    assert os.listdir(local.root) == [SQLITE_FILE]


def test_a_directory_elsewhere_gets_a_log(local, monkeypatch):
    on_file_system(monkeypatch, local=False)
    assert isinstance(create(local), LogCatalog)
    assert find_catalog(local) == "log"
    assert isinstance(reopen(local), LogCatalog)


def test_an_object_store_gets_a_log(memory):
    assert find_catalog(memory) is None
    assert isinstance(create(memory), LogCatalog)
    assert find_catalog(memory) == "log"
    assert isinstance(reopen(memory), LogCatalog)


def test_the_kind_may_be_chosen(local, memory):
    assert isinstance(create(local, "log"), LogCatalog)
    assert find_catalog(local) == "log"
    with pytest.raises(InvalidInputError, match="'log'"):
        create(memory, "sqlite")
    with pytest.raises(InvalidInputError, match="'git'"):
        create(memory, "git")
    assert find_catalog(memory) is None


@pytest.mark.parametrize("first", ["sqlite", "log"])
@pytest.mark.parametrize("second", [None, "sqlite", "log"])
def test_a_place_holds_one_repository(local, first, second):
    create(local, first).close()
    with pytest.raises(RepositoryExistsError):
        create(local, second)
    assert find_catalog(local) == first


def test_two_catalogs_are_an_error(local):
    SqliteCatalog.create(local.root, IDENTITY, first_transaction()).close()
    LogCatalog.create(local, IDENTITY, first_transaction(), PackSpill(local))
    for act in (find_catalog, reopen, create):
        with pytest.raises(CorruptionError, match="two catalogs"):
            act(local)


def test_nothing_is_found_where_nothing_is(local, memory, tmp_path):
    for storage in (local, memory, LocalStorage(tmp_path / "missing")):
        assert find_catalog(storage) is None
        with pytest.raises(RepositoryNotFoundError):
            reopen(storage)
    assert os.listdir(tmp_path) == []


def test_sqlite_is_not_written_where_its_locks_can_not_be_trusted(local, monkeypatch):
    create(local).close()
    on_file_system(monkeypatch, local=False)
    catalog = reopen(local)
    with catalog.reading() as view:
        assert view.sequence == 0
    with pytest.raises(UnsafeStorageError, match="can't be trusted"):
        catalog.check_writable()
    with pytest.raises(UnsafeStorageError, match="can't be trusted"):
        commit_on(catalog, MAIN, "first")
    catalog.close()
    with pytest.raises(RepositoryExistsError):
        create(local)


def test_sqlite_is_not_created_where_its_locks_can_not_be_trusted(local, monkeypatch):
    on_file_system(monkeypatch, local=False)
    with pytest.raises(UnsafeStorageError, match="can't be trusted"):
        create(local, "sqlite")
    assert find_catalog(local) is None


def test_opening_an_object_store_asks_for_nothing_twice(memory):
    create(memory)
    faulty = FaultyStorage(memory)
    reopen(faulty)
    assert [request.method for request in faulty.plan.requests] == ["read_whole", "read_whole"]
