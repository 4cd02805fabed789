"""Zarr's own store tests, unmodified, over sessions on every kind of storage."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from zarr.core.buffer import Buffer, cpu
from zarr.testing.store import StoreTests

import vstore
from vstore.store import SessionStore


class SessionStoreTests(StoreTests[SessionStore, cpu.Buffer]):
    """The suite; `location` says where the repository is."""

    store_cls = SessionStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def location(self) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def store_kwargs(self, location: Any) -> dict[str, Any]:  # type: ignore[override]
        repository = vstore.Repository.create(location)
        return {"session": repository.writable_session("main")}

    async def get(self, store: SessionStore, key: str) -> Buffer:
        data = store.session.tree.read(key)
        assert data is not None
        return self.buffer_cls.from_bytes(data)

    async def set(self, store: SessionStore, key: str, value: Buffer) -> None:
        store.session.tree.set(key, value.to_bytes())

    def test_store_repr(self, store: SessionStore) -> None:
        assert repr(store).startswith("SessionStore(<vstore.Session branch 'main'")

    def test_store_supports_writes(self, store: SessionStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: SessionStore) -> None:
        assert store.supports_listing


class TestLocal(SessionStoreTests):
    @pytest.fixture
    def location(self, tmp_path: Path) -> Path:
        return tmp_path / "repository"


class TestObstoreMemory(SessionStoreTests):
    @pytest.fixture
    def location(self) -> Any:
        from obstore.store import MemoryStore

        return MemoryStore()


class TestLogOnLocalDirectory(SessionStoreTests):
    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:  # type: ignore[override]
        repository = vstore.Repository.create(tmp_path / "repository", catalog="log")
        return {"session": repository.writable_session("main")}


def test_a_pickled_store_reads_what_the_session_held_and_refuses_to_write(tmp_path: Path) -> None:
    import numpy as np
    import zarr

    repository = vstore.Repository.create(tmp_path / "repository")
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(40,), chunks=(10,), dtype="f8")
    array[:20] = np.arange(20)
    copy = pickle.loads(pickle.dumps(session.store))
    array[:20] = 0
    assert copy == session.store
    assert zarr.open_array(copy.with_read_only(True), path="a", mode="r")[15] == 15
    with pytest.raises(vstore.ReadOnlyError, match="through pickle"):
        copy.session.tree_for_writing()
