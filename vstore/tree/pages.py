"""Where pages come from and go to, and where in its tree each of them belongs.

Whoever made a repository may have made its pages to harm: a few that name each other could stand for more entries than
anyone can walk through. So each page must lie where it was found (`Place`): one level below the page above, its keys in
the range that is its own there. As ranges don't overlap, no page can then be met twice in a tree.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from vstore.errors import CorruptionError
from vstore.format.page import Page, PageNames, decode_child
from vstore.format.refs import BlobRef


class PageStore(Protocol):
    """Where pages are read from; caching is its business."""

    def page(self, ref: BlobRef) -> Page:
        """Return a whole page."""

    def names(self, ref: BlobRef) -> PageNames:
        """Return a page's keys and tags only."""

    def expect(self, refs: Iterable[BlobRef]) -> None:
        """Hear of pages that will most likely be read soon, to fetch them at once; waits for nothing."""


class PageSink(Protocol):
    """Where new pages go."""

    def add_page(self, data: bytes, page: Page) -> BlobRef:
        """Take a page, encoded and as it is, and say where it will be."""


class Place(NamedTuple):
    """Where a page is met: at this level (None: a root, at any), its keys in start <= key < stop (None: no end)."""

    ref: BlobRef
    level: int | None = None
    start: bytes = b""
    stop: bytes | None = None

    def check(self, page: Page | PageNames) -> None:
        """Raise `CorruptionError` unless `page` belongs here."""
        if self.level is None:
            return
        keys = page.keys
        if page.level != self.level:
            raise CorruptionError(
                f"page {self.ref.digest.hex()} of a page tree is of level {page.level}, where one of level "
                f"{self.level} belongs. repo.fsck() names all that is damaged."
            )
        if not keys or keys[0] < self.start or (self.stop is not None and keys[-1] >= self.stop):
            raise CorruptionError(
                f"page {self.ref.digest.hex()} of a page tree has no keys, or some that belong to its neighbours. "
                "repo.fsck() names all that is damaged."
            )

    def open(self, store: PageStore) -> Page:
        """Return the page, checked."""
        page = store.page(self.ref)
        self.check(page)
        return page

    def open_names(self, store: PageStore) -> PageNames:
        """Return the page's keys and tags, checked."""
        names = store.names(self.ref)
        self.check(names)
        return names

    def below(self, page: Page, index: int) -> Place:
        """Return the place of the page that entry `index` of `page`, which lies here, names."""
        keys = page.keys
        stop = keys[index + 1] if index + 1 < len(keys) else self.stop
        return Place(decode_child(page.values[index]).ref, page.level - 1, keys[index], stop)


def child_index(keys: list[bytes], key: bytes) -> int:
    """Return which page of an inner page's `keys` has room for `key`; the first takes all that come before."""
    return max(bisect_right(keys, key) - 1, 0)


def covering(keys: list[bytes], start: bytes, stop: bytes | None) -> range:
    """Return which pages of an inner page's `keys` may hold some of start <= key < stop."""
    high = len(keys) if stop is None else bisect_left(keys, stop)
    return range(child_index(keys, start), high)
