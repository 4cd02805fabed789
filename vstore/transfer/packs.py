"""Copies packs from one storage to another, byte for byte and under their own names, several at once.

A pack is read in pieces of some megabytes; where the target needs it whole before it is uploaded, it is in memory, and
all that are under way together take at most `MEMORY_BYTES`, or one pack that is larger. Before a pack gets its name its
header, its trailer and its list of blobs are checked, and every blob against its digest if it came over a network or on
request. What does not match was perhaps damaged on its way: it is read again before it counts as damage.

A pack that is there already stays, if it has the right size and its ending is whole. As its content can only be one, it
does no harm to write it again: that is also the answer to a reply that was lost. Above: `replicate`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blake3 import blake3

from vstore.blobs.reader import BlobReader
from vstore.blobs.uploads import UploadTries
from vstore.clock import SYSTEM_CLOCK
from vstore.errors import (
    CorruptionError,
    FormatError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
)
from vstore.format.pack import (
    HEADER_SIZE,
    TRAILER_SIZE,
    decode_footer,
    decode_header,
    decode_trailer,
    find_bad_block,
)
from vstore.format.refs import CHECK_BLOCK_BYTES, BlobRef, check_table_size
from vstore.ids import PackId
from vstore.keys.objects import pack_name
from vstore.ops.findings import Problem
from vstore.ops.pack_index import footer_columns
from vstore.ops.scrub import blob_problem, iter_stored
from vstore.storage.base import PackSink, Storage
from vstore.transfer.plan import MovedOnError

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY_BYTES = 256 * 1024 * 1024
PACKS_AT_ONCE = 8
_PIECE_BYTES = 8 * 1024 * 1024
_CHECKED_BLOCKS = 16
"""Of what was written, so many blocks of a blob are read back at once."""
_READ_TRIES = 3
"""Reads of a pack from an object store, before what does not match is damage."""
_QUEUED = 4 * PACKS_AT_ONCE


class PackCopier:
    """Copies packs from `source` to `target`; `done` is told of each (pack, size, whether it had to be copied)."""

    def __init__(
        self,
        source: Storage,
        target: Storage,
        done: Callable[[PackId, int, bool], None],
        *,
        verify: bool = False,
    ) -> None:
        self._source = source
        self._target = target
        self._done = done
        self._verify = verify
        self._read_tries = 1 if source.is_local else _READ_TRIES
        self._room = _Room(MEMORY_BYTES)
        self._is_staged = target.is_local

    def copy(self, packs: Iterable[tuple[PackId, int]], present: dict[PackId, int]) -> None:
        """Make the target hold all `packs`, given with their sizes; `present` are those that it lists, with theirs.

        Raises `MovedOnError` if one of them is gone from the source. After any error no copy is under way any more.
        """
        waiting: set[Future[None]] = set()
        stopped = threading.Event()
        with ThreadPoolExecutor(PACKS_AT_ONCE, thread_name_prefix="vstore-copy") as pool:
            try:
                for pack, size in packs:
                    if len(waiting) >= _QUEUED:
                        _raise_first(waiting)
                    waiting.add(pool.submit(self._bring, pack, size, present.get(pack), stopped))
                while waiting:
                    _raise_first(waiting)
            except BaseException:
                stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _bring(self, pack: PackId, size: int, found: int | None, stopped: threading.Event) -> None:
        if stopped.is_set():
            return
        is_there = found == size and self._is_whole(pack, size)
        if not is_there:
            read_back = min(size, _CHECKED_BLOCKS * CHECK_BLOCK_BYTES)
            with self._room.take(_PIECE_BYTES if self._is_staged else size + read_back):
                self._copy(pack, size, found is not None, stopped)
        if not stopped.is_set():
            self._done(pack, size, not is_there)

    def _is_whole(self, pack: PackId, size: int) -> bool:
        """Tell whether a pack of the target is as it must be, as far as its ending, or else all of it, says."""
        try:
            _, footer = BlobReader(self._target).read_footer(pack)
            if self._verify:
                stored = iter_stored(self._target, pack, footer_columns(footer))
                _refuse((ref, blob_problem(data, ref)) for ref, data in stored)
        except (FormatError, ObjectNotFoundError):
            return False
        return True

    def _copy(self, pack: PackId, size: int, replaces: bool, stopped: threading.Event) -> None:
        tries = UploadTries(self._target, SYSTEM_CLOCK)
        while True:
            # What is in doubt is put anew, in place of what may have come.
            sink = self._target.replace_damaged_pack(pack) if replaces else self._open(pack)
            try:
                if not self._fill(sink, size, stopped):
                    return
                sink.seal(size)
                return
            except OutcomeUnknownError:
                if not tries.wait():
                    raise
                replaces = True
            finally:
                sink.discard()

    def _open(self, pack: PackId) -> PackSink:
        try:
            return self._target.open_pack(pack)
        except ObjectExistsError:
            # A staged file of this name is there: a crash left it, or another copy is at work.
            return self._target.replace_damaged_pack(pack)

    def _fill(self, sink: PackSink, size: int, stopped: threading.Event) -> bool:
        """Write the pack's bytes and check them; return False if it is not wanted any more."""
        name = pack_name(sink.pack)
        for tries_left in reversed(range(self._read_tries)):
            try:
                if not self._transfer(sink, size, stopped):
                    return False
                self._check(sink, size)
                break
            except FormatError as error:
                if not tries_left:
                    raise CorruptionError(
                        f"{name} of {self._source.url} is damaged, so that it was not copied: {error.message} "
                        "repo.fsck() names all that is damaged."
                    ) from error
        return True

    def _transfer(self, sink: PackSink, size: int, stopped: threading.Event) -> bool:
        """Write what the source has into `sink`, from its start; return False if it is not wanted any more."""
        name = pack_name(sink.pack)
        for offset in range(0, size, _PIECE_BYTES):
            if stopped.is_set():
                return False
            try:
                piece = self._source.read(name, offset, min(_PIECE_BYTES, size - offset))
            except ObjectNotFoundError as error:
                raise MovedOnError(
                    f"{name} was deleted from {self._source.url} while it was copied"
                ) from error
            sink.write(offset, [piece])
        return True

    def _check(self, sink: PackSink, size: int) -> None:
        if size < HEADER_SIZE + TRAILER_SIZE:
            raise CorruptionError(f"it has only {size} bytes.")
        decode_header(sink.read(0, HEADER_SIZE))
        trailer = decode_trailer(sink.read(size - TRAILER_SIZE, TRAILER_SIZE), size)
        if trailer.pack != sink.pack:
            raise CorruptionError(f"its trailer says that it is pack {trailer.pack.hex()}.")
        footer = decode_footer(sink.read(trailer.footer_offset, trailer.footer_size), trailer)
        if self._verify or not self._source.is_local:
            columns = footer_columns(footer)
            refs = (columns.ref(sink.pack, row) for row in range(len(columns)))
            _refuse((ref, _written_problem(sink, ref)) for ref in refs)


