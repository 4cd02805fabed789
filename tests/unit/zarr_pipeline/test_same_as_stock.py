"""Whatever is read and stored under the pipeline is what zarr's stock pipeline reads and stores, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import vstore
from tests.repositories import quick_folder
from tests.unit.zarr_pipeline.pairs import Pair, watched

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
