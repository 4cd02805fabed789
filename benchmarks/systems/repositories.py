"""What vstore and icechunk share: repositories, sessions and commits under the same names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import ITEM_BYTES
from benchmarks.systems.base import Change, CollectingSystem, Reader, VirtualSystem
from benchmarks.systems.zarr_systems import ZarrReader, ZarrSystem, make_zarr_array

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from benchmarks.data import Values

BRANCH = "main"
_OLDEST = "oldest"


class RepositorySystem(ZarrSystem, VirtualSystem, CollectingSystem):
    """A repository with a branch; both packages name their calls alike."""

    _repository: Any = None
    _session: Any = None

    @abstractmethod
    def create_repository(self) -> Any: ...

    @abstractmethod
    def open_repository(self) -> Any: ...

    @property
    def sources(self) -> Path:
        """The folder that virtual references may point to."""
        return self.folder.parent / "sources"

    @property
    def sources_prefix(self) -> str:
        """The same as a URL."""
        return self.sources.absolute().as_uri() + "/"

    @property
    def repository(self) -> Any:
        """The repository, opened when it is first needed."""
        if self._repository is None:
            self.open()
        return self._repository

    def create(self) -> None:
        self.configure()
        self._repository = self.create_repository()

    def open(self) -> None:
        self.configure()
        if self.is_persistent:
            self._repository = self.open_repository()

    def writable_store(self) -> Any:
        self._session = self.repository.writable_session(BRANCH)
        return self._session.store

    def commit(self, message: str) -> None:
        self.commit_session(self._session, message)

    def commit_session(self, session: Any, message: str) -> None:
        """Commit when nobody else commits."""
        session.commit(message)

    def readable_store(self) -> Any:
        return self.repository.readonly_session(BRANCH).store

    def make_array(self, path: str, count: int, chunk: int) -> None:
        self.configure()
        make_zarr_array(self.writable_store(), path, count * chunk, chunk)
        self.commit(f"make {path}")

    def fill_array(self, path: str, count: int) -> None:
        # Ranges of a file with holes, with gaps between them as where several variables share it: offsets that a
        # manifest can't shorten to nothing.
        import numpy as np

        length = self.filled_chunk_items * ITEM_BYTES
        gaps = np.random.default_rng(0).integers(0, 16 * length, count)
        offsets = np.cumsum(length + gaps)
        source = self.make_source("filled.bin", int(offsets[-1]) + length)
        self.set_virtual_refs(path, source, offsets.astype("u8"), np.full(count, length, "u8"))

    def make_source(self, name: str, size_bytes: int) -> Path:
        """Make a file of that size which takes no room, and return its path."""
        self.sources.mkdir(exist_ok=True)
        source = self.sources / name
        with open(source, "wb") as file:
            file.truncate(size_bytes)
        return source

    def begin(self) -> Change:
        return SessionChange(self)

    def commit_change(self, change: SessionChange, message: str) -> None:
        """Commit although others commit at the same time to other arrays."""
        change.session.commit(message)

    def mark_oldest(self) -> None:
        self.repository.create_tag(_OLDEST, self.repository.lookup_branch(BRANCH))

    def open_oldest(self, path: str) -> Reader:
        return ZarrReader(self.repository.readonly_session(tag=_OLDEST).store, path)

    def collecting(self) -> Iterator[tuple[str, Callable[[], object]]]:
        # "oldest" is kept by its tag otherwise.
        self.repository.delete_tag(_OLDEST)
        now = datetime.now(UTC) + timedelta(days=1)
        yield "expire", lambda: self.repository.expire_snapshots(now)
        yield "gc", lambda: self.repository.garbage_collect(now)

    def is_data(self, name: str) -> bool:
        return True

    def count_history(self) -> int:
        # The first snapshot is the repository's own.
        return sum(1 for _ in self.repository.ancestry(branch=BRANCH)) - 1

    def newest_commits(self, count: int) -> list[Any]:
        """Return what the history says of its newest commits."""
        return list(islice(self.repository.ancestry(branch=BRANCH), count))

    def open_as_of(self, time: datetime, path: str) -> Reader:
        """Open an array as it was at a time."""
        return ZarrReader(self.repository.readonly_session(BRANCH, as_of=time).store, path)

    def set_virtual_refs(
        self, path: str, source: Path, offsets: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint64]
    ) -> None:
        self.configure()
        chunk = self.filled_chunk_items
        store = self.writable_store()
        make_zarr_array(store, path, len(offsets) * chunk, chunk)
        locations = [source.absolute().as_uri()] * len(offsets)
        self.set_refs(store, path, locations, offsets, lengths)
        self.commit(f"refer {path}")

    def set_refs(self, store: Any, path: str, locations: list[str], offsets: Any, lengths: Any) -> None:
        """Make the one call that both packages have."""
        store.set_virtual_refs_arr(path, (len(offsets),), locations, offsets, lengths)


class SessionChange(Change):
    """A session; what was written is remembered, for a system that has to write it again."""

    def __init__(self, system: RepositorySystem) -> None:
        self._system = system
        self.writes: list[tuple[str, int, Values]] = []
        self.start()

    def start(self) -> None:
        """Open a session on the branch's head."""
        self.session = self._system.repository.writable_session(BRANCH)
        self._arrays: dict[str, Any] = {}

    def write_chunk(self, path: str, index: int, values: Values) -> None:
        self.writes.append((path, index, values))
        self._write(path, index, values)

    def _write(self, path: str, index: int, values: Values) -> None:
        import zarr

        array = self._arrays.get(path)
        if array is None:
            array = self._arrays[path] = zarr.open_array(self.session.store, path=path, mode="r+")
        chunk = array.chunks[0]
        array[index * chunk : (index + 1) * chunk] = values

    def restart(self) -> None:
        """Write the same again, in a new session."""
        self.start()
        for write in self.writes:
            self._write(*write)

    def commit(self, message: str) -> None:
        self._system.commit_change(self, message)
