"""Keeps Ctrl-C out of the middle of a commit.

An interrupt can come between any two instructions of the main thread. Work that must not be cut there runs in a
thread of its own while the main thread waits; an interrupt is raised when the work has ended. A second interrupt
stops the waiting, not the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

R = TypeVar("R")


def run_shielded(work: Callable[[], R]) -> R:
    """Return what `work` returns; in the main thread, run it so that an interrupt can't cut it."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    task = _Task(work)
    try:
        threading.Thread(target=task.run, name="vstore-shield").start()
        return task.future.result()
    except KeyboardInterrupt:
        if task.has_begun():
            # Raises what the work raises, if it fails: the interrupt is its context then.
            task.future.result()
        raise
    finally:
        # An error's traceback holds this frame, and the task the error: what they hold, files too, is let go at once.
        del task


class _Task(Generic[R]):
    """Work in another thread, which either has begun, or never will once that was asked."""

    def __init__(self, work: Callable[[], R]) -> None:
        self.future: Future[R] = Future()
        self._work = work
        self._first = threading.Lock()

    def run(self) -> None:
        if not self._first.acquire(blocking=False):
            return
        try:
            self.future.set_result(self._work())
        except BaseException as error:  # noqa: BLE001
            self.future.set_exception(error)
        finally:
            # As in `run_shielded`.
            del self

    def has_begun(self) -> bool:
        return not self._first.acquire(blocking=False)
