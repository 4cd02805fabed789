"""What the pipeline leaves to zarr's own, and that nobody notices: other stores, sharding, unknown codecs and types."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.errors
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec
from zarr.core.array import create_codec_pipeline
from zarr.core.array_spec import ArraySpec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import get_pipeline_class
from zarr.storage import LocalStore, LoggingStore, MemoryStore

import vstore
from tests.repositories import Place, quick_folder
from tests.unit.zarr_pipeline.pairs import Pair, stock, watched
from vstore import zarr_pipeline
from vstore.worktree.tree import Worktree
from vstore.zarr_pipeline import VstoreCodecPipeline, coder

pytestmark = pytest.mark.filterwarnings(
    "ignore::zarr.errors.UnstableSpecificationWarning", "ignore::zarr.errors.ZarrUserWarning"
)

PATH = "vstore.zarr_pipeline.VstoreCodecPipeline"


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def store(local: vstore.Repository) -> Any:
    return local.writable_session("main").store


def pipeline_of(array: Any) -> Any:
    return array.async_array.codec_pipeline


# --- opting in -----------------------------------------------------------------------------------------------


def test_enabling_lasts_as_long_as_the_block(store: Any) -> None:
    before = zarr.config.get("codec_pipeline.path")
    with zarr_pipeline.enable():
        array = zarr.create_array(store, name="own", shape=(4,), dtype="i4")
    assert zarr.config.get("codec_pipeline.path") == before
    assert type(pipeline_of(array)) is VstoreCodecPipeline
    assert type(pipeline_of(zarr.open_array(store, path="own"))) is BatchedCodecPipeline


def test_enabling_is_one_setting_of_zarr(store: Any) -> None:
    with zarr.config.set({"codec_pipeline.path": PATH}):
        assert get_pipeline_class() is VstoreCodecPipeline
        assert (
            type(pipeline_of(zarr.create_array(store, name="a", shape=(4,), dtype="i4")))
            is VstoreCodecPipeline
        )


def test_the_entry_point_is_the_class_under_its_own_name() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["zarr.codec_pipeline"].items()
    found = EntryPoint(name, value, "zarr.codec_pipeline").load()
    assert found is VstoreCodecPipeline
    assert f"{found.__module__}.{found.__qualname__}" == PATH


def test_pipelines_of_one_array_are_equal_and_survive_pickling(store: Any) -> None:
    with zarr_pipeline.enable():
        array = zarr.create_array(store, name="a", shape=(40,), chunks=(10,), dtype="f4")
        array[:] = 1
        again = zarr.open_array(store, path="a")
        assert pipeline_of(array) == pipeline_of(again)
        copy = pickle.loads(pickle.dumps(pipeline_of(array)))
        assert type(copy) is VstoreCodecPipeline
        assert copy == pipeline_of(array)
        assert repr(copy) == repr(pipeline_of(array))
        array[5:7] = 2
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(array))[:], array[:])


def test_what_zarr_asks_of_a_pipeline_is_answered_by_the_stock_one(store: Any) -> None:
    with zarr_pipeline.enable():
        array = zarr.create_array(store, name="a", shape=(40,), chunks=(10,), dtype=">f4", compressors=None)
    own = pipeline_of(array)
    prototype = zarr.core.buffer.default_buffer_prototype()
    spec = ArraySpec((10,), array.metadata.data_type, 0, array.config, prototype)
    assert [type(codec) for codec in own] == [type(codec) for codec in own.stock]
    assert own.supports_partial_decode == own.stock.supports_partial_decode
    assert own.supports_partial_encode == own.stock.supports_partial_encode
    own.validate(shape=array.shape, dtype=array.metadata.data_type, chunk_grid=array.metadata.chunk_grid)
    assert own.compute_encoded_size(40, spec) == own.stock.compute_encoded_size(40, spec)
    # Some versions of zarr can't do this twice.
    with contextlib.suppress(ValueError):
        assert own.evolve_from_array_spec(spec) == own

    async def through(pipeline: Any) -> Any:
        chunk = zarr.buffer.cpu.NDBuffer.from_numpy_array(np.arange(10, dtype=">f4"))
        (encoded,) = await pipeline.encode([(chunk, spec)])
        (decoded,) = await pipeline.decode([(encoded, spec)])
        return encoded.to_bytes(), decoded.as_numpy_array().tolist()

    assert asyncio.run(through(own)) == asyncio.run(through(own.stock))


# --- other stores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "local", "wrapped"])
def test_other_stores_get_the_stock_pipeline(folder: Path, store: Any, kind: str) -> None:
    other = {
        "memory": MemoryStore,
        "local": lambda: LocalStore(folder / "plain"),
        "wrapped": lambda: LoggingStore(store),
    }
    with zarr_pipeline.enable():
        array = zarr.create_array(other[kind](), name="a", shape=(40,), chunks=(10,), dtype="f4")
        assert type(pipeline_of(array)) is BatchedCodecPipeline
        with stock():
            assert pipeline_of(array) == pipeline_of(zarr.open_array(array.store, path="a"))
        array[3:] = 7
        assert array[:].tolist() == [0] * 3 + [7] * 37
        sharded = zarr.create_array(array.store, name="s", shape=(40,), chunks=(5,), shards=(20,), dtype="f4")
        sharded[3:] = 7
        assert sharded[:].tolist() == [0] * 3 + [7] * 37


def test_without_a_store_zarr_gets_its_own_pipeline() -> None:
    array = zarr.create_array({}, shape=(4,), chunks=(2,), dtype="i4")
    with zarr_pipeline.enable():
        assert create_codec_pipeline(array.metadata) == pipeline_of(array)
    with pytest.raises(NotImplementedError):
        VstoreCodecPipeline.from_array_metadata_and_store(array.metadata, MemoryStore())


# --- what is left to zarr ------------------------------------------------------------------------------------


LEFT: dict[str, dict[str, Any]] = {
    "sharded": {"dtype": "f4", "shards": (20, 8)},
    "sharded whole": {"dtype": "f4", "shards": (20, 8), "compressors": None},
    "sharding as a serializer": {
        "dtype": "f4",
        "chunks": (10, 8),
        "serializer": ShardingCodec(chunk_shape=(5, 4), codecs=[BytesCodec(), ZstdCodec()]),
        "compressors": ZstdCodec(),
    },
    "text": {"dtype": "str"},
    "text, v2": {"dtype": "str", "zarr_format": 2},
    "an unknown codec": {"dtype": "f4", "compressors": [{"name": "numcodecs.lz4", "configuration": {}}]},
    "v2 with an unknown filter": {
        "dtype": "u1",
        "zarr_format": 2,
        "filters": [numcodecs.Base64()],
        "compressors": None,
    },
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_here_is_done_by_zarr(folder: Path, monkeypatch: Any, name: str) -> None:
    def make(target: Any) -> Any:
        return zarr.create_array(target, name="a", **({"shape": (23, 17), "chunks": (5, 4)} | LEFT[name]))

    numbers = np.random.default_rng(0).integers(0, 99, (23, 17))
    with watched(monkeypatch) as seen:
        pair = Pair.new(folder, make)
        data = numbers.astype(pair.arrays[0].dtype if "text" not in name else "U2")
        data = data.astype(object) if name == "text, v2" else data
        pair.write(lambda array: array.__setitem__(Ellipsis, data))
        pair.write(lambda array: array.__setitem__((slice(3, 11), 5), data[:8, 1]))
        pair.both(lambda array: array[:])
        pair.both(lambda array: array[2:9, ::3])
        pair.commit()
        pair.both(lambda array: array[:])
        pair.close()
    assert seen.done == 0
    assert seen.left > 0


def test_a_record_array_is_read_and_written_as_zarr_does_it(folder: Path) -> None:
    record = np.dtype([("a", "<i4"), ("b", "<f8")])

    def make(target: Any) -> Any:
        return zarr.create_array(target, name="a", shape=(23,), chunks=(5,), dtype=record, zarr_format=2)

    data = np.zeros(23, record)
    data["a"], data["b"] = np.arange(23), np.arange(23) / 7
    other = np.zeros(10, [("x", "<f8"), ("y", "<i4")])
    other["x"], other["y"] = 3, 4
    pair = Pair.new(folder, make)
    pair.write(lambda array: array.__setitem__(Ellipsis, data))
    pair.write(lambda array: array.__setitem__(slice(3, 9), data[:6]))
    # Another record of the same size: zarr compares only the names of types, which are equal.
    pair.write(lambda array: array.__setitem__(slice(5, 15), other))
    pair.commit()
    pair.both(lambda array: array[:])
    pair.both(lambda array: array[7])
    pair.both(lambda array: array.get_basic_selection(slice(2, 9), fields="b"))
    pair.close()


def test_buffers_that_are_not_plain_numpy_are_left_to_zarr(store: Any, monkeypatch: Any) -> None:
    from zarr.testing.buffer import NDBufferUsingTestNDArrayLike, TestBuffer

    prototype = zarr.core.buffer.BufferPrototype(buffer=TestBuffer, nd_buffer=NDBufferUsingTestNDArrayLike)
    with zarr_pipeline.enable(), watched(monkeypatch) as seen:
        array = zarr.create_array(store, name="a", shape=(40,), chunks=(10,), dtype="f4")
        array.set_basic_selection(slice(5, 25), np.arange(20, dtype="f4"), prototype=prototype)
        read = array.get_basic_selection(slice(0, 30), prototype=prototype)
        assert seen.left == 2
        assert np.asarray(read).tolist() == [0] * 5 + list(range(20)) + [0] * 5


def test_memory_maps_are_written_like_arrays(store: Any, folder: Path, monkeypatch: Any) -> None:
    mapped = np.memmap(folder / "data", dtype="f4", mode="w+", shape=(40,))
    mapped[:] = np.arange(40)
    with zarr_pipeline.enable(), watched(monkeypatch) as seen:
        array = zarr.create_array(store, name="a", shape=(40,), chunks=(10,), dtype="f4")
        array[:] = mapped
        assert array[:].tolist() == list(range(40))
        assert seen.left == 0


def test_a_chunk_that_can_not_be_decoded_raises_what_zarr_raises(folder: Path, monkeypatch: Any) -> None:
    for name, options in {
        "zstd": {},
        "plain": {"compressors": None},
        "crc": {"compressors": [{"name": "crc32c"}]},
    }.items():

        def make(target: Any, options: Any = options) -> Any:
            return zarr.create_array(target, name="a", shape=(40,), chunks=(10,), dtype="f4", **options)

        with watched(monkeypatch) as seen:
            pair = Pair.new(folder / name, make)
            pair.write(lambda array: array.__setitem__(slice(None), np.arange(40)))
            for session in pair.sessions:
                session.tree_for_writing().set("a/c/2", b"not a chunk of ten floats")
            for act in (
                lambda array: array[:],
                lambda array: array[25],
                lambda array: array.__setitem__(25, 1),
            ):
                one, other = pair.both(act)
                assert isinstance(one, Exception)
                assert str(one) == str(other)
            assert seen.left == 3
            pair.both(lambda array: array[:20])
            pair.close()


@pytest.mark.skipif(
    not hasattr(zarr.errors, "ChunkNotFoundError"),
    reason="this version of zarr never tells of missing chunks",
)
def test_zarr_tells_of_missing_chunks(local: vstore.Repository) -> None:
    store = local.writable_session("main").store
    with zarr_pipeline.enable():
        zarr.create_array(store, name="a", shape=(100,), chunks=(10,), dtype="f4")[:50] = 1
        array = zarr.open_array(store, path="a", config={"read_missing_chunks": False})
        assert array[:50].tolist() == [1] * 50
        with pytest.raises(zarr.errors.ChunkNotFoundError, match="5 chunk"):
            array[:]


def test_coders_are_made_for_known_codecs_only() -> None:
    assert coder.coder_for([BytesCodec()]) is not None
    assert coder.coder_for([BytesCodec(), ZstdCodec(), ZstdCodec()]) is not None
    assert coder.coder_for([ShardingCodec(chunk_shape=(2,))]) is None
    assert coder.coder_for([]) is None

    class OtherBytes(BytesCodec):
        pass

    assert coder.coder_for([OtherBytes()]) is None


def test_what_may_not_be_written_raises_as_the_store_does(folder: Path) -> None:
    pair = Pair.new(
        folder, lambda store: zarr.create_array(store, name="a", shape=(40,), chunks=(10,), dtype="f4")
    )
    pair.write(lambda array: array.__setitem__(slice(None), np.arange(40)))
    pair.commit()
    kept = list(pair.arrays)
    for read_only in (True, False):
        for number, session in enumerate(pair.sessions):
            store = session.store.with_read_only(read_only)
            with stock() if number == 0 else zarr_pipeline.enable():
                pair.arrays[number] = zarr.open_array(store, path="a", mode="r" if read_only else "r+")
        if not read_only:
            for array, session in zip(pair.arrays, pair.sessions, strict=True):
                array[3] = 7
                session.commit("one item")
        one, other = pair.both(lambda array: array.__setitem__(slice(5, 30), 1))
        assert isinstance(one, Exception)
        assert str(one) == str(other)
    pair.arrays = kept
    pair.close()


def test_the_documents_example_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/pipeline.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    code = block + "\nprint(type(array.async_array.codec_pipeline).__name__)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("VstoreCodecPipeline\n", "")


def test_zarr_does_not_load_vstore_for_its_pipeline_alone() -> None:
    code = (
        "import sys, zarr, vstore.zarr_pipeline; vstore.zarr_pipeline.enable();"
        "zarr.create_array({}, shape=4, dtype='i4')[:];"
        "print(sorted(m for m in sys.modules if m.startswith('vstore.') and m != 'vstore.zarr_pipeline'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_only_small_local_requests_run_on_the_event_loop(store: Any, monkeypatch: Any) -> None:
    hops: list[int] = []
    to_thread = asyncio.to_thread

    async def counted(function: Any, *args: Any) -> Any:
        hops.append(1)
        return await to_thread(function, *args)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    with zarr_pipeline.enable():
        array = zarr.create_array(
            store, name="a", shape=(4000, 300), chunks=(40, 300), dtype="f4", compressors=None
        )
        packed = zarr.create_array(store, name="b", shape=(4000, 300), chunks=(40, 300), dtype="f4")
        hops.clear()
        array[:80] = 1
        assert array[79, 299] == 1
        packed[:40] = 1
        assert packed[39, 299] == 1
        assert hops == []
        array[:2000] = 1
        array[:2000]
        packed[:80] = 1
        packed[:80]
        assert len(hops) == 4
        many = zarr.create_array(store, name="c", shape=(100,), chunks=(1,), dtype="f4", compressors=None)
        hops.clear()
        many[:64] = 1
        assert hops == []
        many[:65] = 1
        assert len(hops) == 1


def test_nothing_of_an_object_store_runs_on_the_event_loop(tmp_path: Path, monkeypatch: Any) -> None:
    with Place.new("memory", tmp_path).create() as repository, zarr_pipeline.enable():
        array = zarr.create_array(
            repository.writable_session("main").store, name="a", shape=(40,), chunks=(10,), dtype="f4"
        )
        loops: list[bool] = []
        find = Worktree.find

        def watched_find(self: Any, key: str) -> Any:
            loops.append(threading.current_thread().name == "zarr_io")
            return find(self, key)

        monkeypatch.setattr(Worktree, "find", watched_find)
        array[:] = 1
        assert array[:].tolist() == [1] * 40
        assert loops
        assert not any(loops)
