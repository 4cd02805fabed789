"""Which metadata to fetch before it is asked for, and in which stretches of packs. No I/O: the reader begins it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from vstore.format.refs import BlobRef
from vstore.ids import PackId

T = TypeVar("T")

MAX_WINDOW = 64
MAX_GAP_BYTES = 64 * 1024
"""Between two blobs of metadata that share a request: mostly other metadata of the same commit."""
MAX_STRETCH_BYTES = 1024 * 1024
MAX_BYTES = 8 * 1024 * 1024
"""Of all that one look ahead fetches: it may be for nothing."""


def plan_stretches(refs: Iterable[BlobRef], room_bytes: int = MAX_BYTES) -> Iterator[tuple[PackId, int, int]]:
    """Yield (pack, start, stop) of stretches that hold the first blobs, up to `room_bytes` and `MAX_BYTES` of them."""
    left = min(room_bytes, MAX_BYTES)
    wanted = []
    for ref in refs:
        left -= ref.length
        if left < 0:
            break
        wanted.append((ref.pack, ref.offset, ref.offset + ref.length))
    stretch: tuple[PackId, int, int] | None = None
    for pack, start, stop in sorted(wanted):
        if stretch is not None and _share(stretch, pack, start, stop):
            stretch = pack, stretch[1], max(stretch[2], stop)
            continue
        if stretch is not None:
            yield stretch
        stretch = pack, start, stop
    if stretch is not None:
        yield stretch


def in_windows(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield items some at a time: one, then four times as many as before, for who takes the first often stops there."""
    left = iter(items)
    size = 1
    while window := list(islice(left, size)):
        yield window
        size = min(4 * size, MAX_WINDOW)


def _share(stretch: tuple[PackId, int, int], pack: PackId, start: int, stop: int) -> bool:
    before, first, end = stretch
    return pack == before and start - end <= MAX_GAP_BYTES and stop - first <= MAX_STRETCH_BYTES
