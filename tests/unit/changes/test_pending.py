"""A pending tile against a dict, sparse and dense, single sets and bulk."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from vstore.changes.pending import ROW_DTYPE, PendingKind, PendingRef, PendingTile

refs = st.builds(
    PendingRef,
    st.sampled_from([kind for kind in PendingKind if kind != PendingKind.INLINE]).map(int),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(0, 2**31),
    st.integers(0, 2**31),
    st.binary(min_size=32, max_size=32),
)


def check(tile: PendingTile, model: dict[int, PendingRef]) -> None:
    positions, rows = tile.to_rows()
    assert positions.tolist() == sorted(model)
    for position, row in zip(positions.tolist(), rows, strict=True):
        assert tile.get(position) == model[position]
        assert row["digest"].tobytes() == model[position].digest
    assert tile.changed == sum(ref.kind != PendingKind.UNCHANGED for ref in model.values())


@given(st.lists(st.tuples(st.integers(0, 40) | st.integers(0, 16_383), refs), max_size=60))
def test_sets(edits: list[tuple[int, PendingRef]]) -> None:
    tile, model = PendingTile(), {}
    for position, ref in edits:
        tile.set(position, ref)
        model[position] = ref
    check(tile, model)


@pytest.mark.parametrize("count", [511, 512, 3000])
def test_a_tile_that_turns_dense(count: int) -> None:
    order = np.random.default_rng(count).permutation(count).tolist()
    tile, model = PendingTile(), {}
    for position in order:
        model[position] = PendingRef(PendingKind.OWN, position, 1)
        tile.set(position, model[position])
    tile.set(7, model.setdefault(7, PendingRef(PendingKind.OWN, 7, 1)))
    check(tile, model)
    assert tile.get(16_383) is None
    assert tile.memory_bytes / count < 140


@given(st.lists(st.integers(0, 99), unique=True), st.lists(st.tuples(st.integers(0, 99), refs)))
def test_bulk_over_singles(bulk: list[int], edits: list[tuple[int, PendingRef]]) -> None:
    tile, model = PendingTile(), {}
    for position, ref in edits:
        tile.set(position, ref)
        model[position] = ref
    rows = np.zeros(len(bulk), dtype=ROW_DTYPE)
    rows["kind"], rows["at"] = PendingKind.VIRTUAL, np.arange(len(bulk))
    tile.set_many(np.array(bulk, dtype=np.uint16), rows)
    model.update((position, PendingRef(PendingKind.VIRTUAL, at)) for at, position in enumerate(bulk))
    check(tile, model)


def test_inline_bytes_use_their_room_again() -> None:
    tile = PendingTile()
    for size in (100, 90, 100, 3):
        tile.set_inline(5, bytes([size]) * size)
        ref = tile.get(5)
        assert ref is not None
        assert tile.read_inline(ref) == bytes([size]) * size
    assert len(tile.inline) <= 200


def as_rows(edits: dict[int, PendingRef]) -> np.ndarray:
    rows = np.zeros(len(edits), ROW_DTYPE)
    for row, ref in zip(rows, edits.values(), strict=True):
        row["digest"] = np.frombuffer(ref.digest, np.uint8)
        for name in ("at", "length", "source", "check", "kind"):
            row[name] = getattr(ref, name)
    return rows


@pytest.mark.parametrize("already", [0, 30, 5000])
@given(edits=st.dictionaries(st.integers(0, 60) | st.integers(0, 16_383), refs, min_size=1, max_size=60))
def test_many_are_put_and_found(already: int, edits: dict[int, PendingRef]) -> None:
    model = {3 * number: PendingRef(PendingKind.OWN, number) for number in range(already)}
    tile = PendingTile()
    if model:
        tile.set_many(np.array(list(model), np.uint16), as_rows(model))
    tile.put_many(np.array(list(edits), np.uint16), as_rows(edits))
    model |= edits
    check(tile, model)
    wanted = [*edits, *range(0, 16_384, 97)]
    written, rows = tile.rows_at(np.array(wanted, np.uint16))
    assert [wanted[at] for at in written.tolist()] == [position for position in wanted if position in model]
    assert rows.tobytes() == as_rows({at: model[wanted[at]] for at in written.tolist()}).tobytes()
    tile.set(16_000, PendingRef(PendingKind.DELETED))
    assert rows.tobytes() == as_rows({at: model[wanted[at]] for at in written.tolist()}).tobytes()
