"""Blobs of an object store: who asks for the same waits for one request, and nobody's trouble is another's."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from obstore.store import MemoryStore

from vstore.blobs import fetching
from vstore.blobs.cache import CACHE
from vstore.blobs.fetching import PackFetcher
from vstore.blobs.packing import NO_SLOT, OpenPack
from vstore.blobs.reader import BlobReader, ByteSpan
from vstore.blobs.streams import PackReads, Wanted
from vstore.errors import CorruptionError, MissingBlobError, StorageError
from vstore.format.envelope import BlobKind
from vstore.format.refs import BlobRef
from vstore.ids import blake3_digest, new_pack_id
from vstore.keys.objects import pack_name
from vstore.storage.objects import ObjectStorage
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage


class Gate:
    """A storage whose reads of packs are noted, and wait until the gate is opened."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.reads: list[tuple[int, int]] = []
        self.errors: list[Exception] = []
        self.is_open = threading.Event()
        self.is_open.set()
        self.arrived = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, name: str, offset: int, length: int) -> memoryview:
        self.reads.append((offset, length))
        self.arrived.release()
        assert self.is_open.wait(30)
        if self.errors:
            raise self.errors.pop()
        data: memoryview = self.inner.read(name, offset, length)
        return data

    def wait_for(self, count: int) -> None:
        """Wait until so many more reads have arrived."""
        for _ in range(count):
            assert self.arrived.acquire(timeout=30)


@pytest.fixture(autouse=True)
def _cleared() -> Iterator[None]:
    CACHE.clear()
    yield
    CACHE.clear()


@pytest.fixture
def storage() -> Gate:
    return Gate(ObjectStorage(MemoryStore()))


def write(storage: Any, blobs: list[bytes]) -> list[BlobRef]:
    """Write a pack of blobs."""
    pack = OpenPack(storage.open_pack(new_pack_id()), 0)
    refs = []
    for data in blobs:
        digest = blake3_digest(data)
        offset = pack.place(NO_SLOT, BlobKind.CHUNK, digest, len(data))
        pack.write(offset, (data,))
        refs.append(BlobRef(digest, pack.pack, offset, len(data)))
    pack.seal()
    return refs


def blobs_of(size: int, count: int) -> list[bytes]:
    return [os.urandom(size) for _ in range(count)]


