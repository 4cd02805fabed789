"""A pack in memory, until it is uploaded. Above: `vstore.storage.objects.storage`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from vstore.errors import InternalError
from vstore.ids import BytesLike, PackId
from vstore.storage.objects.requests import forked


class ObjectPack:
    """A `PackSink` in memory, uploaded in one request when it is sealed.

    `upload` puts its bytes under its name, `read_sealed` reads them from there.
    """

    def __init__(
        self,
        pack: PackId,
        upload: Callable[[memoryview], None],
        read_sealed: Callable[[int, int], memoryview],
    ) -> None:
        self.pack = pack
        self._upload = upload
        self._read_sealed = read_sealed
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._data: bytearray | None = bytearray()
        self._writable = True
        self._sealed = False

    def write(self, offset: int, buffers: Sequence[BytesLike]) -> None:
        self._check_process()
        with self._lock:
            data = self._data
            if data is None or not self._writable:
                raise InternalError(f"pack {self.pack.hex()} was written to after it was sealed or discarded")
            data.extend(bytes(max(0, offset - len(data))))
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                data[offset : offset + len(view)] = view
                offset += len(view)

    def read(self, offset: int, length: int) -> memoryview:
        self._check_process()
        with self._lock:
            if self._data is not None:
                part = self._data[offset : offset + length]
                if len(part) != length:
                    raise InternalError(f"pack {self.pack.hex()} was read where nothing was written")
                return memoryview(part).toreadonly()
        if not self._sealed:
            raise InternalError(f"pack {self.pack.hex()} was read after it was discarded")
        return self._read_sealed(offset, length)

    def seal(self, size: int) -> None:
        self._check_process()
        with self._lock:
            data = self._data
            if data is None or not self._writable:
                raise InternalError(f"pack {self.pack.hex()} was sealed after it was sealed or discarded")
            self._writable = False
        if len(data) < size:
            raise InternalError(
                f"pack {self.pack.hex()} is to be sealed at {size} bytes but holds {len(data)}"
            )
        self._upload(memoryview(data)[:size])
        self._sealed = True
        self._data = None

    def discard(self) -> None:
        self._writable = False
        self._data = None

    def _check_process(self) -> None:
        # Before the lock, which a forked child may have inherited held.
        if self._pid != os.getpid():
            raise forked(self._pid)
