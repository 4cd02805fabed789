"""One thread does what several want done: fetching and decoding the same metadata would cost each of them a request.

Also the mark of a thread that must not wait, such as one that runs an event loop: `reader` raises there where it would
have to ask an object store.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")


class RequestNeededError(Exception):
    """What was asked for can't be had without waiting for an object store: ask again in a thread that may wait."""


class _Marks(threading.local):
    must_not_wait = False


_MARKS = _Marks()


@contextmanager
def without_waiting() -> Iterator[None]:
    """In the block, this thread gets `RequestNeededError` where it would wait for an object store."""
    before = _MARKS.must_not_wait
    _MARKS.must_not_wait = True
    try:
        yield
    finally:
        _MARKS.must_not_wait = before


def check_may_wait() -> None:
    """Raise `RequestNeededError` in a thread that must not wait."""
    if _MARKS.must_not_wait:
        raise RequestNeededError


class Once:
    """Calls under way, by key. Thread-safe; one for a whole process, which a forked child begins anew."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # The threads that were at it do not survive a fork: who waited for them would wait for ever.
        self._calls: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def run(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` returns, or what the call under way for the same key does; if that fails, call it."""
        from concurrent.futures import Future

        check_may_wait()
        with self._lock:
            call = self._calls.get(key)
            if call is None:
                mine: Future[T] = Future()
                self._calls[key] = mine
        if call is not None:
            error = call.exception()
            return make() if error is not None else call.result()
        try:
            made = make()
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(made)
            return made
        finally:
            with self._lock:
                del self._calls[key]
