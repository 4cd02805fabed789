"""What shares a request and what is fetched ahead: decided without any I/O."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.blobs import streams
from vstore.blobs.streams import PackReads, Stream, Stretch, Waiting, Wanted
from vstore.ids import PackId

PACK = PackId(b"p" * 16)
ROOM = 1 << 40
KIB = 1024


def wanted(start: int, size: int, reach: int = 0) -> Wanted:
    return Wanted(start, start + size, reach, Future())


def ranges(stretches: list[Stretch]) -> list[tuple[int, int]]:
    return [(each.start, each.stop) for each in stretches]


def pack_reads() -> PackReads:
    """Make one whose stretches all stay."""
    return PackReads(PACK, lambda stretch: True, Waiting(lambda: ROOM))


class Reader:
    """Asks for blobs of one pack, whose stretches all stay; adds up what was asked for and what was fetched."""

    def __init__(self, reach: int) -> None:
        self.reads = pack_reads()
        self.reach = reach
        self.requests: list[Stretch] = []
        self.asked = 0

    def ask(self, *places: tuple[int, int]) -> None:
        """Ask for (start, size) of some blobs at once."""
        left = []
        for start, size in places:
            self.asked += size
            each = wanted(start, size, self.reach)
            found = self.reads.find(each.start, each.stop)
            if found is None:
                left.append(each)
            else:
                self._fetch(self.reads.use(found, each, ROOM))
        self._fetch(self.reads.plan(left, ROOM))

    def _fetch(self, stretches: list[Stretch]) -> None:
        for stretch in stretches:
            stretch.waiting = None
        self.requests += stretches

    @property
    def fetched(self) -> int:
        return sum(each.stop - each.start for each in self.requests)


def test_neighbours_wanted_at_once_share_a_request() -> None:
    reads = pack_reads()
    planned = reads.plan([wanted(at * 4096, 4096) for at in (2, 0, 1)], ROOM)
    assert ranges(planned) == [(0, 3 * 4096)]
    assert len(planned[0].waiting or ()) == 3


def test_a_gap_is_fetched_only_if_it_is_smaller_than_what_is_wanted_before_it() -> None:
    planned = pack_reads().plan([wanted(0, 4096), wanted(8192, 4096), wanted(100_000, 4096)], ROOM)
    assert ranges(planned) == [(0, 12_288), (100_000, 104_096)]
    far = streams.MAX_GAP_BYTES + 1
    size = 900 * KIB
    planned = pack_reads().plan([wanted(0, size), wanted(size + far, 1)], ROOM)
    assert len(planned) == 2


def test_large_blobs_have_requests_of_their_own() -> None:
    reader = Reader(100 * streams.LARGE_BYTES)
    for at in range(6):
        reader.ask((at * streams.LARGE_BYTES, streams.LARGE_BYTES))
    assert len(reader.requests) == 6
    assert reader.fetched == reader.asked


@pytest.mark.parametrize("size", [700, 4 * KIB, 64 * KIB])
def test_reading_forward_takes_few_requests_and_nothing_twice(size: int) -> None:
    count = 3000
    reader = Reader(count * size)
    for at in range(count):
        reader.ask((at * size, size))
    assert reader.fetched == reader.asked
    assert len(reader.requests) <= 16 + 2 * reader.fetched // streams.PART_BYTES


def test_a_stream_begins_with_the_first_turn_if_many_neighbours_are_wanted_in_it() -> None:
    reader = Reader(1000 * KIB)
    reader.ask(*((at * KIB, KIB) for at in range(10)))
    assert reader.fetched == 20 * KIB
    reader = Reader(1000 * KIB)
    reader.ask((0, KIB), (KIB, KIB))
    assert reader.fetched == 2 * KIB


def test_chunks_stored_in_another_order_than_they_are_read_still_come_together() -> None:
    """Zarr writes ten chunks at a time, in the order in which they are encoded."""
    size, count = 4 * KIB, 1000
    order = sorted(range(count), key=lambda at: at + (at * 7919) % 13)
    reader = Reader(count * size)
    for first in range(0, count, 10):
        reader.ask(*((order.index(at) * size, size) for at in range(first, first + 10)))
    assert len(reader.requests) < 40
    assert reader.fetched < 1.1 * reader.asked


def test_a_long_stream_has_its_whole_window_on_its_way_in_parts() -> None:
    size = 64 * KIB
    reader = Reader(4 * streams.MAX_AHEAD_BYTES)
    for at in range(3 * streams.MAX_AHEAD_BYTES // size):
        reader.ask((at * size, size))
        if at * size > 2 * streams.MAX_AHEAD_BYTES:
            ahead = reader.fetched - reader.asked
            assert streams.MAX_AHEAD_BYTES - 2 * streams.PART_BYTES <= ahead <= streams.MAX_AHEAD_BYTES
    assert max(each.stop - each.start for each in reader.requests) <= streams.PART_BYTES


def test_nothing_is_fetched_beyond_the_known_blobs() -> None:
    reader = Reader(25 * KIB)
    for at in range(25):
        reader.ask((at * KIB, KIB))
    assert max(each.stop for each in reader.requests) == 25 * KIB
    unknown = Reader(0)
    for at in range(25):
        unknown.ask((at * KIB, KIB))
    assert unknown.fetched == unknown.asked


def test_no_more_is_fetched_ahead_than_there_is_room_for() -> None:
    reads = pack_reads()
    planned = reads.plan([wanted(at * KIB, KIB, 1 << 30) for at in range(100)], 10 * KIB)
    assert ranges(planned) == [(0, 110 * KIB)]
    assert ranges(reads.plan([wanted(110 * KIB, KIB, 1 << 30)], 0)) == [(110 * KIB, 111 * KIB)]


def test_asking_twice_for_the_same_is_no_stream() -> None:
    reader = Reader(1 << 30)
    for _ in range(5):
        reader.ask((50 * KIB, KIB))
    assert reader.fetched == KIB


@given(st.permutations(range(40)), st.integers(100, 70_000))
def test_reading_here_and_there_wastes_no_more_than_was_used(order: list[int], size: int) -> None:
    reader = Reader(40 * size)
    for at in order:
        reader.ask((at * size, size))
    # What is used may be fetched again where a stretch was cut in the midst of a blob.
    assert reader.fetched <= 2 * reader.asked + size


def test_single_chunks_here_and_there_are_all_that_is_fetched() -> None:
    size = 4 * KIB
    reader = Reader(2000 * size)
    for at in range(100):
        reader.ask(((at * 7919 % 2000) * size, size))
    assert reader.fetched == reader.asked
    assert len(reader.requests) == 100


def test_what_is_remembered_of_a_pack_is_bounded() -> None:
    reads = pack_reads()
    for at in range(1000):
        reads.plan([wanted(at * (1 << 20), KIB)], ROOM)
    assert len(reads._stretches) <= streams.MAX_STRETCHES
    assert len(reads._streams) <= streams.MAX_STREAMS
    assert reads.find(999 * (1 << 20), 999 * (1 << 20) + KIB) is not None


def test_streams_share_the_room_for_what_waits_ahead_of_them() -> None:
    room = streams.MAX_AHEAD_BYTES
    waiting = Waiting(lambda: room)
    one, other, third = (Stream(0, 0, 1 << 40) for _ in range(3))
    assert waiting.limit(one) == room
    one.end = room
    waiting.note(one, KIB)
    assert waiting.limit(one) == room
    assert waiting.limit(other) == room // 2
    other.end = room // 2
    waiting.note(other, KIB)
    assert [waiting.limit(each) for each in (one, other, third)] == [room // 2, room // 2, room // 3]
    # One that has little ahead of it leaves the rest to the others.
    one.asked = room - KIB
    waiting.note(one, KIB)
    assert waiting.limit(other) == room - KIB
    # One that has nothing ahead of it takes no part.
    other.asked = other.end
    waiting.note(other, KIB)
    assert waiting.limit(third) == room - KIB
    waiting.drop(one)
    assert waiting.limit(third) == room


def test_what_waits_ahead_of_a_stream_that_ended_is_forgotten_with_the_cache() -> None:
    waiting = Waiting(lambda: 10 * KIB)
    left = Stream(0, 10 * KIB, 1 << 40)
    waiting.note(left, KIB)
    waiting.note(None, 20 * KIB)
    assert waiting.limit(Stream(0, 0, KIB)) == 5 * KIB
    waiting.note(None, 1)
    assert waiting.limit(Stream(0, 0, KIB)) == 10 * KIB


def test_what_is_known_of_waiting_streams_is_bounded() -> None:
    waiting = Waiting(lambda: ROOM)
    for _ in range(1000):
        waiting.note(Stream(0, KIB, KIB), KIB)
    assert len(waiting._streams) <= streams.MAX_WAITING_STREAMS


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_stretch_is_used_up_although_nobody_asks_for_the_checksums_in_it(at_once: int) -> None:
    size = 512 * KIB
    spacing = size + 4 * 8
    reader = Reader(100 * spacing)
    for at in range(0, 96, at_once):
        reader.ask(*((each * spacing, size) for each in range(at, at + at_once)))
    used = [each for each in reader.requests if each.stop <= 95 * spacing]
    assert len(used) > 10
    # One at most overlaps another, from which its blobs were taken.
    assert sum(each.left > 0 for each in used) <= 1
