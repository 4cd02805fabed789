"""The process-wide cache of decoded metadata, keyed by digest and bounded in bytes.

Keys name immutable things, so nothing in it is ever stale, and all repositories and sessions of a process share it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

DEFAULT_CACHE_BYTES = 256 * 1024 * 1024
_ENTRY_OVERHEAD_BYTES = 200


class ByteCache:
    """A least-recently-used map that forgets when its entries' stated sizes exceed `limit_bytes`. Thread-safe."""

    def __init__(self, limit_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        """Return what was put under `key`, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Any, size_bytes: int) -> None:
        """Keep `value`, unless it alone exceeds the limit."""
        size = size_bytes + _ENTRY_OVERHEAD_BYTES
        if size > self.limit_bytes:
            return
        with self._lock:
            old = self._entries.pop(key, None)
            self._size += size - (old[1] if old else 0)
            self._entries[key] = (value, size)
            while self._size > self.limit_bytes:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._size -= dropped

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._size = 0

    @property
    def size_bytes(self) -> int:
        return self._size

    def _after_fork(self) -> None:
        # Another thread of the parent may have held the lock at the fork.
        self._lock = threading.Lock()
        self.clear()


CACHE = ByteCache()
os.register_at_fork(after_in_child=CACHE._after_fork)
