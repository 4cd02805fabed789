"""Sends the requests of one storage: below a limit, with timeouts, and again where that is safe.

`Client.run` is the only way to an obstore store. Neighbours: `requests` says what errors
mean, `retry` when to try again, `storage` above says what is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from vstore.clock import SYSTEM_CLOCK, Clock
from vstore.errors import AccessDeniedError, StorageError, VStoreError
from vstore.storage.objects.options import RequestOptions
from vstore.storage.objects.requests import (
    ShortReplyError,
    check_process,
    request_errors,
    translate,
    was_answered,
)
from vstore.storage.objects.retry import Tries
from vstore.storage.objects.secrets import Redactor
from vstore.storage.objects.stores import blocking_provider_of, is_own_timeout, rebuilt, remedy, secrets_of

T = TypeVar("T")

ATTEMPT_BYTES = 4 * 1024 * 1024
"""What one try moves within the attempt timeout: with 30 s a connection of 140 kB/s is enough."""
LARGEST_FACTOR = 256


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
        self._rebuilt: dict[int, Any] = {}
        self._answered = False

    def run(
        self,
        act: Callable[[Any], T],
        doing: str,
        *,
        size: int = 0,
        repeats: bool = True,
        creates: bool = False,
    ) -> T:
        """Return what `act` makes of an obstore store; `doing` completes "could not ...".

        `size` is about how many bytes move. A create (`creates`) is sent once, as is what does not repeat. What
        `act` raises of obstore's errors is translated, `ShortReplyError` comes as it is.
        """
        check_process()
        errors = request_errors()
        tries = Tries(self._options, self._clock)
        while True:
            with self._limiter:
                try:
                    result = act(self._store_for(size))
                except errors as error:
                    wait_s = self._wait_s(tries, error, repeats and not creates)
                    refusal = None if wait_s is not None else self._refusal(error, doing, creates)
                else:
                    self._answered = True
                    return result
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
        return tries.next_wait_s(error, answered=self._answered) if repeats else None

    def _refusal(self, error: Exception, doing: str, creates: bool) -> VStoreError:
        if isinstance(error, ShortReplyError):
            return error
        refusal = translate(error, doing, self._redact, creates=creates)
        lacks_secrets = isinstance(refusal, AccessDeniedError) or not self._answered
        if self._left_out and lacks_secrets and isinstance(refusal, StorageError):
            refusal = type(refusal)(f"{refusal.message} {remedy(self._left_out)}")
        # A traceback would show the original.
        refusal.__cause__ = error if self._redact.is_fit(str(error)) else None
        return refusal

    def _store_for(self, size: int) -> Any:
        """Return the store whose timeout suits a request that moves `size` bytes.

        obstore has one timeout for each store, and nothing else ends a blocking call. Each store has its connections
        to itself, so there are few, each with twice the time of the one before.
        """
        factor = 1
        if not self._has_own_timeout:
            while size > ATTEMPT_BYTES * factor and factor < LARGEST_FACTOR:
                factor *= 2
        store = self._rebuilt.get(factor)
        if store is None:
            timeout_s = None if self._has_own_timeout else factor * self._options.attempt_timeout_s
            store = self._rebuilt.setdefault(factor, rebuilt(self._store, timeout_s, self._provider))
        return store
