"""The cells of single chunks: decoded and encoded as zarr does it, and merged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr

from tests.repositories import Place, quick_folder, write
from vstore.errors import SolverError
from vstore.merge.cells import ChunkCodec, differing, merge_cells
from vstore.session import Session

Index = tuple[int, ...]


@pytest.fixture
def session() -> Iterator[Session]:
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        yield repository.writable_session("main")


def codec_of(session: Session, path: str = "a") -> ChunkCodec:
    node = session.tree.nodes.node(path)
    assert node is not None
    assert node.array is not None
    return ChunkCodec(session.tree.documents(node), node.array.spec)


def chunk_bytes(session: Session, index: Index, path: str = "a") -> bytes | None:
    node = session.tree.nodes.node(path)
    assert node is not None
    assert node.array is not None
    assert node.array.spec.encoding is not None
    return session.tree.read(f"{path}/{node.array.spec.encoding.encode(index)}")


RECORD = np.dtype([("x", "<i4"), ("y", "<f8")])

ARRAYS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "v3": (np.arange(63, dtype="i4").reshape(7, 9), {"chunks": (3, 4)}),
    "v3, no compression": (np.arange(63.0).reshape(7, 9), {"chunks": (3, 4), "compressors": None}),
    "big-endian": (np.arange(7, dtype=">i2"), {"chunks": (3,)}),
    "sharded": (np.arange(64, dtype="u1").reshape(8, 8), {"chunks": (2, 2), "shards": (4, 4)}),
    "sharded, edges": (np.arange(30, dtype="u2").reshape(5, 6), {"chunks": (2, 2), "shards": (4, 4)}),
    "no dimensions": (np.array(5.5), {}),
    "one chunk": (np.arange(5, dtype="i8"), {"chunks": (5,)}),
    "bool": (np.array([True, False, True]), {"chunks": (2,)}),
    "complex": (np.arange(4) * 1j, {"chunks": (3,)}),
    "dates": (np.array(["2020-01-01", "NaT"], "M8[s]"), {"chunks": (2,)}),
    "dot keys": (
        np.arange(6).reshape(2, 3),
        {"chunks": (1, 2), "chunk_key_encoding": {"name": "default", "separator": "."}},
    ),
    "v2": (np.arange(63, dtype="i4").reshape(7, 9), {"chunks": (3, 4), "zarr_format": 2}),
    "v2, Fortran order": (np.arange(12).reshape(3, 4), {"chunks": (2, 3), "zarr_format": 2, "order": "F"}),
    "v2, no dimensions": (np.array(5), {"zarr_format": 2}),
    "v2 records": (
        np.array([(1, 2.0), (3, 4.0), (5, 6.0)], RECORD),
        {"chunks": (2,), "zarr_format": 2, "fill_value": None},
    ),
    "v2 bytes": (np.array([b"a", b"", b"bc"], "S4"), {"chunks": (2,), "zarr_format": 2}),
}


@pytest.mark.filterwarnings(
    "ignore::zarr.errors.UnstableSpecificationWarning", "ignore:.*order.*:RuntimeWarning"
)
@pytest.mark.parametrize("name", ARRAYS)
def test_a_chunk_is_decoded_and_encoded_as_zarr_does(session: Session, name: str) -> None:
    data, options = ARRAYS[name]
    array = (
        zarr.create_array(session.store, name="a", data=data, config={"write_empty_chunks": True}, **options)
        if "fill_value" not in options
        else _created(session, data, options)
    )
    codec = codec_of(session)
    unit = array.shards or array.chunks
    for index in np.ndindex(*[math.ceil(n / c) for n, c in zip(data.shape, unit, strict=True)]):
        assert codec.shape(index) == unit
        origin = tuple(i * c for i, c in zip(index, unit, strict=True))
        assert codec.origin(index) == origin
        stored = chunk_bytes(session, index)
        cells = codec.decode(stored, index)
        assert cells.shape == unit
        part = data[tuple(slice(o, o + c) for o, c in zip(origin, unit, strict=True))]
        inside = cells[tuple(slice(0, n) for n in part.shape)]
        np.testing.assert_array_equal(inside, part)
        again = codec.encode(cells, index)
        np.testing.assert_array_equal(codec.decode(again, index), cells)
        assert codec.encode(cells, index) == again, "one chunk leaves nothing for the next"
        # What was encoded reads as these cells in the array itself.
        session.tree.set(_key(session, index), again)
    np.testing.assert_array_equal(zarr.open_array(session.store, path="a", mode="r")[...], data)


def _created(session: Session, data: np.ndarray, options: dict[str, Any]) -> Any:
    array = zarr.create_array(session.store, name="a", shape=data.shape, dtype=data.dtype, **options)
    array[...] = data
    return array


def _key(session: Session, index: Index) -> str:
    node = session.tree.nodes.node("a")
    assert node is not None
    assert node.array is not None
    assert node.array.spec.encoding is not None
    return f"a/{node.array.spec.encoding.encode(index)}"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_text_of_any_length(session: Session, zarr_format: int) -> None:
    array = zarr.create_array(
        session.store, name="a", shape=(3,), chunks=(2,), dtype=str, zarr_format=zarr_format
    )
    array[...] = np.array(["one", "", "\N{SNOWMAN} three"])
    codec = codec_of(session)
    cells = codec.decode(chunk_bytes(session, (0,)), (0,))
    assert cells.tolist() == ["one", ""]
    base = cells.copy()
    ours, theirs = base.copy(), base.copy()
    ours[0], theirs[1] = "uno", "two"
    merged = merge_cells(base, ours, theirs)
    assert (merged.cells.tolist(), merged.clashes.tolist()) == (["uno", "two"], [False, False])
    session.tree.set(_key(session, (0,)), codec.encode(merged.cells, (0,)))
    assert zarr.open_array(session.store, path="a", mode="r")[...].tolist() == [
        "uno",
        "two",
        "\N{SNOWMAN} three",
    ]


@pytest.mark.parametrize(
    ("options", "fill"),
    [
        ({"fill_value": 7}, 7),
        ({"fill_value": 7, "zarr_format": 2}, 7),
        ({"fill_value": 7, "shards": (4,), "chunks": (2,)}, 7),
        ({"zarr_format": 2, "fill_value": None}, 0),
    ],
)
def test_an_absent_chunk_is_fill_value(session: Session, options: dict[str, Any], fill: int) -> None:
    zarr.create_array(
        session.store, **({"name": "a", "shape": (10,), "chunks": (4,), "dtype": "i4"} | options)
    )
    codec = codec_of(session)
    np.testing.assert_array_equal(
        codec.decode(codec.encode(np.arange(4, dtype="i4"), (0,)), (0,)), np.arange(4)
    )
    np.testing.assert_array_equal(codec.decode(None, (2,)), np.full(4, fill))


def test_a_chunk_of_fill_value_has_bytes(session: Session) -> None:
    """A merge that makes all cells fill value must replace what was there."""
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(4,), dtype="i4", fill_value=0)
    codec = codec_of(session)
    data = codec.encode(np.zeros(4, "i4"), (0,))
    assert data
    np.testing.assert_array_equal(codec.decode(data, (0,)), np.zeros(4))


def rectilinear(shape: list[int], dimensions: list[Any]) -> bytes:
    grid = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": dimensions}}
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "int16",
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("index", "shape", "origin"),
    [
        ((0, 0, 0), (1, 5, 2), (0, 0, 0)),
        ((1, 0, 0), (2, 5, 2), (1, 0, 0)),
        ((2, 2, 3), (3, 5, 2), (3, 10, 6)),
        ((0, 1, 4), (1, 5, 7), (0, 5, 8)),
        ((0, 1, 5), (1, 5, 7), (0, 5, 15)),
    ],
)
def test_chunks_of_a_rectilinear_grid(session: Session, index: Index, shape: Index, origin: Index) -> None:
    write(session, {"a/zarr.json": rectilinear([6, 20, 22], [[1, 2, 3], 5, [[2, 4], [7, 2]]])})
    codec = codec_of(session)
    assert codec.shape(index) == shape
    assert codec.origin(index) == origin
    cells = np.arange(math.prod(shape), dtype="i2").reshape(shape)
    data = codec.encode(cells, index)
    assert data == cells.tobytes()
    np.testing.assert_array_equal(codec.decode(data, index), cells)


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (np.zeros((3, 3), "i4"), r"it has shape \(3, 3\), the chunk has \(2, 3\)"),
        (np.zeros(6, "i4"), "it has shape"),
        (5, "it has shape"),
        (np.zeros((2, 3), "f8"), "it has dtype float64, the array has int32"),
        (np.full((2, 3), "text"), "it has dtype"),
        (np.zeros((2, 3), "c16"), "it has dtype complex128"),
        (None, "it has shape"),
        (object(), "it has shape"),
    ],
)
def test_cells_that_do_not_fit_are_the_solvers_mistake(session: Session, cells: Any, text: str) -> None:
    zarr.create_array(session.store, name="a", shape=(4, 6), chunks=(2, 3), dtype="i4")
    with pytest.raises(SolverError, match=text):
        codec_of(session).encode(cells, (1, 1))


# --- merging cells -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", ["i4", "f8", "c16", "M8[s]", "m8[D]", "?", "U3", "S2", "O"])
def test_cells_merge_like_single_values(dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool: np.ndarray = np.arange(3).astype(dtype)
    if np.dtype(dtype).kind in "fcmM":
        pool = np.append(pool, np.array(["NaT" if np.dtype(dtype).kind in "mM" else np.nan], dtype=dtype))
    shape = tuple(rng.integers(0, 4, int(rng.integers(0, 4))).tolist())
    base, one, other = (np.asarray(rng.choice(pool, shape), dtype=dtype) for _ in range(3))
    merged = merge_cells(base, one, other)
    swapped = merge_cells(base, other, one)
    assert merged.cells.dtype == base.dtype
    assert merged.cells.shape == merged.clashes.shape == base.shape
    for index in np.ndindex(*shape):
        values = [repr(side[index]) for side in (base, one, other)]
        if values[1] == values[2]:
            expected, clashes = values[1], False
        elif values[1] == values[0]:
            expected, clashes = values[2], False
        elif values[2] == values[0]:
            expected, clashes = values[1], False
        else:
            expected, clashes = None, True
        assert bool(merged.clashes[index]) == clashes == bool(swapped.clashes[index])
        if not clashes:
            assert repr(merged.cells[index]) == expected == repr(swapped.cells[index])


def test_records_merge_whole() -> None:
    base = np.array([(1, 1.0), (2, 2.0), (3, 3.0)], RECORD)
    one, other = base.copy(), base.copy()
    one[0], other[1] = (9, 1.0), (2, 9.0)
    one[2], other[2] = (8, 3.0), (3, 8.0)
    merged = merge_cells(base, one, other)
    assert merged.clashes.tolist() == [False, False, True]
    assert merged.cells[:2].tolist() == [(9, 1.0), (2, 9.0)]


def test_not_a_number_in_a_record_is_no_change() -> None:
    base = np.array([(1, np.nan)], RECORD)
    assert not merge_cells(base, base.copy(), base.copy()).clashes.any()


def test_nothing_differs_from_itself() -> None:
    for cells in (np.array([np.nan, 1.0]), np.array(["NaT"], "M8[s]"), np.array(np.nan), np.zeros((0, 3))):
        assert not differing(cells, cells.copy()).any()
        assert differing(cells, cells).shape == cells.shape


def test_values_that_the_dtype_does_not_have_are_refused(session: Session) -> None:
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(4,), dtype="int8")
    codec = codec_of(session)
    with pytest.raises(SolverError, match="int8 does not have"):
        codec.encode(np.array([300, 1, 2, 3]), (0,))
    assert codec.decode(codec.encode([4, 3, 2, 1], (0,)), (0,)).tolist() == [4, 3, 2, 1]
