"""Sends the requests of one storage: below a limit, with timeouts, and again where that is safe.

`Client.run` is the only way to an obstore store. Neighbours: `requests` says what errors
mean, `retry` when to try again, `storage` above says what is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from vstore.clock import SYSTEM_CLOCK, Clock
from vstore.errors import AccessDeniedError, ObjectNotFoundError, StorageError, VStoreError
from vstore.storage.objects.options import RequestOptions
from vstore.storage.objects.requests import (
    ShortReplyError,
    check_process,
    has_no_body,
    panics_caught,
    request_errors,
    timed_out,
    translate,
    was_answered,
)
from vstore.storage.objects.retry import Tries
from vstore.storage.objects.secrets import Redactor
from vstore.storage.objects.stores import (
    blocking_provider_of,
    is_own_timeout,
    place_of,
    rebuilt,
    remedy,
    secrets_of,
)

T = TypeVar("T")

ATTEMPT_BYTES = 4 * 1024 * 1024
"""What one try moves within the attempt timeout: with 30 s a connection of 140 kB/s is enough."""
LARGEST_FACTOR = 256
FIRST_STRANGER_FACTOR = 1 / 3
LATER_STRANGER_FACTOR = 2 / 3


class Client:
    """Requests to `store`, whose own retries are off. Thread-safe.

    `left_out` names the settings that a pickle did not carry.
    """

    def __init__(
        self,
        store: Any,
        options: RequestOptions,
        *,
        left_out: tuple[str, ...] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._options = options
        self._left_out = left_out
        self._clock = clock
        self._limiter = threading.Semaphore(options.max_requests)
        self._redact = Redactor(secrets_of(store))
        self._has_own_timeout = is_own_timeout(store)
        self._provider = blocking_provider_of(store)
        self._place = place_of(store)
        self._rebuilt: dict[float, Any] = {}
        self._answered = False
        self._was_late = False
        self._succeeded = False
        self._is_place_known = False

    @property
    def has_succeeded(self) -> bool:
        """Whether any request did: the place is there, and the credentials are good for something."""
        return self._succeeded

    def run(
        self,
        act: Callable[[Any], T],
        doing: str,
        *,
        size: int = 0,
        repeats: bool = True,
        creates: bool = False,
        ask_why: Callable[[Any], T] | None = None,
    ) -> T:
        """Return what `act` makes of an obstore store; `doing` completes "could not ...".

        `size` is about how many bytes move. A create (`creates`) is sent once, as is what does not repeat. What
        `act` raises of obstore's errors is translated, `ShortReplyError` comes as it is. `ask_why` asks for the same
        where `act` is refused in a reply without a body: that it gets one tells the reason.
        """
        check_process()
        errors = request_errors()
        tries = Tries(self._options, self._clock, self._place)
        while True:
            with self._limiter:
                try:
                    with panics_caught():
                        result = act(self._store_for(size, tries if repeats and not creates else None))
                except errors as error:
                    wait_s = self._wait_s(tries, error, repeats and not creates)
                    is_silent = ask_why is not None and wait_s is None and self._leaves_open_why(error)
                    refusal = None if wait_s is not None else self._refusal(error, doing, creates)
                else:
                    self._answered = self._succeeded = self._is_place_known = True
                    return result
            if is_silent and ask_why is not None:
                return self.run(ask_why, doing, size=size)
            if wait_s is None:
                assert refusal is not None
                try:
                    raise refusal from refusal.__cause__
                finally:
                    # Or it would hold this frame, which holds it: all that the callers have in memory would stay.
                    del refusal
            self._clock.sleep(wait_s)

    def _wait_s(self, tries: Tries, error: Exception, repeats: bool) -> float | None:
        self._answered = self._answered or was_answered(error)
        self._was_late = self._was_late or timed_out(error)
        return tries.next_wait_s(error, answered=self._answered) if repeats else None

    def _leaves_open_why(self, error: Exception) -> bool:
        """Tell whether it matters, and is not said, why a request was refused."""
        if not self._place.bucket or not has_no_body(error):
            return False
        return not (isinstance(error, FileNotFoundError) and self._is_place_known)

    def _refusal(self, error: Exception, doing: str, creates: bool) -> VStoreError:
        if isinstance(error, ShortReplyError):
            return error
        refusal = translate(error, doing, self._redact, place=self._place, creates=creates)
        if isinstance(refusal, ObjectNotFoundError) and not has_no_body(error):
            # Were the bucket missing, that would have been said.
            self._is_place_known = True
        lacks_secrets = isinstance(refusal, AccessDeniedError) or not self._answered
        if self._left_out and lacks_secrets and isinstance(refusal, StorageError):
            refusal = type(refusal)(f"{refusal.message} {remedy(self._left_out)}")
        # A traceback would show the original.
        refusal.__cause__ = error if self._redact.is_fit(str(error)) else None
        return refusal

    def _store_for(self, size: int, tries: Tries | None = None) -> Any:
        """Return the store whose timeout suits a request that moves `size` bytes.

        `tries` are the request's if it may be repeated.

        obstore has one timeout for each store, and nothing else ends a blocking call. Each store has its connections
        to itself, so there are few, each with twice the time of the one before. A small request to a service that has
        never answered has the attempt timeout for its two tries together: most likely nobody is there. Those that
        follow stay with the connections of the first, as long as it is in time and nothing else needed others.
        """
        factor = 1.0
        if not self._has_own_timeout:
            while size > ATTEMPT_BYTES * factor and factor < LARGEST_FACTOR:
                factor *= 2
            if factor == 1 and tries is not None:
                if not self._answered:
                    factor = LATER_STRANGER_FACTOR if tries.timeouts else FIRST_STRANGER_FACTOR
                elif self._stays_with_first(size, tries):
                    factor = FIRST_STRANGER_FACTOR
        store = self._rebuilt.get(factor)
        if store is None:
            timeout_s = None if self._has_own_timeout else factor * self._options.attempt_timeout_s
            store = self._rebuilt.setdefault(factor, rebuilt(self._store, timeout_s, self._provider))
        return store

    def _stays_with_first(self, size: int, tries: Tries) -> bool:
        """Tell whether a try to a service that has answered goes by the connections of the first one.

        It has a part of the time there, so it must be the first of several, and one that was late is the last one.
        """
        may_begin_here = tries.may_begin_with(FIRST_STRANGER_FACTOR * self._options.attempt_timeout_s)
        has_others = 1.0 in self._rebuilt or FIRST_STRANGER_FACTOR not in self._rebuilt
        is_small = size <= ATTEMPT_BYTES * FIRST_STRANGER_FACTOR
        return is_small and may_begin_here and not (has_others or self._was_late)
