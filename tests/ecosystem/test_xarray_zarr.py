"""xarray's own Zarr backend tests, unmodified, on a plain `session.store`: v2 and v3, append, region, datatree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from xarray.tests import test_backends
from xarray.tests.conftest import time_unit, use_dask
from xarray.tests.test_backends import default_zarr_format, tmp_store

import vstore
from tests.repositories import quick_folder
from vstore.store import SessionStore

__all__ = ["default_zarr_format", "time_unit", "tmp_store", "use_dask"]

# xarray's tests warn of what they themselves do; one asserts that there is no warning but means its own.
pytestmark = pytest.mark.filterwarnings("default", "ignore::zarr.errors.UnstableSpecificationWarning")


@contextlib.contextmanager
def _session_store(location: Any) -> Iterator[SessionStore]:
    with vstore.Repository.create(location) as repository:
        yield repository.writable_session("main").store


class _OnLocalDirectory:
    @contextlib.contextmanager
    def create_zarr_target(self) -> Iterator[SessionStore]:
        with quick_folder() as folder, _session_store(folder / "repository") as store:
            yield store


class _OnMemory:
    @contextlib.contextmanager
    def create_zarr_target(self) -> Iterator[SessionStore]:
        from obstore.store import MemoryStore

        with _session_store(MemoryStore()) as store:
            yield store


class TestLocal(_OnLocalDirectory, test_backends.ZarrBase):
    """The whole suite on a local repository."""


class TestMemory(_OnMemory, test_backends.ZarrBase):
    """The whole suite on an object store."""


class TestRegionAuto(_OnLocalDirectory, test_backends.TestZarrRegionAuto):
    """Region writes that xarray places by coordinates."""
