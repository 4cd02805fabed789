"""tensorstore: a file per chunk, and ocdbt, its versioned B-tree that packs small values. It syncs by default."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from benchmarks.systems.base import Change, Reader, System, VersionedSystem

if TYPE_CHECKING:
    from benchmarks.data import Values

_OLDEST_VERSION = 3


class _ArrayReader(Reader):
    def __init__(self, array: Any) -> None:
        self._array = array
        self._chunk = array.chunk_layout.read_chunk.shape[0]

    def read_all(self) -> Values:
        return self._array.read().result()

    def read_chunk(self, index: int) -> Values:
        return self._array[index * self._chunk : (index + 1) * self._chunk].read().result()


def _metadata(items: int, chunk: int) -> dict[str, Any]:
    return {
        "shape": [items],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "fill_value": 0,
    }


class _TensorStore(System):
    packages = ("tensorstore",)
    is_durable = True

    @abstractmethod
    def key_values(self, path: str, **options: Any) -> dict[str, Any]:
        """Return the specification of where the keys of one array are."""

    def create(self) -> None:
        self.folder.mkdir(parents=True)

    def array(self, path: str, transaction: Any = None, metadata: Any = None, **options: Any) -> Any:
        """Open an array, or replace it if `metadata` are given."""
        import tensorstore

        spec = {"driver": "zarr3", "kvstore": self.key_values(path, **options)}
        if metadata is None:
            return tensorstore.open(spec, open=True, read=True, write=True, transaction=transaction).result()
        spec["metadata"] = metadata
        return tensorstore.open(spec, create=True, delete_existing=True, transaction=transaction).result()

    def write_array(self, path: str, values: Values, chunk: int) -> None:
        import tensorstore

        # The file driver can't commit several keys at once; ocdbt can, and writes nothing before.
        atomic = isinstance(self, VersionedSystem)
        with (
            tensorstore.Transaction(atomic=False) if not atomic else tensorstore.Transaction() as transaction
        ):
            self.array(path, transaction, _metadata(len(values), chunk))[...] = values

    def open_array(self, path: str) -> Reader:
        return _ArrayReader(self.array(path))


class TensorStoreFile(_TensorStore):
    name = "tensorstore-file"

    def key_values(self, path: str, **options: Any) -> dict[str, Any]:
        return {"driver": "file", "path": f"{self.folder}/{path}/", **options}


class TensorStoreOcdbt(_TensorStore, VersionedSystem):
    name = "tensorstore-ocdbt"
    can_list_history = False
    # ocdbt can't refer to other files, so chunks that exist have to be written: tiny ones.
    filled_chunk_items = 1

    def key_values(self, path: str, **options: Any) -> dict[str, Any]:
        return {"driver": "ocdbt", "base": f"file://{self.folder}/", "path": f"{path}/", **options}

    def open(self) -> None:
        pass

    def make_array(self, path: str, count: int, chunk: int) -> None:
        self.array(path, metadata=_metadata(count * chunk, chunk))

    def fill_array(self, path: str, count: int) -> None:
        from benchmarks.data import values

        self.write_array(path, values(0, count), 1)

    def begin(self) -> Change:
        return _TransactionChange(self)

    def mark_oldest(self) -> None:
        # Every version is kept, and numbered: 1 is the empty store, 2 has the array, 3 the first commit.
        pass

    def open_oldest(self, path: str) -> Reader:
        return _ArrayReader(self.array(path, version=_OLDEST_VERSION))


class _TransactionChange(Change):
    def __init__(self, system: _TensorStore) -> None:
        import tensorstore

        self._system = system
        self._arrays: dict[str, Any] = {}
        self._transaction = tensorstore.Transaction(atomic=True)

    def write_chunk(self, path: str, index: int, values: Values) -> None:
        array = self._arrays.get(path)
        if array is None:
            array = self._arrays[path] = self._system.array(path, self._transaction)
        chunk = array.chunk_layout.write_chunk.shape[0]
        array[index * chunk : (index + 1) * chunk] = values

    def commit(self, message: str) -> None:
        self._transaction.commit_async().result()
