"""A user's credential provider as obstore needs it.

Each of the few stores that requests of different sizes go through asks for itself, so that an answer is given to all
that ask in the same minute.

obstore can't await a provider in a blocking call, of which vstore makes most. An async one runs on an event loop of its
own, always the same, so that it may keep connections.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vstore.clock import SYSTEM_CLOCK, from_datetime

if TYPE_CHECKING:
    import asyncio

ANSWER_TIMEOUT_S = 60.0
SHARED_S = 60.0
_FRESH_US = 600 * 1_000_000
"""What expires sooner is asked for anew each time: obstore asks because it wants another."""


class BlockingProvider:
    """Calls `provider`, and waits for what it returns if that must be awaited."""

    def __init__(self, provider: Callable[[], Any]) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shared: tuple[float, Any] | None = None

    def __call__(self) -> Any:
        shared, now_s = self._shared, SYSTEM_CLOCK.monotonic_s()
        if shared is not None and now_s - shared[0] < SHARED_S:
            return shared[1]
        credentials = self._asked()
        self._shared = (now_s, credentials) if _is_fresh(credentials) else None
        return credentials

    def _asked(self) -> Any:
        credentials = self._provider()
        if not inspect.isawaitable(credentials):
            return credentials
        import asyncio

        async def wait() -> Any:
            return await credentials

        with self._lock:
            if self._loop is None:
                self._loop = _start_loop()
                weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(ANSWER_TIMEOUT_S)


def _is_fresh(credentials: Any) -> bool:
    """Tell whether credentials are good for some time; what is none of them is for obstore to refuse."""
    if not isinstance(credentials, dict):
        return False
    expires_at = credentials.get("expires_at")
    if not isinstance(expires_at, datetime) or expires_at.tzinfo is None:
        return "expires_at" in credentials and expires_at is None
    return from_datetime(expires_at) - SYSTEM_CLOCK.now_us() > _FRESH_US


def _start_loop() -> asyncio.AbstractEventLoop:
    import asyncio

    loop = asyncio.new_event_loop()

    def run() -> None:
        loop.run_forever()
        loop.close()

    threading.Thread(target=run, name="vstore-credentials", daemon=True).start()
    return loop
