"""How often and how long an update of the log waits: for other writers, and for a storage in trouble."""

from __future__ import annotations

from vstore.clock import Clock
from vstore.ids import jitter

MAX_LOSSES = 200
"""Numbers lost to other writers before an update gives up: one of them commits each time."""
MAX_TROUBLES = 8
"""Requests without a clear answer before an update gives up, after about 16 s of waiting."""
MAX_TROUBLE_S = 60.0
"""After so long in trouble a second failure is enough: the storage repeats reads itself, each for minutes at worst."""

_LOSS_WAIT_S = 0.005
_LONGEST_LOSS_WAIT_S = 0.25
_TROUBLE_WAIT_S = 0.1
_LONGEST_TROUBLE_WAIT_S = 5.0


class Patience:
    """Counts the tries of one update."""

    def __init__(self, clock: Clock) -> None:
        self.losses = 0
        self.troubles = 0
        self.error: Exception | None = None
        self._clock = clock
        self._wait_s = 0.0
        self._troubled_s: float | None = None

    @property
    def is_spent(self) -> bool:
        """Tell whether another try is one too many."""
        if self.losses >= MAX_LOSSES or self.troubles >= MAX_TROUBLES:
            return True
        started = self._troubled_s
        return (
            started is not None and self.troubles > 1 and self._clock.monotonic_s() - started > MAX_TROUBLE_S
        )

    def note_loss(self) -> None:
        """Count a number that another writer took."""
        self._wait_s = min(_LOSS_WAIT_S * 2.0 ** min(self.losses, 10), _LONGEST_LOSS_WAIT_S)
        self.losses += 1

    def note_trouble(self, error: Exception) -> None:
        """Count a request that failed, or whose reply was lost."""
        self._wait_s = min(_TROUBLE_WAIT_S * 2.0**self.troubles, _LONGEST_TROUBLE_WAIT_S)
        self.troubles += 1
        if self._troubled_s is None:
            self._troubled_s = self._clock.monotonic_s()
        self.error = error

    def wait(self) -> None:
        """Wait, longer each time."""
        if self._wait_s:
            self._clock.sleep(jitter(self._wait_s))
        self._wait_s = 0.0
