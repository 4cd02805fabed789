"""The tests that every storage must pass: the sentences of `vstore.storage.base`, one by one.

A test module subclasses `StorageContract` and overrides the fixture `storage`, which gives an empty storage that may be
written to. `pytest.register_assert_rewrite("vstore.testing.storage_contract")` in a conftest makes failures readable.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from vstore.clock import SYSTEM_CLOCK
from vstore.errors import (
    CorruptionError,
    InternalError,
    InvalidInputError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from vstore.ids import new_nonce, new_pack_id
from vstore.keys.objects import (
    LATEST,
    REPO,
    log_name,
    pack_name,
    parse_pack_name,
    probe_name,
    staging_name,
)
from vstore.storage.base import PackSink, Storage

RACE_ROUNDS = 100
RACERS = 8
BODY = bytes(range(256)) * 40

HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../repo",
    "repo/",
    "repo\n",
    "repo\0",
    "log/../repo",
    "log/1",
    "packs/ab",
    "packs/ab/" + "cd" * 16,
    "packs/../packs/" + "ab" * 16,
    "packs/AB/" + "AB" * 16,
    "packs\\ab\\" + "ab" * 16,
    "staging/" + "g" * 32,
    "catalog.sqlite",
    "https://example.com/repo",
    "r%65po",
]


class StorageContract:
    """Subclass and override `storage`."""

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        """Give an empty storage."""
        raise NotImplementedError("override the fixture `storage`")

    # Attributes

    def test_it_has_every_member_of_the_protocol(self, storage: Storage) -> None:
        assert isinstance(storage, Storage)
        assert storage.url
        assert isinstance(storage.is_local, bool)
        assert storage.pack_policy.target_bytes > 0
        assert isinstance(storage.open_pack(new_pack_id()), PackSink)

    # Reading

    @pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, len(BODY)), (5, 300), (len(BODY) - 1, 1)])
    @pytest.mark.parametrize("make", ["create", "write", "pack"])
    def test_read_returns_exactly_the_range(
        self, storage: Storage, make: str, offset: int, length: int
    ) -> None:
        name = _make(storage, make, BODY)
        for _ in range(2):
            view = storage.read(name, offset, length)
            assert isinstance(view, memoryview)
            assert (view.readonly, view.format, view.ndim, view.nbytes) == (True, "B", 1, length)
            assert view == BODY[offset : offset + length]

    @pytest.mark.parametrize("offset", [0, 7, len(BODY)])
    def test_reading_nothing_from_inside_gives_nothing(self, storage: Storage, offset: int) -> None:
        name = _make(storage, "pack", BODY)
        assert len(storage.read(name, offset, 0)) == 0

    @pytest.mark.parametrize(
        ("offset", "length"),
        [(0, len(BODY) + 1), (len(BODY) - 1, 2), (len(BODY), 1), (len(BODY) + 1, 0), (10**9, 10), (1, 10**9)],
    )
    @pytest.mark.parametrize("make", ["create", "pack"])
    @pytest.mark.parametrize("warm", [False, True])
    def test_reading_past_the_end_is_corruption(
        self, storage: Storage, make: str, warm: bool, offset: int, length: int
    ) -> None:
        name = _make(storage, make, BODY)
        if warm:
            storage.read(name, 0, 1)
        with pytest.raises(CorruptionError, match=r"wanted") as caught:
            storage.read(name, offset, length)
        assert str(len(BODY)) in caught.value.message
        assert storage.read(name, 0, len(BODY)) == BODY

    @pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (-5, 5), (3, -2)])
    def test_negative_ranges_are_refused(self, storage: Storage, offset: int, length: int) -> None:
        name = _make(storage, "pack", BODY)
        storage.read(name, 0, 1)
        with pytest.raises(InvalidInputError):
            storage.read(name, offset, length)

    def test_what_is_not_there_is_named(self, storage: Storage) -> None:
        pack = new_pack_id()
        for name in (REPO, LATEST, log_name(3), pack_name(pack), staging_name(pack), probe_name(pack)):
            for call in _all_reads(storage, name):
                with pytest.raises(ObjectNotFoundError) as caught:
                    call()
                assert name in caught.value.message
            assert storage.size(name) is None
            assert not storage.is_held(name)

    @pytest.mark.parametrize("make", ["create", "pack"])
    @pytest.mark.parametrize("length", [0, 1, 64, len(BODY), len(BODY) + 1, 10**9])
    def test_read_tail(self, storage: Storage, make: str, length: int) -> None:
        name = _make(storage, make, BODY)
        tail, size = storage.read_tail(name, length)
        assert size == len(BODY)
        assert tail == BODY[max(0, len(BODY) - length) :]
        assert isinstance(tail, memoryview)
        assert tail.readonly

    def test_an_empty_object_is_an_object(self, storage: Storage) -> None:
        storage.create(REPO, b"")
        assert storage.size(REPO) == 0
        assert storage.read_whole(REPO, 0) == b""
        assert len(storage.read(REPO, 0, 0)) == 0
        assert _tail(storage, REPO, 10) == (b"", 0)
        with pytest.raises(ObjectExistsError):
            storage.create(REPO, b"x")
        name = _make(storage, "pack", b"")
        assert len(storage.read(name, 0, 0)) == 0
        with pytest.raises(CorruptionError):
            storage.read(name, 0, 1)

    @pytest.mark.parametrize("make", ["create", "write", "pack"])
    def test_read_whole_keeps_to_its_limit(self, storage: Storage, make: str) -> None:
        name = _make(storage, make, BODY)
        whole = storage.read_whole(name, len(BODY))
        assert isinstance(whole, bytes)
        assert whole == BODY
        with pytest.raises(CorruptionError, match=name):
            storage.read_whole(name, len(BODY) - 1)

    def test_size(self, storage: Storage) -> None:
        assert storage.size(_make(storage, "create", BODY)) == len(BODY)
        assert storage.size(_make(storage, "pack", BODY[:7])) == 7

    def test_many_threads_read(self, storage: Storage) -> None:
        names = [_make(storage, "pack", bytes([i]) * 5000) for i in range(20)]

        def read(k: int) -> bool:
            i = k % len(names)
            return storage.read(names[i], k % 1000, 4000) == bytes([i]) * 4000

        with ThreadPoolExecutor(RACERS) as pool:
            assert all(pool.map(read, range(1000)))

    # Creating and writing

    def test_create_keeps_what_is_there(self, storage: Storage) -> None:
        for name in (REPO, log_name(0), probe_name(new_nonce()), pack_name(new_pack_id())):
            storage.create(name, b"first")
            with pytest.raises(ObjectExistsError) as caught:
                storage.create(name, b"second")
            assert name in caught.value.message
            assert storage.read_whole(name, 100) == b"first"

    def test_of_racing_creates_exactly_one_succeeds(self, storage: Storage) -> None:
        barrier = Barrier(RACERS)

        def race(name: str, body: bytes) -> bool:
            barrier.wait(60)
            try:
                storage.create(name, body)
            except ObjectExistsError:
                return False
            return True

        with ThreadPoolExecutor(RACERS) as pool:
            for k in range(RACE_ROUNDS):
                bodies = [f"{k} {i} ".encode() * 100 for i in range(RACERS)]
                won = list(pool.map(race, [log_name(k)] * RACERS, bodies))
                assert sum(won) == 1, f"round {k}: {sum(won)} creates succeeded"
                assert storage.read_whole(log_name(k), 10_000) == bodies[won.index(True)]

    def test_write_replaces(self, storage: Storage) -> None:
        for body in (b"one", b"", BODY, b"two"):
            storage.write(LATEST, body)
            assert storage.read_whole(LATEST, len(BODY)) == body
            assert storage.size(LATEST) == len(body)
            assert _tail(storage, LATEST, 2) == (body[-2:], len(body))
            assert storage.read(LATEST, 0, len(body)) == body
        storage.create(log_name(1), b"record")
        storage.write(log_name(1), b"tombstone")
        assert bytes(storage.read(log_name(1), 0, 9)) == b"tombstone"

    def test_a_reader_sees_the_whole_old_or_the_whole_new_object(self, storage: Storage) -> None:
        bodies = [bytes([i]) * 20_000 for i in range(60)]
        storage.write(LATEST, bodies[0])

        def write() -> None:
            for body in bodies:
                storage.write(LATEST, body)

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            while not writing.done():
                assert storage.read_whole(LATEST, 20_000) in bodies
            writing.result()
        assert storage.read_whole(LATEST, 20_000) == bodies[-1]

    def test_creates_and_writes_take_any_bytes(self, storage: Storage) -> None:
        # Buffers that a caller may change afterwards.
        buffer = bytearray(b"before")
        storage.create(REPO, buffer)  # type: ignore[arg-type]
        storage.write(LATEST, buffer)  # type: ignore[arg-type]
        buffer[:] = b"after!"
        assert storage.read_whole(REPO, 10) == b"before"
        assert storage.read_whole(LATEST, 10) == b"before"

    # Names

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_hostile_names_are_refused(self, storage: Storage, name: str) -> None:
        calls: list[Callable[[], object]] = [
            *_all_reads(storage, name),
            lambda: storage.size(name),
            lambda: storage.create(name, b""),
            lambda: storage.write(name, b""),
            lambda: storage.delete([REPO, name]),
            lambda: storage.is_held(name),
        ]
        storage.create(REPO, b"")
        for call in calls:
            with pytest.raises(InvalidInputError):
                call()
        assert storage.size(REPO) == 0, "delete() must check all names before it deletes any"

    @pytest.mark.parametrize(
        "prefix", ["packs", "/", "../", "packs/../", "/packs/", "packs//", "PACKS/", "*"]
    )
    def test_hostile_prefixes_are_refused(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(InvalidInputError):
            list(storage.list(prefix))

    # Listing and deleting

    def test_list_gives_what_lies_in_the_folder(self, storage: Storage) -> None:
        packs = {_make(storage, "pack", BODY[:i]): i for i in range(1, 20)}
        records = {log_name(i): 6 for i in range(10)}
        for name in records:
            storage.create(name, b"record")
        storage.create(REPO, b"repo")
        some = next(iter(packs))
        assert {info.name: info.size for info in storage.list("packs/")} == packs
        assert {info.name: info.size for info in storage.list("log/")} == records
        assert some in {info.name for info in storage.list(some[:9])}
        assert {info.name for info in storage.list("")} == {*packs, *records, REPO}
        assert list(storage.list("probe/")) == []
        assert list(storage.list("never/made/")) == []

    def test_list_tells_when_objects_were_made(self, storage: Storage) -> None:
        storage.create(REPO, b"repo")
        (info,) = storage.list("")
        assert abs(info.modified_us - SYSTEM_CLOCK.now_us()) < 3600 * 1_000_000

    def test_a_listing_may_be_left_and_survives_deletes(self, storage: Storage) -> None:
        names = [_make(storage, "create", b"record", number=i) for i in range(50)]
        listing = storage.list("log/")
        next(listing)
        storage.delete(names)
        assert {info.name for info in listing} <= set(names)
        assert list(storage.list("log/")) == []

    def test_delete_passes_over_absent_names(self, storage: Storage) -> None:
        kept = _make(storage, "pack", BODY)
        names = [_make(storage, "create", b"record", number=i) for i in range(0, 600, 3)]
        absent = [log_name(i) for i in range(0, 600, 2) if i % 3] + [pack_name(new_pack_id()), REPO]
        storage.delete([*absent[:100], *names, *absent[100:]])
        storage.delete(names)
        storage.delete([])
        assert list(storage.list("log/")) == []
        assert storage.size(kept) == len(BODY)

    def test_a_deleted_pack_is_gone_though_it_was_read(self, storage: Storage) -> None:
        name = _make(storage, "pack", BODY)
        view = storage.read(name, 0, len(BODY))
        storage.delete([name])
        with pytest.raises(ObjectNotFoundError):
            storage.read(name, 0, 1)
        assert view == BODY, "bytes read before must stay valid"

    # Packs

    def test_a_pack_is_invisible_until_it_is_sealed(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        name = pack_name(sink.pack)
        sink.write(0, [BODY])
        assert storage.size(name) is None
        assert list(storage.list("packs/")) == []
        with pytest.raises(ObjectNotFoundError):
            storage.read(name, 0, 1)
        sink.seal(len(BODY))
        assert storage.read_whole(name, len(BODY)) == BODY
        assert list(storage.list("staging/")) == []

    def test_packs_are_written_in_pieces_from_anywhere(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(10, [BODY[10:20], bytearray(BODY[20:30]), memoryview(BODY)[30:100]])
        sink.write(0, [BODY[:4], b"", BODY[4:10]])
        sink.write(100, [memoryview(BODY[100:]).cast("H")])
        assert sink.read(5, 200) == BODY[5:205]
        sink.seal(len(BODY))
        assert storage.read(pack_name(sink.pack), 0, len(BODY)) == BODY

    def test_packs_take_many_small_buffers(self, storage: Storage) -> None:
        parts = [bytes([i % 251]) * (i % 7) for i in range(5000)]
        assert _make(storage, "pack", b"".join(parts), parts=parts)

    def test_many_threads_write_one_pack(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        with ThreadPoolExecutor(RACERS) as pool:
            list(pool.map(lambda i: sink.write(i * 1000, [bytes([i]) * 1000]), range(200)))
        sink.seal(200_000)
        whole = storage.read(pack_name(sink.pack), 0, 200_000)
        assert whole == b"".join(bytes([i]) * 1000 for i in range(200))

    def test_buffers_may_be_reused_after_a_write(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        buffer = bytearray(b"before")
        sink.write(0, [buffer])
        buffer[:] = b"after!"
        assert bytes(sink.read(0, 6)) == b"before"
        sink.seal(6)
        assert bytes(storage.read(pack_name(sink.pack), 0, 6)) == b"before"

    def test_seal_cuts_what_is_longer(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        sink.seal(100)
        assert storage.read_whole(pack_name(sink.pack), 100) == BODY[:100]

    def test_a_sealed_pack_is_read_on_and_not_written(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        sink.seal(len(BODY))
        assert sink.read(3, 30) == BODY[3:33]
        with pytest.raises(InternalError):
            sink.write(0, [b"more"])
        with pytest.raises(InternalError):
            sink.seal(5)
        sink.discard()
        assert storage.read_whole(pack_name(sink.pack), len(BODY)) == BODY

    def test_sealing_more_than_was_written_is_a_bug(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        with pytest.raises(InternalError):
            sink.seal(len(BODY) + 1)
        assert storage.size(pack_name(sink.pack)) is None
        assert sink.read(0, 10) == BODY[:10]
        sink.discard()

    def test_a_discarded_pack_leaves_nothing(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        sink.discard()
        sink.discard()
        assert list(storage.list("")) == []
        with pytest.raises(InternalError):
            sink.write(0, [b"more"])
        with pytest.raises(InternalError):
            sink.seal(1)

    def test_a_forgotten_pack_leaves_nothing(self, storage: Storage) -> None:
        storage.open_pack(new_pack_id()).write(0, [BODY])
        gc.collect()
        assert list(storage.list("")) == []

    def test_staged_packs_are_held_while_they_are_written(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        for info in storage.list("staging/"):
            assert storage.is_held(info.name)
        sink.seal(0)
        assert not storage.is_held(staging_name(sink.pack))

    # Replacing a damaged pack

    def test_a_replacement_takes_the_place_of_a_pack_when_it_is_sealed(self, storage: Storage) -> None:
        name = _make(storage, "pack", BODY)
        pack = parse_pack_name(name)
        assert pack is not None
        view = storage.read(name, 0, len(BODY))
        sink = storage.replace_damaged_pack(pack)
        assert isinstance(sink, PackSink)
        assert sink.pack == pack
        sink.write(5, [BODY[::-1]])
        assert storage.read(name, 0, len(BODY)) == BODY
        assert [info.name for info in storage.list("packs/")] == [name]
        sink.write(0, [b"12345"])
        sink.seal(len(BODY))
        expected = b"12345" + BODY[::-1][: len(BODY) - 5]
        assert storage.read(name, 0, len(BODY)) == expected
        assert storage.read_whole(name, len(BODY)) == expected
        assert sink.read(0, 10) == expected[:10]
        assert view == BODY, "bytes read before must stay valid"
        assert [info.name for info in storage.list("")] == [name]

    def test_a_replacement_may_be_of_another_size(self, storage: Storage) -> None:
        name = _make(storage, "pack", BODY)
        pack = parse_pack_name(name)
        assert pack is not None
        for body in (BODY * 2, BODY[:7]):
            storage.read(name, 0, 1)
            sink = storage.replace_damaged_pack(pack)
            sink.write(0, [body])
            sink.seal(len(body))
            assert storage.read(name, 0, len(body)) == body
            assert storage.size(name) == len(body)
            with pytest.raises(CorruptionError):
                storage.read(name, 0, len(body) + 1)

    def test_a_missing_pack_is_put_back(self, storage: Storage) -> None:
        pack = new_pack_id()
        sink = storage.replace_damaged_pack(pack)
        sink.write(0, [BODY])
        sink.seal(len(BODY))
        assert storage.read_whole(pack_name(pack), len(BODY)) == BODY

    def test_a_replacement_that_is_discarded_changes_nothing(self, storage: Storage) -> None:
        name = _make(storage, "pack", BODY)
        pack = parse_pack_name(name)
        assert pack is not None
        sink = storage.replace_damaged_pack(pack)
        sink.write(0, [b"other"])
        with pytest.raises(InternalError):
            sink.seal(6)
        sink.discard()
        assert storage.read_whole(name, len(BODY)) == BODY
        assert [info.name for info in storage.list("")] == [name]

    # The storage itself

    def test_a_closed_storage_may_be_used_again(self, storage: Storage) -> None:
        name = _make(storage, "pack", BODY)
        view = storage.read(name, 0, len(BODY))
        storage.close()
        storage.close()
        assert view == BODY
        assert storage.read(name, 0, len(BODY)) == BODY
        assert _make(storage, "pack", b"more")

    def test_a_pickle_reaches_the_same_place(self, storage: Storage) -> None:
        name = _make(storage, "pack", BODY)
        other = pickle.loads(pickle.dumps(storage))
        assert other.url == storage.url
        assert other.read(name, 0, len(BODY)) == BODY
        other.create(REPO, b"other")
        assert storage.read_whole(REPO, 5) == b"other"
        assert pickle.dumps(storage) == pickle.dumps(storage)
        again = pickle.loads(pickle.dumps(other))
        assert again.read_whole(REPO, 5) == b"other"


def _all_reads(storage: Storage, name: str) -> list[Callable[[], object]]:
    return [
        lambda: storage.read(name, 0, 1),
        lambda: storage.read(name, 0, 0),
        lambda: storage.read_tail(name, 1),
        lambda: storage.read_tail(name, 0),
        lambda: storage.read_whole(name, 100),
    ]


def _tail(storage: Storage, name: str, length: int) -> tuple[bytes, int]:
    tail, size = storage.read_tail(name, length)
    return bytes(tail), size


def _make(
    storage: Storage, make: str, body: bytes, *, number: int = 0, parts: list[bytes] | None = None
) -> str:
    """Make an object of `body` in one of the three ways and return its name."""
    if make == "create":
        storage.create(log_name(number), body)
        return log_name(number)
    if make == "write":
        storage.write(LATEST, body)
        return LATEST
    sink = storage.open_pack(new_pack_id())
    sink.write(0, parts if parts is not None else [body])
    sink.seal(len(body))
    name = pack_name(sink.pack)
    assert storage.read_whole(name, len(body)) == body
    return name


if __name__ == "__main__":
    import sys

    from vstore.testing.own_storage import main

    sys.exit(main(sys.argv[1:]))
