"""Creating and replacing objects."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from vstore.errors import (
    ObjectExistsError,
)
from vstore.ids import new_nonce, new_pack_id
from vstore.keys.objects import (
    LATEST,
    REPO,
    log_name,
    pack_name,
    probe_name,
)
from vstore.storage.base import Storage
from vstore.testing.storage_contract.making import (
    BODY,
    RACE_ROUNDS,
    RACERS,
    StorageTests,
    tail_of,
)


class WritingTests(StorageTests):
    """One creator wins; what is read is whole, the old or the new."""

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
            assert tail_of(storage, LATEST, 2) == (body[-2:], len(body))
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
