"""How many requests a storage has under way at once: one count for threads and for tasks of any event loop."""

from __future__ import annotations

import sys
import threading
from collections import deque


class Limiter:
    """At most `limit` holders at once, first come, first served: `with limiter` in threads, `async with` in tasks.

    A waiter goes ahead over the limit if nobody has left for `patience_s`: holders on an event loop that is blocked
    by the waiter itself never would. For the same reason a blocking call on a running loop's thread does not wait.
    """

    def __init__(self, limit: int, patience_s: float) -> None:
        self._free = limit
        self._patience_s = patience_s
        self._departures = 0
        self._waiters: deque[_Waiter] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if self._take():
            return
        waiter = _ThreadWaiter()
        self._queue(waiter)
        try:
            seen = self._departures if _on_running_loop() else None
            while not waiter.has_place and seen != self._departures:
                seen = self._departures
                waiter.gate.acquire(timeout=self._patience_s)
            self._go_ahead(waiter)
        except BaseException:
            self._give_up(waiter)
            raise

    def __exit__(self, *error: object) -> None:
        self._leave()

    async def __aenter__(self) -> None:
        if self._take():
            return
        import asyncio

        waiter = _TaskWaiter()
        self._queue(waiter)
        try:
            seen = None
            while not waiter.has_place and seen != self._departures:
                seen = self._departures
                await asyncio.wait([waiter.told], timeout=self._patience_s)
            self._go_ahead(waiter)
        except BaseException:  # cancelled here, or dropped with its loop
            self._give_up(waiter)
            raise

    async def __aexit__(self, *error: object) -> None:
        self._leave()

    def _take(self) -> bool:
        with self._lock:
            free = self._free > 0
            self._free -= free
        return free

    def _queue(self, waiter: _Waiter) -> None:
        with self._lock:
            self._waiters.append(waiter)
            self._let_in()  # somebody may have left since _take

    def _go_ahead(self, waiter: _Waiter) -> None:
        with self._lock:
            if not waiter.has_place:
                self._waiters.remove(waiter)
                self._free -= 1

    def _give_up(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter.has_place:
                self._free += 1
                self._let_in()
            else:
                self._waiters.remove(waiter)

    def _leave(self) -> None:
        with self._lock:
            self._departures += 1
            self._free += 1
            self._let_in()

    def _let_in(self) -> None:
        while self._free > 0 and self._waiters:
            waiter = self._waiters.popleft()
            waiter.has_place = True
            self._free -= 1
            if not waiter.tell():
                self._free += 1


class _Waiter:
    has_place = False

    def tell(self) -> bool:
        """Tell the waiter to look at `has_place`; return False if it is no more."""
        raise NotImplementedError


class _ThreadWaiter(_Waiter):
    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)

    def tell(self) -> bool:
        self.gate.release()
        return True


class _TaskWaiter(_Waiter):
    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self.told: asyncio.Future[None] = self._loop.create_future()

    def tell(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._tell)
        except RuntimeError:  # the loop was closed
            return False
        return True

    def _tell(self) -> None:
        if not self.told.done():
            self.told.set_result(None)


def _on_running_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
