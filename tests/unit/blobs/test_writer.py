"""The blob writer: slots, buffering, sharing, full packs, failures."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from vstore.blobs.packing import OpenPack
from vstore.blobs.reader import BlobReader
from vstore.blobs.sealing import PackSealer
from vstore.blobs.writer import MAX_BATCHES_BEHIND, BlobWriter
from vstore.errors import OutcomeUnknownError, OutOfSpaceError, SessionStateError, StorageError
from vstore.format.envelope import BlobKind
from vstore.format.refs import BlobRef
from vstore.ids import BytesLike, PackId, blake3_digest
from vstore.storage.base import PackPolicy, PackSink
from vstore.storage.local import LocalStorage
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(os.fspath(tmp_path))


def put(writer: BlobWriter, data: bytes) -> int:
    return writer.put(data, blake3_digest(data))


def commit(writer: BlobWriter) -> BlobRef:
    writer.flush()
    batch = writer.begin_metadata()
    ref = batch.add(BlobKind.SNAPSHOT, b"snapshot")
    writer.finish(batch)
    return ref


def read_back(writer: BlobWriter, storage: LocalStorage, slot: int, data: bytes) -> bytes:
    packs, offsets = writer.slots.locate(np.array([slot], dtype=np.uint64))
    ref = BlobRef(blake3_digest(data), writer.slots.pack_ids[int(packs[0])], int(offsets[0]), len(data))
    return bytes(BlobReader(storage).whole(ref, "a blob"))


def test_a_small_commit_is_one_pack(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    data = [bytes([n]) * 1000 for n in range(50)]
    slots = [put(writer, blob) for blob in data]
    commit(writer)
    assert len(list(storage.list("packs/"))) == 1
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data


def test_equal_bytes_share_a_slot(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    assert put(writer, b"x" * 600) == put(writer, b"x" * 600)
    large = os.urandom(100_000)
    assert put(writer, large) == put(writer, bytes(large))


def test_a_blob_that_is_released_while_it_waits_is_never_written(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    gone, kept = os.urandom(5000), os.urandom(5000)
    writer.release(put(writer, gone))
    put(writer, kept)
    commit(writer)
    (info,) = storage.list("packs/")
    stored = bytes(storage.read(info.name, 0, info.size))
    assert kept in stored
    assert gone not in stored


def test_a_shared_blob_outlives_one_of_its_keys(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    slot = put(writer, b"y" * 700)
    put(writer, b"y" * 700)
    writer.release(slot)
    assert writer.read(slot, 700) == b"y" * 700


@pytest.mark.parametrize("behind", [False, True])
def test_blobs_read_back_in_every_place(storage: LocalStorage, behind: bool) -> None:
    storage.pack_policy = PackPolicy(60_000, 9_000, 9_001, behind)
    writer = BlobWriter(storage)
    data = [os.urandom(size) for size in [600, 9_000, 25_000, 3_000, 70_000] * 8]
    slots = []
    for blob in data:
        slots.append(put(writer, blob))
        for slot, known in zip(slots, data, strict=False):
            assert writer.read(slot, len(known)) == known
    commit(writer)
    assert len(list(storage.list("packs/"))) > 3
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data


def test_a_full_pack_is_announced_once_before_it_is_sealed(storage: LocalStorage) -> None:
    storage.pack_policy = PackPolicy(target_bytes=10_000, buffer_bytes=1, direct_bytes=1)
    seen: list[int] = []
    writer = BlobWriter(storage, lambda: seen.append(len(list(storage.list("packs/")))))
    for _ in range(5):
        put(writer, os.urandom(12_000))
        writer.flush()
    assert seen == [0]


def test_puts_wait_while_metadata_is_placed(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    batch = writer.begin_metadata()
    first = batch.add(BlobKind.PAGE, b"one" * 50)
    data = os.urandom(100_000)
    other = threading.Thread(target=put, args=(writer, data))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    second = batch.add(BlobKind.SNAPSHOT, b"two" * 50)
    writer.finish(batch)
    other.join(10)
    reader = BlobReader(storage)
    assert reader.whole(first, "the first") == b"one" * 50
    assert reader.whole(second, "the second") == b"two" * 50
    commit(writer)


def test_a_pack_that_others_fill_is_sealed_before_a_commit_names_it(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.pack_policy = PackPolicy(target_bytes=10_000, buffer_bytes=1, direct_bytes=1)
    writer = BlobWriter(storage)
    data = os.urandom(5_000)
    slot = put(writer, data)
    writer.flush()
    seal, may_seal, trouble = OpenPack.seal, threading.Event(), [StorageError("the disk is away")] * 2

    def held(pack: OpenPack, *blobs: Any) -> None:
        may_seal.wait(60)
        if trouble:
            raise trouble.pop()
        seal(pack, *blobs)

    monkeypatch.setattr(OpenPack, "seal", held)
    put(writer, os.urandom(12_000))
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(writer.begin_metadata)
        time.sleep(0.2)
        assert not begun.done()
        may_seal.set()
        with pytest.raises(StorageError, match="away"):
            begun.result()
    put(writer, b"not held up")
    commit(writer)
    assert read_back(writer, storage, slot, data) == data


@pytest.mark.parametrize("fault", [Fault.NOT_APPLIED, Fault.APPLIED])
def test_a_seal_in_doubt_moves_the_blobs_to_another_pack(storage: LocalStorage, fault: Fault) -> None:
    plan = FaultPlan()
    faulty = FaultyStorage(storage, plan)
    writer = BlobWriter(faulty)
    data = os.urandom(50_000)
    slot = put(writer, data)
    writer.flush()
    batch = writer.begin_metadata()
    batch.add(BlobKind.SNAPSHOT, b"snapshot")
    # A seal writes the header, the metadata and the footer, then seals.
    plan.inject(len(plan.requests) + 3, fault)
    with pytest.raises(OutcomeUnknownError if fault is Fault.APPLIED else StorageError):
        writer.finish(batch)
    assert plan.requests[-1].method == "seal"
    doubtful = batch.pack.pack
    commit(writer)
    packs, _ = writer.slots.locate(np.array([slot], dtype=np.uint64))
    assert writer.slots.pack_ids[int(packs[0])] != doubtful
    assert read_back(writer, storage, slot, data) == data


def test_a_failed_direct_write_is_shared_with_nobody(storage: LocalStorage) -> None:
    storage.pack_policy = PackPolicy(target_bytes=10**8, buffer_bytes=10**6, direct_bytes=50_000)
    plan = FaultPlan()
    writer = BlobWriter(FaultyStorage(storage, plan))
    data = os.urandom(100_000)
    put(writer, b"z" * 70_000)
    plan.inject(len(plan.requests), Fault.NOT_APPLIED)
    with pytest.raises(StorageError):
        put(writer, data)
    slot = put(writer, data)
    commit(writer)
    assert read_back(writer, storage, slot, data) == data


def test_blobs_wait_again_after_a_full_disk(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = BlobWriter(storage)
    slot = put(writer, b"w" * 3000)
    pack = writer.begin_metadata()
    writer.drop_metadata(pack)

    def full(offset: int, buffers: object) -> None:
        raise OutOfSpaceError("full")

    with monkeypatch.context() as patch:
        patch.setattr(pack.pack.sink, "write", full)
        with pytest.raises(OutOfSpaceError):
            writer.flush()
    assert writer.read(slot, 3000) == b"w" * 3000
    commit(writer)
    assert read_back(writer, storage, slot, b"w" * 3000) == b"w" * 3000


def test_nothing_is_put_after_closing(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    put(writer, os.urandom(70_000))
    writer.close()
    assert list(storage.list("staging/")) == []
    with pytest.raises(SessionStateError):
        put(writer, b"more")


def test_metadata_is_written_as_it_comes(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large commit's metadata does not lie in memory; what was written of a commit that failed is overwritten."""
    monkeypatch.setattr("vstore.blobs.writer._HELD_METADATA_BYTES", 10_000)
    plan = FaultPlan()
    writer = BlobWriter(FaultyStorage(storage, plan))
    chunk = put(writer, b"c" * 1000)
    for attempt in ("dropped", "failed", "kept"):
        writer.flush()
        batch = writer.begin_metadata()
        blobs = [f"{attempt} {n}".encode() * 300 for n in range(100)] + [attempt.encode() * 20_000]
        refs = []
        for blob in blobs:
            refs.append(batch.add(BlobKind.MANIFEST, blob))
            assert sum(map(len, batch.blobs)) <= 10_000
        if attempt == "dropped":
            writer.drop_metadata(batch)
        elif attempt == "failed":
            plan.reset()
            plan.inject(1, Fault.NOT_APPLIED)
            with pytest.raises(StorageError):
                writer.finish(batch)
            plan.reset()
        else:
            writer.finish(batch)
    reader = BlobReader(storage)
    assert [reader.whole(ref, "metadata") for ref in refs] == blobs
    footer = reader.footer(refs[0].pack).footer
    assert len(footer) == 102
    assert footer.kinds.tolist() == [BlobKind.CHUNK, *[BlobKind.MANIFEST] * 101]
    assert read_back(writer, storage, chunk, b"c" * 1000) == b"c" * 1000


