"""Whatever is read and stored under the pipeline is what zarr's stock pipeline reads and stores, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import vstore
from tests.repositories import quick_folder
from tests.unit.zarr_pipeline.pairs import Pair, watched
from vstore.zarr_pipeline import writing

# Data types and codecs of zarr that have no specification yet warn of it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::zarr.errors.UnstableSpecificationWarning",
    "ignore::zarr.errors.ZarrUserWarning",
    "ignore:Missing 'endian':UserWarning",
    "ignore:Numcodecs codecs are not in the Zarr version 3 specification:UserWarning",
)

RECORD = np.dtype([("a", "<i4"), ("b", "<f8"), ("c", "S3")])
DTYPES = [
    "?",
    "i1",
    "<u2",
    ">i4",
    "<i8",
    "f2",
    "<f4",
    ">f8",
    "c8",
    "c16",
    "<M8[ns]",
    "<m8[s]",
    "S5",
    "<U3",
    "V4",
]
"""Those that have a fixed size; `RECORD` has its own tests, for zarr can't do all with it."""
CODECS: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "default": {},
    "zstd-checksum": {"compressors": ZstdCodec(level=3, checksum=True)},
    "gzip": {"compressors": GzipCodec(level=1)},
    "blosc": {"compressors": BloscCodec(cname="lz4", clevel=3)},
    "blosc-bits": {"compressors": BloscCodec(cname="zstd", shuffle="bitshuffle", typesize=2, blocksize=256)},
    "crc32c": {"compressors": Crc32cCodec()},
    "several": {"compressors": [ZstdCodec(level=1), GzipCodec(level=1), Crc32cCodec()]},
    "big-endian": {"serializer": BytesCodec(endian="big"), "compressors": None},
    "transposed": {"filters": TransposeCodec(order=(1, 0)), "compressors": ZstdCodec()},
}
V2_CODECS: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None, "filters": None},
    "default": {},
    "blosc": {"compressors": numcodecs.Blosc(cname="lz4", shuffle=numcodecs.Blosc.SHUFFLE), "filters": None},
    "zlib": {"compressors": numcodecs.Zlib(level=1), "filters": None},
    "lzma": {"compressors": numcodecs.LZMA(), "filters": None},
    "bz2-shuffle": {"compressors": numcodecs.BZ2(level=1), "filters": [numcodecs.Shuffle(elementsize=4)]},
}
SHAPE, CHUNKS = (23, 17), (5, 4)


@pytest.fixture(autouse=True)
def _same_gzip_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # gzip puts the second into the bytes it makes.
    monkeypatch.setattr("gzip.time", SimpleNamespace(time=lambda: 0.0))


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


