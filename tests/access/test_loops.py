"""Event loops: several at once on one repository and one store, and tasks that are cancelled anywhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr
from obstore.store import MemoryStore
from zarr.core.buffer import default_buffer_prototype

import vstore
from tests.access.test_threads import run
from tests.access.workers import VALUES, array_of, check_values, put
from tests.repositories import KINDS, Place, quick_folder
from vstore.blobs.cache import CACHE
from vstore.storage.objects import ObjectStorage

PROTOTYPE = default_buffer_prototype()


@pytest.fixture(params=KINDS)
def repository(request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    with quick_folder() as folder, Place.new(request.param, folder).create() as repository:
        fill(repository)
        yield repository


def fill(repository: vstore.Repository) -> None:
    with repository.transaction("main", message="base") as store:
        zarr.create_array(store, name="a", data=VALUES, chunks=200, compressors=None)


async def read_and_commit(repository: vstore.Repository, store: Any, name: str, rounds: int) -> None:
    for number in range(rounds):
        CACHE.clear()
        array = await zarr.api.asynchronous.open_array(store=store, path="a", mode="r")
        keys = [f"a/c/{index}" for index in range(20)]
        values = await asyncio.gather(
            array.getitem(slice(0, 1000)), *(store.get(key, PROTOTYPE) for key in keys)
        )
        np.testing.assert_array_equal(values[0], VALUES[:1000])
        found = np.concatenate([np.frombuffer(value.to_bytes(), VALUES.dtype) for value in values[1:]])
        np.testing.assert_array_equal(found, VALUES)
        assert sorted([key async for key in store.list_dir("a/c")]) == sorted(map(str, range(20)))
        session = await repository.writable_session_async("main")
        value = PROTOTYPE.buffer.from_bytes(name.encode() * 1000)
        await session.store.set(f"{name}/{number}", value)
        assert not (await session.status_async()).is_empty()
        await session.commit_async(f"{name} {number}", rebase_with="ours")
        reader = await repository.readonly_session_async("main")
        assert (await reader.store.get(f"{name}/{number}", PROTOTYPE)) is not None
        assert "main" in await repository.list_branches_async()


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.deep)])
def test_several_loops_share_one_repository_and_one_store(repository: vstore.Repository, rounds: int) -> None:
    store = repository.readonly_session("main").store

    def in_loop(name: str) -> None:
        asyncio.run(read_and_commit(repository, store, name, rounds))

    def by_zarr() -> None:
        # On zarr's own loop.
        for _ in range(rounds):
            check_values(store.session)

    run(*(lambda name=name: in_loop(name) for name in "abcd"), by_zarr)  # type: ignore[misc]
    reader = repository.readonly_session("main")
    for name in "abcd":
        for number in range(rounds):
            assert reader.tree.read(f"{name}/{number}") == name.encode() * 1000
    assert repository.fsck(data=True).is_clean


def test_a_store_outlives_the_loop_that_opened_it(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    store = session.store
    for number in range(3):
        value = PROTOTYPE.buffer.from_bytes(bytes([number]) * 1000)
        asyncio.run(store.set("key", value))
        got = asyncio.run(store.get("key", PROTOTYPE))
        assert got is not None
        assert got.to_bytes() == bytes([number]) * 1000
    asyncio.run(session.commit_async("by a third loop"))
    check_values(session)


# --- cancelling ------------------------------------------------------------------------------------------------


class SlowStorage(ObjectStorage):
    """Waits before each read of a range."""

    def read(self, name: str, offset: int, length: int) -> memoryview:
        time.sleep(0.02)
        return super().read(name, offset, length)


@pytest.fixture
def slow() -> vstore.Repository:
    repository = vstore.Repository.create(SlowStorage(MemoryStore()))
    fill(repository)
    return repository


async def test_cancelled_reads_leave_nothing(slow: vstore.Repository) -> None:
    session = await slow.readonly_session_async("main")
    store = session.store
    for pause in (0.0, 0.001, 0.005, 0.012, 0.02):
        CACHE.clear()
        tasks = [asyncio.ensure_future(store.get(f"a/c/{index % 20}", PROTOTYPE)) for index in range(40)]
        await asyncio.sleep(pause)
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for index, value in enumerate(found):
            if isinstance(value, asyncio.CancelledError):
                assert index % 2 == 0
            else:
                assert value is not None
                assert not isinstance(value, BaseException)
                part = VALUES[(index % 20) * 200 : (index % 20 + 1) * 200]
                assert value.to_bytes() == part.tobytes()
    await asyncio.to_thread(check_values, session)


async def test_a_timeout_within_a_read_leaves_nothing(slow: vstore.Repository) -> None:
    session = await slow.readonly_session_async("main")
    CACHE.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await session.store.get("a/c/0", PROTOTYPE)
    # The fetch that was given up goes on, and serves who comes next.
    assert await session.store.get("a/c/0", PROTOTYPE) is not None


@pytest.mark.parametrize("pauses", [6, pytest.param(60, marks=pytest.mark.deep)])
async def test_a_cancelled_commit_lands_whole_or_not_at_all(
    repository: vstore.Repository, pauses: int
) -> None:
    for number in range(pauses):
        session = await repository.writable_session_async("main")
        before = session.snapshot_id
        keys = [f"{number}/{index}" for index in range(20)]
        for key in keys:
            put(session, key, key.encode() * 500)
        task = asyncio.create_task(session.commit_async("to be cancelled"))
        await asyncio.sleep(number * 0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # Waits for the commit, if its thread is still at it.
        if session.has_uncommitted_changes or not session.read_only:
            try:
                made = await session.commit_async("again")
            except vstore.ReadOnlyError:
                # It landed meanwhile.
                made = session.snapshot_id
        else:
            made = session.snapshot_id
        assert made == session.snapshot_id == await repository.lookup_branch_async("main")
        assert made != before
        history = [info.message for info in repository.ancestry(branch="main")]
        assert len([message for message in history if message in ("to be cancelled", "again")]) == number + 1
        reader = await repository.readonly_session_async("main")
        assert all(reader.tree.read(key) == key.encode() * 500 for key in keys)
        check_values(session)
    assert repository.fsck(data=True).is_clean


async def test_a_cancelled_set_is_whole_or_absent(repository: vstore.Repository) -> None:
    session = await repository.writable_session_async("main")
    for number in range(10):
        value = PROTOTYPE.buffer.from_bytes(bytes([number + 1]) * 100_000)
        task = asyncio.ensure_future(session.store.set("key", value))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        got = await session.store.get("key", PROTOTYPE)
        assert got is None or len(set(got.to_bytes())) == 1
    await session.store.set("key", PROTOTYPE.buffer.from_bytes(b"last"))
    await session.commit_async("usable")


def test_a_loop_that_is_stopped_beside_work_leaves_a_usable_session(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    put(session, "key", b"1" * 1000)

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.001, asyncio.current_task().cancel)  # type: ignore[union-attr]
        for _ in range(10_000):
            await session.store.get("a/c/0", PROTOTYPE)
            await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    array_of(session)[:]
    session.commit("after the loop")
