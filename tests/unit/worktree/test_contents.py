"""Reading chunks' bytes: what is checked and how often, and that nobody can write into what was read."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import vstore
from tests.repositories import Place, array_document, commit, quick_folder
from vstore.blobs.cache import CACHE
from vstore.keys.objects import pack_name
from vstore.store import SessionStore
from vstore.worktree import contents

PIPELINES = ("BatchedCodecPipeline", "FusedCodecPipeline")


@pytest.fixture
def place() -> Iterator[Place]:
    with quick_folder() as folder:
        yield Place.new("sqlite", folder)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create() as repository:
        chunks = {f"a/c/{n}": bytes([n]) * 1000 for n in range(4)}
        commit(repository, {"a/zarr.json": array_document((4000,), (1000,)), **chunks})
        yield repository


def read(store: SessionStore, key: str) -> bytes | None:
    buffer = store.get_sync(key, prototype=default_buffer_prototype())
    return None if buffer is None else buffer.to_bytes()


def test_a_chunk_is_hashed_on_its_first_read_only(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    digest = contents.blake3_digest
    monkeypatch.setattr(contents, "blake3_digest", lambda data: hashed.append(len(data)) or digest(data))
    CACHE.clear()
    for _ in range(2):
        store = repository.readonly_session("main").store
        assert [read(store, f"a/c/{n}") for n in (1, 2, 1)] == [bytes([n]) * 1000 for n in (1, 2, 1)]
    assert hashed == [1000, 1000]


def test_a_large_chunk_is_hashed_beside_the_event_loop(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    size = contents.HASH_ELSEWHERE_BYTES
    with place.create() as repository:
        chunks = {"a/c/0": b"x" * size, "a/c/1": b"y" * (size - 1)}
        commit(repository, {"a/zarr.json": array_document((2 * size,), (size,)), **chunks})
        CACHE.clear()
        hashed = []
        digest = contents.blake3_digest
        monkeypatch.setattr(
            contents, "blake3_digest", lambda data: hashed.append(threading.get_ident()) or digest(data)
        )
        store = repository.readonly_session("main").store

        async def read_all() -> int:
            for _ in range(2):
                for key, value in chunks.items():
                    buffer = await store.get(key, default_buffer_prototype())
                    assert buffer is not None
                    assert buffer.to_bytes() == value
            return threading.get_ident()

        loop = sync(read_all())
        assert len(hashed) == 2
        assert hashed[0] != loop
        assert hashed[1] == loop


def test_a_layer_that_the_cache_dropped_is_read_again(repository: vstore.Repository) -> None:
    store = repository.readonly_session("main").store
    for n in range(4):
        assert read(store, f"a/c/{n}") == bytes([n]) * 1000
        CACHE.clear()
    assert read(store, "a/c/1") == bytes([1]) * 1000


@pytest.mark.parametrize("is_hashed_elsewhere", [False, True])
def test_a_damaged_chunk_is_never_returned(
    repository: vstore.Repository, place: Place, monkeypatch: pytest.MonkeyPatch, is_hashed_elsewhere: bool
) -> None:
    monkeypatch.setattr(contents, "HASH_ELSEWHERE_BYTES", 1000 if is_hashed_elsewhere else 1001)
    source = repository.readonly_session("main").tree.find("a/c/2")
    assert isinstance(source, contents.StoredChunk)
    repository.close()
    path = place.location / pack_name(source.ref.pack)
    data = bytearray(path.read_bytes())
    data[source.ref.offset + 500] ^= 1
    path.write_bytes(data)
    with place.open() as reopened:
        store = reopened.readonly_session("main").store
        assert read(store, "a/c/1") == bytes([1]) * 1000
        for _ in range(2):
            with pytest.raises(vstore.CorruptionError, match=r"'a/c/2'.*is damaged"):
                read(store, "a/c/2")
            with pytest.raises(vstore.CorruptionError, match=r"'a/c/2'.*is damaged"):
                sync(store.get("a/c/2", default_buffer_prototype()))


def test_a_pack_that_is_gone_is_an_error_also_for_what_was_verified(
    repository: vstore.Repository, place: Place
) -> None:
    session = repository.readonly_session("main")
    source = session.tree.find("a/c/2")
    assert isinstance(source, contents.StoredChunk)
    assert read(session.store, "a/c/2") == bytes([2]) * 1000
    repository.handle.storage.close()
    (place.location / pack_name(source.ref.pack)).unlink()
    with pytest.raises(vstore.MissingBlobError, match="'a/c/2'"):
        read(session.store, "a/c/2")


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_nobody_writes_into_what_was_read(repository: vstore.Repository, pipeline: str) -> None:
    if not hasattr(zarr.core.codec_pipeline, pipeline):
        pytest.skip("this zarr has no such pipeline")
    store = repository.readonly_session("main").store
    buffer = store.get_sync("a/c/1", prototype=default_buffer_prototype())
    assert buffer is not None
    with pytest.raises(ValueError, match="read-only"):
        buffer.as_numpy_array()[0] = 9
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{pipeline}"}):
        session = repository.writable_session("main")
        array = zarr.open_array(session.store, path="a", mode="r+")
        array[1500:2500] = 7
        found = array[1000:3000]
        assert isinstance(found, np.ndarray)
        found[:] = 8
    assert read(session.store, "a/c/1") == bytes([1]) * 500 + bytes([7]) * 500
    assert read(store, "a/c/1") == bytes([1]) * 1000
    session.commit("part of two chunks")
    assert read(repository.readonly_session("main").store, "a/c/2") == bytes([7]) * 500 + bytes([2]) * 500
