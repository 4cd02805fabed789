"""Finding the newest record of a log, by its dense numbers; the hint `latest` only says where to start.

`LogReader.resolve` goes on from what its caller has seen until a number is absent. A number is never freed (L1), so
a number that is there stays there, and all between two that readers come to are there too, but for those that a *jump*
passes over (`log_import`): from far behind it gallops and bisects. A jump whose target is not there yet ends the log.
Above: `log`.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from vstore.errors import CorruptionError, FormatError, ObjectNotFoundError, RepositoryNotFoundError
from vstore.format.log_record import MAX_RECORD_BYTES, LogRecord, Tombstone, decode_log_object
from vstore.keys.objects import LAST_SEQUENCE, LATEST, REPO, log_name
from vstore.storage.base import Storage

KEPT_RECORDS = 1000
"""Only records older than the newest so many may be replaced by tombstones."""
_WALK_STEPS = 8
"""Records read one by one before looking further ahead: a busy log grows by a few between two looks."""


class Head(NamedTuple):
    """A record with its stored bytes. `is_confirmed` if it was met, or put, under its number, not as the hint."""

    record: LogRecord
    data: bytes
    is_confirmed: bool

    @property
    def sequence(self) -> int:
        return self.record.sequence


class LogReader:
    """Reads the log in `storage`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def resolve(self, seen: Head | None) -> Head:
        """Return the newest record, not older than `seen` (L4)."""
        head = seen or self._start()
        steps = 0
        while True:
            found = self.read(head.sequence + 1)
            if found is None:
                return head
            following = self._follow(found)
            if following is None:
                return head
            head = following
            steps += 1
            if steps % _WALK_STEPS == 0:
                head = self._skip_ahead(head)

    def read(self, sequence: int) -> Head | Tombstone | None:
        """Return what is stored under a number."""
        name = log_name(sequence)
        try:
            data = self._storage.read_whole(name, MAX_RECORD_BYTES)
        except ObjectNotFoundError:
            return None
        found = self._decode(name, data)
        if found.sequence != sequence:
            raise self._damage(name, f"it says that it is number {found.sequence}")
        return found if isinstance(found, Tombstone) else Head(found, data, True)

    def hint(self) -> Head | None:
        """Return the record in the hint, or None if it is absent or can't be read: it is never needed."""
        try:
            data = self._storage.read_whole(LATEST, MAX_RECORD_BYTES)
            found = decode_log_object(data)
        except (ObjectNotFoundError, FormatError):
            return None
        return Head(found, data, False) if isinstance(found, LogRecord) else None

    def confirm(self, head: Head) -> Head:
        """Return `head` as it is in the log, if only the hint has named it so far: the hint is no authority."""
        if head.is_confirmed:
            return head
        found = self.read(head.sequence)
        if isinstance(found, Head) and found.record.nonce == head.record.nonce:
            return found
        following = self._follow(found) if isinstance(found, Tombstone) else None
        if following is not None:
            return following
        raise self._damage(
            LATEST,
            f"it holds record {head.sequence}, which is not in the log; without it the log's own end counts",
        )

    def is_present(self, sequence: int) -> bool:
        return self._storage.size(log_name(sequence)) is not None

    def _start(self) -> Head:
        hint = self.hint()
        if hint is not None:
            return hint
        head = self._gallop(0) if self.is_present(0) else None
        if head is None:
            raise not_found(self._storage)
        return head

    def _skip_ahead(self, head: Head) -> Head:
        hint = self.hint()
        if hint is not None and hint.sequence > head.sequence:
            return hint
        return self._gallop(head.sequence) or head

    def _gallop(self, low: int) -> Head | None:
        """Return a record near the end, from `low`, which is present: O(log n) requests. None for a mere jump."""
        limit = LAST_SEQUENCE
        while True:
            newest = self._newest_present(low, limit)
            found = self.read(newest)
            if found is None:
                raise self._damage(log_name(newest), "it was there and is gone")
            head = self._follow(found)
            if head is not None or newest == low:
                return head
            # A jump that is not done: what was there before it lies below.
            limit = newest

    def _newest_present(self, low: int, limit: int) -> int:
        """Return a number from `low` on that is present, and the one after it absent or not below `limit`."""
        step = 1
        while low + step < limit and self.is_present(low + step):
            low += step
            step *= 2
        high = min(low + step, limit)
        while high - low > 1:
            middle = (low + high) // 2
            if self.is_present(middle):
                low = middle
            else:
                high = middle
        return low

    def _follow(self, found: Head | Tombstone) -> Head | None:
        """Return the record that a chain of tombstones leads to; each points forward. None if a jump is not done."""
        while isinstance(found, Tombstone):
            target = self.read(found.head)
            if target is None:
                # Behind an old tombstone other numbers follow; behind a jump nothing does.
                if not self.is_present(found.sequence + 1):
                    return None
                raise self._damage(
                    log_name(found.head), f"the tombstone {found.sequence} points to it; it is missing"
                )
            found = target
        return found

    def _decode(self, name: str, data: bytes) -> LogRecord | Tombstone:
        try:
            return decode_log_object(data)
        except CorruptionError as error:
            raise self._damage(name, str(error)) from error

    def _damage(self, name: str, finding: str) -> CorruptionError:
        return CorruptionError(
            f"{name!r} in {self._storage.url!r} is damaged: {finding}. Check the repository with vstore.ops.fsck, "
            "and restore the object from a backup."
        )


def is_begun_only(storage: Storage) -> bool:
    """Tell whether a log with a number 0 is none yet: a mere jump, whose record is still to be made."""
    reader = LogReader(storage)
    try:
        if isinstance(reader.read(0), Tombstone):
            reader.resolve(None)
    except RepositoryNotFoundError:
        return True
    except FormatError:
        # Damage is for who opens it.
        return False
    return False


def not_found(storage: Storage) -> RepositoryNotFoundError:
    """Return the error for a place without a catalog, or with a part of one."""
    if storage.size(REPO) is not None:
        return RepositoryNotFoundError(
            f"the repository at {storage.url!r} is not complete: making a copy here was begun and not finished. Call "
            "copy_to() or backup() again, which goes on from there."
        )
    return RepositoryNotFoundError(
        f"there is no repository at {storage.url!r}. Check the location; create() makes a new one."
    )


class Newest:
    """The newest record that a handle has seen; it only moves forward (L4). Thread-safe."""

    def __init__(self) -> None:
        self._head: Head | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def get(self) -> Head | None:
        """Return it, or None at first."""
        return self._head

    def advance(self, head: Head) -> Head:
        """Take note of `head`; return the newest now."""
        if self._pid != os.getpid():
            # Another thread may have held it when this process was forked.
            self._lock = threading.Lock()
            self._pid = os.getpid()
        with self._lock:
            current = self._head
            if current is None or (head.sequence, head.is_confirmed) > (
                current.sequence,
                current.is_confirmed,
            ):
                self._head = current = head
            return current