def values(dtype: Any, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Any:
    """Return values of a type, with zeros and other fill values among them."""
    generator = np.random.default_rng(seed)
    numbers = generator.integers(0, 100, shape)
    numbers[: shape[0] // 3] = 0
    dtype = np.dtype(dtype)
    if dtype.kind == "V" and dtype.names is not None:
        made = np.zeros(shape, dtype)
        made["a"], made["b"], made["c"] = numbers, numbers / 7, numbers.astype("S3")
        return made
    if dtype.kind == "V":
        return np.ascontiguousarray(numbers.astype("<u4")).view(dtype)
    if dtype.kind in "fc":
        made = (numbers / 7).astype(dtype)
        made[numbers == 5] = np.nan
        return made
    if dtype.kind in "mM":
        return numbers.astype("i8").view(dtype.newbyteorder("=")).astype(dtype)
    return numbers.astype(dtype)


def some(data: Any, *index: Any) -> Any:
    return np.ascontiguousarray(data[index])


def writes(data: Any) -> list[Callable[[Any], Any]]:
    """Return edits of every kind of selection, whole chunks and parts."""
    mask = np.zeros(SHAPE, bool)
    mask[3:9, ::5] = True
    rows, columns = np.array([0, 7, 7, 22]), np.array([16, 3, 4, 0])

    return [
        lambda array: array.__setitem__(Ellipsis, data),
        lambda array: array.__setitem__((slice(5, 10), slice(4, 12)), data[:5, :8]),
        lambda array: array.__setitem__((slice(1, 22), slice(2, 3)), data[:21, 5:6]),
        lambda array: array.__setitem__((4, slice(None)), data[9]),
        lambda array: array.__setitem__((22, 16), data[20, 3]),
        lambda array: array.__setitem__(slice(10, 20), data[22, 3]),
        lambda array: array.oindex.__setitem__((rows[[0, 1, 3]], slice(1, 9)), data[:3, :8]),
        lambda array: array.oindex.__setitem__((3, columns[[3, 1, 0]]), data[0, :3]),
        lambda array: array.vindex.__setitem__((rows, columns), data[22, :4]),
        lambda array: array.set_mask_selection(mask, data[21, 1]),
        lambda array: array.blocks.__setitem__((1, slice(0, 2)), data[10:15, :8]),
        lambda array: array.__setitem__((slice(0, 20, 3), slice(None)), data[: len(range(0, 20, 3))]),
        lambda array: array.__setitem__(slice(5, 15), np.asfortranarray(data[5:15])),
        lambda array: array.__setitem__(slice(0, 5), data[:5].astype(data.dtype.newbyteorder())),
    ]


READS: list[Callable[[Any], Any]] = [
    lambda array: array[:],
    lambda array: array[5:10, 4:8],
    lambda array: array[3:19, 2:17],
    lambda array: array[::2, 1::3],
    lambda array: array[7],
    lambda array: array[22, 16],
    lambda array: array[-1, ...],
    lambda array: array[0:0],
    lambda array: array.oindex[[1, 4, 20], 3:9],
    lambda array: array.oindex[2, [0, 8, 16]],
    lambda array: array.oindex[:, np.arange(17) % 3 == 0],
    lambda array: array.vindex[[0, 7, 22, 7], [16, 3, 0, 3]],
    lambda array: array.get_mask_selection(np.arange(23 * 17).reshape(23, 17) % 7 == 0),
    lambda array: array.blocks[1:3, 2],
    lambda array: array[99:],
]


def check(pair: Pair, data: Any) -> None:
    """Write in every way, read in every way: what the session holds, what was committed, and once it was verified."""
    try:
        for act in writes(data):
            pair.write(act)
        for _ in range(2):
            for act in READS:
                pair.both(act)
            pair.commit()
        for act in READS:
            pair.both(act)
        for act in writes(values(data.dtype, seed=1)):
            pair.write(act)
    finally:
        pair.close()


def maker(dtype: Any, codecs: dict[str, Any], **options: Any) -> Callable[[Any], Any]:
    def make(store: Any) -> Any:
        given = {"shape": SHAPE, "chunks": CHUNKS} | codecs | options
        return zarr.create_array(store, name="group/array", dtype=dtype, **given)

    return make


SMALL_INLINE = vstore.RepositoryConfig(inline_chunk_threshold_bytes=40)
"""So that chunks of narrow types lie in manifests, those of others in packs."""


def _check(folder: Path, monkeypatch: Any, dtype: Any, kind: str, **options: Any) -> None:
    """Check an array of which everything is done by vstore's pipeline."""
    with watched(monkeypatch) as seen:
        check(Pair.new(folder, maker(dtype, options), kind, config=SMALL_INLINE), values(dtype))
    assert seen.done > 0
    assert seen.left == 0


ALL_V3 = list(itertools.product(DTYPES, CODECS, ("sqlite", "memory")))
FEW_V3 = [
    *((dtype, "plain", "sqlite") for dtype in DTYPES),
    *(("<f4", codec, "sqlite") for codec in CODECS if codec != "plain"),
    *(("<f4", codec, "memory") for codec in ("plain", "default")),
]


@pytest.mark.parametrize(("dtype", "codec", "kind"), FEW_V3)
def test_v3(folder: Path, monkeypatch: Any, dtype: str, codec: str, kind: str) -> None:
    _check(folder, monkeypatch, dtype, kind, **CODECS[codec])


@pytest.mark.deep
@pytest.mark.parametrize(("dtype", "codec", "kind"), sorted(set(ALL_V3) - set(FEW_V3)))
def test_v3_all(folder: Path, monkeypatch: Any, dtype: str, codec: str, kind: str) -> None:
    _check(folder, monkeypatch, dtype, kind, **CODECS[codec])


FEW_V2 = [
    *((dtype, "default", "C") for dtype in ("?", "<i8", ">f8", "<M8[ns]", "S5", "<U3")),
    *(("<f4", codec, order) for codec in V2_CODECS for order in "CF"),
]
ALL_V2 = list(itertools.product(DTYPES, V2_CODECS, "CF"))


@pytest.mark.parametrize(("dtype", "codec", "order"), FEW_V2)
def test_v2(folder: Path, monkeypatch: Any, dtype: str, codec: str, order: str) -> None:
    _check(folder, monkeypatch, dtype, "sqlite", zarr_format=2, order=order, **V2_CODECS[codec])


@pytest.mark.deep
@pytest.mark.parametrize(("dtype", "codec", "order"), sorted(set(ALL_V2) - set(FEW_V2)))
def test_v2_all(folder: Path, monkeypatch: Any, dtype: str, codec: str, order: str) -> None:
    _check(folder, monkeypatch, dtype, "memory", zarr_format=2, order=order, **V2_CODECS[codec])


@pytest.mark.parametrize("dtype", ["u1", "f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "chunks"), [((6, 5), (3, 1)), ((6, 5), (1, 5)), ((6,), (1,)), ((), ()), ((4, 3, 2), (2, 3, 1))]
)
def test_chunks_whose_items_lie_apart_in_the_value(
    folder: Path, monkeypatch: Any, dtype: str, order: str, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    with watched(monkeypatch) as seen:
        pair = Pair.new(
            folder, maker(dtype, {"shape": shape, "chunks": chunks, "compressors": None}), config=SMALL_INLINE
        )
        data = np.asarray(np.arange(1, 1 + int(np.prod(shape))).reshape(shape), dtype=dtype, order=order)
        pair.write(lambda array: array.__setitem__(Ellipsis, data))
        pair.both(lambda array: array[...])
        pair.commit()
        pair.both(lambda array: array[...])
        pair.write(lambda array: array.__setitem__(Ellipsis, 0))
        pair.both(lambda array: array[...])
        pair.close()
    assert seen.left == 0


FILLS: list[tuple[str, Any]] = [
    ("f4", float("nan")),
    ("f8", -0.0),
    ("f8", 0.0),
    ("f4", float("inf")),
    ("f4", 1.5),
    ("c8", complex(0, 0)),
    ("c8", complex("nan")),
    ("i4", 7),
    ("?", True),
    ("<M8[ns]", "NaT"),
    ("<m8[s]", 5),
    ("S5", b"ab"),
    ("<U3", "xyz"),
]


@pytest.mark.parametrize("write_empty_chunks", [False, True])
@pytest.mark.parametrize(("dtype", "fill"), FILLS, ids=str)
def test_what_is_empty_is_what_zarr_finds_empty(
    folder: Path, monkeypatch: Any, dtype: str, fill: Any, write_empty_chunks: bool
) -> None:
    def make(store: Any) -> Any:
        config = {"write_empty_chunks": write_empty_chunks}
        filled = np.array(fill, np.dtype(dtype))[()]
        return zarr.create_array(
            store, name="a", shape=(60,), chunks=(10,), dtype=dtype, fill_value=filled, config=config
        )

    with watched(monkeypatch) as seen:
        pair = Pair.new(folder, make, config=SMALL_INLINE)
        kind = np.dtype(dtype)
        full = np.full(60, np.array(fill, kind))
        pair.write(lambda array: array.__setitem__(slice(None), full))
        other = values(dtype, (60,), 3)
        pair.write(lambda array: array.__setitem__(slice(None), other))
        pair.commit()
        last_differs = full.copy()
        last_differs[9::10] = other[-1]
        pair.write(lambda array: array.__setitem__(slice(0, 30), last_differs[:30]))
        zeros = np.zeros(60, kind)
        if kind.kind in "fc":
            zeros[::2] = -0.0
        pair.write(lambda array: array.__setitem__(slice(15, 60), zeros[15:]))
        pair.write(lambda array: array.__setitem__(slice(5, 45), full[5:45]))
        pair.write(lambda array: array.__setitem__(slice(0, 60), full[0]))
        pair.commit()
        pair.both(lambda array: array[:])
        pair.close()
    assert seen.left == 0


@pytest.mark.parametrize("codec", ["plain", "default", "crc32c"])
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_large_requests_that_go_to_threads_and_in_groups(
    folder: Path, monkeypatch: Any, codec: str, kind: str
) -> None:
    options = {"shape": (1500, 2000), "chunks": (100, 130)} | CODECS[codec]
    monkeypatch.setattr(writing, "_GROUP_BYTES", 2_000_000)
    with watched(monkeypatch) as seen:
        pair = Pair.new(folder, maker("<f4", options), kind)
        data = np.round(np.random.default_rng(0).random((1500, 2000), dtype="f4"), 2)
        data[200:400, 300:900] = 0
        pair.write(lambda array: array.__setitem__(Ellipsis, data))
        pair.both(lambda array: array[:])
        pair.commit()
        for _ in range(2):
            pair.both(lambda array: array[:])
        pair.write(lambda array: array.__setitem__((slice(50, 1333), slice(77, 1999)), data[-1283:, -1922:]))
        pair.both(lambda array: array[1:1400:3, 5:])
        pair.close()
    assert seen.left == 0


def test_a_rectilinear_grid(folder: Path, monkeypatch: Any) -> None:
    with zarr.config.set({"array.rectilinear_chunks": True}):

        def make(store: Any) -> Any:
            return zarr.create_array(
                store, name="a", shape=(23, 17), chunks=[[5, 8, 10], [10, 7]], dtype="f4"
            )

        try:
            make({})
        except (TypeError, ValueError):
            pytest.skip("this version of zarr has no such grids")
        with watched(monkeypatch) as seen:
            pair = Pair.new(folder, make, config=SMALL_INLINE)
            data = values("f4")
            pair.write(lambda array: array.__setitem__(Ellipsis, data))
            pair.write(lambda array: array.__setitem__((slice(4, 14), slice(9, 12)), data[:10, :3]))
            pair.both(lambda array: array[:])
            pair.commit()
            pair.both(lambda array: array[2:20, 3:])
            pair.close()
    assert seen.left == 0
