"""Threads for chunks: few, shared by all arrays of the process, and only where they pay.

Neighbours: `reading` and `writing` decide what is worth a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_CODING_THREADS = 8
"""More than this many wait for memory, and for Python's lock between chunks."""
FETCHING_THREADS = 32
"""Requests to an object store under way at once, for all arrays together; each holds one run of chunks in memory."""


class Workers:
    """A pool of `count` threads, made when it is first needed and once more in a forked child."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        os.register_at_fork(after_in_child=self._forget)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return the results for all items, in order; raises the first error once nothing is under way any more."""
        if len(items) <= 1 or self.count <= 1:
            return [function(item) for item in items]
        if self._pool is None:
            # Two threads that come here at once make two pools, of which one goes when its work is done.
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix=self._name)
        futures: list[Future[R]] = []
        try:
            futures.extend(self._pool.submit(function, item) for item in items)
        except RuntimeError:
            # The interpreter is ending, or the system has no more threads: the caller does it all.
            _settle(futures)
            return [function(item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            _settle(futures)
        for future in futures:
            error = None if future.cancelled() else future.exception()
            if error is not None:
                raise error
        return [future.result() for future in futures]

    def _forget(self) -> None:
        # Threads do not survive a fork: what is given to the parent's pool would wait for ever.
        self._pool = None


def _settle(futures: Sequence[Future[R]]) -> None:
    """Call off what has not begun, and wait for what has."""
    for future in futures:
        future.cancel()
    wait(futures)


CODING = Workers(min(os.cpu_count() or 1, MAX_CODING_THREADS), "vstore-code")
FETCHING = Workers(FETCHING_THREADS, "vstore-fetch")
