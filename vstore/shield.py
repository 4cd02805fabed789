"""Keeps Ctrl-C out of the middle of a commit.

An interrupt can come between any two instructions of the main thread. Work that must not be cut there runs in a
thread of its own while the main thread waits; an interrupt is raised when the work has ended. A second interrupt
stops the waiting, not the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")


def run_shielded(work: Callable[[], R]) -> R:
    """Return what `work` returns; in the main thread, run it so that an interrupt can't cut it."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)

    threading.Thread(target=run, name="vstore-commit").start()
    try:
        return future.result()
    except KeyboardInterrupt:
        if not future.done():
            # Raises what the work raised, if it failed: the interrupt is its context then.
            future.result()
        raise
