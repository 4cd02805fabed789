"""How often a pack is put, and how long to wait in between: an object store that is busy gets longer and longer pauses.

Each try is under a name of its own, as a name is put only once; so this is not left to what repeats other requests.
"""

from __future__ import annotations

from vstore.clock import Clock
from vstore.ids import jitter
from vstore.storage.base import Storage

LOCAL_TRIES = 3
REMOTE_TRIES = 7
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0


class UploadTries:
    """Counts the tries of one upload; on a local disk nothing gets better by waiting."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._is_local = storage.is_local
        self._left = (LOCAL_TRIES if storage.is_local else REMOTE_TRIES) - 1
        self._clock = clock
        self._wait_s = _FIRST_WAIT_S

    def wait(self) -> bool:
        """Wait before the next try; return False, at once, if there is none."""
        if not self._left:
            return False
        self._left -= 1
        if not self._is_local:
            self._clock.sleep(jitter(self._wait_s))
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        return True
