"""Rows of chunk refs against dicts: laid over each other, joined, aligned, renumbered, cut into tiles."""

from __future__ import annotations

from typing import Any, TypeAlias

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from vstore.changes.dictionaries import Dictionaries
from vstore.changes.layering import merge_manifests
from vstore.changes.pending import ROW_DTYPE, PendingKind, PendingTile
from vstore.changes.rows import (
    NO_ROWS,
    ChunkRows,
    align,
    changed_positions,
    from_manifest,
    iter_tiles,
    join,
    overlay,
    pack_inline,
    select,
    translate,
)
from vstore.changes.tiling import split_index
from vstore.format.manifest import ChunkKind, Manifest
from vstore.format.node import tile_key
from vstore.ids import PackId, blake3_digest

Ref: TypeAlias = tuple[Any, ...]
"""What a row says in words: ("inline", bytes), ("virtual", location, offset, length, checksum) and so on."""

PACKS = tuple(PackId(bytes([n]) * 16) for n in range(3))
DATA = (b"", b"one", b"two", b"a long one")

inline = st.tuples(st.just("inline"), st.sampled_from(DATA[1:]))
stored = st.tuples(st.just("stored"), st.sampled_from(PACKS), st.integers(0, 5), st.sampled_from(DATA[1:]))
own = st.tuples(st.just("own"), st.integers(0, 5), st.sampled_from(DATA[1:]))
virtual = st.tuples(
    st.just("virtual"),
    st.sampled_from(["file:///x", "file:///y"]),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([None, "etag", 7]),
)
live_refs = st.one_of(inline, stored, own, virtual)
edits = live_refs | st.just(("deleted",)) | st.just(("unchanged",))
positions = st.integers(0, 12) | st.integers(0, 16_383)
live_models = st.dictionaries(positions, live_refs, max_size=12)
edit_models = st.dictionaries(positions, edits, max_size=12)

KINDS = {kind.name.lower(): kind for kind in PendingKind}


def rows_of(model: dict[int, Ref], dictionaries: Dictionaries, junk: bytes = b"") -> ChunkRows:
    """Return a model as rows; `junk` are inline bytes that no row uses."""
    found, data = np.zeros(len(model), ROW_DTYPE), bytearray(junk)
    for row, position in zip(found, sorted(model), strict=True):
        kind, *rest = model[position]
        row["kind"] = KINDS[kind]
        if kind == "virtual":
            row["source"] = dictionaries.locations.number(rest[0])
            row["at"], row["length"] = rest[1:3]
            row["check"] = dictionaries.checksum_number(rest[3])
        elif kind in ("stored", "own", "inline"):
            row["length"] = len(rest[-1])
            if kind == "inline":
                row["at"] = len(data)
                data += rest[0]
            else:
                row["digest"] = np.frombuffer(blake3_digest(rest[-1]), np.uint8)
                row["at"] = rest[-2]
            if kind == "stored":
                row["source"] = dictionaries.packs.number(rest[0])
    return ChunkRows(np.array(sorted(model), dtype=np.uint16), found, bytes(data))


def model_of(content: ChunkRows, dictionaries: Dictionaries) -> dict[int, Ref]:
    """Return what rows say, in words."""
    names = {int(kind): name for name, kind in KINDS.items()}
    by_digest = {blake3_digest(data): data for data in DATA}
    found: dict[int, Ref] = {}
    assert content.positions.tolist() == sorted(set(content.positions.tolist())), "increasing"
    for position, row in zip(content.positions.tolist(), content.rows, strict=True):
        name, at, length, source = (
            names[int(row["kind"])],
            int(row["at"]),
            int(row["length"]),
            int(row["source"]),
        )
        if name == "inline":
            found[position] = (name, bytes(content.inline[at : at + length]))
        elif name == "virtual":
            checksum = dictionaries.checksum(int(row["check"]))
            found[position] = (name, dictionaries.locations.names[source], at, length, checksum)
        elif name == "stored":
            found[position] = (name, dictionaries.packs.names[source], at, by_digest[row["digest"].tobytes()])
        elif name == "own":
            found[position] = (name, at, by_digest[row["digest"].tobytes()])
        else:
            found[position] = (name,)
    return found


