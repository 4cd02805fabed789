from __future__ import annotations

import math
from collections.abc import Iterable
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vstore.errors import CorruptionError
from vstore.format.page import (
    MAX_LEVEL,
    Child,
    Entry,
    Page,
    PageNames,
    Totals,
    decode_child,
    decode_page,
    decode_page_names,
    encode_child,
    encode_page,
)
from vstore.format.refs import BlobRef
from vstore.ids import PackId, blake3_digest
from vstore.tree import NameCursor, get, iter_entries, iter_pages, iter_reversed, totals_in_range, writing
from vstore.tree.differences import Difference, iter_differences
from vstore.tree.writing import Change, TreePolicy, update

PACK = PackId(bytes(16))
"""Pages of about equal size may exceed the policy's bytes by a quarter."""


def measure(entry: Entry) -> Totals:
    """Count each entry as one chunk of its value's length, which is exact unless its tag is 9."""
    return Totals(1, len(entry.value), entry.tag != 9)


class Pages:
    """A page store and sink in memory that remembers what was asked of it."""

    def __init__(self) -> None:
        self.by_digest: dict[bytes, bytes] = {}
        self.decoded: dict[bytes, Page] = {}
        self.checked: dict[tuple[bytes, int], list[Entry]] = {}
        self.written: list[BlobRef] = []
        self.read: list[BlobRef] = []
        self.listed: list[BlobRef] = []
        self.expected: list[list[BlobRef]] = []

    def page(self, ref: BlobRef) -> Page:
        self.read.append(ref)
        return self.decode(ref)

    def decode(self, ref: BlobRef) -> Page:
        if ref.digest not in self.decoded:
            self.decoded[ref.digest] = decode_page(self.by_digest[ref.digest])
        return self.decoded[ref.digest]

    def names(self, ref: BlobRef) -> PageNames:
        self.listed.append(ref)
        return decode_page_names(self.by_digest[ref.digest])

    def expect(self, refs: Iterable[BlobRef]) -> None:
        self.expected.append(list(refs))

    def add_page(self, data: bytes, page: object = None) -> BlobRef:
        ref = BlobRef(blake3_digest(data), PACK, 16 + len(self.written), len(data))
        self.by_digest[ref.digest] = data
        self.written.append(ref)
        return ref

    def forget(self) -> None:
        self.written, self.read, self.listed, self.expected = [], [], [], []


POLICY = TreePolicy(leaf_bytes=640, leaf_entries=16, measure=measure)


def put(pages: Pages, root: Child | None, changes: dict[bytes, Entry | None]) -> Child | None:
    return update(pages, pages, root, [Change(key, changes[key]) for key in sorted(changes)], POLICY)


def entry(key: bytes, value: bytes = b"", tag: int = 0) -> Entry:
    return Entry(key, tag, value)


def number(i: int) -> bytes:
    return b"%06d" % i


def tree_of(pages: Pages, count: int) -> Child | None:
    return put(pages, None, {number(i): entry(number(i), b"value") for i in range(count)})


def digests_below(pages: Pages, root: Child | None) -> set[bytes]:
    return {ref.digest for ref, _ in iter_pages(pages, root, lambda ref: False)}


def check_tree(pages: Pages, root: Child | None) -> list[Entry]:
    """Check every rule of a page tree's structure and return its entries."""
    if root is None:
        return []
    page = pages.decode(root.ref)
    assert page.level == 0 or len(page.keys) > 1, "the root has only one page below it"
    return check_page(pages, root, page.level)


def check_page(pages: Pages, child: Child, level: int) -> list[Entry]:
    page = pages.decode(child.ref)
    assert page.level == level
    assert page.keys
    found = pages.checked.get((child.ref.digest, level))
    if found is None:
        found = check_leaf(page) if level == 0 else check_inner(pages, page)
        pages.checked[child.ref.digest, level] = found
    assert child.entries == len(found)
    assert child.totals == sum(map(measure, found), Totals())
    return found


def check_leaf(page: Page) -> list[Entry]:
    assert len(page.keys) <= POLICY.leaf_entries
    size = sum(map(len, page.keys)) + sum(map(len, page.values))
    assert size <= POLICY.leaf_bytes or len(page.keys) == 1
    return [Entry(*fields) for fields in zip(page.keys, page.tags, page.values, strict=True)]


