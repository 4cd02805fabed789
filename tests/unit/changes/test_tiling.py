"""Tiles: extents for any grid, and the way between chunk indices and positions."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from vstore.changes.tiling import choose_extents, join_indices, split_index, split_indices, tile_is_inside
from vstore.format.manifest import MAX_TILE_CHUNKS

grids = st.lists(st.integers(0, 10**9), max_size=6).map(tuple)


@given(grids)
def test_extents_fit_a_tile_and_cover_something(grid: tuple[int, ...]) -> None:
    extents = choose_extents(grid)
    assert len(extents) == len(grid)
    assert all(extent >= 1 for extent in extents)
    assert math.prod(extents) <= MAX_TILE_CHUNKS


def test_small_dimensions_are_whole_and_the_room_left_goes_to_the_first() -> None:
    assert choose_extents((1, 10, 10)) == (163, 10, 10)
    assert choose_extents((5, 300, 300, 300)) == (5, 14, 14, 14)
    assert choose_extents((100_000_000,)) == (MAX_TILE_CHUNKS,)
    assert choose_extents(()) == ()


@given(grids, st.data())
def test_split_and_join_are_inverse(grid: tuple[int, ...], data: st.DataObject) -> None:
    extents = choose_extents(grid)
    index = tuple(data.draw(st.integers(0, 2 * size + 3)) for size in grid)
    tile, position = split_index(index, extents)
    assert 0 <= position < MAX_TILE_CHUNKS
    tiles, positions = split_indices(np.array([index], dtype=np.int64).reshape(1, len(grid)), extents)
    assert tuple(tiles[0].tolist()) == tile
    assert positions.tolist() == [position]
    assert tuple(join_indices(tile, np.array([position]), extents)[0].tolist()) == index


def test_a_tile_is_inside_a_grid_only_with_its_last_chunk() -> None:
    assert tile_is_inside((1,), (10,), (20,))
    assert not tile_is_inside((1,), (10,), (19,))