def in_thread(act: Callable[[], Any]) -> Callable[[], Any]:
    """Begin `act` in a thread; return what waits for its result."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(act)
    pool.shutdown(wait=False)
    return lambda: future.result(30)


async def read_all(reader: BlobReader, refs: list[BlobRef], reach: int = 0) -> list[bytes]:
    return [
        bytes(data) for data in await asyncio.gather(*(reader.whole_async(ref, "b", reach) for ref in refs))
    ]


def test_neighbours_that_are_awaited_in_one_turn_come_in_one_request(storage: Gate) -> None:
    blobs = blobs_of(1000, 30)
    refs = write(storage, blobs)
    assert asyncio.run(read_all(BlobReader(storage), refs[5:15])) == blobs[5:15]
    assert len(storage.reads) == 1
    assert asyncio.run(read_all(BlobReader(storage), refs[5:15])) == blobs[5:15]
    assert len(storage.reads) == 1, "readers share what is kept"


def test_single_blobs_here_and_there_are_all_that_is_fetched(storage: Gate) -> None:
    refs = write(storage, blobs_of(3000, 100))
    reader = BlobReader(storage)
    reach = refs[-1].offset + refs[-1].length
    for at in range(0, 100, 7):
        asyncio.run(read_all(reader, [refs[at]], reach))
    assert sum(length for _, length in storage.reads) == 15 * 3000


def test_reading_forward_fetches_ahead_and_nothing_in_vain(storage: Gate) -> None:
    blobs = blobs_of(1000, 500)
    refs = write(storage, blobs)
    reader = BlobReader(storage)
    reach = refs[-1].offset + refs[-1].length
    for ref, data in zip(refs, blobs, strict=True):
        assert reader.whole(ref, "b", reach=reach) == data
    assert len(storage.reads) < 20
    assert sum(length for _, length in storage.reads) == 500_000


@pytest.fixture
def small_cache() -> Iterator[None]:
    before = CACHE.limit_bytes
    CACHE.set_limit(16 << 20)
    yield
    CACHE.set_limit(before)


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("size", [16 << 10, 256 << 10])
@pytest.mark.parametrize("count", [1, 8, 24])
def test_many_who_read_forward_fetch_nothing_twice(count: int, size: int) -> None:
    """What is fetched ahead of all of them stays in the cache until they come to it."""
    spacing = Wanted(0, size, 0, Future()).spacing
    reach = (4 << 20) // spacing * spacing
    zeros = memoryview(bytes(reach))
    fetched = []

    class Zeros:
        def read(self, name: str, offset: int, length: int) -> memoryview:
            fetched.append(length)
            return zeros[offset : offset + length]

    storage: Any = Zeros()
    fetcher = PackFetcher(storage)
    packs = [new_pack_id() for _ in range(count)]
    for start in range(0, reach, spacing):
        for pack in packs:
            assert len(fetcher.read(pack, start, start + size, reach)) == size
    fetcher.close()
    assert sum(fetched) <= count * reach


def test_who_asks_for_what_is_on_its_way_waits_for_it(storage: Gate) -> None:
    blobs = blobs_of(1000, 3)
    refs = write(storage, blobs)
    fetcher = PackFetcher(storage)
    readers = [BlobReader(storage, fetcher=fetcher) for _ in range(4)]
    storage.is_open.clear()
    waiting = [in_thread(lambda: readers[0].whole(refs[1], "b"))]
    storage.wait_for(1)
    waiting.append(in_thread(lambda: readers[1].whole(refs[1], "b")))
    waiting += [in_thread(lambda n=n: asyncio.run(readers[n].whole_async(refs[1], "b"))) for n in (2, 3)]
    storage.is_open.set()
    assert [bytes(result()) for result in waiting] == [blobs[1]] * 4
    assert len(storage.reads) == 1


def test_a_reader_that_gives_up_leaves_the_others_their_fetch(storage: Gate) -> None:
    blobs = blobs_of(1000, 2)
    refs = write(storage, blobs)
    fetcher = PackFetcher(storage)
    reader = BlobReader(storage, fetcher=fetcher)
    storage.is_open.clear()
    joined: list[Callable[[], Any]] = []

    async def give_up() -> None:
        first = asyncio.ensure_future(reader.whole_async(refs[0], "b"))
        await asyncio.to_thread(storage.wait_for, 1)
        joined.append(in_thread(lambda: asyncio.run(reader.whole_async(refs[0], "b"))))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(give_up())
    # The loop that began it is gone, too.
    storage.is_open.set()
    assert joined[0]() == blobs[0]
    assert len(storage.reads) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("planning")])
@pytest.mark.parametrize("step", ["plan", "submit"])
def test_nobody_waits_for_what_was_never_begun(
    storage: Gate, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    """The reader that makes the requests is interrupted, or meets a defect, before they are made."""
    refs = write(storage, blobs_of(1000, 3))
    fetcher = PackFetcher(storage)
    places = [(ref.pack, ref.offset, ref.offset + ref.length) for ref in refs]

    def fail(*_: object) -> None:
        raise error

    others = [fetcher._want(*place, 0) for place in places[:2]]
    with monkeypatch.context() as patch:
        if step == "plan":
            patch.setattr(PackReads, "plan", fail)
        else:
            patch.setattr(fetcher, "_submit", fail)
        with pytest.raises(type(error)):
            fetcher._flush()
    for other in others:
        assert isinstance(other.exception(30), ValueError | StorageError)
    for place in places:
        assert len(fetcher.read(*place)) == 1000


def test_a_request_is_made_once_where_there_are_no_threads_for_it(
    storage: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor keeps what it was given even if it says that it could start no thread."""
    refs = write(storage, blobs_of(1000, 2))
    fetcher = PackFetcher(storage)
    queued = []

    class NoThreads:
        def submit(self, act: Callable[..., None], *args: object) -> None:
            queued.append((act, args))
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(fetcher, "_threads", NoThreads)
    fetcher.begin(refs[0].pack, refs[0].offset, refs[0].offset + 1000)
    ((act, args),) = queued
    act(*args)
    assert len(storage.reads) == 1
    assert len(fetcher.read(refs[0].pack, refs[0].offset, refs[0].offset + 1000)) == 1000


def test_an_error_of_what_was_fetched_ahead_is_nobodys(storage: Gate) -> None:
    blobs = blobs_of(1000, 40)
    refs = write(storage, blobs)
    reader = BlobReader(storage)
    reach = refs[-1].offset + refs[-1].length
    asyncio.run(read_all(reader, refs[:10], reach))
    assert sum(length for _, length in storage.reads) == 20_000
    storage.errors.append(StorageError("the line was cut"))
    # The failed request was for more than this one: it is tried again for each of those who want something of it.
    assert asyncio.run(read_all(reader, refs[10:30], reach)) == blobs[10:30]
    assert not storage.errors