def check_inner(pages: Pages, page: Page) -> list[Entry]:
    assert len(page.keys) <= writing.FANOUT
    assert set(page.tags) == {0}
    found = []
    for key, value in zip(page.keys, page.values, strict=True):
        below = check_page(pages, decode_child(value), page.level - 1)
        assert below[0].key == key, "a page's key above it is not its first key"
        found += below
    return found


# --- against a dict ------------------------------------------------------------------------------------------

keys = st.binary(max_size=3) | st.integers(0, 400).map(number)
values = st.binary(max_size=20) | st.integers(0, 500).map(bytes)
batches = st.dictionaries(keys, st.none() | st.tuples(st.integers(0, 255), values), max_size=60)


State = tuple[Child | None, dict[bytes, Entry]]


def check_differences(pages: Pages, before: State, after: State, start: bytes, stop: bytes | None) -> None:
    """Compare what `iter_differences` says of two trees with what their dicts say."""
    expected = [
        Difference(key, before[1].get(key), after[1].get(key))
        for key in sorted({*before[1], *after[1]})
        if key >= start and (stop is None or key < stop) and before[1].get(key) != after[1].get(key)
    ]
    assert list(iter_differences(pages, before[0], pages, after[0], start, stop)) == expected


class TreeMachine(RuleBasedStateMachine):
    """A page tree does what a dict does, whatever is put into it and deleted from it."""

    def __init__(self) -> None:
        super().__init__()
        # So that a few hundred entries make a tree of four levels.
        self.small_fanout = mock.patch.object(writing, "FANOUT", 6)
        self.small_fanout.start()
        self.pages = Pages()
        self.root: Child | None = None
        self.model: dict[bytes, Entry] = {}
        self.earlier: State = None, {}

    def teardown(self) -> None:
        self.small_fanout.stop()

    def apply(self, changes: dict[bytes, Entry | None]) -> None:
        before, old_model = self.root, dict(self.model)
        self.root = put(self.pages, self.root, changes)
        for key, new in changes.items():
            if new is None:
                self.model.pop(key, None)
            else:
                self.model[key] = new
        assert {e.key: e for e in check_tree(self.pages, before)} == old_model

    @initialize(count=st.integers(0, 20) | st.integers(300, 700))
    def fill(self, count):
        self.apply({number(i): entry(number(i), b"v" * (i % 7)) for i in range(count)})

    @rule(batch=batches)
    def change(self, batch):
        self.apply({key: None if new is None else Entry(key, *new) for key, new in batch.items()})

    @rule(data=st.data())
    def delete_run(self, data):
        present = sorted(self.model)
        low = data.draw(st.integers(0, len(present)))
        high = data.draw(st.integers(low, len(present)))
        self.apply(dict.fromkeys(present[low:high]))

    @rule(start=st.integers(0, 10**6), count=st.integers(1, 60), size=st.integers(0, 60))
    def insert_run(self, start, count, size):
        self.apply({number(start + i): entry(number(start + i), bytes(size)) for i in range(count)})

    @rule(key=keys)
    def look_up(self, key):
        assert get(self.pages, self.root, key) == self.model.get(key)

    @rule(start=keys, stop=st.none() | keys)
    def read_range(self, start, stop):
        expected = [self.model[k] for k in sorted(self.model) if k >= start and (stop is None or k < stop)]
        assert list(iter_entries(self.pages, self.root, start, stop)) == expected
        cursor = NameCursor(self.pages, self.root)
        assert list(cursor.iter_names(start, stop)) == [(e.key, e.tag) for e in expected]
        total = totals_in_range(self.pages, self.root, start, stop, measure)
        assert total == sum(map(measure, expected), Totals())
        after = sorted(k for k in self.model if k >= start)
        found = cursor.first_at_or_after(start)
        assert found == ((after[0], self.model[after[0]].tag) if after else None)

    @rule(stop=st.none() | keys)
    def read_backwards(self, stop):
        expected = [self.model[k] for k in sorted(self.model, reverse=True) if stop is None or k < stop]
        assert list(iter_reversed(self.pages, self.root, stop)) == expected

    @rule(start=keys, stop=st.none() | keys, batch=batches)
    def compare(self, start, stop, batch):
        """Compare with an edited copy, and with the state of the last comparison."""
        changes = {key: None if new is None else Entry(key, *new) for key, new in batch.items()}
        other_model = {key: new for key, new in {**self.model, **changes}.items() if new is not None}
        for root, model in ((put(self.pages, self.root, changes), other_model), self.earlier):
            check_differences(self.pages, (self.root, self.model), (root, model), start, stop)
            check_differences(self.pages, (root, model), (self.root, self.model), b"", None)
        self.earlier = self.root, dict(self.model)

    @invariant()
    def structure_is_sound(self):
        assert check_tree(self.pages, self.root) == [self.model[key] for key in sorted(self.model)]


