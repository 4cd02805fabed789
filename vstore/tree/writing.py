"""Makes a new page tree of an old one and a batch of changes; the old one stays valid.

`update` rewrites the pages that the changes touch and the spine above them, and shares all others. Neighbouring pages
that became small are merged, so that deletes don't leave a tree of crumbs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

import msgspec

from vstore.errors import CorruptionError
from vstore.format.page import (
    MAX_LEVEL,
    Child,
    Entry,
    Page,
    Totals,
    decode_child,
    encode_child,
    encode_page,
    sum_children,
    sum_totals,
)
from vstore.tree.pages import PageSink, PageStore, Place


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
        parts = list(_partition(page.keys, changes))
        touched = [index for index, (_, part) in enumerate(parts) if part]
        if len(touched) > 1:
            self._store.expect(decode_child(page.values[index]).ref for index in touched)
        for index, (key, part) in enumerate(parts):
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