def test_an_error_of_a_request_for_one_blob_is_its_readers(storage: Gate) -> None:
    refs = write(storage, blobs_of(1000, 2))
    reader = BlobReader(storage)
    storage.errors.append(StorageError("the line was cut"))
    with pytest.raises(StorageError, match="line was cut"):
        reader.whole(refs[0], "b")
    assert len(storage.reads) == 1
    assert len(reader.whole(refs[0], "b")) == 1000


def test_a_missing_pack_is_an_error_for_all_who_wait(storage: Gate) -> None:
    refs = write(storage, blobs_of(1000, 5))
    storage.delete([pack_name(refs[0].pack)])

    async def read() -> list[Any]:
        reads = (BlobReader(storage).whole_async(ref, "a chunk") for ref in refs)
        return await asyncio.gather(*reads, return_exceptions=True)

    results = asyncio.run(read())
    assert all(isinstance(result, MissingBlobError) for result in results)


def test_a_pack_that_was_cut_costs_only_what_is_gone(storage: Gate) -> None:
    blobs = blobs_of(1000, 10)
    refs = write(storage, blobs)
    name = pack_name(refs[0].pack)
    whole = storage.inner.read(name, 0, storage.size(name))
    storage.write(name, bytes(whole[: refs[7].offset + 10]))

    async def read() -> list[Any]:
        reader = BlobReader(storage)
        return await asyncio.gather(
            *(reader.whole_async(ref, "a chunk") for ref in refs), return_exceptions=True
        )

    results = asyncio.run(read())
    assert results[:7] == blobs[:7]
    assert all(isinstance(result, CorruptionError) for result in results[7:])


# --- damage on the way ---------------------------------------------------------------------------------------


def damaged(*numbers: int) -> tuple[FaultyStorage, FaultPlan]:
    plan = FaultPlan()
    storage = FaultyStorage(ObjectStorage(MemoryStore()), plan)
    return storage, plan


@pytest.mark.parametrize("is_async", [False, True])
def test_a_byte_flipped_on_its_way_is_fetched_once_more(is_async: bool) -> None:
    storage, plan = damaged()
    blobs = blobs_of(5000, 1)
    (ref,) = write(storage, blobs)

    def read() -> memoryview:
        reader = BlobReader(storage)
        return asyncio.run(reader.whole_async(ref, "b")) if is_async else reader.whole(ref, "b")

    plan.reset()
    plan.inject(0, Fault.CORRUPT)
    assert read() == blobs[0]
    assert [request.method for request in plan.requests] == ["read", "read"]
    CACHE.clear()
    plan.reset()
    plan.inject(0, Fault.CORRUPT)
    plan.inject(1, Fault.CORRUPT)
    with pytest.raises(CorruptionError, match="digest"):
        read()
    assert len(plan.requests) == 2
    plan.reset()
    # Nothing of that was kept.
    assert read() == blobs[0]
    assert len(plan.requests) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_range_with_a_flipped_byte_is_fetched_once_more(is_async: bool) -> None:
    storage, plan = damaged()
    blobs = blobs_of(1_000_000, 1)
    (ref,) = write(storage, blobs)
    span = ByteSpan(300_000, 310_000)

    def read() -> memoryview:
        reader = BlobReader(storage)
        return asyncio.run(reader.span_async(ref, span, "b")) if is_async else reader.span(ref, span, "b")

    plan.reset()
    plan.inject(0, Fault.CORRUPT)
    assert read() == blobs[0][300_000:310_000]
    CACHE.clear()
    plan.reset()
    for number in range(8):
        plan.inject(number, Fault.CORRUPT)
    with pytest.raises(CorruptionError, match="crc32c"):
        read()


def test_neighbours_of_a_damaged_blob_are_fine() -> None:
    storage, plan = damaged()
    blobs = blobs_of(1000, 11)
    refs = write(storage, blobs)
    plan.reset()
    plan.inject(0, Fault.CORRUPT)
    assert asyncio.run(read_all(BlobReader(storage), refs)) == blobs
    assert len(plan.requests) == 2


# --- ranges --------------------------------------------------------------------------------------------------


