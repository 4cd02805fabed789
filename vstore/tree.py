"""The page tree: a copy-on-write sorted map of byte keys, each page of it a blob.

`update` rewrites the pages that a batch of changes touches and the spine above them, and returns the new root; the
old root stays valid. It serves twice: nodes by path, and an array's manifest pointers by tile. Pages come from a
`PageStore` and go to a `PageSink`, both handed in. Neighbouring pages that became small are merged, so that deletes
don't leave a tree of crumbs.

Whoever made a repository may have made its pages to harm: a few that name each other could stand for more entries than
anyone can walk through. So each page must lie where it was found (`Place`): one level below the page above, its keys in
the range that is its own there. As ranges don't overlap, no page can then be met twice in a tree.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from vstore.errors import CorruptionError
from vstore.format.page import (
    MAX_LEVEL,
    Child,
    Entry,
    Page,
    PageNames,
    Totals,
    decode_child,
    encode_child,
    encode_page,
    sum_children,
    sum_totals,
)
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


class Change(msgspec.Struct, frozen=True):
    """One edit: `entry` replaces what the key held, None deletes it."""

    key: bytes
    entry: Entry | None


class TreePolicy(msgspec.Struct, frozen=True):
    """How full pages get: a leaf holds at most `leaf_bytes` of keys and values and `leaf_entries` entries.

    `measure` says what a leaf entry adds to the totals of the pages above it.
    """

    leaf_bytes: int
    leaf_entries: int
    measure: Callable[[Entry], Totals]


FANOUT = 64
"""Entries of an inner page at most: their digests do not compress, so larger pages cost each commit more."""


_FIRST_EXPECTED = 4


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


def _iter_below(store: PageStore, place: Place, page: Page, indices: range) -> Iterator[Place]:
    """Yield the places of pages below `page`, of which the store hears some at a time before they are asked for.

    Few at first: who looks for the first entry, or for some on either side of it, needs no more.
    """
    told, window = 0, _FIRST_EXPECTED
    for number, index in enumerate(indices):
        if number == told:
            coming = indices[number : number + window]
            told += len(coming)
            window = min(4 * window, FANOUT)
            if len(coming) > 1:
                store.expect(decode_child(page.values[each]).ref for each in coming)
        yield place.below(page, index)


def get(store: PageStore, root: Child | None, key: bytes) -> Entry | None:
    """Return the entry at `key`, or None."""
    page = _leaf_page(store, root, key)
    if page is None:
        return None
    index = bisect_left(page.keys, key)
    if index < len(page.keys) and page.keys[index] == key:
        return Entry(key, page.tags[index], page.values[index])
    return None


def _leaf_page(store: PageStore, root: Child | None, key: bytes) -> Page | None:
    if root is None:
        return None
    place = Place(root.ref)
    page = place.open(store)
    while page.level:
        place = place.below(page, _child_index(page.keys, key))
        page = place.open(store)
    return page


def _child_index(keys: list[bytes], key: bytes) -> int:
    return max(bisect_right(keys, key) - 1, 0)


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
    for below in _iter_below(store, place, page, _covering(page.keys, start, stop)):
        yield from _iter_leaves(store, below, start, stop)


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


def _covering(keys: list[bytes], start: bytes, stop: bytes | None) -> range:
    high = len(keys) if stop is None else bisect_left(keys, stop)
    return range(_child_index(keys, start), high)


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
        for index in range(_child_index(page.keys, key), len(page.keys)):
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
        for below in _iter_below(self._store, place, page, _covering(page.keys, start, stop)):
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
        for below in _iter_below(self._store, place, page, _covering(page.keys, start, stop)):
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
    for index in _covering(page.keys, start, stop):
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
            pending.extend(item for item in reversed(below) if not skip(item.ref))


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
            one.expand()
        elif right is not None and right.entry is None and _goes_first(right, left):
            other.expand()
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

    @property
    def head(self) -> _Item | None:
        return self._items[-1] if self._items else None

    def drop(self) -> None:
        self._items.pop()

    def expand(self) -> None:
        """Replace the closed page at the head by what is in it."""
        place = self._items.pop().place
        assert place is not None
        page = place.open(self._store)
        if page.level:
            inside = _covering(page.keys, self._start, self._stop)
            below = [_Item(page.keys[i], page.level, place.below(page, i), None) for i in inside]
        else:
            high = len(page.keys) if self._stop is None else bisect_left(page.keys, self._stop)
            below = [
                _Item(page.keys[i], 0, None, Entry(page.keys[i], page.tags[i], page.values[i]))
                for i in range(bisect_left(page.keys, self._start), high)
            ]
        self._items.extend(reversed(below))


# --- update --------------------------------------------------------------------------------------------------


def update(
    store: PageStore, sink: PageSink, root: Child | None, changes: Sequence[Change], policy: TreePolicy
) -> Child | None:
    """Return the root of a tree like `root` with `changes`, which are sorted by key without repeats.

    None is the empty tree. Pages that no change touches are shared with the old tree.
    """
    if not changes:
        return root
    writer = _Writer(store, sink, policy)
    if root is None:
        entries = [change.entry for change in changes if change.entry is not None]
        return writer.grow(0, writer.split(0, entries))
    level, pieces = writer.rewrite(Place(root.ref), changes)
    return writer.grow(level, pieces)


class _Piece(msgspec.Struct, frozen=True):
    """A page of the new tree: an untouched one (`value`, its entry above), or entries that are still to be written."""

    key: bytes
    value: bytes | None
    entries: list[Entry]
    size: int


class _Writer:
    def __init__(self, store: PageStore, sink: PageSink, policy: TreePolicy) -> None:
        self._store = store
        self._sink = sink
        self._policy = policy
        self._written: dict[bytes, tuple[int, list[bytes]]] = {}

    def rewrite(self, place: Place, changes: Sequence[Change]) -> tuple[int, list[_Piece]]:
        """Return the level of the page at `place`, and the pieces that replace it."""
        page = place.open(self._store)
        entries = [Entry(*fields) for fields in zip(page.keys, page.tags, page.values, strict=True)]
        if page.level == 0:
            return 0, self.split(0, _merge(entries, changes))
        pieces: list[_Piece] = []
        for index, (key, part) in enumerate(_partition(page.keys, changes)):
            value = page.values[index]
            if part:
                pieces += self.rewrite(place.below(page, index), part)[1]
            else:
                pieces.append(_Piece(key, value, [], 0))
        return page.level, self.split(page.level, self._settle(page.level - 1, pieces))

    def grow(self, level: int, pieces: list[_Piece]) -> Child | None:
        """Write `pieces`, which are pages of `level`, and add levels until one page is left."""
        while True:
            entries = self._settle(level, pieces)
            if not entries:
                return None
            if len(entries) == 1:
                return self._collapse(decode_child(entries[0].value))
            level += 1
            if level > MAX_LEVEL:
                raise CorruptionError("a page tree is as deep as the format allows. Its pages are damaged.")
            pieces = self.split(level, entries)

    def _collapse(self, root: Child) -> Child:
        """Drop inner pages that have only one page below them."""
        while True:
            level, values = self._written.get(root.ref.digest) or self._stored(root)
            if level == 0 or len(values) > 1:
                return root
            root = decode_child(values[0])

    def _stored(self, child: Child) -> tuple[int, list[bytes]]:
        page = self._store.page(child.ref)
        return page.level, page.values

    def _settle(self, level: int, pieces: list[_Piece]) -> list[Entry]:
        """Merge small new pages with their neighbours, write what is new, and return the entries for above."""
        merged: list[_Piece] = []
        for piece in pieces:
            if merged and self._should_merge(level, merged[-1], piece):
                joined = self._entries_of(merged.pop()) + self._entries_of(piece)
                merged += self.split(level, joined)
            else:
                merged.append(piece)
        return [self._entry(level, piece) for piece in merged]

    def _should_merge(self, level: int, left: _Piece, right: _Piece) -> bool:
        return self._is_small(level, left) or self._is_small(level, right)

    def _is_small(self, level: int, piece: _Piece) -> bool:
        if piece.value is not None:
            return False
        if level:
            return len(piece.entries) < FANOUT // 4
        return (
            piece.size < self._policy.leaf_bytes // 4 and len(piece.entries) < self._policy.leaf_entries // 4
        )

    def _entries_of(self, piece: _Piece) -> list[Entry]:
        if piece.value is None:
            return piece.entries
        page = self._store.page(decode_child(piece.value).ref)
        return [Entry(*fields) for fields in zip(page.keys, page.tags, page.values, strict=True)]

    def _entry(self, level: int, piece: _Piece) -> Entry:
        value = piece.value
        return Entry(
            piece.key, 0, encode_child(self._write(level, piece.entries)) if value is None else value
        )

    def _write(self, level: int, entries: list[Entry]) -> Child:
        keys, values = [entry.key for entry in entries], [entry.value for entry in entries]
        page = Page(level, keys, bytes([entry.tag for entry in entries]), values)
        ref = self._sink.add_page(encode_page(level, entries), page)
        self._written[ref.digest] = (level, [entry.value for entry in entries[:2]])
        if level == 0:
            return Child(ref, len(entries), sum_totals(map(self._policy.measure, entries)))
        return Child(ref, *sum_children(values))

    def split(self, level: int, entries: list[Entry]) -> list[_Piece]:
        """Cut `entries` into pages of about equal size within the limits."""
        if not entries:
            return []
        if level:
            limit_bytes, limit_entries = 2**62, FANOUT
        else:
            limit_bytes, limit_entries = self._policy.leaf_bytes, self._policy.leaf_entries
        sizes = [len(entry.key) + len(entry.value) + 8 for entry in entries]
        count = max(-(-sum(sizes) // limit_bytes), -(-len(entries) // limit_entries))
        goal_bytes, goal_entries = -(-sum(sizes) // count), -(-len(entries) // count)
        most_bytes = min(max(goal_bytes, 1) * 5 // 4, limit_bytes)
        pieces: list[_Piece] = []
        start = size = 0
        for index, entry_size in enumerate(sizes):
            full = size >= goal_bytes or size + entry_size > most_bytes
            if index - start >= goal_entries or (index > start and full):
                pieces.append(_Piece(entries[start].key, None, entries[start:index], size))
                start, size = index, 0
            size += entry_size
        pieces.append(_Piece(entries[start].key, None, entries[start:], size))
        return pieces


def _partition(keys: list[bytes], changes: Sequence[Change]) -> Iterable[tuple[bytes, Sequence[Change]]]:
    """Yield each child's key with the changes that belong to it; the first child takes all that come before."""
    change_keys = [change.key for change in changes]
    start = 0
    for index, key in enumerate(keys):
        stop = bisect_left(change_keys, keys[index + 1]) if index + 1 < len(keys) else len(changes)
        yield key, changes[start:stop]
        start = stop


def _merge(entries: list[Entry], changes: Sequence[Change]) -> list[Entry]:
    """Return sorted `entries` with sorted `changes` applied."""
    if len(changes) * 8 < len(entries):
        merged = list(entries)
        keys = [entry.key for entry in merged]
        for change in reversed(changes):
            index = bisect_left(keys, change.key)
            stop = index + 1 if index < len(keys) and keys[index] == change.key else index
            merged[index:stop] = [] if change.entry is None else [change.entry]
        return merged
    by_key = {entry.key: entry for entry in entries}
    for change in changes:
        if change.entry is None:
            by_key.pop(change.key, None)
        else:
            by_key[change.key] = change.entry
    return [by_key[key] for key in sorted(by_key)]
