"""What a system offers to the workloads. Adapters import their packages only when they are used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from benchmarks.data import Values

DEFAULT_PIPELINE = "default"


class Reader(ABC):
    """An array that was opened for reading."""

    @abstractmethod
    def read_all(self) -> Values:
        """Return the whole array, as one dimension."""

    @abstractmethod
    def read_chunk(self, index: int) -> Values:
        """Return one chunk."""


class Change(ABC):
    """A transaction: what is written is seen by nobody until `commit`."""

    @abstractmethod
    def write_chunk(self, path: str, index: int, values: Values) -> None:
        """Replace one chunk of an array that exists."""

    @abstractmethod
    def commit(self, message: str) -> None:
        """Make all of it visible, also if others have committed to other arrays meanwhile."""


class System(ABC):
    """Something that stores one-dimensional float32 arrays below one folder."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    """What must be installed; the first is what `import` is measured for."""
    is_persistent: ClassVar[bool] = True
    """Whether another process can read what this one wrote."""
    is_durable: ClassVar[bool] = False
    """Whether what was acknowledged survives a power cut."""
    is_distant: ClassVar[bool] = False
    """Whether it lies in an object store, and nothing in the folder."""
    pipelines: ClassVar[tuple[str, ...]] = (DEFAULT_PIPELINE,)
    """Zarr codec pipelines that make a difference to it."""

    def __init__(self, folder: Path, pipeline: str = DEFAULT_PIPELINE) -> None:
        self.folder = folder
        self.pipeline = pipeline

    @abstractmethod
    def create(self) -> None:
        """Make the empty store."""

    @abstractmethod
    def write_array(self, path: str, values: Values, chunk: int) -> None:
        """Make an array without compression, or replace it, in chunks of `chunk` items, and commit it."""

    @abstractmethod
    def open_array(self, path: str) -> Reader:
        """Open an array as it is now."""

    def requests(self) -> Mapping[str, int]:
        """Return how many requests of each kind were sent to an object store so far, if they are counted."""
        return {}

    @classmethod  # noqa: B027  most lie in the folder
    def remove(cls, folder: Path) -> None:
        """Remove what lies elsewhere on behalf of `folder`, which is removed itself."""

    def close(self) -> None:  # noqa: B027  most hold nothing open
        """Let go of files and connections."""

    def warm_up(self, folder: Path) -> None:
        """Use a store of the same kind in `folder`, so that no import and no first call is in what is measured."""
        from benchmarks.data import values

        scratch = type(self)(folder, self.pipeline)
        scratch.create()
        scratch.write_array("warm", values(0, 2048), 1024)
        reader = scratch.open_array("warm")
        reader.read_all()
        reader.read_chunk(0)
        scratch.close()


class VersionedSystem(System):
    """A system with transactions and a history."""

    can_list_history: ClassVar[bool] = True
    filled_chunk_items: ClassVar[int] = 1024
    """Items of a chunk of the arrays that `fill_array` makes."""

    @abstractmethod
    def open(self) -> None:
        """Open the store, reading what that needs."""

    @abstractmethod
    def make_array(self, path: str, count: int, chunk: int) -> None:
        """Commit an array of `count` chunks that are all absent."""

    @abstractmethod
    def fill_array(self, path: str, count: int) -> None:
        """Commit an array of `count` chunks that exist: quickly, so their bytes may be tiny or somewhere else."""

    @abstractmethod
    def begin(self) -> Change:
        """Start a transaction on the newest state."""

    @abstractmethod
    def mark_oldest(self) -> None:
        """Make sure that the present state can be found again by `open_oldest`."""

    @abstractmethod
    def open_oldest(self, path: str) -> Reader:
        """Open an array as it was at `mark_oldest`."""

    def count_history(self) -> int:
        """Return the number of commits in the history, by walking it."""
        raise NotImplementedError


class CollectingSystem(VersionedSystem):
    """A versioned system that can let go of its history."""

    @abstractmethod
    def collecting(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield, with its name, each step after which nothing but the newest state is kept."""

    @abstractmethod
    def is_data(self, name: str) -> bool:
        """Tell whether a file, by its path in the folder, holds chunks or metadata: no names, no log."""

    def fresh_copy(self) -> Self:
        """Return a system of the same kind in a folder beside this one's, which does not exist yet."""
        return type(self)(self.folder.with_name(f"{self.folder.name}-fresh"), self.pipeline)

    def used(self) -> tuple[int, int]:
        """Return the bytes and the number of files that are in use."""
        sizes = self._sizes()
        return sum(sizes.values()), len(sizes)

    def used_by_data(self) -> int:
        """Return the bytes of chunks and of their metadata."""
        return sum(size for name, size in self._sizes().items() if self.is_data(name))

    def _sizes(self) -> dict[str, int]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in files}


class VirtualSystem(VersionedSystem):
    """A versioned system that can refer to ranges of other files."""

    @abstractmethod
    def set_virtual_refs(
        self, path: str, source: Path, offsets: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint64]
    ) -> None:
        """Point all chunks of a new array to ranges of the file `source`, and commit."""