def bytes_of(ref: Ref | None) -> Any:
    """Return what tells refs apart: where the bytes are makes no difference, but for virtual ones."""
    return ref if ref is None or ref[0] == "virtual" else ref[-1]


def in_tile(content: ChunkRows) -> bool:
    """Tell whether the rows can be put into a pending tile and come out the same."""
    tile = PendingTile()
    tile.set_many(content.positions, content.rows)
    return bool((tile.to_rows()[1] == content.rows).all())


@given(edit_models)
def test_a_model_survives_its_rows(model: dict[int, Ref]) -> None:
    dictionaries = Dictionaries()
    content = rows_of(model, dictionaries, b"junk")
    assert model_of(content, dictionaries) == model
    assert len(content) == len(model)
    assert in_tile(content)


@given(live_models, edit_models)
def test_edits_lie_over_what_is_below(below: dict[int, Ref], edited: dict[int, Ref]) -> None:
    dictionaries = Dictionaries()
    over = rows_of(edited, dictionaries, b"more junk")
    found = overlay(rows_of(below, dictionaries, b"junk"), over.positions, over.rows, over.inline)
    expected = {**below, **{p: ref for p, ref in edited.items() if ref[0] != "unchanged"}}
    expected = {p: ref for p, ref in expected.items() if ref[0] != "deleted"}
    assert model_of(found, dictionaries) == expected


@given(st.lists(live_models, max_size=4))
def test_parts_are_joined(models: list[dict[int, Ref]]) -> None:
    dictionaries = Dictionaries()
    seen: set[int] = set()
    parts, expected = [], {}
    for model in models:
        own_part = {p: ref for p, ref in model.items() if p not in seen}
        seen |= set(own_part)
        parts.append(rows_of(own_part, dictionaries, b"junk" * len(parts)))
        expected |= own_part
    before = [part.rows.copy() for part in parts]
    assert model_of(join(parts), dictionaries) == expected
    assert all((part.rows == rows).all() for part, rows in zip(parts, before, strict=True)), (
        "parts stay as they are"
    )


@given(live_models, st.data())
def test_selected_rows_keep_only_the_inline_bytes_that_they_use(
    model: dict[int, Ref], data: st.DataObject
) -> None:
    dictionaries = Dictionaries()
    content = rows_of(model, dictionaries, b"junk")
    kept = {p for p in model if data.draw(st.booleans())}
    chosen = select(content, np.isin(content.positions, list(kept)))
    packed = pack_inline(chosen)
    expected = {p: model[p] for p in kept}
    assert model_of(chosen, dictionaries) == model_of(packed, dictionaries) == expected
    assert len(packed.inline) == sum(len(ref[1]) for ref in expected.values() if ref[0] == "inline")
    assert model_of(content, dictionaries) == model


@given(st.lists(live_models, min_size=1, max_size=3))
def test_contents_side_by_side(models: list[dict[int, Ref]]) -> None:
    dictionaries = Dictionaries()
    contents = [rows_of(model, dictionaries, b"j" * n) for n, model in enumerate(models)]
    aligned = align(contents)
    every = sorted(set().union(*models))
    assert aligned.positions.tolist() == every
    for which, model in enumerate(models):
        assert aligned.has(which).tolist() == [p in model for p in every]
        rows = [contents[which].positions[n] for n in aligned.numbers[which].tolist() if n >= 0]
        assert rows == sorted(model)
        for other, others in enumerate(models):
            expected = [bytes_of(model.get(p)) == bytes_of(others.get(p)) for p in every]
            assert aligned.same(which, other).tolist() == expected
    changed = [p for p in every if bytes_of(models[0].get(p)) != bytes_of(models[-1].get(p))]
    assert changed_positions(contents[0], contents[-1]).tolist() == changed


