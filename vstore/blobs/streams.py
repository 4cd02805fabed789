"""What to fetch of a pack in one request: decided from what is wanted, from what is on its way, and from past reads.

Blobs that are wanted at once and lie close together share a request. Reads that go forward through a pack are a
*stream*, for which a *stretch* is fetched ahead: never more than what the stream was asked for so far, so that at worst
as much again is fetched for nothing. Who reads here and there gets just what was asked for. What all streams have ahead
of them has to wait in the cache, whose room they share. No I/O: `fetching` acts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from vstore.format.refs import CHECK_BLOCK_BYTES
from vstore.ids import PackId

MAX_GAP_BYTES = 256 * 1024
"""Unwanted bytes between two blobs that share a request, at most; and no more than the wanted ones before them."""
MAX_AHEAD_BYTES = 16 * 1024 * 1024
"""How far ahead of a stream is fetched, in parts: eight requests at once, 160 ms of a line of 100 MB/s."""
PART_BYTES = 2 * 1024 * 1024
"""A request for more is made as several, which come at once: one connection is slower than several."""
LARGE_BYTES = 1024 * 1024
"""A blob of this size takes as long as the round trip: it gains nothing from company."""
MANY_BLOBS = 4
"""So many neighbours wanted at once are the beginning of a stream; fewer are one when another follows them."""
MAX_STREAMS = 8
MAX_STRETCHES = 64
"""Of each are remembered, for each pack."""
MAX_WAITING_STREAMS = 64
"""Of all packs together, so many are known to have something ahead of them."""

Slice: TypeAlias = "Future[memoryview]"


class Wanted(NamedTuple):
    """A range of a pack that somebody waits for; up to `reach` the pack is known to hold blobs like it."""

    start: int
    stop: int
    reach: int
    future: Slice

    @property
    def spacing(self) -> int:
        """How far from one such blob to the next, with the checksums that lie behind a large one."""
        size = max(self.stop - self.start, 1)
        return size if size <= CHECK_BLOCK_BYTES else size + 4 * -(-size // CHECK_BLOCK_BYTES)


@dataclass(slots=True, eq=False)
class Stream:
    """Reads that go forward: `used` bytes were asked for, the last one ended at `asked`; fetched up to `end`."""

    asked: int
    end: int
    used: int

    def window(self, limit: int) -> int:
        """Return how far ahead to fetch."""
        return min(self.used, limit)

    @property
    def unread(self) -> int:
        """How many bytes were fetched ahead that it has not come to."""
        return max(self.end - self.asked, 0)


class Waiting:
    """What waits ahead of the streams of all packs, and how they share the room for it. Not thread-safe.

    `room` says for how many bytes there is room. The cache keeps four times as much, for a stream that was there first
    has more than its share for a while, stretches stay until they are read to the end, and what is read stays as well.
    So who does not come back while twice the room is asked for by others has lost what was fetched for him.
    """

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        self._asked = 0
        self._streams: OrderedDict[Stream, int] = OrderedDict()

    def note(self, stream: Stream | None, size: int) -> None:
        """Note that `size` bytes were asked for, of a stream or here and there."""
        self._asked += size
        if stream is None:
            return
        self._streams.pop(stream, None)
        if stream.unread:
            self._streams[stream] = self._asked
            if len(self._streams) > MAX_WAITING_STREAMS:
                self._streams.popitem(last=False)

    def drop(self, stream: Stream) -> None:
        """Forget a stream."""
        self._streams.pop(stream, None)

    def limit(self, stream: Stream) -> int:
        """Return how far ahead of a stream may be fetched: its share of the room, or what the others leave of it."""
        room = self._room()
        while self._streams and self._asked - next(iter(self._streams.values())) > 2 * room:
            self._streams.popitem(last=False)
        others = [each for each in self._streams if each is not stream]
        left = room - sum(each.unread for each in others)
        return min(max(left, room // (len(others) + 1)), MAX_AHEAD_BYTES)


@dataclass(slots=True, eq=False)
class Stretch:
    """A range of a pack that is one request; `waiting` is None once it is over.

    `left` bytes of it are neither asked for yet nor the checksums behind what was, for which nobody asks.
    """

    pack: PackId
    start: int
    stop: int
    stream: Stream | None = None
    waiting: list[Wanted] | None = field(default_factory=list)
    is_ahead: bool = False
    left: int = 0
    is_begun: bool = False

    def __post_init__(self) -> None:
        self.left = self.stop - self.start

    @property
    def key(self) -> tuple[str, PackId, int, int]:
        """The key of its bytes in the cache."""
        return "stretch", self.pack, self.start, self.stop


class _Run(NamedTuple):
    """Wanted blobs that share a request: their range, and how many bytes of it are wanted."""

    wanted: list[Wanted]
    start: int
    stop: int
    used: int


class PackReads:
    """The stretches and streams of one pack. Not thread-safe: the fetcher's lock covers it."""

    def __init__(self, pack: PackId, is_kept: Callable[[Stretch], bool], waiting: Waiting) -> None:
        self.pack = pack
        self._is_kept = is_kept
        self._waiting = waiting
        self._starts: list[int] = []
        self._stretches: list[Stretch] = []
        self._streams: list[Stream] = []

    def find(self, start: int, stop: int) -> Stretch | None:
        """Return a stretch, on its way or kept, that holds a range."""
        at = bisect_right(self._starts, start)
        # Stretches overlap where one was cut short of a blob: the nearest few that begin before it are looked at.
        for index in range(at - 1, max(at - 4, -1), -1):
            stretch = self._stretches[index]
            if stretch.stop >= stop:
                if stretch.waiting is not None or self._is_kept(stretch):
                    return stretch
                self.remove(stretch)
        return None

    def add(self, stretch: Stretch) -> Stretch:
        if len(self._stretches) >= MAX_STRETCHES:
            for old in [each for each in self._stretches if each.waiting is None and not self._is_kept(each)]:
                self.remove(old)
            if len(self._stretches) >= MAX_STRETCHES:
                self.remove(self._stretches[0])
        at = bisect_right(self._starts, stretch.start)
        self._starts.insert(at, stretch.start)
        self._stretches.insert(at, stretch)
        return stretch

    def remove(self, stretch: Stretch) -> None:
        """Forget a stretch, if it is known; whoever waits for it still gets it."""
        for at in range(bisect_right(self._starts, stretch.start) - 1, -1, -1):
            if self._stretches[at] is stretch:
                del self._starts[at], self._stretches[at]
                return
            if self._starts[at] < stretch.start:
                return

    def forget_stream(self, stream: Stream | None) -> None:
        """End a stream, of which something could not be fetched."""
        if stream is None:
            return
        self._waiting.drop(stream)
        if stream in self._streams:
            self._streams.remove(stream)

    def plan(self, wanted: Sequence[Wanted], ahead_bytes: int) -> list[Stretch]:
        """Return new stretches that hold all that is wanted; fetches at most `ahead_bytes` more than that and gaps."""
        stretches: list[Stretch] = []
        for run in _runs(wanted):
            parts = self._stretches_of(run, ahead_bytes)
            ahead_bytes -= sum(part.stop - part.start for part in parts if part.is_ahead)
            stretches += parts
        return stretches

    def _stretches_of(self, run: _Run, ahead_bytes: int) -> list[Stretch]:
        last = run.wanted[-1]
        stream = None
        start, stop = run.start, run.stop
        if last.stop - last.start < LARGE_BYTES:
            stream = self._stream_before(run)
            if stream is None:
                stream = self._begin_stream(run)
            else:
                stream.used += run.used
            if stream.used > run.used or len(run.wanted) >= MANY_BLOBS:
                stream.asked = max(stream.asked, run.stop)
                start = min(stream.end, run.start)
                limit = min(ahead_bytes, self._waiting.limit(stream))
                stop = _aligned(run.stop, run.stop + stream.window(limit), last)
                stream.end = stop
        self._waiting.note(stream, run.used)
        # The wanted ones come in one request, and what is ahead of them as far as it fits.
        room = max((start + PART_BYTES - run.stop) // last.spacing * last.spacing, 0)
        first = self.add(Stretch(self.pack, start, min(stop, run.stop + room), stream, run.wanted))
        first.left -= run.used + sum(each.spacing - (each.stop - each.start) for each in run.wanted)
        return [first, *self._cut(first.stop, stop, stream, last)]

    def _stream_before(self, run: _Run) -> Stream | None:
        """Return the stream that a run goes on with: it ends shortly before, or within, the run."""
        found = None
        for stream in self._streams:
            is_forward = stream.asked <= run.start and stream.end < run.stop
            if is_forward and run.start - stream.end <= min(MAX_GAP_BYTES, stream.used):
                found = stream if found is None or stream.end > found.end else found
        return found

    def _begin_stream(self, run: _Run) -> Stream:
        if len(self._streams) >= MAX_STREAMS:
            del self._streams[0]
        stream = Stream(run.stop, run.stop, run.used)
        self._streams.append(stream)
        return stream

    def _cut(self, start: int, stop: int, stream: Stream | None, like: Wanted) -> list[Stretch]:
        """Return stretches ahead, each about a part."""
        step = max(PART_BYTES // like.spacing, 1) * like.spacing
        return [
            self.add(Stretch(self.pack, at, min(at + step, stop), stream, is_ahead=True))
            for at in range(start, stop, step)
        ]

    def use(self, stretch: Stretch, wanted: Wanted, ahead_bytes: int) -> list[Stretch]:
        """Note that something of a known stretch is asked for; return new ones, at most `ahead_bytes`, ahead of it."""
        size = wanted.stop - wanted.start
        stream = stretch.stream
        if stream is not None:
            # What is read again is not used twice.
            stream.used += max(min(size, stretch.left), 0)
        stretch.left -= wanted.spacing
        ahead = []
        if stream is not None and wanted.stop > stream.asked:
            stream.asked = wanted.stop
            ahead = self._go_on(stream, wanted, ahead_bytes)
        self._waiting.note(stream, size)
        return ahead

    def _go_on(self, stream: Stream, wanted: Wanted, ahead_bytes: int) -> list[Stretch]:
        """Return new stretches ahead of a stream that was just asked for `wanted`."""
        limit = self._waiting.limit(stream)
        window = stream.window(min(ahead_bytes, limit))
        if not window:
            return []
        # A short stream goes on when its end is near: at first each request is a round trip that should bring twice as
        # much. A long one goes on by a part as soon as there is room for it: all of its window is on its way or there.
        near = max(window * window // (2 * limit), window * window // limit - PART_BYTES)
        if stream.end - wanted.stop > near:
            return []
        start = stream.end
        stop = _aligned(start, wanted.stop + window, wanted)
        if stop <= start:
            return []
        stream.end = stop
        return self._cut(start, stop, stream, wanted)


def _aligned(start: int, stop: int, like: Wanted) -> int:
    """Return `stop`, moved back to where a blob would end if all from `start` on were as long as this one."""
    count = max(stop - start, 0) // like.spacing
    return max(min(start + count * like.spacing, like.reach), start)


def _runs(wanted: Sequence[Wanted]) -> list[_Run]:
    """Return the wanted ranges as runs of neighbours, in the order of places."""
    runs: list[_Run] = []
    for each in sorted(wanted, key=lambda each: (each.start, each.stop)):
        size = each.stop - each.start
        run = runs[-1] if runs else None
        if run is not None and (each.stop <= run.stop or _share(run, each)):
            run.wanted.append(each)
            more = max(min(size, each.stop - run.stop), 0)
            runs[-1] = run._replace(stop=max(run.stop, each.stop), used=run.used + more)
        else:
            runs.append(_Run([each], each.start, each.stop, size))
    return runs


def _share(run: _Run, each: Wanted) -> bool:
    if each.stop - each.start >= LARGE_BYTES or each.stop - run.start > PART_BYTES:
        return False
    return each.start - run.stop <= min(MAX_GAP_BYTES, run.used)
