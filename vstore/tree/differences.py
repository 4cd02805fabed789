"""Where two page trees differ: what they share is passed over by the digests of its pages, unread."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice

import msgspec

from vstore.format.page import MAX_LEVEL, Child, Entry
from vstore.tree.pages import PageStore, Place, covering


class Difference(msgspec.Struct, frozen=True):
    """A key at which two trees differ, and what each of them holds there."""

    key: bytes
    before: Entry | None
    after: Entry | None


def iter_differences(
    before_store: PageStore,
    before: Child | None,
    after_store: PageStore,
    after: Child | None,
    start: bytes = b"",
    stop: bytes | None = None,
) -> Iterator[Difference]:
    """Yield where two trees differ in start <= key < stop, in order; pages of equal digest are passed over unread."""
    one, other = _Frontier(before_store, before, start, stop), _Frontier(after_store, after, start, stop)
    while True:
        left, right = one.head, other.head
        if left is None and right is None:
            return
        if left is not None and right is not None and left.is_same_page(right):
            one.drop()
            other.drop()
            continue
        if left is not None and left.entry is None and _goes_first(left, right):
            one.expand(other)
        elif right is not None and right.entry is None and _goes_first(right, left):
            other.expand(one)
        elif right is None or (left is not None and left.key < right.key):
            assert left is not None
            assert left.entry is not None
            yield Difference(left.key, left.entry, None)
            one.drop()
        elif left is None or right.key < left.key:
            assert right.entry is not None
            yield Difference(right.key, None, right.entry)
            other.drop()
        else:
            if left.entry != right.entry:
                yield Difference(left.key, left.entry, right.entry)
            one.drop()
            other.drop()


_EXPECTED = 64
"""Pages that are looked through for those that a store should hear of at once."""


class _Item(msgspec.Struct, frozen=True):
    """A page that is still closed (`entry` None), or an entry of an opened leaf (`place` None).

    `level` is that of the page above; 0 for an entry.
    """

    key: bytes
    level: int
    place: Place | None
    entry: Entry | None

    def is_same_page(self, other: _Item) -> bool:
        return (
            self.place is not None
            and other.place is not None
            and self.place.ref.digest == other.place.ref.digest
        )


def _goes_first(page: _Item, other: _Item | None) -> bool:
    """Tell whether a closed page is to be opened before `other` is looked at: it starts earlier, or lies higher."""
    if other is None or page.key != other.key:
        return other is None or page.key < other.key
    return page.level >= other.level


class _Frontier:
    """What is left of a tree, in the order of keys, opened no further than was asked for."""

    def __init__(self, store: PageStore, root: Child | None, start: bytes, stop: bytes | None) -> None:
        self._store = store
        self._start, self._stop = start, stop
        # The level of a page is known when it is opened; the root goes before all that it could be compared with.
        self._items = [] if root is None else [_Item(b"", MAX_LEVEL + 2, Place(root.ref), None)]
        # Of how many of them, from the last one, the store has not heard.
        self._untold = 0

    @property
    def head(self) -> _Item | None:
        return self._items[-1] if self._items else None

    def drop(self) -> None:
        self._items.pop()

    def expand(self, other: _Frontier) -> None:
        """Replace the closed page at the head by what is in it; `other` is the tree that it is compared with."""
        if len(self._items) <= self._untold:
            self._foretell(other)
        place = self._items.pop().place
        assert place is not None
        page = place.open(self._store)
        if page.level:
            inside = covering(page.keys, self._start, self._stop)
            below = [_Item(page.keys[i], page.level, place.below(page, i), None) for i in inside]
            self._untold = len(self._items) + len(below)
        else:
            high = len(page.keys) if self._stop is None else bisect_left(page.keys, self._stop)
            below = [
                _Item(page.keys[i], 0, None, Entry(page.keys[i], page.tags[i], page.values[i]))
                for i in range(bisect_left(page.keys, self._start), high)
            ]
        self._items.extend(reversed(below))

    def _foretell(self, other: _Frontier) -> None:
        """Let the store hear of the pages that are opened next: those that the other tree lacks."""
        coming = [item.place.ref for item in reversed(self._items[-_EXPECTED:]) if item.place is not None]
        closed = (item.place.ref.digest for item in reversed(other._items) if item.place is not None)
        theirs = set(islice(closed, 2 * _EXPECTED))
        self._untold = max(len(self._items) - _EXPECTED, 0)
        self._store.expect(ref for ref in coming if ref.digest not in theirs)
