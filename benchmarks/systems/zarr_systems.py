"""Systems that are Zarr stores: zarr's own, and what all of them share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.systems.base import DEFAULT_PIPELINE, Reader, System

if TYPE_CHECKING:
    from benchmarks.data import Values

FUSED = "fused"
OWN = "own"
WIDE = "wide"
"""The default pipeline, with more requests at once."""

_MANY_AT_ONCE = 64
_FUSED_PATH = "zarr.core.codec_pipeline.FusedCodecPipeline"


def use_pipeline(name: str) -> None:
    """Make zarr use a codec pipeline for all arrays that are opened from now on."""
    import zarr

    if name == FUSED:
        # One thread: without compression more of them only wait for each other.
        zarr.config.set({"codec_pipeline.path": _FUSED_PATH, "codec_pipeline.max_workers": 1})
    elif name == WIDE:
        zarr.config.set({"async.concurrency": _MANY_AT_ONCE})
    elif name == OWN:
        zarr.config.set({"codec_pipeline.path": own_pipeline_path()})


def own_pipeline_path() -> str:
    """Return the import path of vstore's codec pipeline: the one class of that kind that its module defines."""
    from zarr.abc.codec import CodecPipeline

    from vstore import zarr_pipeline

    for name, value in vars(zarr_pipeline).items():
        is_pipeline = isinstance(value, type) and issubclass(value, CodecPipeline)
        if is_pipeline and value.__module__.startswith("vstore."):
            return f"{value.__module__}.{name}"
    raise RuntimeError("vstore.zarr_pipeline defines no codec pipeline")


class ZarrReader(Reader):
    def __init__(self, store: Any, path: str) -> None:
        import zarr

        self._array = zarr.open_array(store, path=path, mode="r")
        self._chunk = self._array.chunks[0]

    def read_all(self) -> Values:
        return self._array[:]

    def read_chunk(self, index: int) -> Values:
        return self._array[index * self._chunk : (index + 1) * self._chunk]


def make_zarr_array(store: Any, path: str, items: int, chunk: int) -> Any:
    """Make an array, or replace it, without compression."""
    import zarr

    return zarr.create_array(
        store,
        name=path,
        shape=(items,),
        chunks=(chunk,),
        dtype="float32",
        compressors=None,
        filters=None,
        fill_value=0,
        overwrite=True,
    )


class ZarrSystem(System):
    """A system whose arrays zarr reads and writes."""

    packages: ClassVar[tuple[str, ...]] = ("zarr",)
    wants_consolidated: ClassVar[bool] = False
    """Whether xarray should write all metadata once more in one document."""

    def __init__(self, folder: Any, pipeline: str = DEFAULT_PIPELINE) -> None:
        super().__init__(folder, pipeline)
        self._is_configured = False

    def configure(self) -> None:
        """Choose the codec pipeline, once."""
        if not self._is_configured:
            use_pipeline(self.pipeline)
            self._is_configured = True

    @abstractmethod
    def writable_store(self) -> Any:
        """Return a store whose changes `commit` makes visible."""

    @abstractmethod
    def commit(self, message: str) -> None:
        """Make visible what was written to the last `writable_store`; nothing to do where there are no commits."""

    @abstractmethod
    def readable_store(self) -> Any:
        """Return a store on the newest state."""

    def write_array(self, path: str, values: Values, chunk: int) -> None:
        self.configure()
        array = make_zarr_array(self.writable_store(), path, len(values), chunk)
        array[:] = values
        self.commit(f"write {path}")

    def open_array(self, path: str) -> Reader:
        self.configure()
        return ZarrReader(self.readable_store(), path)


class PlainZarrSystem(ZarrSystem):
    """One of zarr's own stores, without commits."""

    _store: Any = None

    @abstractmethod
    def make_store(self) -> Any: ...

    def create(self) -> None:
        self._store = self.make_store()

    def writable_store(self) -> Any:
        if self._store is None:
            self._store = self.make_store()
        return self._store

    def commit(self, message: str) -> None:
        pass

    def readable_store(self) -> Any:
        return self.writable_store()


class ZarrLocal(PlainZarrSystem):
    name = "zarr-local"
    pipelines = (DEFAULT_PIPELINE, FUSED)

    def make_store(self) -> Any:
        from zarr.storage import LocalStore

        return LocalStore(self.folder)


class ZarrMemory(PlainZarrSystem):
    name = "zarr-memory"
    pipelines = (DEFAULT_PIPELINE, FUSED)
    is_persistent = False

    def make_store(self) -> Any:
        from zarr.storage import MemoryStore

        return MemoryStore()


class ZarrObstore(PlainZarrSystem):
    name = "zarr-obstore"
    packages = ("zarr", "obstore")

    def make_store(self) -> Any:
        from obstore.store import LocalStore
        from zarr.storage import ObjectStore

        return ObjectStore(LocalStore(str(self.folder), mkdir=True))