def _written_problem(sink: PackSink, ref: BlobRef) -> Problem | None:
    """Do what `blob_problem` does, of a pack that is being written: a blob may be larger than the memory for it."""
    table = sink.read(ref.offset + ref.length, check_table_size(ref.length))
    digest = blake3()
    is_bad = False
    step = _CHECKED_BLOCKS * CHECK_BLOCK_BYTES
    for start in range(0, ref.length, step):
        data = sink.read(ref.offset + start, min(step, ref.length - start))
        digest.update(data)
        if table:
            first = 4 * (start // CHECK_BLOCK_BYTES)
            is_bad |= find_bad_block(data, table[first : first + 4 * _CHECKED_BLOCKS]) is not None
    if digest.digest() != ref.digest:
        return Problem.DIGEST
    return Problem.CHECKSUMS if is_bad else None


def _refuse(problems: Iterable[tuple[BlobRef, Problem | None]]) -> None:
    """Raise `CorruptionError` if a blob has a problem."""
    for ref, problem in problems:
        if problem is not None:
            raise CorruptionError(
                f"blob {ref.digest.hex()} at {ref.offset} (length {ref.length}): {problem.name.lower()}."
            )


def _raise_first(waiting: set[Future[None]]) -> None:
    """Wait until one is done; raise what it raised."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        waiting.discard(future)
        future.result()


class _Room:
    """So many bytes of memory; who wants more than there is gets it when no one else has any."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()
