"""vstore's codec pipeline under zarr's own arrays and machines, xarray and dask: as if it were the stock one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from xarray.tests import test_backends
from xarray.tests.conftest import time_unit, use_dask
from xarray.tests.test_backends import default_zarr_format, tmp_store
from zarr.testing.stateful import ZarrHierarchyStateMachine
from zarr.testing.strategies import arrays, basic_indices, numpy_arrays, orthogonal_indices

from tests.repositories import Place, contents, quick_folder
from tests.unit.zarr_pipeline.pairs import assert_same, stock
from vstore import zarr_pipeline
from vstore.store import SessionStore

__all__ = ["default_zarr_format", "time_unit", "tmp_store", "use_dask"]

pytestmark = pytest.mark.filterwarnings(
    "ignore::zarr.errors.ZarrUserWarning",
    "ignore:Object at .* is not recognized:UserWarning",
    "ignore::zarr.errors.UnstableSpecificationWarning",
    "ignore::zarr.errors.ZarrDeprecationWarning",
    "ignore:Missing 'endian':UserWarning",
)


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    with zarr_pipeline.enable():
        yield


@contextlib.contextmanager
def new_store(kind: str = "sqlite") -> Iterator[SessionStore]:
    with quick_folder() as folder, Place.new(kind, folder).create() as repository:
        yield repository.writable_session("main").store


@settings(max_examples=40)
@given(data=st.data(), kind=st.sampled_from(["sqlite", "memory"]))
def test_any_array_of_zarrs_own_strategies(data: Any, kind: str) -> None:
    """Arrays and indices that zarr's strategies think of: written here, read by both pipelines, and against numpy."""
    with new_store(kind) as store:
        array = data.draw(arrays(stores=st.just(store), arrays=numpy_arrays()))
        expected = array[:]
        with stock():
            other = zarr.open_array(store, path=array.path)
        assert_same(other[:], expected)
        for _ in range(2):
            index = data.draw(basic_indices(shape=expected.shape))
            assert_same(array[index], other[index])
            new = data.draw(numpy_arrays(shapes=st.just(expected[index].shape), dtype=expected.dtype))
            array[index] = new
            expected[index] = new
            assert_same(other[:], array[:])
            np.testing.assert_array_equal(array[:], expected)
        if expected.ndim and all(expected.shape):
            index, in_numpy = data.draw(orthogonal_indices(shape=expected.shape))
            assert_same(array.oindex[index], other.oindex[index])
            np.testing.assert_array_equal(array.oindex[index], expected[in_numpy])
        before = contents(store.session)
        with stock():
            other[...] = expected
        assert contents(store.session) == before


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_zarrs_state_machine_of_hierarchies(kind: str) -> None:
    with contextlib.ExitStack() as stack:
        run_state_machine_as_test(
            lambda: ZarrHierarchyStateMachine(stack.enter_context(new_store(kind))),
            settings=settings(max_examples=10, stateful_step_count=30, deadline=None),
        )


# --- xarray and dask -----------------------------------------------------------------------------------------


def dataset(days: int = 12) -> xr.Dataset:
    values = np.random.default_rng(0).random((days, 20, 30)).astype("f4")
    values[3] = np.nan
    return xr.Dataset(
        {"t2m": (("time", "y", "x"), values), "mask": (("y", "x"), values[0] > 0.5), "n": ((), 3)},
        coords={"time": np.datetime64("2026-01-01", "ns") + np.arange(days) * np.timedelta64(1, "D")},
    )


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_xarray_and_dask_round_trip(kind: str, zarr_format: int) -> None:
    with new_store(kind) as store:
        repository_session = store.session
        data = dataset()
        data.chunk(time=4, y=10, x=10).to_zarr(store, zarr_format=zarr_format, consolidated=False)
        xr.testing.assert_identical(xr.open_zarr(store, consolidated=False).load(), data)
        later = data.assign_coords(time=data.time + np.timedelta64(12, "D"))
        later.chunk(time=4).to_zarr(store, append_dim="time", consolidated=False)
        both = xr.concat([data, later], "time", data_vars="minimal")
        xr.testing.assert_identical(xr.open_zarr(store, consolidated=False).load(), both)
        window = {"time": slice(4, 8), "y": slice(0, 20), "x": slice(0, 30)}
        (data[["t2m"]].isel(time=slice(4, 8)) + 1).drop_vars("time").to_zarr(store, region=window)
        with stock():
            read = xr.open_zarr(store, consolidated=False).load()
        xr.testing.assert_identical(xr.open_zarr(store, consolidated=False).load(), read)
        np.testing.assert_array_equal(read.t2m[4:8], data.t2m[4:8] + 1)
        assert repository_session.has_uncommitted_changes


def test_dask_threads_write_and_read_one_array() -> None:
    data = np.random.default_rng(0).random((400, 300))
    with new_store() as store:
        array = zarr.create_array(store, name="a", shape=data.shape, chunks=(40, 30), dtype="f8")
        dask.array.from_array(data, chunks=(40, 30)).store(
            array, lock=False, compute=True, scheduler="threads"
        )
        lazy = dask.array.from_array(array, chunks=(80, 60))
        np.testing.assert_array_equal(lazy.compute(scheduler="threads"), data)
        assert float(lazy.sum().compute(scheduler="threads")) == pytest.approx(data.sum())


def test_threads_share_the_pipeline_of_one_array() -> None:
    with new_store() as store:
        array = zarr.create_array(store, name="a", shape=(64, 5000), chunks=(1, 500), dtype="i8")
        failures: list[Any] = []

        def work(number: int) -> None:
            rows = slice(number * 8, number * 8 + 8)
            for turn in range(10):
                # Small ones run on the event loop, large ones in threads.
                array[rows, : (500 if turn % 2 else 5000)] = number * 100 + turn
                found = array[rows, : (500 if turn % 2 else 5000)]
                if not (found == number * 100 + turn).all():
                    failures.append((number, turn))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        expected = np.repeat(np.arange(8) * 100, 8)[:, None] + np.where(np.arange(5000) < 500, 9, 8)
        np.testing.assert_array_equal(array[:], expected)


@pytest.mark.deep
class TestXarrayUnderThePipeline(test_backends.ZarrBase):
    """xarray's own Zarr backend tests."""

    pytestmark = pytest.mark.filterwarnings("default", "ignore::zarr.errors.UnstableSpecificationWarning")

    @contextlib.contextmanager
    def create_zarr_target(self) -> Iterator[SessionStore]:
        with new_store() as store:
            yield store
