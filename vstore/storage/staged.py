"""The pack being written on a local disk: `staging/<id>`, locked, until `seal` renames it to `packs/ab/<id>`.

What a crash leaves: before the rename a staged file whose lock is gone, after it a pack that no commit names; gc
removes both. Neighbours: `vstore.storage.local` opens them, `vstore.storage.files` does the system calls.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vstore.errors import (
    CorruptionError,
    ForkedProcessError,
    InternalError,
    OutcomeUnknownError,
    StorageError,
)
from vstore.ids import BytesLike, PackId
from vstore.storage.files import (
    SURELY_NOT_DONE,
    Descriptor,
    pread_up_to,
    pwrite_all,
    storage_error,
    sync_directory,
    sync_file,
)

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

SYNC_BYTES = 32 * 1024 * 1024
"""After so many bytes a sync is started in the background, so that the one in `seal` is short."""


class StagedPack:
    """A `PackSink` over one locked file.

    `make_folder` makes the sealed pack's folder durably; `read_sealed` reads the pack by its final name.
    `forget_replaced` is called when the rename may have replaced a file of that name.
    """

    def __init__(
        self,
        pack: PackId,
        descriptor: Descriptor,
        paths: tuple[str, str],
        make_folder: Callable[[], None],
        read_sealed: Callable[[int, int], memoryview],
        forget_replaced: Callable[[], None] = lambda: None,
    ) -> None:
        self.pack = pack
        self._forget_replaced = forget_replaced
        self._pid = os.getpid()
        self._descriptor: Descriptor | None = descriptor
        self._path, self._final_path = paths
        self._make_folder = make_folder
        self._read_sealed = read_sealed
        self._writable = True
        self._renamed = False
        # Never taken in a forked child, where it might be held for ever.
        self._lock = threading.Lock()
        self._helper: ThreadPoolExecutor | None = None
        self._syncing: Future[None] | None = None
        self._unsynced = 0
        self._failure: StorageError | None = None

    def write(self, offset: int, buffers: Sequence[BytesLike]) -> None:
        descriptor = self._start("write to")
        try:
            size = pwrite_all(descriptor.fd, offset, buffers)
        except OSError as error:
            raise storage_error(error, "write", self._path) from error
        with self._lock:
            self._unsynced += size
            # One at a time: a disk slower than the writer gains nothing from a queue of syncs.
            if self._unsynced >= SYNC_BYTES and (self._syncing is None or self._syncing.done()):
                self._raise_failure()
                self._unsynced = 0
                if self._helper is None:
                    from concurrent.futures import ThreadPoolExecutor

                    self._helper = ThreadPoolExecutor(1, thread_name_prefix="vstore-sync")
                self._syncing = self._helper.submit(descriptor.sync_data)

    def read(self, offset: int, length: int) -> memoryview:
        descriptor = self._descriptor
        if descriptor is None:
            if self._renamed:
                return self._read_sealed(offset, length)
            raise InternalError(f"pack {self.pack.hex()} was read after it was discarded")
        try:
            data = pread_up_to(descriptor.fd, offset, length)
        except OSError as error:
            raise storage_error(error, "read", self._path) from error
        if len(data) != length:
            raise CorruptionError(
                f"{self._path!r} was cut while it was being written: bytes {offset} to {offset + length} were "
                f"wanted, {len(data)} of them are there. Discard the session's changes and write them again."
            )
        return memoryview(data)

    def seal(self, size: int) -> None:
        descriptor = self._start("seal")
        self._writable = False
        try:
            self._finish_file(descriptor.fd, size)
        except OSError as error:
            raise storage_error(error, "make durable", self._path) from error
        self._make_folder()
        self._publish()
        self._close()

    def discard(self) -> None:
        if self._pid == os.getpid() and self._descriptor is not None and not self._renamed:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file and its lock, as a crash would; the file stays, for gc."""
        # In a forked child this closes the child's copy only: the parent's holds the lock.
        self._writable = False
        self._close()

    def __del__(self) -> None:
        # Nobody can seal it any more. At the interpreter's end the modules this needs may be gone.
        with contextlib.suppress(Exception):
            self.discard()

    def _start(self, attempt: str) -> Descriptor:
        """Check that this process may still write; return the file."""
        if self._pid != os.getpid():
            raise ForkedProcessError(
                f"process {os.getpid()} was forked from process {self._pid} and can't {attempt} its pack "
                f"{self.pack.hex()}: both would write over each other's bytes. Open the repository again in the "
                "child and write through a session of its own, or start workers by spawn or forkserver."
            )
        descriptor = self._descriptor
        if descriptor is None or not self._writable:
            raise InternalError(f"can't {attempt} pack {self.pack.hex()}: it was sealed or discarded before")
        with self._lock:
            self._raise_failure()
        return descriptor

    def _raise_failure(self) -> None:
        """Raise what a sync in the background met: it is final, as the system may have dropped the bytes."""
        if self._syncing is not None and self._syncing.done():
            error = self._syncing.exception()
            if isinstance(error, OSError):
                self._failure = storage_error(error, "sync", self._path)
            elif error is not None:
                raise error
            self._syncing = None
        if self._failure is not None:
            raise self._failure

    def _finish_file(self, fd: int, size: int) -> None:
        written = os.fstat(fd).st_size
        if written < size:
            raise InternalError(f"pack {self.pack.hex()} is to be sealed at {size} bytes but holds {written}")
        if written > size:
            os.ftruncate(fd, size)
        if self._syncing is not None:
            # A failure seen by one sync is not reported to the next one of the same descriptor.
            self._syncing.result()
        sync_file(fd)

    def _publish(self) -> None:
        try:
            os.rename(self._path, self._final_path)
        except OSError as error:
            if error.errno in SURELY_NOT_DONE:
                raise storage_error(error, "rename to its final name", self._path) from error
            self._renamed = True
            self._forget_replaced()
            raise self._outcome_unknown("rename", error) from error
        self._renamed = True
        self._forget_replaced()
        try:
            sync_directory(os.path.dirname(self._final_path))
        except OSError as error:
            raise self._outcome_unknown("sync the folder of", error) from error

    def _outcome_unknown(self, attempt: str, error: OSError) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"could not {attempt} {self._final_path!r}: {error.strerror or error}. Whether the pack would survive "
            "a power cut is unknown; write what it holds to a new one. gc will remove this one."
        )

    def _close(self) -> None:
        self._descriptor = None
        helper, self._helper = self._helper, None
        if helper is not None and self._pid == os.getpid():
            helper.shutdown(wait=False)
