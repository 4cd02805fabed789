"""The catalog contract over both implementations, and the log over several storages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from vstore.blobs.spill import PackSpill
from vstore.catalog.base import Catalog
from vstore.catalog.log import LogCatalog
from vstore.catalog.sqlite import SqliteCatalog
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.storage.objects import ObjectStorage
from vstore.testing.catalog_contract import IDENTITY, CatalogContract, Reopen, first_transaction
from vstore.testing.faults import FaultyStorage


class TestSqlite(CatalogContract):
    @pytest.fixture
    def handles(self) -> Iterator[list[Catalog]]:
        handles: list[Catalog] = []
        yield handles
        for handle in handles:
            handle.close()

    @pytest.fixture
    def catalog(self, tmp_path: Path, handles: list[Catalog]) -> Catalog:
        handles.append(SqliteCatalog.create(str(tmp_path), IDENTITY, first_transaction()))
        return handles[0]

    @pytest.fixture
    def reopen(self, tmp_path: Path, handles: list[Catalog]) -> Reopen:
        def reopen() -> Catalog:
            handles.append(SqliteCatalog.open(str(tmp_path)))
            return handles[-1]

        return reopen


class LogContract(CatalogContract):
    """Subclass and override `storage`."""

    @pytest.fixture
    def storage(self) -> Storage:
        raise NotImplementedError("override the fixture `storage`")

    @pytest.fixture
    def catalog(self, storage: Storage) -> Catalog:
        return LogCatalog.create(storage, IDENTITY, first_transaction(), PackSpill(storage))

    @pytest.fixture
    def reopen(self, storage: Storage) -> Reopen:
        return lambda: LogCatalog.open(storage, PackSpill(storage))


class TestLogInADirectory(LogContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = LocalStorage(tmp_path, mapped=False)
        yield storage
        storage.close()


class TestLogInMemory(LogContract):
    can_pickle = False

    @pytest.fixture
    def storage(self) -> Storage:
        return ObjectStorage(MemoryStore())


class TestLogWithoutHints(LogContract):
    """A log whose hint can't be written: all is found by the dense numbers."""

    can_pickle = False

    @pytest.fixture
    def storage(self) -> Storage:
        class WithoutHints(FaultyStorage):
            def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
                pass

        return WithoutHints(ObjectStorage(MemoryStore()))
