"""Boxes: as few as the indices are regular, and never another set of indices."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from vstore.changes.boxes import Box, boxes_of, expand

Index = tuple[int, ...]

sets_of_indices = st.integers(1, 4).flatmap(
    lambda ndim: st.sets(st.tuples(*[st.integers(0, 4) | st.just(2**62)] * ndim), max_size=40)
)


def as_rows(indices: list[Index], ndim: int) -> np.ndarray:
    return np.array(indices, dtype=np.int64).reshape(len(indices), ndim)


@given(sets_of_indices, st.randoms())
def test_boxes_hold_just_the_indices(indices: set[Index], random) -> None:
    ndim = len(next(iter(indices), (0,)))
    rows = list(indices) + list(indices)[:3]
    random.shuffle(rows)
    boxes = boxes_of(as_rows(rows, ndim))
    assert expand(boxes) == sorted(indices), "disjoint, and exactly these"
    assert list(boxes) == sorted(boxes)
    assert sum(box.size for box in boxes) == len(indices)
    assert len(boxes) <= len(indices)
    assert all(type(i) is int for box in boxes for i in (*box.start, *box.stop)), "plain ints, for users"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5)), min_size=1, max_size=3))
def test_a_whole_block_is_one_box(sides: list[tuple[int, int]]) -> None:
    start = tuple(low for low, _ in sides)
    stop = tuple(low + size for low, size in sides)
    indices = list(itertools.product(*(range(a, b) for a, b in zip(start, stop, strict=True))))
    assert boxes_of(as_rows(indices, len(sides))) == (Box(start, stop),)


def test_blocks_that_touch_at_a_corner_stay_apart() -> None:
    assert boxes_of(np.array([[0, 0], [0, 1], [1, 2], [1, 3]])) == (Box((0, 0), (1, 2)), Box((1, 2), (2, 4)))


def test_few_boxes_where_indices_are_regular() -> None:
    rows = np.argwhere(np.ones((30, 40, 2), dtype=bool))
    holes = rows[~((rows[:, 0] == 10) & (rows[:, 1] == 7))]
    assert len(boxes_of(holes)) == 4
    columns = rows[rows[:, 1] % 10 == 0]
    assert boxes_of(columns) == tuple(Box((0, n, 0), (30, n + 1, 2)) for n in (0, 10, 20, 30))


@pytest.mark.parametrize("ndim", [0, 1, 3])
def test_no_indices_are_no_boxes(ndim: int) -> None:
    assert boxes_of(np.zeros((0, ndim), np.int64)) == ()
    assert expand(()) == []


def test_the_one_index_of_no_dimensions() -> None:
    boxes = boxes_of(np.zeros((1, 0), np.int64))
    assert boxes == (Box((), ()),)
    assert (boxes[0].size, expand(boxes), str(boxes[0])) == (1, [()], "()")


@pytest.mark.parametrize(
    ("box", "text"),
    [
        (Box((3,), (4,)), "(3,)"),
        (Box((3,), (9,)), "(3:9,)"),
        (Box((0, 7), (2, 8)), "(0:2, 7)"),
    ],
)
def test_a_box_reads_like_an_index(box: Box, text: str) -> None:
    assert str(box) == text
