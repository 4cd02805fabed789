from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.clock import SYSTEM_CLOCK, from_datetime, to_datetime
from vstore.errors import InvalidInputError

LAST_US = from_datetime(datetime.max.replace(tzinfo=UTC))


@given(st.integers(0, LAST_US))
def test_microseconds_are_exact(time_us):
    moment = to_datetime(time_us)
    assert moment.utcoffset() == timedelta(0)
    assert from_datetime(moment) == time_us


@given(st.datetimes(datetime(1900, 1, 1), datetime(9999, 12, 30), timezones=st.timezones()))  # noqa: DTZ001
def test_any_time_zone(moment):
    # Moments of two zones are never == where summer time begins or ends.
    assert to_datetime(from_datetime(moment)) == moment.astimezone(UTC)


def test_known_moments():
    assert from_datetime(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert from_datetime(datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))) == 0
    assert to_datetime(1_764_000_000_123_456) == datetime(2025, 11, 24, 16, 0, 0, 123_456, tzinfo=UTC)
    assert from_datetime(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1


def test_times_without_a_zone_are_refused():
    with pytest.raises(InvalidInputError, match="has no time zone"):
        from_datetime(datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("moment", ["2026-01-01", timedelta(days=1), date(2026, 1, 1), None, 5])
def test_what_is_no_time_is_said_to_be_none(moment):
    with pytest.raises(InvalidInputError, match=r"is no datetime\. Give an aware one"):
        from_datetime(moment)


def test_system_clock():
    before = time.time_ns() // 1000
    now = SYSTEM_CLOCK.now_us()
    assert isinstance(now, int)
    assert before <= now <= time.time_ns() // 1000
    start = SYSTEM_CLOCK.monotonic_s()
    SYSTEM_CLOCK.sleep(0.002)
    assert SYSTEM_CLOCK.monotonic_s() - start >= 0.002