TestTreeMachine = TreeMachine.TestCase


# --- what a change costs -------------------------------------------------------------------------------------


def height_of(pages: Pages, root: Child) -> int:
    return decode_page(pages.by_digest[root.ref.digest]).level + 1


@pytest.mark.parametrize("count", [1, 5, 100, 2_000, 20_000])
def test_one_change_rewrites_one_page_of_each_level(count):
    pages = Pages()
    root = tree_of(pages, count)
    height = height_of(pages, root)
    assert height <= 1 + max(0, math.ceil(math.log(count / 10, writing.FANOUT * 0.6))) + 1
    before = digests_below(pages, root)
    pages.forget()
    key = number(count // 2)
    changed = put(pages, root, {key: entry(key, b"other")})
    assert len(pages.written) == height
    assert len(pages.read) == height
    after = digests_below(pages, changed)
    assert len(after - before) == height
    assert len(before - after) == height
    assert get(pages, changed, key) == entry(key, b"other")
    assert get(pages, root, key) == entry(key, b"value")


def test_a_look_up_reads_one_page_of_each_level():
    pages = Pages()
    root = tree_of(pages, 20_000)
    pages.forget()
    assert get(pages, root, number(12_345)) == entry(number(12_345), b"value")
    assert len(pages.read) == height_of(pages, root)


def test_scattered_changes_share_their_spine():
    pages = Pages()
    root = tree_of(pages, 20_000)
    height = height_of(pages, root)
    pages.forget()
    chosen = [number(i) for i in range(0, 20_000, 1000)]
    put(pages, root, {key: entry(key, b"other") for key in chosen})
    assert len(pages.written) < len(chosen) * height
    assert len(pages.written) <= len(chosen) * (height - 1) + 1


def test_appending_does_not_touch_older_leaves():
    pages = Pages()
    root = tree_of(pages, 2_000)
    before = digests_below(pages, root)
    pages.forget()
    grown = put(pages, root, {number(2_000): entry(number(2_000), b"value")})
    assert len(before - digests_below(pages, grown)) == height_of(pages, root)
    assert len(pages.written) <= height_of(pages, root) + 1


def test_a_range_reads_only_its_pages():
    pages = Pages()
    root = tree_of(pages, 20_000)
    pages.forget()
    assert len(list(iter_entries(pages, root, number(5_000), number(5_100)))) == 100
    assert len(pages.read) <= 100 // 12 + 2 + 2 * height_of(pages, root)


def test_totals_of_a_range_read_only_its_edges():
    pages = Pages()
    root = tree_of(pages, 20_000)
    pages.forget()
    total = totals_in_range(pages, root, number(100), number(19_900), measure)
    assert total == Totals(19_800, 5 * 19_800, True)
    assert len(pages.read) <= 2 * height_of(pages, root)
    pages.forget()
    assert totals_in_range(pages, root, b"", None, measure).chunks == 20_000
    assert len(pages.read) <= height_of(pages, root)


def test_listing_reads_no_values_of_leaves():
    pages = Pages()
    root = tree_of(pages, 2_000)
    pages.forget()
    cursor = NameCursor(pages, root)
    assert len(list(cursor.iter_names(number(500), number(900)))) == 400
    assert cursor.first_at_or_after(number(1_234) + b"x") == (number(1_235), 0)
    leaves = {ref.digest for ref, page in iter_pages(pages, root, lambda ref: False) if page.level == 0}
    pages_read = [ref for ref in pages.read if ref.digest in leaves]
    assert len(pages_read) == len(leaves)  # by iter_pages above, not by the cursor


def test_no_change_keeps_the_root():
    pages = Pages()
    root = tree_of(pages, 100)
    pages.forget()
    assert update(pages, pages, root, [], POLICY) is root
    assert not pages.read


def test_changes_that_change_nothing_make_the_same_leaves():
    pages = Pages()
    root = tree_of(pages, 1_000)
    before = digests_below(pages, root)
    for changes in ({number(i): entry(number(i), b"value") for i in range(0, 1_000, 7)}, {b"absent": None}):
        same = put(pages, root, changes)
        assert check_tree(pages, same) == check_tree(pages, root)
        new = digests_below(pages, same) - before
        # Inner pages say where the leaves below them were written, which is new.
        assert all(pages.decoded[digest].level for digest in new)


# --- what a comparison costs ---------------------------------------------------------------------------------


def differences(pages: Pages, before: Child | None, after: Child | None, *bounds: bytes) -> list[Difference]:
    pages.forget()
    return list(iter_differences(pages, before, pages, after, *bounds))


def test_equal_trees_are_not_read():
    pages = Pages()
    root = tree_of(pages, 20_000)
    assert differences(pages, root, root) == []
    assert differences(pages, None, None) == []
    assert not pages.read


@pytest.mark.parametrize("change", [b"other", None, b"new key"])
def test_one_difference_reads_one_page_of_each_level_of_both(change):
    pages = Pages()
    root = tree_of(pages, 20_000)
    key = number(12_345) + (b"x" if change == b"new key" else b"")
    new = None if change is None else entry(key, change)
    changed = put(pages, root, {key: new})
    old = None if change == b"new key" else entry(key, b"value")
    assert differences(pages, root, changed) == [Difference(key, old, new)]
    # A full leaf splits in two.
    most = 2 * height_of(pages, root) + (change == b"new key")
    assert len(pages.read) <= most
    assert differences(pages, changed, root) == [Difference(key, new, old)]
    assert len(pages.read) <= most


def test_a_comparison_reads_as_much_as_differs():
    pages = Pages()
    root = tree_of(pages, 20_000)
    all_pages = len(digests_below(pages, root))
    for count in (1, 10, 100):
        chosen = [number(i) for i in range(0, 20_000, 20_000 // count)]
        changed = put(pages, root, {key: entry(key, b"other") for key in chosen})
        assert [difference.key for difference in differences(pages, root, changed)] == chosen
        assert len(pages.read) <= 2 * count * height_of(pages, root)
        assert len(pages.read) < all_pages


@pytest.mark.parametrize(("low", "high"), [(0, 40), (9_990, 10_030), (19_960, 20_000)])
def test_a_run_that_is_gone_reads_its_pages_and_the_edges_of_the_other_tree(low, high):
    pages = Pages()
    root = tree_of(pages, 20_000)
    left = put(pages, root, dict.fromkeys(map(number, range(low, high))))
    assert [d.key for d in differences(pages, root, left)] == list(map(number, range(low, high)))
    assert len(pages.read) <= (high - low) // 10 + 4 * height_of(pages, root)


def test_appending_to_a_tree_until_it_is_higher_shares_the_pages_below():
    pages = Pages()
    count = 16 * writing.FANOUT
    root = tree_of(pages, count)
    new = {number(count + i): entry(number(count + i), b"value") for i in range(40 * writing.FANOUT)}
    grown = put(pages, root, new)
    assert height_of(pages, grown) > height_of(pages, root)
    assert [d.key for d in differences(pages, root, grown)] == sorted(new)
    assert len(pages.read) <= len(new) // 8 + 4 * height_of(pages, grown)


def test_a_comparison_of_a_range_reads_its_pages_only():
    pages = Pages()
    root = tree_of(pages, 20_000)
    changed = put(pages, root, {number(i): entry(number(i), b"other") for i in range(20_000)})
    found = differences(pages, root, changed, number(5_000), number(5_100))
    assert [difference.key for difference in found] == list(map(number, range(5_000, 5_100)))
    assert len(pages.read) <= 2 * (100 // 12 + 2 + height_of(pages, root))
    assert differences(pages, root, changed, number(7), number(7)) == []
    assert differences(pages, root, changed, b"x", None) == []


def test_against_no_tree_everything_differs():
    pages = Pages()
    root = tree_of(pages, 500)
    assert [d.before for d in differences(pages, root, None)] == check_tree(pages, root)
    assert [d.after for d in differences(pages, None, root)] == check_tree(pages, root)


# --- shrinking -----------------------------------------------------------------------------------------------


def test_deleting_everything_leaves_no_tree():
    pages = Pages()
    root = tree_of(pages, 1_000)
    assert put(pages, root, dict.fromkeys(number(i) for i in range(1_000))) is None
    assert put(pages, None, {b"absent": None}) is None


def test_a_tree_of_few_entries_is_one_page():
    pages = Pages()
    root = tree_of(pages, 20_000)
    left = put(pages, root, dict.fromkeys(number(i) for i in range(1, 20_000)))
    assert decode_page(pages.by_digest[left.ref.digest]).keys == [number(0)]


@pytest.mark.parametrize("step", [3, 10, 40])
def test_small_pages_are_merged(step):
    """Deleting one entry at a time leaves a tree about as full as one made anew."""
    pages = Pages()
    count = 1_000
    root = tree_of(pages, count)
    gone = [i for i in np.random.default_rng(0).permutation(count).tolist() if i % step]
    for i in gone:
        root = put(pages, root, {number(i): None})
    check_tree(pages, root)
    assert root.entries == -(-count // step)
    leaves = sum(page.level == 0 for _, page in iter_pages(pages, root, lambda ref: False))
    # A page is merged when it is less than a quarter full.
    assert leaves <= 4 * -(-root.entries // POLICY.leaf_entries)


@pytest.mark.parametrize(("count", "most_pages"), [(200, 1), (2_000, 3)])
def test_deleting_a_run_merges_its_edges(count, most_pages):
    """Edges below different inner pages become neighbours, and are merged when they change next."""
    pages = Pages()
    root = tree_of(pages, count)
    left = put(pages, root, dict.fromkeys(number(i) for i in range(1, count - 1)))
    assert [e.key for e in check_tree(pages, left)] == [number(0), number(count - 1)]
    assert len(digests_below(pages, left)) <= most_pages
    touched = put(pages, left, {number(0): entry(number(0), b"other")})
    assert len(digests_below(pages, touched)) == 1


# --- odd sizes -----------------------------------------------------------------------------------------------


def test_an_entry_larger_than_a_page_has_one_of_its_own():
    pages = Pages()
    big = entry(number(50), bytes(10_000))
    root = put(pages, tree_of(pages, 100), {big.key: big})
    assert get(pages, root, big.key) == big
    leaves = [page for _, page in iter_pages(pages, root, lambda ref: False) if page.level == 0]
    assert [page.keys for page in leaves if big.key in page.keys] == [[big.key]]
    check_tree(pages, root)


def test_empty_keys_and_values():
    pages = Pages()
    root = put(pages, None, {b"": entry(b""), b"\0": entry(b"\0")})
    assert [e.key for e in check_tree(pages, root)] == [b"", b"\0"]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200))
def test_pages_of_values_of_any_size(sizes):
    pages = Pages()
    root = put(pages, None, {number(i): entry(number(i), bytes(size)) for i, size in enumerate(sizes)})
    assert [len(e.value) for e in check_tree(pages, root)] == sizes
    leaves = sum(page.level == 0 for _, page in iter_pages(pages, root, lambda ref: False))
    assert (
        leaves
        <= 2 * (sum(sizes) + 14 * len(sizes)) / POLICY.leaf_bytes + 2 * len(sizes) / POLICY.leaf_entries + 2
    )


# --- walking all pages ---------------------------------------------------------------------------------------


def test_iter_pages_gives_pages_before_those_below_them():
    pages = Pages()
    root = tree_of(pages, 2_000)
    seen: set[bytes] = {root.ref.digest}
    for ref, page in iter_pages(pages, root, lambda ref: False):
        assert ref.digest in seen
        if page.level:
            seen |= {decode_child(value).ref.digest for value in page.values}
    assert seen == digests_below(pages, root)
    assert list(iter_pages(pages, None, lambda ref: False)) == []


def test_iter_pages_leaves_out_what_is_known():
    pages = Pages()
    root = tree_of(pages, 2_000)
    known = digests_below(pages, root)
    key = number(777)
    changed = put(pages, root, {key: entry(key, b"other")})
    new = {ref.digest for ref, _ in iter_pages(pages, changed, lambda ref: ref.digest in known)}
    assert new == digests_below(pages, changed) - known
    pages.forget()
    assert list(iter_pages(pages, changed, lambda ref: True)) == []
    assert not pages.read


# --- damage --------------------------------------------------------------------------------------------------


def too_deep(pages: Pages) -> Child:
    """Return a chain of inner pages that all claim to be of level 1."""
    child = Child(pages.add_page(encode_page(0, [entry(b"k")])), 1, Totals(1, 0))
    for _ in range(MAX_LEVEL + 2):
        child = Child(pages.add_page(encode_page(1, [Entry(b"k", 0, encode_child(child))])), 1, Totals(1, 0))
    return child


@pytest.mark.parametrize(
    "walk",
    [
        lambda pages, root: get(pages, root, b"k"),
        lambda pages, root: list(iter_entries(pages, root)),
        lambda pages, root: list(NameCursor(pages, root).iter_names(b"", None)),
        lambda pages, root: NameCursor(pages, root).first_at_or_after(b""),
        lambda pages, root: totals_in_range(pages, root, b"k", b"k\0", measure),
        lambda pages, root: list(iter_pages(pages, root, lambda ref: False)),
        lambda pages, root: put(pages, root, {b"k": entry(b"k", b"other")}),
        lambda pages, root: list(iter_differences(pages, root, pages, None)),
        lambda pages, root: list(iter_differences(pages, tree_of(pages, 5), pages, root)),
    ],
)
def test_a_tree_that_is_too_deep_is_refused(walk):
    pages = Pages()
    with pytest.raises(CorruptionError, match="is of level 1, where one of level 0 belongs"):
        walk(pages, too_deep(pages))


# --- what the store hears beforehand -------------------------------------------------------------------------


def walk_entries(pages: Pages, root: Child | None) -> None:
    list(iter_entries(pages, root))


def walk_backwards(pages: Pages, root: Child | None) -> None:
    list(iter_reversed(pages, root))


def walk_keys(pages: Pages, root: Child | None) -> None:
    list(NameCursor(pages, root).iter_keys(b"", None))


def walk_names(pages: Pages, root: Child | None) -> None:
    list(NameCursor(pages, root).iter_names(b"", None))


@pytest.mark.parametrize("walk", [walk_entries, walk_backwards, walk_keys, walk_names])
def test_a_walk_says_which_pages_it_will_read(walk) -> None:
    pages = Pages()
    root = tree_of(pages, 500)
    assert root is not None
    assert pages.decode(root.ref).level == 1
    count = len(pages.decode(root.ref).keys)
    pages.forget()
    walk(pages, root)
    leaves = [ref for ref in (pages.listed or pages.read) if ref != root.ref]
    assert len(leaves) == count
    assert [ref for told in pages.expected for ref in told] == leaves, "each once, in the order of reading"
    assert [len(told) for told in pages.expected] == [4, 16, count - 20]


def test_a_walk_that_ends_soon_has_asked_for_little() -> None:
    pages = Pages()
    root = tree_of(pages, 500)
    pages.forget()
    next(iter_entries(pages, root))
    next(iter_reversed(pages, root))
    list(iter_entries(pages, root, number(250), number(251)))
    assert [len(told) for told in pages.expected] == [4, 4], "of a single page there is nothing to say"


def test_a_small_tree_is_fetched_whole_for_who_looks_up_many() -> None:
    pages = Pages()
    root = tree_of(pages, 500)
    assert root is not None
    leaves = [decode_child(value).ref for value in pages.decode(root.ref).values]
    pages.forget()
    get(pages, root, number(7))
    assert pages.expected == []
    get(pages, root, number(7), is_one_of_many=True)
    assert pages.expected == [leaves]


def test_all_pages_that_an_update_touches_are_expected_at_once() -> None:
    pages = Pages()
    root = tree_of(pages, 500)
    pages.forget()
    keys = [number(3), number(4), number(250), number(490)]
    put(pages, root, {key: entry(key, b"new") for key in keys})
    (told,) = pages.expected
    assert len(told) == 3
    assert set(told) <= set(pages.read)


def test_pages_in_which_two_trees_differ_are_expected_at_once() -> None:
    pages = Pages()
    before = tree_of(pages, 500)
    keys = [number(3), number(250), number(490)]
    after = put(pages, before, {key: entry(key, b"new") for key in keys})
    pages.forget()
    assert [found.key for found in iter_differences(pages, before, pages, after)] == keys
    told = {ref for refs in pages.expected for ref in refs}
    assert told <= set(pages.read), "no page that both have"
    assert max(map(len, pages.expected)) == 3


def test_a_walk_over_all_pages_says_which_are_below() -> None:
    pages = Pages()
    root = tree_of(pages, 500)
    pages.forget()
    list(iter_pages(pages, root, lambda ref: False))
    assert pages.expected == [pages.read[1:]]
