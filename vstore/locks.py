"""Locks that a forked child can use: one that another thread held at the fork would stay locked there for ever."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

_LOCKS: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


class ForkSafeLock:
    """A lock, `threading.Lock` or `threading.RLock`, that is free in a forked child."""

    def __init__(self, make: Callable[[], Any] = threading.RLock) -> None:
        self._make = make
        self._lock = make()
        _LOCKS.add(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock, as `threading.Lock.acquire` does."""
        return bool(self._lock.acquire(blocking, timeout))

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = self._make()


def _renew_all() -> None:
    for lock in _LOCKS:
        lock._renew()


os.register_at_fork(after_in_child=_renew_all)