def test_equal_bytes_are_equal_wherever_they_are() -> None:
    """A commit seals what a session had inline or in its own packs; that is no change."""
    dictionaries = Dictionaries()
    places: list[Ref] = [("inline", b"one"), ("own", 3, b"one"), ("stored", PACKS[0], 1, b"one")]
    places.append(("stored", PACKS[2], 4, b"one"))
    for one in places:
        for other in places:
            pair = rows_of({5: one}, dictionaries), rows_of({5: other}, dictionaries, b"junk")
            assert not len(changed_positions(*pair))
    for strange in (("inline", b"two"), ("virtual", "file:///x", 0, 3, None)):
        pair = rows_of({5: places[0]}, dictionaries), rows_of({5: strange}, dictionaries)
        assert changed_positions(*pair).tolist() == [5]


@given(live_models, live_models)
def test_renumbered_refs_say_the_same(earlier: dict[int, Ref], model: dict[int, Ref]) -> None:
    mine, others = Dictionaries(), Dictionaries()
    rows_of(earlier, others)
    content = rows_of(model, mine)
    before = content.rows.copy()
    translated = translate(content, mine, others)
    assert model_of(translated, others) == model
    assert (content.rows == before).all()
    assert translate(content, mine, mine) is content
    assert not len(changed_positions(translated, rows_of(model, others)))


def test_no_rows() -> None:
    assert not len(NO_ROWS)
    assert join([]) is NO_ROWS
    assert not len(align([NO_ROWS, NO_ROWS]).positions)
    assert not len(changed_positions(NO_ROWS, NO_ROWS))
    assert overlay(NO_ROWS, NO_ROWS.positions, NO_ROWS.rows, b"") is NO_ROWS
    assert model_of(pack_inline(NO_ROWS), Dictionaries()) == {}


@given(live_models, st.sets(positions, max_size=4), live_models)
def test_a_manifest_as_rows(model: dict[int, Ref], deleted: set[int], earlier: dict[int, Ref]) -> None:
    committed = {p: ref for p, ref in model.items() if ref[0] != "own" and p not in deleted}
    manifest = manifest_of({**committed, **dict.fromkeys(deleted, ("deleted",))})
    dictionaries = Dictionaries()
    rows_of(earlier, dictionaries)
    content = from_manifest(manifest, dictionaries)
    assert model_of(content, dictionaries) == committed
    assert in_tile(content)
    assert not len(changed_positions(content, rows_of(committed, dictionaries)))


def manifest_of(model: dict[int, Ref]) -> Manifest:
    dictionaries = Dictionaries()
    content = rows_of(model, dictionaries)
    rows = content.rows
    manifest = Manifest(
        content.positions,
        rows["kind"].copy(),
        rows["source"].copy(),
        rows["at"].copy(),
        rows["length"].copy(),
        rows["check"].copy(),
        np.ascontiguousarray(rows["digest"]),
        bytes(content.inline),
        tuple(dictionaries.packs.names),
        tuple(dictionaries.locations.names),
        tuple(dictionaries.checksums.names),
    )
    assert int(ChunkKind.DELETED) == int(PendingKind.DELETED)
    return merge_manifests([manifest], drop_deleted=False)


# --- tiles ---------------------------------------------------------------------------------------------------


@given(st.data(), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_indices_fall_into_tiles(data: st.DataObject, extents: list[int]) -> None:
    index = st.tuples(*[st.integers(0, 12) | st.just(2**40)] * len(extents))
    indices = data.draw(st.lists(index, unique=True, max_size=40))
    expected: dict[bytes, dict[int, tuple[int, ...]]] = {}
    for found in indices:
        tile, position = split_index(found, tuple(extents))
        expected.setdefault(tile_key(tile), {})[position] = found
    rows = np.array(indices, dtype=np.int64).reshape(len(indices), len(extents))
    seen = {}
    for key, places, chosen in iter_tiles(rows, tuple(extents)):
        assert places.dtype == np.uint16
        assert key not in seen
        assert places.tolist() == sorted(set(places.tolist()))
        seen[key] = dict(zip(places.tolist(), map(tuple, rows[chosen].tolist()), strict=True))
    assert seen == expected


@pytest.mark.parametrize("count", [0, 1])
def test_the_one_tile_of_no_dimensions(count: int) -> None:
    found = list(iter_tiles(np.zeros((count, 0), np.int64), ()))
    assert [(key, places.tolist(), rows.tolist()) for key, places, rows in found] == [(b"", [0], [0])][:count]
