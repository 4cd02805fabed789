"""Reading whole objects, ranges and ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from vstore.errors import (
    CorruptionError,
    InvalidInputError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from vstore.ids import new_pack_id
from vstore.keys.objects import (
    LATEST,
    REPO,
    log_name,
    pack_name,
    probe_name,
    staging_name,
)
from vstore.storage.base import Storage
from vstore.testing.storage_contract.making import (
    BODY,
    RACERS,
    StorageTests,
    all_reads,
    make_object,
    tail_of,
)


class ReadingTests(StorageTests):
    """Exactly what was asked for, or an error that names it."""

    @pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, len(BODY)), (5, 300), (len(BODY) - 1, 1)])
    @pytest.mark.parametrize("make", ["create", "write", "pack"])
    def test_read_returns_exactly_the_range(
        self, storage: Storage, make: str, offset: int, length: int
    ) -> None:
        name = make_object(storage, make, BODY)
        for _ in range(2):
            view = storage.read(name, offset, length)
            assert isinstance(view, memoryview)
            assert (view.readonly, view.format, view.ndim, view.nbytes) == (True, "B", 1, length)
            assert view == BODY[offset : offset + length]

    @pytest.mark.parametrize("offset", [0, 7, len(BODY)])
    def test_reading_nothing_from_inside_gives_nothing(self, storage: Storage, offset: int) -> None:
        name = make_object(storage, "pack", BODY)
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
        name = make_object(storage, make, BODY)
        if warm:
            storage.read(name, 0, 1)
        with pytest.raises(CorruptionError, match=r"wanted") as caught:
            storage.read(name, offset, length)
        assert str(len(BODY)) in caught.value.message
        assert storage.read(name, 0, len(BODY)) == BODY

    @pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (-5, 5), (3, -2)])
    def test_negative_ranges_are_refused(self, storage: Storage, offset: int, length: int) -> None:
        name = make_object(storage, "pack", BODY)
        storage.read(name, 0, 1)
        with pytest.raises(InvalidInputError):
            storage.read(name, offset, length)

    def test_what_is_not_there_is_named(self, storage: Storage) -> None:
        pack = new_pack_id()
        for name in (REPO, LATEST, log_name(3), pack_name(pack), staging_name(pack), probe_name(pack)):
            for call in all_reads(storage, name):
                with pytest.raises(ObjectNotFoundError) as caught:
                    call()
                assert name in caught.value.message
            assert storage.size(name) is None
            assert not storage.is_held(name)

    @pytest.mark.parametrize("make", ["create", "pack"])
    @pytest.mark.parametrize("length", [0, 1, 64, len(BODY), len(BODY) + 1, 10**9])
    def test_read_tail(self, storage: Storage, make: str, length: int) -> None:
        name = make_object(storage, make, BODY)
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
        assert tail_of(storage, REPO, 10) == (b"", 0)
        with pytest.raises(ObjectExistsError):
            storage.create(REPO, b"x")
        name = make_object(storage, "pack", b"")
        assert len(storage.read(name, 0, 0)) == 0
        with pytest.raises(CorruptionError):
            storage.read(name, 0, 1)

    @pytest.mark.parametrize("make", ["create", "write", "pack"])
    def test_read_whole_keeps_to_its_limit(self, storage: Storage, make: str) -> None:
        name = make_object(storage, make, BODY)
        whole = storage.read_whole(name, len(BODY))
        assert isinstance(whole, bytes)
        assert whole == BODY
        with pytest.raises(CorruptionError, match=name):
            storage.read_whole(name, len(BODY) - 1)

    def test_size(self, storage: Storage) -> None:
        assert storage.size(make_object(storage, "create", BODY)) == len(BODY)
        assert storage.size(make_object(storage, "pack", BODY[:7])) == 7

    def test_many_threads_read(self, storage: Storage) -> None:
        names = [make_object(storage, "pack", bytes([i]) * 5000) for i in range(20)]

        def read(k: int) -> bool:
            i = k % len(names)
            return storage.read(names[i], k % 1000, 4000) == bytes([i]) * 4000

        with ThreadPoolExecutor(RACERS) as pool:
            assert all(pool.map(read, range(1000)))
