"""One cache for decoded metadata and for bytes, bounded in bytes."""

from __future__ import annotations

import os

import pytest

import vstore
from vstore.blobs.cache import CACHE, DEFAULT_CACHE_BYTES, ByteCache, cached_blob, keep_blob

LIMIT = 100_000


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = ByteCache(LIMIT)
    for number in range(10):
        cache.put(number, f"value {number}", 9_000)
    assert cache.get(0) == "value 0"
    for number in range(10, 14):
        cache.put(number, f"value {number}", 9_000)
    assert cache.get(0) == "value 0"
    assert cache.get(1) is None
    assert cache.size_bytes <= LIMIT


def test_bytes_take_at_most_half_and_leave_the_metadata_where_it_is() -> None:
    cache = ByteCache(LIMIT)
    for number in range(4):
        cache.put(number, "metadata", 10_000)
    for number in range(100):
        cache.put_bytes(number, bytes(5_000))
    assert all(cache.get(number) for number in range(4))
    assert cache.get_bytes(99) == bytes(5_000)
    assert cache.get_bytes(0) is None
    assert cache.size_bytes <= LIMIT
    # Without bytes, all of it is for metadata.
    cache.clear()
    for number in range(9):
        cache.put(number, "metadata", 10_000)
    assert cache.get(0) == "metadata"


def test_what_is_replaced_or_dropped_is_not_counted() -> None:
    cache = ByteCache(LIMIT)
    for _ in range(50):
        cache.put("key", "value", 1_000)
        cache.put_bytes("key", bytes(1_000))
    cache.drop_bytes("key")
    cache.drop_bytes("absent")
    assert cache.size_bytes < 2_000
    assert not cache.has_bytes("key")
    cache.put_bytes("large", bytes(LIMIT // 2))
    assert cache.get_bytes("large") is None


def test_a_kept_blob_is_a_copy() -> None:
    stretch = memoryview(bytearray(b"0123456789"))
    keep_blob(b"digest", stretch[2:5])
    stretch[2:5] = b"xyz"
    assert cached_blob(b"digest") == b"234"
    CACHE.clear()


def test_the_bound_is_set_for_the_process() -> None:
    CACHE.clear()
    try:
        keep_blob(b"digest", memoryview(bytes(1_000)))
        vstore.set_cache_bytes(1_000_000)
        assert cached_blob(b"digest") is not None
        vstore.set_cache_bytes(0)
        assert cached_blob(b"digest") is None
        assert CACHE.size_bytes == 0
        keep_blob(b"digest", memoryview(bytes(1_000)))
        assert cached_blob(b"digest") is None
        for wrong in (-1, True, 1.5, None):
            with pytest.raises(vstore.InvalidInputError):
                vstore.set_cache_bytes(wrong)  # type: ignore[arg-type]
    finally:
        vstore.set_cache_bytes(DEFAULT_CACHE_BYTES)


def test_a_forked_child_starts_empty_and_is_not_locked() -> None:
    CACHE.put_bytes("key", b"bytes")
    with CACHE._lock:
        child = os.fork()
        if not child:
            os._exit(0 if CACHE.get_bytes("key") is None and CACHE.size_bytes == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    CACHE.clear()
