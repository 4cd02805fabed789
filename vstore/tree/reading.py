"""Finds entries of a page tree: one, those of a range, forwards or backwards, their keys only, or their sums."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from vstore.format.page import Child, Entry, Page, Totals, decode_child
from vstore.format.refs import BlobRef
from vstore.tree.pages import PageStore, Place, child_index, covering

_FIRST_EXPECTED = 4
_MOST_EXPECTED = 64


def get(store: PageStore, root: Child | None, key: bytes, *, is_one_of_many: bool = False) -> Entry | None:
    """Return the entry at `key`, or None. If it is one of many, a small tree is fetched whole."""
    page = _leaf_page(store, root, key, is_one_of_many)
    if page is None:
        return None
    index = bisect_left(page.keys, key)
    if index < len(page.keys) and page.keys[index] == key:
        return Entry(key, page.tags[index], page.values[index])
    return None


def _leaf_page(store: PageStore, root: Child | None, key: bytes, is_one_of_many: bool) -> Page | None:
    if root is None:
        return None
    place = Place(root.ref)
    page = place.open(store)
    if is_one_of_many and page.level == 1:
        store.expect(decode_child(value).ref for value in page.values)
    while page.level:
        place = place.below(page, child_index(page.keys, key))
        page = place.open(store)
    return page


def iter_entries(
    store: PageStore, root: Child | None, start: bytes = b"", stop: bytes | None = None
) -> Iterator[Entry]:
    """Yield the entries with start <= key < stop, in order, reading only their pages."""
    if root is None:
        return
    for page in _iter_leaves(store, Place(root.ref), start, stop):
        low = bisect_left(page.keys, start)
        high = len(page.keys) if stop is None else bisect_left(page.keys, stop)
        for index in range(low, high):
            yield Entry(page.keys[index], page.tags[index], page.values[index])


def _iter_leaves(store: PageStore, place: Place, start: bytes, stop: bytes | None) -> Iterator[Page]:
    page = place.open(store)
    if page.level == 0:
        yield page
        return
    for below in _iter_below(store, place, page, covering(page.keys, start, stop)):
        yield from _iter_leaves(store, below, start, stop)


def _iter_below(store: PageStore, place: Place, page: Page, indices: range) -> Iterator[Place]:
    """Yield the places of pages below `page`, of which the store hears some at a time before they are asked for.

    Few at first: who looks for the first entry, or for some on either side of it, needs no more.
    """
    told, window = 0, _FIRST_EXPECTED
    for number, index in enumerate(indices):
        if number == told:
            coming = indices[number : number + window]
            told += len(coming)
            window = min(4 * window, _MOST_EXPECTED)
            if len(coming) > 1:
                store.expect(decode_child(page.values[each]).ref for each in coming)
        yield place.below(page, index)


def iter_reversed(store: PageStore, root: Child | None, stop: bytes | None = None) -> Iterator[Entry]:
    """Yield the entries with key < stop, last first."""
    if root is not None:
        yield from _iter_reversed(store, Place(root.ref), stop)


def _iter_reversed(store: PageStore, place: Place, stop: bytes | None) -> Iterator[Entry]:
    page = place.open(store)
    high = len(page.keys) if stop is None else bisect_left(page.keys, stop)
    backwards = range(high)[::-1]
    if page.level == 0:
        for index in backwards:
            yield Entry(page.keys[index], page.tags[index], page.values[index])
        return
    for below in _iter_below(store, place, page, backwards):
        yield from _iter_reversed(store, below, stop)


class NameCursor:
    """Walks a tree's keys and tags in order, and can skip ahead: how directories are listed."""

    def __init__(self, store: PageStore, root: Child | None) -> None:
        self._store = store
        self._root = None if root is None else Place(root.ref)

    def first_at_or_after(self, key: bytes) -> tuple[bytes, int] | None:
        """Return the first (key, tag) not below `key`."""
        return None if self._root is None else self._seek(self._root, key)

    def _seek(self, place: Place, key: bytes) -> tuple[bytes, int] | None:
        names = place.open_names(self._store)
        if names.level == 0:
            index = bisect_left(names.keys, key)
            return (names.keys[index], names.tags[index]) if index < len(names.keys) else None
        page = place.open(self._store)
        for index in range(child_index(page.keys, key), len(page.keys)):
            found = self._seek(place.below(page, index), key)
            if found is not None:
                return found
        return None

    def iter_keys(self, start: bytes, stop: bytes | None) -> Iterator[list[bytes]]:
        """Yield the keys with start <= key < stop, a page's at a time."""
        if self._root is not None:
            yield from self._iter_keys(self._root, start, stop)

    def _iter_keys(self, place: Place, start: bytes, stop: bytes | None) -> Iterator[list[bytes]]:
        names = place.open_names(self._store)
        if names.level == 0:
            high = len(names.keys) if stop is None else bisect_left(names.keys, stop)
            yield names.keys[bisect_left(names.keys, start) : high]
            return
        page = place.open(self._store)
        for below in _iter_below(self._store, place, page, covering(page.keys, start, stop)):
            yield from self._iter_keys(below, start, stop)

    def iter_names(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, int]]:
        """Yield (key, tag) with start <= key < stop."""
        if self._root is not None:
            yield from self._iter(self._root, start, stop)

    def _iter(self, place: Place, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, int]]:
        names = place.open_names(self._store)
        if names.level == 0:
            high = len(names.keys) if stop is None else bisect_left(names.keys, stop)
            for index in range(bisect_left(names.keys, start), high):
                yield names.keys[index], names.tags[index]
            return
        page = place.open(self._store)
        for below in _iter_below(self._store, place, page, covering(page.keys, start, stop)):
            yield from self._iter(below, start, stop)


def totals_in_range(
    store: PageStore,
    root: Child | None,
    start: bytes,
    stop: bytes | None,
    measure: Callable[[Entry], Totals],
) -> Totals:
    """Return the summed totals of the entries with start <= key < stop; pages inside the range are not read."""
    return Totals() if root is None else _sum_range(store, Place(root.ref), start, stop, measure)


def _sum_range(
    store: PageStore,
    place: Place,
    start: bytes,
    stop: bytes | None,
    measure: Callable[[Entry], Totals],
) -> Totals:
    page = place.open(store)
    total = Totals()
    if page.level == 0:
        high = len(page.keys) if stop is None else bisect_left(page.keys, stop)
        for index in range(bisect_left(page.keys, start), high):
            total += measure(Entry(page.keys[index], page.tags[index], page.values[index]))
        return total
    for index in covering(page.keys, start, stop):
        begins_inside = page.keys[index] >= start
        ends_inside = stop is None or (index + 1 < len(page.keys) and page.keys[index + 1] <= stop)
        if begins_inside and ends_inside:
            total += decode_child(page.values[index]).totals
        else:
            total += _sum_range(store, place.below(page, index), start, stop, measure)
    return total


def iter_pages(
    store: PageStore, root: Child | None, skip: Callable[[BlobRef], bool]
) -> Iterator[tuple[BlobRef, Page]]:
    """Yield every page below `root`, a page before those below it; `skip` leaves out a page and all below it."""
    if root is None or skip(root.ref):
        return
    pending = [Place(root.ref)]
    while pending:
        place = pending.pop()
        page = place.open(store)
        yield place.ref, page
        if page.level:
            below = [place.below(page, index) for index in range(len(page.keys))]
            kept = [item for item in reversed(below) if not skip(item.ref)]
            store.expect(item.ref for item in reversed(kept))
            pending += kept