def test_many_blobs_are_released_at_once(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    slots = [put(writer, bytes([n]) * 600) for n in range(10)]
    writer.flush()
    waiting = [put(writer, bytes([n]) * 600) for n in range(20, 30)]
    shared = put(writer, bytes([20]) * 600)
    assert shared == waiting[0]
    writer.release_many(np.array([*slots, *waiting], dtype=np.uint64))
    assert writer.has_waiting_blobs
    assert writer.read(shared, 600) == bytes([20]) * 600
    writer.release_many(np.array([shared], dtype=np.uint64))
    assert not writer.has_waiting_blobs


# --- many at once --------------------------------------------------------------------------------------------


def put_many(writer: BlobWriter, data: list[bytes]) -> list[int]:
    return writer.put_many(data, [blake3_digest(blob) for blob in data])


@pytest.mark.parametrize("direct_bytes", [1, 20_000, None])
def test_many_blobs_get_slots_and_places_like_single_ones(
    storage: LocalStorage, direct_bytes: int | None
) -> None:
    storage.pack_policy = PackPolicy(target_bytes=300_000, buffer_bytes=9_000, direct_bytes=direct_bytes)
    writer = BlobWriter(storage)
    first = [os.urandom(size) for size in (600, 25_000, 3_000, 70_000)]
    data = [
        *first,
        *[os.urandom(size) for size in [700, 30_000, 65_536, 65_537, 150_000] * 3],
        *first,
        first[0],
    ]
    known = put(writer, data[5])
    slots = put_many(writer, data[:9]) + put_many(writer, data[9:])
    assert slots[5] == known
    assert slots[-5:] == [slots[0], slots[1], slots[2], slots[3], slots[0]]
    assert len(set(slots)) == len(data) - 5
    assert [writer.read(slot, len(blob)) for slot, blob in zip(slots, data, strict=True)] == data
    assert put_many(writer, data) == slots
    commit(writer)
    assert len(list(storage.list("packs/"))) > 1
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data
    for info in storage.list("packs/"):
        _, footer = BlobReader(storage).read_footer(PackId(bytes.fromhex(info.name.rpartition("/")[2])))
        for digest, offset, length in zip(footer.digests, footer.offsets, footer.lengths, strict=True):
            assert blake3_digest(storage.read(info.name, int(offset), int(length))) == digest.tobytes()


def test_a_waiting_blob_that_many_share_is_kept_for_each(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    slot = put(writer, b"y" * 700)
    assert put_many(writer, [b"y" * 700, *[os.urandom(9000) for _ in range(9)]])[0] == slot
    writer.release(slot)
    assert writer.read(slot, 700) == b"y" * 700


def test_a_failed_write_of_many_is_shared_with_nobody(storage: LocalStorage) -> None:
    storage.pack_policy = PackPolicy(10**6, 9_000, 10_000)
    plan = FaultPlan()
    writer = BlobWriter(FaultyStorage(storage, plan))
    data = [os.urandom(9_000) for _ in range(20)]
    before = put_many(writer, [b"z" * 70_000])
    plan.inject(len(plan.requests), Fault.NOT_APPLIED)
    with pytest.raises(StorageError):
        put_many(writer, data)
    slots = put_many(writer, data)
    assert not set(slots) & set(before)
    commit(writer)
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data


def test_many_wait_while_metadata_is_placed(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    batch = writer.begin_metadata()
    first = batch.add(BlobKind.PAGE, b"one" * 50)
    data = [os.urandom(9_000) for _ in range(20)]
    other = threading.Thread(target=put_many, args=(writer, data))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    writer.finish(batch)
    other.join(10)
    assert BlobReader(storage).whole(first, "the first") == b"one" * 50
    commit(writer)


def test_what_many_threads_put_at_once_is_all_there(storage: LocalStorage) -> None:
    storage.pack_policy = PackPolicy(target_bytes=200_000, buffer_bytes=9_000, direct_bytes=10_000)
    writer = BlobWriter(storage)
    shared = [os.urandom(3_000) for _ in range(10)]
    results: list[tuple[list[int], list[bytes]]] = []

    def work() -> None:
        for _ in range(10):
            data = [*shared, *[os.urandom(3_000) for _ in range(10)]]
            slots = put_many(writer, data)
            assert [writer.read(slot, 3_000) for slot in slots] == data
            results.append((slots, data))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    commit(writer)
    assert len(results) == 40
    for slots, data in results:
        assert [
            read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)
        ] == data


def test_nothing_of_many_is_put_after_closing(storage: LocalStorage) -> None:
    writer = BlobWriter(storage)
    writer.close()
    with pytest.raises(SessionStateError):
        put_many(writer, [os.urandom(70_000)])


class HeldSink:
    """A pack whose writes wait until they are let go, and then fail if they are told to."""

    def __init__(self, sink: PackSink) -> None:
        self.let_go = threading.Event()
        self.error: StorageError | None = None
        self.started = threading.Semaphore(0)
        self._write = sink.write
        sink.write = self.write  # type: ignore[method-assign]

    def write(self, offset: int, buffers: Sequence[BytesLike]) -> None:
        self.started.release()
        assert self.let_go.wait(20)
        if self.error is not None:
            raise self.error
        self._write(offset, buffers)


@pytest.fixture
def held(storage: LocalStorage) -> Iterator[tuple[BlobWriter, HeldSink]]:
    """A writer that writes 1,000 bytes at a time behind its callers, into a pack that makes it wait."""
    storage.pack_policy = PackPolicy(10**6, 1_000, 1_001, True)
    writer = BlobWriter(storage)
    batch = writer.begin_metadata()
    sink = HeldSink(batch.pack.sink)
    writer.drop_metadata(batch)
    yield writer, sink
    sink.let_go.set()
    writer.close()


def test_callers_go_on_while_blobs_are_written_and_wait_when_too_many_are(
    held: tuple[BlobWriter, HeldSink], storage: LocalStorage
) -> None:
    writer, sink = held
    data = [os.urandom(600) for _ in range(MAX_BATCHES_BEHIND + 2)]
    slots = [put(writer, blob) for blob in data[:-1]]
    assert sink.started.acquire(timeout=10)
    assert [writer.read(slot, 600) for slot in slots] == data[:-1]
    last: list[int] = []
    other = threading.Thread(target=lambda: last.append(put(writer, data[-1])))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    sink.let_go.set()
    other.join(10)
    commit(writer)
    found = [read_back(writer, storage, slot, blob) for slot, blob in zip([*slots, *last], data, strict=True)]
    assert found == data


def test_what_was_read_of_a_waiting_blob_stays_as_it_was(storage: LocalStorage) -> None:
    storage.pack_policy = PackPolicy(10**6, 1_000, 1_001, True)
    writer = BlobWriter(storage)
    data = [os.urandom(600) for _ in range(40)]
    views = [writer.read(put(writer, blob), 600) for blob in data]
    assert views == data
    writer.close()


def test_room_of_blobs_that_were_let_go_is_used_again(held: tuple[BlobWriter, HeldSink]) -> None:
    writer, sink = held
    for _ in range(20):
        writer.release(put(writer, os.urandom(600)))
    assert not sink.started.acquire(timeout=0.1)


def test_an_error_behind_is_raised_to_callers_who_lose_nothing(
    held: tuple[BlobWriter, HeldSink], storage: LocalStorage
) -> None:
    writer, sink = held
    data = [os.urandom(600) for _ in range(5)]
    slots = [put(writer, blob) for blob in data[:3]]
    sink.error = OutOfSpaceError("full")
    sink.let_go.set()
    with pytest.raises(OutOfSpaceError):
        writer.flush()
    for _ in range(3):
        # Nothing more is taken until the disk has room.
        with pytest.raises(OutOfSpaceError):
            put(writer, data[4])
    other = BlobWriter(storage)
    for _ in range(3):
        put(other, os.urandom(600))
    other.close()
    assert [writer.read(slot, 600) for slot in slots] == data[:3]
    sink.error = None
    slots += [put(writer, blob) for blob in data[3:]]
    commit(writer)
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data


def test_callers_write_themselves_where_no_thread_is_to_be_had(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    storage.pack_policy = PackPolicy(10**6, 1_000, 1_001, True)
    writer = BlobWriter(storage)
    data = [os.urandom(600) for _ in range(5)]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        slots = [put(writer, blob) for blob in data[:3]]
    slots += [put(writer, blob) for blob in data[3:]]
    commit(writer)
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data


@pytest.mark.parametrize("started", [0, 1])
def test_a_full_pack_is_sealed_where_no_thread_is_to_be_had(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    """Once: an executor keeps what it was given, and a thread that it has may come to it."""
    storage.pack_policy = PackPolicy(3_000, 1, 1)
    may_seal, sealed = threading.Event(), []
    start, seal = threading.Thread.start, PackSealer.seal

    def start_some(thread: threading.Thread) -> None:
        if len(threads) >= started:
            raise RuntimeError("can't start new thread")
        threads.append(thread)
        start(thread)

    def note(sealer: PackSealer, pack: OpenPack) -> None:
        sealed.append(pack.number)
        if threading.current_thread() in threads:
            assert may_seal.wait(20)
        seal(sealer, pack)

    threads: list[threading.Thread] = []
    writer = BlobWriter(storage)
    data = [os.urandom(4_000) for _ in range(3)]
    monkeypatch.setattr(PackSealer, "seal", note)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_some)
        slots = [put(writer, blob) for blob in data]
    assert {1, 2} <= set(sealed)
    may_seal.set()
    commit(writer)
    writer.close()
    assert sorted(sealed) == [0, 1, 2]
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data


def test_blobs_may_be_put_while_others_go_to_a_new_pack(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit copies a pack that it can't trust; what comes meanwhile is not to go into the old one."""
    storage.pack_policy = PackPolicy(10**6, 1_000, 1_001, True)
    writer = BlobWriter(storage)
    data = [os.urandom(2_000) for _ in range(2)]
    slots = [put(writer, data[0])]
    batch = writer.begin_metadata()
    old = batch.pack
    writer.drop_metadata(batch)
    old.is_doubtful = True
    discard = old.discard

    def put_meanwhile() -> None:
        slots.append(put(writer, data[1]))
        discard()

    monkeypatch.setattr(old, "discard", put_meanwhile)
    commit(writer)
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data


def test_a_commit_waits_for_what_is_written_behind(
    held: tuple[BlobWriter, HeldSink], storage: LocalStorage
) -> None:
    writer, sink = held
    data = [os.urandom(600) for _ in range(3)]
    slots = [put(writer, blob) for blob in data]
    other = threading.Thread(target=commit, args=(writer,))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    sink.let_go.set()
    other.join(10)
    assert [read_back(writer, storage, slot, blob) for slot, blob in zip(slots, data, strict=True)] == data


def test_a_full_pack_is_sealed_when_all_writes_into_it_are_over(storage: LocalStorage) -> None:
    storage.pack_policy = PackPolicy(3_000, 1, 1)
    writer = BlobWriter(storage)
    batch = writer.begin_metadata()
    sink, slots = HeldSink(batch.pack.sink), []
    writer.drop_metadata(batch)
    data = [os.urandom(2_000), os.urandom(2_000)]
    slow = threading.Thread(target=lambda: slots.append(put(writer, data[0])))
    slow.start()
    assert sink.started.acquire(timeout=10)
    batch.pack.sink.write = sink._write  # type: ignore[method-assign]
    quick = threading.Thread(target=lambda: slots.append(put(writer, data[1])))
    quick.start()
    quick.join(0.2)
    assert not list(storage.list("packs/"))
    sink.let_go.set()
    slow.join(10)
    quick.join(10)
    commit(writer)
    assert sorted(slots) == [0, 1]
    assert [read_back(writer, storage, slot, blob) for slot, blob in enumerate(data)] == data


def test_threads_share_a_writer_that_writes_behind(storage: LocalStorage) -> None:
    storage.pack_policy = PackPolicy(30_000, 2_000, 1_500, True)
    writer = BlobWriter(storage)

    def use(seed: int) -> list[tuple[int, bytes]]:
        random = Random(seed)
        taken = []
        for _ in range(200):
            data = random.randbytes(random.choice([600, 1_000, 1_400, 2_500]))
            taken.append((put(writer, data), data))
            slot, known = random.choice(taken)
            assert writer.read(slot, len(known)) == known
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [pair for pairs in pool.map(use, range(4)) for pair in pairs]
    commit(writer)
    assert all(read_back(writer, storage, slot, data) == data for slot, data in taken)
