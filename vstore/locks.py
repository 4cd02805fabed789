"""Locks that a forked child can use: one that another thread held at the fork would stay locked there for ever.

Also those that Python holds while a module is imported: vstore imports much when it is first needed, in whichever
thread needs it, and a child could never import what another thread was in the middle of importing.
"""

from __future__ import annotations

import importlib._bootstrap as bootstrap
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


def _await_imports() -> None:
    """Wait until no other thread is importing anything, but not for ever: an import may wait for this very thread."""
    pause = threading.Event()
    for _ in range(_IMPORT_LOOKS):
        if not _is_importing_elsewhere():
            return
        pause.wait(_IMPORT_PAUSE_S)


def _is_importing_elsewhere() -> bool:
    # Not a public name of Python's: where it is missing, nothing is known.
    found: dict[str, Callable[[], Any]] = getattr(bootstrap, "_module_locks", {})
    locks = [reference() for reference in list(found.values())]
    return any(getattr(lock, "owner", None) not in (None, threading.get_ident()) for lock in locks)


_IMPORT_LOOKS = 500
_IMPORT_PAUSE_S = 0.002

os.register_at_fork(before=_await_imports, after_in_child=_renew_all)
