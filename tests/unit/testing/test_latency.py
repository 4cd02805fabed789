from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from obstore.store import MemoryStore

from vstore.keys.objects import REPO, log_name
from vstore.storage.objects import ObjectStorage
from vstore.testing.latency import LatencyStore


class _Meeting:
    """A clock whose sleepers wait for each other."""

    def __init__(self, parties: int) -> None:
        self._barrier = threading.Barrier(parties)

    def sleep(self, duration_s: float) -> None:
        self._barrier.wait(30)

    def now_us(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return 0.0


def test_requests_are_counted_by_their_kind() -> None:
    store = LatencyStore(MemoryStore(), 0)
    storage = ObjectStorage(store)  # type: ignore[arg-type]
    storage.create(REPO, b"repo")
    storage.create(log_name(0), b"record")
    assert storage.size(REPO) == 4
    assert storage.read(REPO, 0, 4) == b"repo"
    assert storage.read(REPO, 1, 2) == b"ep"
    assert storage.read_whole(REPO, 4) == b"repo"
    assert len(list(storage.list(""))) == 2
    storage.delete([REPO])
    assert list(storage.list("")) != list(storage.list("packs/")) == []
    assert store.requests == {"put": 2, "head": 1, "get_range": 2, "get": 1, "delete": 1, "list": 3}
    store.reset()
    assert (store.total, store.most_at_once) == (0, 0)


def test_requests_under_way_are_counted() -> None:
    store = LatencyStore(MemoryStore(), clock=_Meeting(3))
    storage = ObjectStorage(store)  # type: ignore[arg-type]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: storage.create(log_name(i), b""), range(3)))
    assert (store.most_at_once, store.under_way, store.total) == (3, 0, 3)
