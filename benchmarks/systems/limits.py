"""What the machine allows: one file and a sync, a file for each chunk, copies in memory. No metadata, no checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import ITEM_BYTES
from benchmarks.systems.base import Change, Reader, System

if TYPE_CHECKING:
    from benchmarks.data import Values


class _Limit(System):
    """Remembers the shape of each array in a file beside it: two numbers."""

    packages = ("numpy",)

    def create(self) -> None:
        self.folder.mkdir(parents=True)

    def _note(self, path: str, items: int, chunk: int) -> None:
        (self.folder / f"{path}.shape").write_text(f"{items} {chunk}")

    def shape(self, path: str) -> tuple[int, int]:
        """Return the items of the array and of a chunk."""
        items, chunk = (self.folder / f"{path}.shape").read_text().split()
        return int(items), int(chunk)


class LimitFile(_Limit):
    """All chunks one after another in one file, which is synced at the end."""

    name = "limit-file"
    is_durable = True

    def write_array(self, path: str, values: Values, chunk: int) -> None:
        data = memoryview(values).cast("B")
        step = chunk * ITEM_BYTES
        with open(self.folder / path, "wb", buffering=0) as file:
            file.writelines(data[start : start + step] for start in range(0, len(data), step))
            os.fsync(file.fileno())
        self._note(path, len(values), chunk)

    def open_array(self, path: str) -> Reader:
        return _FileReader(self.folder / path, *self.shape(path))

    def begin(self) -> Change:
        return _Append(self.folder / "log")


class _FileReader(Reader):
    def __init__(self, path: Path, items: int, chunk: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  lives as long as the reader
        self._items, self._chunk = items, chunk

    def read_all(self) -> Values:
        import numpy as np

        result = np.empty(self._items, np.float32)
        step = self._chunk * ITEM_BYTES
        data = memoryview(result).cast("B")
        for start in range(0, len(data), step):
            os.preadv(self._file.fileno(), [data[start : start + step]], start)
        return result

    def read_chunk(self, index: int) -> Values:
        import numpy as np

        result = np.empty(self._chunk, np.float32)
        os.preadv(self._file.fileno(), [memoryview(result).cast("B")], index * self._chunk * ITEM_BYTES)
        return result


class _Append(Change):
    """The chunks of a change at the end of one file, and a sync."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by the commit

    def write_chunk(self, path: str, index: int, values: Values) -> None:
        self._file.write(memoryview(values).cast("B"))

    def commit(self, message: str) -> None:
        os.fdatasync(self._file.fileno())
        self._file.close()


class LimitFiles(_Limit):
    """A file for each chunk, not synced."""

    name = "limit-files"

    def write_array(self, path: str, values: Values, chunk: int) -> None:
        folder = self.folder / path
        folder.mkdir()
        data = memoryview(values).cast("B")
        step = chunk * ITEM_BYTES
        for index, start in enumerate(range(0, len(data), step)):
            with open(f"{folder}/{index}", "wb", buffering=0) as file:
                file.write(data[start : start + step])
        self._note(path, len(values), chunk)

    def open_array(self, path: str) -> Reader:
        return _FilesReader(self.folder / path, *self.shape(path))


class _FilesReader(Reader):
    def __init__(self, folder: Path, items: int, chunk: int) -> None:
        self._folder, self._items, self._chunk = folder, items, chunk

    def read_all(self) -> Values:
        import numpy as np

        result = np.empty(self._items, np.float32)
        step = self._chunk * ITEM_BYTES
        data = memoryview(result).cast("B")
        for index, start in enumerate(range(0, len(data), step)):
            self._read_into(index, data[start : start + step])
        return result

    def read_chunk(self, index: int) -> Values:
        import numpy as np

        result = np.empty(self._chunk, np.float32)
        self._read_into(index, memoryview(result).cast("B"))
        return result

    def _read_into(self, index: int, target: memoryview) -> None:
        with open(f"{self._folder}/{index}", "rb", buffering=0) as file:
            file.readinto(target)


class LimitMemory(System):
    """Copies in memory, chunk by chunk, into new memory."""

    name = "limit-memory"
    packages = ("numpy",)
    is_persistent = False
    _held: Any = None

    def create(self) -> None:
        pass

    def write_array(self, path: str, values: Values, chunk: int) -> None:
        import numpy as np

        held = np.empty_like(values)
        for start in range(0, len(values), chunk):
            held[start : start + chunk] = values[start : start + chunk]
        self._held = (held, chunk)

    def open_array(self, path: str) -> Reader:
        return _MemoryReader(*self._held)


class _MemoryReader(Reader):
    def __init__(self, values: Values, chunk: int) -> None:
        self._values, self._chunk = values, chunk

    def read_all(self) -> Values:
        import numpy as np

        result = np.empty_like(self._values)
        for start in range(0, len(result), self._chunk):
            result[start : start + self._chunk] = self._values[start : start + self._chunk]
        return result

    def read_chunk(self, index: int) -> Values:
        return self._values[index * self._chunk : (index + 1) * self._chunk].copy()
