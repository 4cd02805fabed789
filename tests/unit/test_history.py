"""How snapshots descend from each other: walks by time, best common ancestors, against a model on random graphs."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vstore
from vstore.catalog.base import CatalogView
from vstore.format.record import ExpiredEntry, HistoryEntry, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.history import (
    AncestryWalk,
    find_as_of,
    is_ancestor,
    jump_target,
    merge_bases,
    require_retained,
)
from vstore.ids import Digest, PackId, SnapshotId


class History:
    """A graph of made-up snapshots by name, as a view shows it."""

    def __init__(self) -> None:
        self.entries: dict[SnapshotId, SnapshotEntry] = {}
        self.gone: dict[SnapshotId, ExpiredEntry] = {}
        self.lookups = 0

    def snapshot(self, snapshot: SnapshotId) -> SnapshotEntry | None:
        self.lookups += 1
        return self.entries.get(snapshot)

    def expired(self, snapshot: SnapshotId) -> ExpiredEntry | None:
        return self.gone.get(snapshot)

    @property
    def view(self) -> CatalogView:
        return cast(CatalogView, self)

    def add(self, name: str, *parents: str, time_us: int | None = None) -> SnapshotEntry:
        """Add a snapshot; its time is just after its parents' unless given."""
        found = [self[parent] for parent in parents]
        earliest = max([parent.time_us + 1 for parent in found], default=0)
        first = found[0] if found else None
        entry = SnapshotEntry(
            BlobRef(Digest(id_of(name)), PackId(bytes(16)), 16, 1),
            tuple(parent.id for parent in found),
            max(earliest, time_us or 0),
            0 if first is None else first.depth + 1,
            jump_target(self.view, first),
            0,
            0,
            (name, b"{}"),
        )
        self.entries[entry.id] = entry
        return entry

    def chain(self, prefix: str, count: int, *parents: str) -> str:
        """Add snapshots in a row and return the last one's name."""
        for number in range(count):
            self.add(f"{prefix}{number}", *parents)
            parents = (f"{prefix}{number}",)
        return parents[0]

    def either(self, snapshot: SnapshotId) -> HistoryEntry:
        return self.entries.get(snapshot) or self.gone[snapshot]

    def __getitem__(self, name: str) -> SnapshotEntry:
        return self.entries[SnapshotId(id_of(name))]

    def forget(self, name: str) -> None:
        del self.entries[SnapshotId(id_of(name))]

    def expire(self, name: str) -> None:
        entry = self.entries.pop(SnapshotId(id_of(name)))
        self.gone[entry.id] = ExpiredEntry(entry.id, entry.parents, entry.time_us, entry.depth, entry.jump)


def id_of(name: str) -> bytes:
    return name.encode().ljust(32, b"\0")


def names(entries: list[SnapshotEntry]) -> list[str]:
    return [entry.id.rstrip(b"\0").decode() for entry in entries]


@pytest.fixture
def history() -> History:
    return History()


def walk(history: History, *starts: str, batch: int = 1000) -> list[str]:
    ancestry = AncestryWalk(*(history[start] for start in starts))
    found: list[str] = []
    while entries := ancestry.take(history.view, batch):
        assert len(entries) <= batch
        found += names(entries)
    return found


# --- walks ---------------------------------------------------------------------------------------------------


def test_a_parent_that_is_deeper_than_its_child_comes_after_it(history: History) -> None:
    # The first parent decides the depth: the merge and its child are shallow, their other ancestors are deep.
    history.add("root")
    long = history.chain("long", 5, "root")
    history.add("merge", "root", long)
    history.add("child", "merge")
    assert history[long].depth > history["child"].depth
    assert walk(history, "child") == ["child", "merge", *(f"long{n}" for n in (4, 3, 2, 1, 0)), "root"]
    history.add("tip", "root", "merge")
    history.add("late", "tip", long)
    assert walk(history, "late")[:4] == ["late", "tip", "merge", long]


