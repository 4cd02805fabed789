"""Repositories on a real server, behind a proxy that fails on demand and beside it.

A `Site` is a server with a proxy before it. `Original` is a repository that was made once and is copied to a new place
for each trial, object by object, as that is quicker than making it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import vstore
from tests import servers
from tests.repositories import GROUP, array_document, commit, drop, write
from vstore.blobs.cache import CACHE
from vstore.clock import SystemClock
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.options import RequestOptions
from vstore.testing.proxy import FaultProxy

OPTIONS = RequestOptions(max_tries=3, first_wait_s=0.001, longest_wait_s=0.002)
IMPATIENT = replace(OPTIONS, attempt_timeout_s=0.6)
"""For where replies do not come: else they would be waited for."""

BASE = {
    "zarr.json": GROUP,
    "a/zarr.json": array_document((6000,), (1000,)),
    **{f"a/c/{n}": bytes([n]) * 1000 for n in range(4)},
    "value": b"v" * 2000,
}
SIDE = {"side": b"s" * 2000}
EDITS = {"a/c/1": b"one" * 400, "a/c/4": bytes([4]) * 1000, "new": b"n" * 3000}


class QuickClock(SystemClock):
    """The machine's clock, on which waiting takes no time and makes it later all the same."""

    def __init__(self) -> None:
        self._slept_s = 0.0

    def now_us(self) -> int:
        return super().now_us() + int(self._slept_s * 1e6)

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self._slept_s

    def sleep(self, duration_s: float) -> None:
        self._slept_s += duration_s


@dataclass(eq=False)
class Site:
    """A server and a proxy before it; each trial has a folder of its own there."""

    url: str
    proxy: FaultProxy
    make_store: Callable[..., Any]
    originals: dict[str, Original] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def new_folder(self) -> str:
        return f"trial-{next(self._numbers)}"

    def raw_store(self, folder: str) -> Any:
        return self.make_store(self.url, folder)

    def storage(
        self, folder: str, *, through_proxy: bool = False, options: RequestOptions = OPTIONS
    ) -> ObjectStorage:
        """Return a storage, straight to the server or through the proxy."""
        url = self.proxy.url if through_proxy else self.url
        return ObjectStorage(self.make_store(url, folder), options=options)

    def open(
        self, folder: str, *, through_proxy: bool = False, options: RequestOptions = OPTIONS
    ) -> vstore.Repository:
        """Open a repository as another process would: with nothing cached."""
        CACHE.clear()
        storage = self.storage(folder, through_proxy=through_proxy, options=options)
        return vstore.Repository.open(storage, author="ada", clock=QuickClock())

    def copy(self, name: str) -> tuple[str, Original]:
        """Copy an original to a new folder."""
        if name not in self.originals:
            self.originals[name] = Original.make(self, ORIGINALS[name])
        original = self.originals[name]
        folder = self.new_folder()
        store = self.raw_store(folder)
        for path, data in original.objects.items():
            store.put(path, data)
        return folder, original

    def names(self, folder: str) -> set[str]:
        """Return the names of all objects there."""
        return {info.name for info in self.storage(folder).list("")}


@dataclass
class Original:
    """A repository's objects, by name, and its branch main."""

    objects: dict[str, bytes]
    head: str

    @classmethod
    def make(cls, site: Site, fill: Callable[[vstore.Repository], None]) -> Original:
        folder = site.new_folder()
        store = site.raw_store(folder)
        with vstore.Repository.create(site.storage(folder), author="ada") as repository:
            fill(repository)
            head = repository.lookup_branch("main")
        names = site.names(folder)
        return cls({name: bytes(store.get(name).bytes()) for name in sorted(names)}, head)


def fill_plainly(repository: vstore.Repository) -> None:
    """Two commits on main, a branch beside it, a tag, and a branch to be deleted."""
    first = commit(repository, BASE, "the first")
    repository.create_tag("v1", first)
    repository.create_branch("side", first)
    with repository.transaction("side", message="beside") as store:
        write(store.session, SIDE)
    commit(repository, {"value": b"w" * 2000}, "the second")
    repository.create_branch("old", first)


def fill_with_garbage(repository: vstore.Repository) -> None:
    """As plainly, with old snapshots, packs that nothing names, and a writer that never came back."""
    fill_plainly(repository)
    lost = commit(repository, {"lost": b"l" * 2000}, "to be lost")
    repository.reset_branch("main", repository.lookup_snapshot(lost).parent_ids[0])
    drop(repository, lost)
    repository.create_branch("short", repository.lookup_branch("main"))
    with repository.transaction("short", message="out of reach") as store:
        write(store.session, {"short": b"x" * 2000})
    repository.delete_branch("short")


def fill_with_number_0(repository: vstore.Repository) -> None:
    commit(repository, {"0/0": b"\0" * 9000}, "0")


ORIGINALS = {"plain": fill_plainly, "garbage": fill_with_garbage, "numbered": fill_with_number_0}


def far_future() -> datetime:
    """Return a time after which everything is: for a collector without grace."""
    return datetime.now(UTC) + timedelta(days=365)


@contextmanager
def ministack_site() -> Iterator[Site]:
    with servers.ministack() as url, FaultProxy(url) as proxy:
        yield Site(url, proxy, servers.s3_store)


@contextmanager
def azurite_site() -> Iterator[Site]:
    with servers.azurite() as url, FaultProxy(url) as proxy:
        yield Site(url, proxy, servers.azure_store)
