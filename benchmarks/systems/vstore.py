"""vstore: on a local disk, where every commit is synced, and in an object store that counts its requests."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from benchmarks.systems.base import DEFAULT_PIPELINE
from benchmarks.systems.repositories import RepositorySystem, SessionChange
from benchmarks.systems.zarr_systems import FUSED, OWN

_TRIES = 1000


class VStore(RepositorySystem):
    name = "vstore"
    packages = ("vstore", "zarr")
    is_durable = True
    pipelines: ClassVar[tuple[str, ...]] = (DEFAULT_PIPELINE, FUSED, OWN)

    def create_repository(self) -> Any:
        import vstore

        return vstore.Repository.create(self.location(), authorize_virtual_chunk_access=[self.sources_prefix])

    def open_repository(self) -> Any:
        import vstore

        return vstore.Repository.open(self.location(), authorize_virtual_chunk_access=[self.sources_prefix])

    def location(self) -> Any:
        """Where the repository is."""
        return self.folder

    def commit_change(self, change: SessionChange, message: str) -> None:
        import vstore

        if "rebase_with" in inspect.signature(change.session.commit).parameters:
            change.session.commit(message, rebase_with="fail", rebase_tries=_TRIES)
            return
        for _ in range(_TRIES):
            try:
                change.session.commit(message)
                return
            except vstore.ConflictError:
                change.session.close()
                change.restart()
        raise RuntimeError(f"{_TRIES} tries to commit were not enough")

    def collecting(self) -> Iterator[tuple[str, Callable[[], object]]]:
        yield from super().collecting()
        # The rewritten head names the packs where blobs are now: what the old one still needs goes with it.
        yield "compact", lambda: self.repository.compact(rewrite_heads=True)
        later = datetime.now(UTC) + timedelta(days=1)
        yield "second_expire", lambda: self.repository.expire_snapshots(later)
        yield "second_gc", lambda: self.repository.garbage_collect(later)
        yield "second_compact", self.repository.compact

    def is_data(self, name: str) -> bool:
        return name.startswith("packs/")

    def close(self) -> None:
        if self._repository is not None:
            self._repository.close()


class VStoreMemory(VStore):
    """In obstore's memory store, by the way that leads to S3, GCS and Azure."""

    name = "vstore-memory"
    is_persistent = False
    is_durable = False
    pipelines = (DEFAULT_PIPELINE,)
    _counter: CountingStore | None = None

    def location(self) -> Any:
        from obstore.store import MemoryStore

        from vstore.storage.objects import ObjectStorage

        if self._counter is None:
            self._counter = CountingStore(MemoryStore())
        return ObjectStorage(self._counter)

    def requests(self) -> Mapping[str, int]:
        return {} if self._counter is None else self._counter.requests


class CountingStore:
    """An obstore store that counts calls by what an object store would be asked."""

    _KINDS = ("put", "get", "head", "list", "delete", "copy", "rename")

    def __init__(self, store: Any) -> None:
        self._store = store
        self.requests: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        kind = name.partition("_")[0]
        if kind not in self._KINDS:
            return value

        def counted(*args: Any, **options: Any) -> Any:
            self.requests[kind] += 1
            return value(*args, **options)

        return counted
