"""A user's credential provider as obstore needs it.

obstore can't await a provider in a blocking call, of which vstore makes most. An async one runs on an event loop of its
own, always the same, so that it may keep connections.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

ANSWER_TIMEOUT_S = 60.0


class BlockingProvider:
    """Calls `provider`, and waits for what it returns if that must be awaited."""

    def __init__(self, provider: Callable[[], Any]) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self) -> Any:
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


def _start_loop() -> asyncio.AbstractEventLoop:
    import asyncio

    loop = asyncio.new_event_loop()

    def run() -> None:
        loop.run_forever()
        loop.close()

    threading.Thread(target=run, name="vstore-credentials", daemon=True).start()
    return loop
