"""What tests run in worker processes: importable by name, so that spawned ones find it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import zarr

import vstore

CHILD_S = 60
SIZE = 4000
VALUES = np.arange(SIZE)


def make(location: Any, **options: Any) -> vstore.Repository:
    """Make a repository with an array whose chunks are in packs."""
    repository = vstore.Repository.create(location, **options)
    with repository.transaction("main", message="base") as store:
        zarr.create_array(store, name="a", data=VALUES, chunks=200, compressors=None)
    return repository


def array_of(session: vstore.Session) -> zarr.Array[Any]:
    return zarr.open_array(session.store, path="a", mode="r")


def check_values(session: vstore.Session, expected: Any = VALUES) -> None:
    np.testing.assert_array_equal(array_of(session)[:], expected)


def put(session: vstore.Session, key: str, data: bytes) -> None:
    session.tree_for_writing().set(key, data)


def commit(repository: vstore.Repository, key: str, data: bytes = b"x" * 1000) -> str:
    """Commit a key to branch main, whatever else is committed to it meanwhile."""
    with repository.writable_session("main") as session:
        put(session, key, data)
        return session.commit(f"set {key}", rebase_with="ours")


def with_alarm(body: Callable[[], object]) -> Callable[[], object]:
    """Return `body` for a forked child, which is ended by a signal if it hangs."""

    def run() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_S)
        body()

    return run


def use(sent: dict[str, Any]) -> dict[str, Any]:
    """Use what came to this process: a repository, a reader, a copy of a writer, stores of both."""
    check_values(sent["reader"])
    np.testing.assert_array_equal(zarr.open_array(sent["reader store"], path="a", mode="r")[:], VALUES)
    edited = VALUES.copy()
    edited[:10] = -1
    check_values(sent["writer"], edited)
    np.testing.assert_array_equal(zarr.open_array(sent["writer store"], path="a", mode="r")[:], edited)
    try:
        put(sent["writer"], "b", b"1")
    except vstore.ReadOnlyError as error:
        refused = str(error)
    return {
        "pid": os.getpid(),
        "refused": refused,
        "made": commit(sent["repository"], f"by a worker {os.getpid()}"),
        "ids": (sent["reader"].id, sent["writer"].id),
    }


def read_item(array: zarr.Array[Any], index: int) -> Any:
    return array[index]


def serve(array: zarr.Array[Any], wanted: Any, found: Any) -> None:
    """Do what a worker of a data loader does: take indices, give items, until None comes."""
    while (index := wanted.get()) is not None:
        try:
            found.put((index, array[index : index + 100].sum()))
        except vstore.VStoreError as error:
            found.put((index, type(error).__name__))
