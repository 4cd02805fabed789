"""The process-wide cache: decoded metadata, and verified bytes from object stores, by digest, bounded in bytes.

Keys name immutable things, so nothing in it is ever stale, and all repositories, sessions and threads of a process
share it. Bytes from object stores take at most half of it, so that reading through a large array leaves the metadata
where it is. What lies on a local disk is read through maps and takes no room here.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from vstore.errors import InvalidInputError
from vstore.ids import BytesLike

DEFAULT_CACHE_BYTES = 256 * 1024 * 1024
_ENTRY_OVERHEAD_BYTES = 200


class _Shelf:
    """Entries in the order of their last use, and the sum of their sizes."""

    __slots__ = ("entries", "size_bytes")

    def __init__(self) -> None:
        self.entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.size_bytes = 0

    def put(self, key: Hashable, value: Any, size: int) -> None:
        self.drop(key)
        self.entries[key] = (value, size)
        self.size_bytes += size

    def drop(self, key: Hashable) -> None:
        old = self.entries.pop(key, None)
        if old is not None:
            self.size_bytes -= old[1]

    def shrink(self, limit: int) -> None:
        """Forget what was not used for longest until at most `limit` bytes are left."""
        while self.size_bytes > limit and self.entries:
            self.size_bytes -= self.entries.popitem(last=False)[1][1]


class ByteCache:
    """A least-recently-used map that forgets when its entries' stated sizes exceed `limit_bytes`. Thread-safe.

    `get` and `put` are for decoded metadata, `get_bytes` and `put_bytes` for bytes.
    """

    def __init__(self, limit_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._decoded = _Shelf()
        self._bytes = _Shelf()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        """Return what was put under `key`, or None."""
        with self._lock:
            entries = self._decoded.entries
            found = entries.get(key)
            if found is None:
                return None
            entries.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: Any, size_bytes: int) -> None:
        """Keep `value`, unless it alone exceeds the limit."""
        size = size_bytes + _ENTRY_OVERHEAD_BYTES
        if size > self.limit_bytes:
            return
        with self._lock:
            self._decoded.put(key, value, size)
            self._shrink()

    def get_bytes(self, key: Hashable) -> memoryview | None:
        """Return the bytes that were put under `key`, or None."""
        with self._lock:
            entries = self._bytes.entries
            found = entries.get(key)
            if found is None:
                return None
            entries.move_to_end(key)
            return memoryview(found[0])

    def has_bytes(self, key: Hashable) -> bool:
        """Tell whether there are bytes under `key`."""
        return key in self._bytes.entries

    def put_bytes(self, key: Hashable, data: BytesLike) -> None:
        """Keep bytes, which must never change, unless they alone take more than half of the room for bytes."""
        size = len(data) + _ENTRY_OVERHEAD_BYTES
        if size > self.limit_bytes // 4:
            return
        with self._lock:
            self._bytes.put(key, data, size)
            self._shrink()

    def drop_bytes(self, key: Hashable) -> None:
        """Forget the bytes under `key`, if there are any."""
        with self._lock:
            self._bytes.drop(key)

    def set_limit(self, limit_bytes: int) -> None:
        """Bound the cache anew."""
        with self._lock:
            self.limit_bytes = limit_bytes
            self._shrink()

    def _shrink(self) -> None:
        self._bytes.shrink(self.limit_bytes // 2)
        self._decoded.shrink(self.limit_bytes - self._bytes.size_bytes)

    def clear(self) -> None:
        with self._lock:
            self._decoded = _Shelf()
            self._bytes = _Shelf()

    @property
    def size_bytes(self) -> int:
        return self._decoded.size_bytes + self._bytes.size_bytes

    def _after_fork(self) -> None:
        # Another thread of the parent may have held the lock at the fork.
        self._lock = threading.Lock()
        self.clear()


CACHE = ByteCache()
os.register_at_fork(after_in_child=CACHE._after_fork)


def cached_blob(digest: bytes) -> memoryview | None:
    """Return a blob that was read from an object store before, if it is still kept."""
    return CACHE.get_bytes(("blob", digest))


def keep_blob(digest: bytes, data: memoryview) -> None:
    """Keep a copy of a checked blob, so that what it was cut from need not be kept."""
    CACHE.put_bytes(("blob", digest), bytes(data))


def set_cache_bytes(limit_bytes: int) -> None:
    """Bound what this process keeps of repositories in memory: decoded metadata, and bytes read from object stores.

    256 MiB unless set; one bound for all repositories and sessions. At most half is bytes. 0 keeps nothing.
    """
    if type(limit_bytes) is not int or limit_bytes < 0:
        raise InvalidInputError(f"the cache can't be bounded by {limit_bytes!r}; give an int, 0 or more")
    CACHE.set_limit(limit_bytes)
