"""Fetches ranges of packs from an object store for all readers of a repository, in few requests.

What is on its way already, or came along earlier, is not asked for again; `streams` decides what shares a request and
what is fetched ahead. Bytes are handed out as they came: `remote` checks each blob.

Readers are in many threads and event loops, so futures are those of concurrent.futures, and requests are made by
threads of the fetcher's own: a reader that is cancelled, or whose loop ends, leaves the fetch to the others.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from vstore.blobs.cache import CACHE
from vstore.blobs.streams import PackReads, Slice, Stretch, Waiting, Wanted
from vstore.errors import ObjectNotFoundError, StorageError
from vstore.ids import PackId
from vstore.keys.objects import pack_name
from vstore.storage.base import Storage

T = TypeVar("T")
R = TypeVar("R")

MAX_FETCHES = 64
"""Requests at once; the storage's own limit holds too."""
MAX_AHEAD_UNDER_WAY = 64 * 1024 * 1024
"""Bytes on their way that nobody has asked for yet, for all packs together."""
AHEAD_PARTS = 8
"""One of so many parts of the cache is for bytes, on their way or there, that nobody has asked for yet."""
MAX_PACKS = 256
"""Packs whose reads are remembered."""
_AT_ONCE = 16


class PackFetcher:
    """Reads ranges of packs of one remote storage. Thread-safe; pickles to a new one on the same storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._packs: OrderedDict[PackId, PackReads] = OrderedDict()
        self._wanted: dict[PackId, list[Wanted]] = {}
        self._ahead_bytes = 0
        self._waiting = Waiting(_room_ahead)
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[type[PackFetcher], tuple[Storage]]:
        return PackFetcher, (self._storage,)

    # --- ranges ----------------------------------------------------------------------------------------------

    def read(self, pack: PackId, start: int, stop: int, reach: int = 0) -> memoryview:
        """Return a range of a pack; waits for it. `reach` is the end of the blobs that the pack is known to hold.

        Raises what `Storage.read` raises.
        """
        if self._is_forked:
            return self.read_alone(pack, start, stop)
        future = self._want(pack, start, stop, reach)
        if not future.done():
            self._flush(future)
        return future.result()

    async def read_async(self, pack: PackId, start: int, stop: int, reach: int = 0) -> memoryview:
        """Do what `read` does without blocking the event loop; what is asked for in the same turn may come together."""
        import asyncio

        if self._is_forked:
            return self.read_alone(pack, start, stop)
        future = self._want(pack, start, stop, reach)
        if future.done():
            return future.result()
        # Each reader sees to it that what it waits for is begun. In the turn after next, because readers that waited
        # for the same thing are woken in two.
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(self._flush))
        return await asyncio.wrap_future(future)

    def read_alone(self, pack: PackId, start: int, stop: int) -> memoryview:
        """Return a range of a pack by a request of its own."""
        return self._storage.read(pack_name(pack), start, stop - start)

    def begin(self, pack: PackId, start: int, stop: int) -> None:
        """Begin to fetch a range, of which parts will be read soon; does not wait. A failure shows in those reads."""
        if self._is_forked:
            return
        with self._lock:
            reads = self._reads(pack)
            if reads.find(start, stop) is not None:
                return
            stretch = reads.add(Stretch(pack, start, stop))
        self._submit(stretch)

    def forget(self, pack: PackId, start: int, stop: int) -> None:
        """Forget what was fetched of a range: it was damaged on the way."""
        if self._is_forked:
            return
        with self._lock:
            reads = self._reads(pack)
            while (stretch := reads.find(start, stop)) is not None and stretch.waiting is None:
                reads.remove(stretch)
                CACHE.drop_bytes(stretch.key)

    def _want(self, pack: PackId, start: int, stop: int, reach: int) -> Slice:
        future: Slice = Future()
        # Never cancelled by who waits for it: others may, too.
        future.set_running_or_notify_cancel()
        wanted = Wanted(start, stop, reach, future)
        with self._lock:
            ahead = self._take(self._reads(pack), wanted)
            if ahead is None:
                self._wanted.setdefault(pack, []).append(wanted)
        for stretch in ahead or ():
            self._submit(stretch)
        return future

    def _take(self, reads: PackReads, wanted: Wanted) -> list[Stretch] | None:
        """Take what is wanted from a stretch that is known; None if there is none, else what to fetch after it.

        The caller holds the lock.
        """
        while (stretch := reads.find(wanted.start, wanted.stop)) is not None:
            if stretch.waiting is not None:
                stretch.waiting.append(wanted)
            else:
                data = CACHE.get_bytes(stretch.key)
                if data is None:
                    reads.remove(stretch)
                    continue
                wanted.future.set_result(data[wanted.start - stretch.start : wanted.stop - stretch.start])
            ahead = reads.use(stretch, wanted, self._ahead_room)
            self._note_ahead(ahead)
            if stretch.waiting is None and stretch.left <= 0:
                reads.remove(stretch)
                CACHE.drop_bytes(stretch.key)
            return ahead
        return None

    def _flush(self, mine: Slice | None = None) -> None:
        """Make requests for all that is wanted; the one for `mine` in this thread."""
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        stretches: list[Stretch] = []
        try:
            with self._lock:
                for pack in list(wanted):
                    self._plan(pack, wanted[pack], stretches)
                    del wanted[pack]
            here = None
            while stretches:
                stretch = stretches[-1]
                if mine is not None and any(each.future is mine for each in stretch.waiting or ()):
                    here = stretch
                else:
                    self._submit(stretch)
                stretches.pop()
        except BaseException as error:
            self._abandon(wanted, stretches, error)
            raise
        if here is not None:
            self._run(here, mine)

    def _plan(self, pack: PackId, ranges: list[Wanted], stretches: list[Stretch]) -> None:
        """Add to `stretches` what to fetch for all that is wanted of a pack. The caller holds the lock."""
        reads = self._reads(pack)
        for each in list(ranges):
            # It may be on its way by now.
            ahead = self._take(reads, each)
            if ahead is not None:
                ranges.remove(each)
                stretches += ahead
        planned = reads.plan(ranges, self._ahead_room)
        self._note_ahead(planned)
        stretches += planned

    def _abandon(
        self, wanted: Mapping[PackId, Sequence[Wanted]], stretches: Sequence[Stretch], error: BaseException
    ) -> None:
        """Give an error to who waits for what was not begun: nobody would ever fetch it."""
        if not isinstance(error, Exception):
            error = StorageError("a request was interrupted before it was made. Read again.")
        with self._lock:
            for pack in wanted:
                # It may know stretches that will never be.
                self._packs.pop(pack, None)
            waiting = [each for ranges in wanted.values() for each in ranges]
            for stretch in stretches:
                if not stretch.is_begun:
                    stretch.is_begun = True
                    waiting += self._end(stretch)
                    self._reads(stretch.pack).remove(stretch)
        for each in waiting:
            _settle(each.future, error)

    def _reads(self, pack: PackId) -> PackReads:
        reads = self._packs.get(pack)
        if reads is None:
            reads = self._packs[pack] = PackReads(pack, _is_kept, self._waiting)
            if len(self._packs) > MAX_PACKS:
                self._packs.popitem(last=False)
        else:
            self._packs.move_to_end(pack)
        return reads

    @property
    def _ahead_room(self) -> int:
        return max(min(MAX_AHEAD_UNDER_WAY, _room_ahead()) - self._ahead_bytes, 0)

    def _note_ahead(self, stretches: Iterable[Stretch]) -> None:
        self._ahead_bytes += sum(each.stop - each.start for each in stretches if each.is_ahead)

    @property
    def _is_forked(self) -> bool:
        """Whether this is a forked child, which has none of the threads, and whose storage says what to do instead."""
        return os.getpid() != self._pid

    # --- requests --------------------------------------------------------------------------------------------

    def _submit(self, stretch: Stretch) -> None:
        try:
            self._threads().submit(self._run, stretch)
        except RuntimeError:
            # The interpreter is ending, or the system has no more threads.
            self._run(stretch)

    def _threads(self) -> ThreadPoolExecutor:
        pool = self._pool
        if pool is None:
            # Two threads that come here at once make two pools, of which one goes when its work is done.
            pool = self._pool = ThreadPoolExecutor(MAX_FETCHES, thread_name_prefix="vstore-read")
        return pool

    def _run(self, stretch: Stretch, mine: Slice | None = None) -> None:
        """Make a request, in the thread that waits for `mine` or in one of the fetcher's own."""
        with self._lock:
            if stretch.is_begun:
                # It was queued, although there was no thread for it, and done by who wanted to queue it.
                return
            stretch.is_begun = True
        try:
            data = self.read_alone(stretch.pack, stretch.start, stretch.stop)
        except BaseException as error:
            self._fail(stretch, error, mine)
            if not isinstance(error, Exception):
                raise
        else:
            self._deliver(stretch, data)

    def _deliver(self, stretch: Stretch, data: memoryview) -> None:
        with self._lock:
            waiting = self._end(stretch)
            if stretch.left > 0:
                CACHE.put_bytes(stretch.key, data)
            else:
                self._reads(stretch.pack).remove(stretch)
        for each in waiting:
            _settle(each.future, data[each.start - stretch.start : each.stop - stretch.start])

    def _fail(self, stretch: Stretch, error: BaseException, mine: Slice | None) -> None:
        """Give the error to those who asked for just this, or whose pack is gone; the others' ranges are fetched alone.

        An interrupt of a thread that waits is only its own.
        """
        with self._lock:
            waiting = self._end(stretch)
            reads = self._reads(stretch.pack)
            reads.remove(stretch)
            reads.forget_stream(stretch.stream)
        for each in waiting:
            if isinstance(error, Exception):
                is_all = (each.start, each.stop) == (stretch.start, stretch.stop)
                is_its = is_all or isinstance(error, ObjectNotFoundError)
            else:
                is_its = mine is None or each.future is mine
            if is_its:
                _settle(each.future, error)
            else:
                self._submit(Stretch(stretch.pack, each.start, each.stop, None, [each]))

    def _end(self, stretch: Stretch) -> Sequence[Wanted]:
        waiting, stretch.waiting = stretch.waiting, None
        if stretch.is_ahead:
            self._ahead_bytes -= stretch.stop - stretch.start
        assert waiting is not None, "a stretch ends once"
        return waiting

    # --- other requests --------------------------------------------------------------------------------------

    def iter_map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield a function's results in the order of `items`, some of which are done ahead in threads."""
        from collections import deque
        from itertools import islice

        if self._is_forked:
            yield from map(function, items)
            return
        left = iter(items)
        ahead: deque[Future[R]] = deque()
        # Not the threads that make requests, for which these functions wait.
        threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="vstore-map")
        try:
            while True:
                for item in islice(left, _AT_ONCE - len(ahead)):
                    ahead.append(threads.submit(function, item))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Let go of the threads; they are made again if something is read afterwards."""
        pool, self._pool = self._pool, None
        if pool is not None and not self._is_forked:
            pool.shutdown(wait=False)


def _settle(future: Slice, outcome: memoryview | BaseException) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _is_kept(stretch: Stretch) -> bool:
    return CACHE.has_bytes(stretch.key)


def _room_ahead() -> int:
    """Return how many bytes may wait in the cache until they are asked for: a quarter of those that it keeps."""
    return CACHE.limit_bytes // AHEAD_PARTS