def test_a_walk_has_any_number_of_starts_and_meets_each_snapshot_once(history: History) -> None:
    history.add("root")
    history.add("a", "root", time_us=10)
    history.add("b", "root", time_us=20)
    history.add("alone", time_us=15)
    assert walk(history, "a", "b", "alone", "root", "a") == ["b", "alone", "a", "root"]
    assert walk(history) == []


def test_a_walk_passes_through_expired_snapshots(history: History) -> None:
    history.chain("a", 6)
    for name in ("a2", "a3"):
        history.expire(name)
    ancestry = AncestryWalk(history["a5"])
    assert names(ancestry.take(history.view, 10)) == ["a5", "a4", "a1", "a0"]
    assert ancestry.retained_parents(history["a5"]) == (history["a4"].id,)
    assert ancestry.retained_parents(history["a4"]) == (history["a1"].id,)
    assert ancestry.retained_parents(history["a0"]) == ()


def test_a_walk_ends_at_an_unknown_parent(history: History) -> None:
    history.chain("a", 3)
    history.forget("a0")
    ancestry = AncestryWalk(history["a2"])
    assert names(ancestry.take(history.view, 10)) == ["a2", "a1"]
    assert ancestry.retained_parents(history["a1"]) == ()


# --- ancestors -----------------------------------------------------------------------------------------------


def test_the_base_of_two_branches_is_where_they_parted(history: History) -> None:
    stem = history.chain("stem", 3)
    one, other = history.chain("one", 4, stem), history.chain("other", 2, stem)
    assert names(merge_bases(history.view, history[one], history[other])) == [stem]
    assert names(merge_bases(history.view, history[one], history[stem])) == [stem]
    assert names(merge_bases(history.view, history[stem], history[one])) == [stem]
    assert names(merge_bases(history.view, history[one], history[one])) == [one]


def test_a_merge_brings_the_base_forward(history: History) -> None:
    history.add("root")
    history.add("a0", "root")
    history.add("b0", "root")
    history.add("a1", "a0", "b0")
    history.add("b1", "b0")
    assert names(merge_bases(history.view, history["a1"], history["b1"])) == ["b0"]


def test_a_criss_cross_has_two_bases_newest_first(history: History) -> None:
    history.add("root")
    history.add("a0", "root", time_us=10)
    history.add("b0", "root", time_us=20)
    history.add("a1", "a0", "b0")
    history.add("b1", "b0", "a0")
    assert names(merge_bases(history.view, history["a1"], history["b1"])) == ["b0", "a0"]
    assert names(merge_bases(history.view, history["b1"], history["a1"])) == ["b0", "a0"]


def test_bases_of_one_time_are_in_the_order_of_their_ids(history: History) -> None:
    history.add("root")
    for name in "zx":
        history.add(name, "root")
    history.add("one", "z", "x")
    history.add("other", "x", "z")
    assert names(merge_bases(history.view, history["one"], history["other"])) == ["x", "z"]


def test_unrelated_histories_have_no_base(history: History) -> None:
    one, other = history.chain("one", 3), history.chain("other", 3)
    assert merge_bases(history.view, history[one], history[other]) == []
    assert not is_ancestor(history.view, history["other0"], history[one])


def test_an_expired_snapshot_is_still_an_ancestor_and_a_base(history: History) -> None:
    stem = history.chain("stem", 3)
    one, other = history.chain("one", 3, stem), history.chain("other", 3, stem)
    for name in ("one1", "stem1"):
        history.expire(name)
    assert names(merge_bases(history.view, history[one], history[other])) == [stem]
    assert is_ancestor(history.view, history["stem0"], history[one])
    base = history[stem]
    history.expire(stem)
    (found,) = merge_bases(history.view, history[one], history[other])
    assert found.id == base.id
    with pytest.raises(vstore.SnapshotExpiredError, match=base.id.hex()):
        require_retained(found)


