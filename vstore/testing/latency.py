"""An object store as far away as a test wants: each request takes a while and is counted.

`LatencyStore` stands between `ObjectStorage` and an obstore store, below everything of vstore, so what it counts are
requests, retries included. Counts are exact; tests look at them and never at times.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vstore.clock import SYSTEM_CLOCK, Clock

_REQUESTS = frozenset({"put", "get", "get_range", "get_ranges", "head", "delete", "copy", "rename"})


class LatencyStore:
    """An obstore store, any but HTTPStore, whose requests take `latency_s` longer; for `ObjectStorage`.

    `requests` counts them by obstore's name ("get_range"; each page of a listing is a "list"),
    `most_at_once` is the highest number under way so far.
    """

    def __init__(self, store: Any, latency_s: float = 0.05, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.store = store
        self.latency_s = latency_s
        self._clock = clock
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin to count anew; call it while nothing is under way."""
        self.requests: Counter[str] = Counter()
        self.under_way = 0
        self.most_at_once = 0

    @property
    def total(self) -> int:
        """All requests so far."""
        return self.requests.total()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.store, name)
        if name == "list":
            return lambda *args, **options: self._pages(value(*args, **options))
        if name not in _REQUESTS:
            return value

        def call(*args: Any, **options: Any) -> Any:
            with self._counted(name):
                self._clock.sleep(self.latency_s)
                return value(*args, **options)

        return call

    def _pages(self, pages: Any) -> Iterator[Any]:
        any_page = False
        while True:
            page = next(pages, None)
            if page is None and any_page:
                return  # the last page says that it is the last
            with self._counted("list"):
                self._clock.sleep(self.latency_s)
            if page is None:
                return
            any_page = True
            yield page

    @contextmanager
    def _counted(self, kind: str) -> Iterator[None]:
        with self._lock:
            self.requests[kind] += 1
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            yield
        finally:
            with self._lock:
                self.under_way -= 1
