"""The storage contract over every implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.storage.objects import ObjectStorage
from vstore.testing.faults import FaultyStorage
from vstore.testing.storage_contract import StorageContract


class TestLocalStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = LocalStorage(tmp_path, mapped=True)
        yield storage
        storage.close()


class TestLocalStorageByPread(StorageContract):
    """As on a network file system."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        storage = LocalStorage(tmp_path, mapped=False)
        yield storage
        storage.close()


class TestMemoryStore(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        return ObjectStorage(MemoryStore())


class TestMemoryStoreBelowAPrefix(StorageContract):
    @pytest.fixture
    def storage(self) -> Storage:
        store = MemoryStore()
        store.put("repo", b"somebody else's")
        store.put("some/where/else", b"somebody else's")
        return ObjectStorage(store, "some/where")


class TestObstoreLocalStore(StorageContract):
    """Not what users get (see `open_storage`), but an obstore store that behaves differently from memory."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return ObjectStorage(LocalStore(tmp_path))


class TestFaultyStorageWithoutFaults(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return FaultyStorage(LocalStorage(tmp_path))

    def test_a_pickle_reaches_the_same_place(self, storage: Storage) -> None:
        pytest.skip("a fault plan belongs to its process")
