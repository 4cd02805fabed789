"""Repositories for tests: one place for each kind of storage and catalog, raw keys, and a clock that is set by hand."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vstore
from vstore.blobs.cache import CACHE
from vstore.catalog.base import Applied, DropSnapshots, Transaction
from vstore.format.record import OperationKind
from vstore.ids import SnapshotId, new_transaction_id
from vstore.session import Session
from vstore.worktree.listing import iter_keys

KINDS = ("sqlite", "log", "memory")
"""A local directory with either catalog, and an object store in memory."""
LOCAL_KINDS = ("sqlite", "log")

GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
START_US = 1_700_000_000_000_000


@dataclass
class Place:
    """Where a test's repository is, and how it is made and opened there."""

    kind: str
    location: Any

    @classmethod
    def new(cls, kind: str, folder: Path) -> Place:
        if kind != "memory":
            return cls(kind, folder / "repository")
        from obstore.store import MemoryStore

        return cls(kind, MemoryStore())

    def create(self, **options: Any) -> vstore.Repository:
        catalog = "log" if self.kind == "log" else None
        return vstore.Repository.create(self.location, catalog=catalog, **options)

    def open(self, **options: Any) -> vstore.Repository:
        """Open the repository as another process would: with nothing cached."""
        CACHE.clear()
        return vstore.Repository.open(self.location, **options)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Give a folder in memory, where the system has such a file system: syncing a disk is most of a commit's time."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    # A session that was dropped, not closed, may be writing behind still.
    with tempfile.TemporaryDirectory(prefix="vstore-test-", dir=shared, ignore_cleanup_errors=True) as name:
        yield Path(name)


class HandClock:
    """A clock that stands still until it is set."""

    def __init__(self, time_us: int = START_US) -> None:
        self.time_us = time_us

    def now_us(self) -> int:
        return self.time_us

    def monotonic_s(self) -> float:
        return self.time_us / 1e6

    def sleep(self, duration_s: float) -> None:
        self.time_us += int(duration_s * 1e6)


def array_document(
    shape: tuple[int, ...],
    chunks: tuple[int, ...] | None = None,
    *,
    encoding: str = "default",
    separator: str = "/",
    dtype: str = "uint8",
    attributes: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the `zarr.json` of an array without compression; chunks default to one item."""
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks or (1,) * len(shape)}}
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": encoding, "configuration": {"separator": separator}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": dict(attributes or {}),
    }
    return json.dumps(document).encode()


def array_document_2(shape: tuple[int, ...], separator: str | None = ".", dtype: str = "|u1") -> bytes:
    """Return the `.zarray` of a v2 array with chunks of one item; without a separator, v2's default holds."""
    document: dict[str, Any] = {"zarr_format": 2, "shape": shape, "chunks": [1] * len(shape), "dtype": dtype}
    document |= {"order": "C", "fill_value": 0, "compressor": None, "filters": None}
    if separator is not None:
        document["dimension_separator"] = separator
    return json.dumps(document).encode()


def write(session: Session, contents: Mapping[str, bytes]) -> None:
    """Set keys, in order."""
    for key, value in contents.items():
        session.tree_for_writing().set(key, value)


def contents(session: Session) -> dict[str, bytes]:
    """Return every key and its bytes."""
    keys = list(iter_keys(session.tree, ""))
    assert len(keys) == len(set(keys)), "a key is listed twice"
    found = {}
    for key in keys:
        value = session.tree.read(key)
        assert value is not None, f"{key} is listed but can't be read"
        found[key] = value
    return found


def commit(repository: vstore.Repository, values: Mapping[str, bytes], message: str = "a commit") -> str:
    """Set keys on branch main and commit."""
    session = repository.writable_session("main")
    write(session, values)
    return session.commit(message)


def drop(repository: vstore.Repository, *snapshots: str) -> None:
    """Let snapshots expire, whatever holds them."""
    handle = repository.handle
    with handle.catalog.reading() as view:
        since = view.sequence
    update = DropSnapshots(tuple(SnapshotId(bytes.fromhex(snapshot)) for snapshot in snapshots))
    outcome = handle.catalog.update(
        Transaction(
            new_transaction_id(), since, OperationKind.EXPIRE, handle.clock.now_us(), "", (), (update,)
        )
    )
    assert isinstance(outcome, Applied)
