"""Objects made for tests, and what every group of tests is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vstore.ids import new_pack_id
from vstore.keys.objects import (
    LATEST,
    log_name,
    pack_name,
)
from vstore.storage.base import Storage

RACE_ROUNDS = 100
RACERS = 8
BODY = bytes(range(256)) * 40


class StorageTests:
    """What every group of tests is given."""

    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        """Give an empty storage."""
        raise NotImplementedError("override the fixture `storage`")


def all_reads(storage: Storage, name: str) -> list[Callable[[], object]]:
    return [
        lambda: storage.read(name, 0, 1),
        lambda: storage.read(name, 0, 0),
        lambda: storage.read_tail(name, 1),
        lambda: storage.read_tail(name, 0),
        lambda: storage.read_whole(name, 100),
    ]


def tail_of(storage: Storage, name: str, length: int) -> tuple[bytes, int]:
    tail, size = storage.read_tail(name, length)
    return bytes(tail), size


def make_object(
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