def test_the_newest_snapshot_of_a_time_may_have_expired(history: History) -> None:
    for number in range(1, 200):
        history.add(f"n{number}", *([f"n{number - 1}"] if number > 1 else []), time_us=10 * number)
    for number in range(50, 120):
        history.expire(f"n{number}")
    head = history["n199"].id
    found = find_as_of(history.view, head, 495)
    assert found is not None
    assert names([found]) == ["n49"]
    with pytest.raises(vstore.SnapshotExpiredError, match=id_of("n70").hex()):
        find_as_of(history.view, head, 705)
    assert find_as_of(history.view, head, 5) is None


def test_the_base_costs_what_happened_since_it_and_not_the_whole_history(history: History) -> None:
    stem = history.chain("stem", 5000)
    one, other = history.chain("one", 10, stem), history.chain("other", 10, stem)
    history.lookups = 0
    assert names(merge_bases(history.view, history[one], history[other])) == [stem]
    assert history.lookups < 30


def test_a_far_ancestor_is_found_in_few_steps(history: History) -> None:
    tip = history.chain("stem", 5000)
    history.lookups = 0
    assert is_ancestor(history.view, history["stem7"], history[tip])
    assert not is_ancestor(history.view, history[tip], history["stem7"])
    assert history.lookups < 100


# --- random graphs -------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw up to 20 snapshots with up to 3 parents each; times may be far ahead of the parents', some expire."""
    history = History()
    for number in range(draw(st.integers(1, 20))):
        parents = draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        history.add(f"n{number}", *(f"n{parent}" for parent in parents), time_us=draw(st.integers(0, 30)))
    for number in draw(st.sets(st.integers(0, len(history.entries) - 1), max_size=3)):
        if len(history.entries) > 1:
            history.expire(f"n{number}")
    return history


def ancestors(history: History, entry: HistoryEntry) -> set[SnapshotId]:
    """The model: the entry itself and all that is reached from it, expired or not."""
    found, pending = set(), [entry.id]
    while pending:
        snapshot = pending.pop()
        if snapshot not in found:
            found.add(snapshot)
            pending += history.either(snapshot).parents
    return found


def nearest_retained(history: History, parents: tuple[SnapshotId, ...]) -> set[SnapshotId]:
    """The model: the parents, and in place of those that expired the nearest beyond them."""
    found: set[SnapshotId] = set()
    for parent in parents:
        gone = history.gone.get(parent)
        found |= {parent} if gone is None else nearest_retained(history, gone.parents)
    return found


@given(histories(), st.data())
def test_any_walk_is_of_all_ancestors_by_time(history: History, data: st.DataObject) -> None:
    starts = data.draw(st.lists(st.sampled_from(list(history.entries.values())), min_size=1, max_size=3))
    ancestry = AncestryWalk(*starts)
    found: list[SnapshotEntry] = []
    while entries := ancestry.take(history.view, data.draw(st.integers(1, 5))):
        found += entries
    reached = set[SnapshotId]().union(*(ancestors(history, start) for start in starts))
    assert {entry.id for entry in found} == reached & set(history.entries)
    assert found == sorted(found, key=lambda entry: (-entry.time_us, entry.id))
    for entry in found:
        parents = ancestry.retained_parents(entry)
        assert len(set(parents)) == len(parents)
        assert set(parents) == nearest_retained(history, entry.parents)


@given(histories(), st.data())
def test_any_merge_bases_are_those_of_the_model(history: History, data: st.DataObject) -> None:
    entries = st.sampled_from(list(history.entries.values()))
    one, other = data.draw(entries), data.draw(entries)
    common = ancestors(history, one) & ancestors(history, other)
    best = {
        snapshot
        for snapshot in common
        if not any(snapshot in ancestors(history, history.either(higher)) for higher in common - {snapshot})
    }
    found = merge_bases(history.view, one, other)
    assert {entry.id for entry in found} == best
    assert found == sorted(found, key=lambda entry: (-entry.time_us, entry.id))
    assert found == merge_bases(history.view, other, one)


@given(histories(), st.data())
def test_any_ancestor_is_that_of_the_model(history: History, data: st.DataObject) -> None:
    entries = st.sampled_from(list(history.entries.values()))
    one, other = data.draw(entries), data.draw(entries)
    assert is_ancestor(history.view, one, other) == (one.id in ancestors(history, other))
