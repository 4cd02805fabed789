"""When a request is sent again, and after what wait.

vstore repeats requests itself, and obstore never does: so a create is sent exactly once, each try has a timeout, and
the number of requests is known. Waits double, with jitter, so that many clients of a store in trouble spread out.
"""

from __future__ import annotations

from vstore.clock import Clock
from vstore.ids import jitter
from vstore.storage.objects.causes import Place
from vstore.storage.objects.options import RequestOptions
from vstore.storage.objects.requests import ShortReplyError, is_worth_repeating, timed_out

TRIES_OF_STRANGERS = 3
"""A service that never answered most likely has another name or is not there: the user learns it soon."""
TIMEOUTS_OF_STRANGERS = 2
TRIES_OF_SHORT_REPLIES = 2
"""A body that is short twice is what there is."""


class Tries:
    """The tries of one request to `place`; made when it is first sent. `timeouts` counts those that took too long."""

    def __init__(self, options: RequestOptions, clock: Clock, place: Place) -> None:
        self._options = options
        self._place = place
        self._clock = clock
        self._deadline_s = clock.monotonic_s() + options.total_timeout_s
        self._sent = 1
        self._short = 0
        self.timeouts = 0

    def may_begin_with(self, timeout_s: float) -> bool:
        """Tell whether this is the first try, and another is left if it takes all of `timeout_s`."""
        is_first = self._sent == 1 and self._options.max_tries > 1
        return is_first and timeout_s + self._options.first_wait_s < self._options.total_timeout_s

    def next_wait_s(self, error: Exception, *, answered: bool) -> float | None:
        """Return how long to wait before the next try, None if there is none; `answered` if the service ever was."""
        self._short += isinstance(error, ShortReplyError)
        self.timeouts += timed_out(error)
        most = self._options.max_tries if answered else min(self._options.max_tries, TRIES_OF_STRANGERS)
        if self._sent >= most or self._short >= TRIES_OF_SHORT_REPLIES:
            return None
        if not answered and self.timeouts >= TIMEOUTS_OF_STRANGERS:
            return None
        if not is_worth_repeating(error, self._place):
            return None
        doubled = self._options.first_wait_s * 2.0 ** min(self._sent - 1, 60)
        wait_s = jitter(min(doubled, self._options.longest_wait_s))
        if self._clock.monotonic_s() + wait_s > self._deadline_s:
            return None
        self._sent += 1
        return wait_s
