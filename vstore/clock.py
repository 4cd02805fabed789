"""Time: the only module that reads a clock.

Times are stored as whole microseconds since 1970 UTC. Nothing that must be correct depends on them; order is the
catalog's sequence number. A `Clock` is handed down from the repository so that tests can run on any time.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from vstore.errors import InvalidInputError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """Where the time comes from."""

    def now_us(self) -> int:
        """Return the present time in microseconds since 1970 UTC."""

    def monotonic_s(self) -> float:
        """Return seconds that never step back."""

    def sleep(self, duration_s: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep(self, duration_s: float) -> None:
        time.sleep(duration_s)


SYSTEM_CLOCK = SystemClock()


def to_datetime(time_us: int) -> datetime:
    """Return the aware UTC datetime of `time_us`."""
    return _EPOCH + timedelta(microseconds=time_us)


def from_datetime(moment: datetime) -> int:
    """Return `moment` in microseconds since 1970 UTC; it must carry a time zone."""
    if not isinstance(moment, datetime):
        raise InvalidInputError(
            f"{moment!r} is no datetime. Give an aware one, that has a time zone; for an age, for example "
            "datetime.now(timezone.utc) - timedelta(days=1)."
        )
    if moment.tzinfo is None:
        raise InvalidInputError(
            f"{moment!r} has no time zone. Give an aware datetime, for example datetime.now(timezone.utc)."
        )
    return (moment - _EPOCH) // timedelta(microseconds=1)