def test_ranges_of_a_blob_are_kept_by_blocks_and_its_checksums_fetched_once(storage: Gate) -> None:
    size = 4_000_000
    blobs = blobs_of(size, 1)
    (ref,) = write(storage, blobs)
    reader = BlobReader(storage)

    def read(start: int, stop: int) -> int:
        """Read a range; return how many requests that took."""
        before = len(storage.reads)
        assert reader.span(ref, ByteSpan(start, stop), "b") == blobs[0][start:stop]
        return len(storage.reads) - before

    # As zarr reads a shard: its index, which is at the end, then parts of it.
    assert read(size - 5000, size) == 1
    assert read(size - 5000, size) == 0
    assert read(100_000, 150_000) == 1
    assert read(110_000, 140_000) == 0
    assert read(1_000_000, 1_010_000) == 1
    assert sum(length for _, length in storage.reads) < 7 * 65_536


# --- processes, threads, bounds ------------------------------------------------------------------------------


def test_a_forked_child_asks_its_storage_itself(storage: Gate) -> None:
    (ref,) = write(storage, [b"x" * 1000])
    fetcher = PackFetcher(storage)
    fetcher.begin(ref.pack, 0, 10)
    fetcher._lock.acquire()  # as another thread may have at the fork
    child = os.fork()
    if not child:
        code = 1
        try:
            # A storage that counts, not an object store: that would refuse.
            storage.inner = type(
                "Zeros", (), {"read": lambda self, name, offset, length: memoryview(bytes(length))}
            )()
            fetcher.begin(ref.pack, 0, 10)
            fetcher.forget(ref.pack, 0, 10)
            data = [fetcher.read(ref.pack, 0, 5), asyncio.run(fetcher.read_async(ref.pack, 0, 5))]
            mapped = list(fetcher.iter_map(lambda number: number + 1, range(3)))
            fetcher.close()
            code = 0 if data == [b"\0" * 5] * 2 and mapped == [1, 2, 3] else 2
        finally:
            os._exit(code)
    fetcher._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_it_pickles_and_closes(storage: Gate) -> None:
    refs = write(storage, blobs_of(1000, 20))
    fetcher = PackFetcher(ObjectStorage(MemoryStore()))
    assert isinstance(pickle.loads(pickle.dumps(fetcher)), PackFetcher)
    fetcher = PackFetcher(storage)
    reader = BlobReader(storage, fetcher=fetcher)
    asyncio.run(read_all(reader, refs[:10]))
    pool = fetcher._pool
    assert pool is not None
    threads = list(pool._threads)
    assert threads
    fetcher.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    asyncio.run(read_all(reader, refs[10:]))


def test_results_come_in_order_some_ahead(storage: Gate) -> None:
    fetcher = PackFetcher(storage)
    begun: list[int] = []
    together = threading.Barrier(fetching._AT_ONCE)

    def work(number: int) -> int:
        begun.append(number)
        if number < fetching._AT_ONCE:
            together.wait(30)
        if number == 37:
            raise StorageError("37")
        return number * 10

    found = fetcher.iter_map(work, range(100))
    assert [next(found) for _ in range(37)] == [number * 10 for number in range(37)]
    assert len(begun) <= 37 + fetching._AT_ONCE
    with pytest.raises(StorageError, match="37"):
        next(found)


def test_what_is_fetched_ahead_is_bounded_by_the_cache(
    storage: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = write(storage, blobs_of(1000, 50))
    reach = refs[-1].offset + refs[-1].length
    monkeypatch.setattr(CACHE, "limit_bytes", 0)
    for ref in refs:
        BlobReader(storage).whole(ref, "b", reach=reach)
    assert sum(length for _, length in storage.reads) == 50_000
    reader = BlobReader(storage)
    storage.reads.clear()
    for ref in refs:
        reader.whole(ref, "b", reach=reach)
    assert sum(length for _, length in storage.reads) == 50_000


def test_many_readers_in_threads_and_loops_get_what_they_ask_for(storage: Gate) -> None:
    blobs = blobs_of(2000, 300)
    refs = write(storage, blobs)
    reach = refs[-1].offset + refs[-1].length
    reader = BlobReader(storage)

    def in_loop(start: int) -> bool:
        order = [(start * 37 + at) % 300 for at in range(300)]
        found = asyncio.run(read_all(reader, [refs[at] for at in order], reach))
        return found == [blobs[at] for at in order]

    def one_by_one(start: int) -> bool:
        order = [(start * 41 + at) % 300 for at in range(300)]
        return all(reader.whole(refs[at], "b", reach=reach) == blobs[at] for at in order)

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(in_loop if n % 2 else one_by_one, n) for n in range(8)]
        assert all(result.result(60) for result in results)
