"""Threads for what has to wait for an object store on behalf of an event loop.

Not the loop's own: that has a few for each processor, in which zarr encodes and decodes meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

WAITING_THREADS = 32

_pool: ThreadPoolExecutor | None = None


async def run_waiting(function: Callable[..., T], *args: object) -> T:
    """Call `function` in a thread, and await what it returns."""
    import asyncio

    return await asyncio.get_running_loop().run_in_executor(_threads(), function, *args)


def _threads() -> ThreadPoolExecutor:
    global _pool
    pool = _pool
    if pool is None:
        from concurrent.futures import ThreadPoolExecutor

        # Two threads that come here at once make two pools, of which one goes when its work is done.
        pool = _pool = ThreadPoolExecutor(WAITING_THREADS, thread_name_prefix="vstore-wait")
    return pool


def _forget() -> None:
    # Threads do not survive a fork: what is given to the parent's pool would wait for ever.
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget)
