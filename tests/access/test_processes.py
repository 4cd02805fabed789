"""Worker processes and Dask: pickled repositories, sessions and stores, local and remote, by every start method."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import dask
import dask.array
import numpy as np
import pytest
import xarray
import zarr
from dask.base import tokenize

import vstore
from tests import servers
from tests.access import workers
from tests.access.workers import VALUES, make, put
from tests.repositories import LOCAL_KINDS, quick_folder

SERVER, DEEP = pytest.mark.server, pytest.mark.deep
# Each process that is started takes a second or two: the others are tried with --deep.
WORKERS = [
    ("sqlite", "fork"),
    ("log", "fork"),
    pytest.param("s3", "spawn", marks=SERVER),
    pytest.param("s3", "forkserver", marks=SERVER),
    *(pytest.param(kind, method, marks=DEEP) for kind in LOCAL_KINDS for method in ("spawn", "forkserver")),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with servers.ministack() as url:
        yield url


@contextmanager
def made(kind: str, request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    if kind in LOCAL_KINDS:
        with quick_folder() as folder, make(folder / "repository", catalog=kind) as repository:
            yield repository
        return
    # Credentials are taken from the environment, here and in the workers.
    change = request.getfixturevalue("monkeypatch")
    for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "key", "REGION": "us-east-1"}.items():
        change.setenv(f"AWS_{name}", value)
    url = request.getfixturevalue("s3")
    with make(servers.s3_store(url, request.node.name.replace("[", "-").replace("]", ""))) as repository:
        yield repository


def sendable(repository: vstore.Repository) -> dict[str, Any]:
    reader, writer = repository.readonly_session("main"), repository.writable_session("main")
    zarr.open_array(writer.store, path="a", mode="a")[:10] = -1
    put(writer, "unsaved", b"1" * 1000)
    return {
        "repository": repository,
        "reader": reader,
        "writer": writer,
        "reader store": reader.store,
        "writer store": writer.store,
    }


def require_usable(results: list[dict[str, Any]], sent: dict[str, Any]) -> None:
    repository: vstore.Repository = sent["repository"]
    reader = repository.readonly_session("main")
    for found in results:
        assert found["ids"] == (sent["reader"].id, sent["writer"].id)
        assert "copy of a session" in found["refused"]
        assert reader.tree.read(f"by a worker {found['pid']}") is not None
    # What the workers did with the copies changed nothing here.
    sent["writer"].commit("by the parent", rebase_with="ours")
    assert workers.array_of(repository.readonly_session("main"))[:11].tolist() == [-1] * 10 + [10]


@pytest.mark.parametrize(("kind", "method"), WORKERS)
def test_workers_use_what_is_sent_to_them(kind: str, method: str, request: pytest.FixtureRequest) -> None:
    with made(kind, request) as repository, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        sent = sendable(repository)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            results = list(pool.map(workers.use, [sent] * 2))
        require_usable(results, sent)


def test_a_pool_of_forked_workers_inherits_a_repository(request: pytest.FixtureRequest) -> None:
    with made("sqlite", request) as repository, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(3) as pool:
            made_ids = pool.starmap(workers.commit, [(repository, f"key {number}") for number in range(9)])
            pool.close()
            pool.join()
        assert len(set(made_ids)) == 9
        reader = repository.readonly_session("main")
        assert all(reader.tree.read(f"key {number}") for number in range(9))


# --- Dask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["sqlite", pytest.param("log", marks=DEEP), pytest.param("s3", marks=[SERVER, DEEP])]
)
def test_dask_reads_in_threads_and_processes(kind: str, request: pytest.FixtureRequest) -> None:
    with made(kind, request) as repository:
        lazy = dask.array.from_zarr(workers.array_of(repository.readonly_session("main")), chunks=1000)
        assert lazy.sum().compute(scheduler="threads", num_workers=4) == VALUES.sum()
        with dask.config.set({"multiprocessing.context": "spawn"}):
            assert lazy.sum().compute(scheduler="processes", num_workers=2) == VALUES.sum()


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=DEEP), pytest.param("s3", marks=SERVER)])
def test_a_dask_cluster_reads(kind: str, request: pytest.FixtureRequest) -> None:
    distributed = pytest.importorskip("distributed")
    with made(kind, request) as repository:
        dataset = xarray.Dataset({"t": (("x", "y"), np.arange(600.0 * 40).reshape(600, 40))})
        with repository.transaction("main", message="dataset") as store:
            dataset.chunk(x=100).to_zarr(store, group="set", consolidated=False)
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster),
        ):
            opened = xarray.open_zarr(
                repository.readonly_session("main").store, group="set", consolidated=False
            )
            assert float(opened.t.sum().compute()) == float(dataset.t.sum())
            assert opened.t.mean("y").compute().equals(dataset.t.mean("y"))


def test_tokens_name_the_state_and_nothing_else(request: pytest.FixtureRequest) -> None:
    with made("log", request) as repository:
        one, other = (repository.readonly_session("main").store for _ in range(2))
        assert tokenize(one) == tokenize(other) == tokenize(pickle.loads(pickle.dumps(one)))
        with vstore.open(repository.handle.storage) as again:
            assert tokenize(again.readonly_session("main").store) == tokenize(one)
        writer = repository.writable_session("main")
        assert tokenize(writer.store) == tokenize(one)
        put(writer, "key", b"1")
        edited = tokenize(writer.store)
        assert edited != tokenize(one)
        assert tokenize(pickle.loads(pickle.dumps(writer)).store) == edited
        put(writer, "key", b"2")
        assert tokenize(writer.store) != edited
        writer.commit("moved")
        assert tokenize(repository.readonly_session("main").store) != tokenize(one)
        assert tokenize(writer.store) == tokenize(repository.readonly_session("main").store)
