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

from vstore.errors import (
    AccessDeniedError,
    CorruptionError,
    FormatError,
    InternalError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
    StorageError,
    WrongEndpointError,
)
from vstore.format.log_record import (
    MAX_RECORD_BYTES,
    MAX_SEQUENCE,
    LogRecord,
    Tombstone,
    decode_log_object,
)
from vstore.keys.objects import LAST_SEQUENCE, LATEST, REPO, log_name
from vstore.storage.base import Storage, reads_only

KEPT_RECORDS = 1000
"""Only records older than the newest so many may be replaced by tombstones."""
_READ_TRIES = 3
_MAX_STEPS = 10_000
"""Records read, or tombstones followed, by one look for the newest record; a log is looked at from near its end."""
_GZIP_MAGIC = b"\x1f\x8b"
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
            found = self._after(head.sequence)
            if found is None:
                return head
            following = self._follow(found)
            if following is None:
                return head
            head = following
            steps += 1
            if steps > _MAX_STEPS:
                raise self._damage(log_name(head.sequence), "the log goes on and on behind it")
            if steps % _WALK_STEPS == 0:
                head = self._skip_ahead(head)

    def _after(self, sequence: int) -> Head | Tombstone | None:
        """Return what is stored under the number after `sequence`, which is there."""
        try:
            return self.read(sequence + 1)
        except AccessDeniedError:
            if not self._hides_absence_after(sequence):
                raise
            return None

    def _hides_absence_after(self, sequence: int) -> bool:
        """Tell whether a refusal of a higher number than `sequence`, which is there, means that it is absent.

        Web servers and buckets whose files may be read but not listed answer 403 for absent ones. They do so for each:
        as long as `sequence` can be read, access was not lost. Were a record really kept from this reader, it would
        show a state older than the log's end, as behind a slow cache; a writer must never believe such an answer.
        """
        return reads_only(self._storage) and self._storage.size(log_name(sequence)) is not None

    def read(self, sequence: int) -> Head | Tombstone | None:
        """Return what is stored under a number."""
        for tries_left in reversed(range(_READ_TRIES)):
            data = b""
            try:
                data = self._storage.read_whole(log_name(sequence), MAX_RECORD_BYTES)
                return self._decode(sequence, data)
            except ObjectNotFoundError:
                return None
            except CorruptionError:
                # It may have been damaged on the way: what is stored is read again before it is called damaged.
                if not tries_left or data.lstrip().startswith(b"<"):
                    self._refuse_wrong_server(data)
                if not tries_left:
                    raise
        raise InternalError("unreachable")

    def hint(self) -> Head | None:
        """Return the record in the hint, or None if it is absent or can't be read: it is never needed."""
        try:
            data = self._storage.read_whole(LATEST, MAX_RECORD_BYTES)
            found = decode_log_object(data)
        except (ObjectNotFoundError, FormatError):
            return None
        except AccessDeniedError:
            if not reads_only(self._storage):
                raise
            return None
        return Head(found, data, False) if isinstance(found, LogRecord) else None

    def confirm(self, head: Head) -> Head | None:
        """Return `head` as it is in the log, if only the hint has named it so far: the hint is no authority.

        None if the log does not have it: the hint is another repository's or another copy's, or was made up. Only
        records that are in the log are hinted at, and a number is never freed (L1).
        """
        if head.is_confirmed:
            return head
        found = self.read(head.sequence)
        if isinstance(found, Head) and found.record.nonce == head.record.nonce:
            return found
        if not isinstance(found, Tombstone):
            return None
        target = self._follow(found)
        if target is None or target.record.identity != head.record.identity:
            return None
        return target

    def resolve_unaided(self) -> Head:
        """Return the newest record without asking the hint."""
        return self.resolve(self._find_unaided())

    def is_present(self, sequence: int) -> bool:
        return self._storage.size(log_name(sequence)) is not None

    def _start(self) -> Head:
        hint = self.hint()
        if hint is not None:
            return hint
        return self._find_unaided()

    def _find_unaided(self) -> Head:
        head = self._gallop(0) if self._has_first() else None
        if head is None:
            raise not_found(self._storage)
        return head

    def _has_first(self) -> bool:
        if self._storage.is_local:
            return self.is_present(0)
        try:
            # Not only asked for: it could be a page that a server shows for everything.
            return self.read(0) is not None
        except AccessDeniedError as error:
            if not reads_only(self._storage):
                raise
            raise AccessDeniedError(
                f"{error.message} Some servers answer so for what is not there: check the location, too."
            ) from error

    def _skip_ahead(self, head: Head) -> Head:
        hint = self.hint()
        if hint is not None and hint.sequence > head.sequence:
            confirmed = self.confirm(hint)
            if confirmed is not None:
                return confirmed
        return self._gallop(head.sequence) or head

    def _gallop(self, low: int) -> Head | None:
        """Return a record near the end, from `low`, which is present: O(log n) requests. None for a mere jump."""
        limit = MAX_SEQUENCE
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
        while low + step < limit and self._is_present_above(low, low + step):
            low += step
            step *= 2
        high = min(low + step, limit)
        while high - low > 1:
            middle = (low + high) // 2
            if self._is_present_above(low, middle):
                low = middle
            else:
                high = middle
        return low

    def _is_present_above(self, low: int, sequence: int) -> bool:
        try:
            return self.is_present(sequence)
        except AccessDeniedError:
            if not self._hides_absence_after(low):
                raise
            return False

    def _follow(self, found: Head | Tombstone) -> Head | None:
        """Return the record that a chain of tombstones leads to; each points forward. None if a jump is not done."""
        for _ in range(_MAX_STEPS):
            if not isinstance(found, Tombstone):
                return found
            target = self.read(found.head)
            if target is None:
                # Behind an old tombstone other numbers follow; behind a jump nothing does.
                if not self._is_present_above(found.sequence, found.sequence + 1):
                    return None
                raise self._damage(
                    log_name(found.head), f"the tombstone {found.sequence} points to it; it is missing"
                )
            found = target
        raise self._damage(
            log_name(found.sequence), "it is one of too many tombstones that follow each other"
        )

    def _decode(self, sequence: int, data: bytes) -> Head | Tombstone:
        name = log_name(sequence)
        try:
            found = decode_log_object(data)
        except CorruptionError as error:
            raise self._damage(name, str(error)) from error
        if found.sequence != sequence:
            raise self._damage(name, f"it says that it is number {found.sequence}")
        return found if isinstance(found, Tombstone) else Head(found, data, True)

    def _refuse_wrong_server(self, data: bytes) -> None:
        """Raise `StorageError` if what came is not damaged, but not what the server was asked for."""
        if self._storage.is_local:
            return
        url = self._storage.url
        if data.startswith(_GZIP_MAGIC):
            raise StorageError(
                f"{url!r} sends its files compressed by gzip, although that was not asked for. Serve the "
                "repository's files as they are."
            )
        try:
            answers_all = self._storage.size(log_name(LAST_SEQUENCE)) is not None
        except StorageError:
            answers_all = False
        if not answers_all:
            return
        answers = f"{url!r} answers also for files that are not there: with a page of its own and status 200"
        if reads_only(self._storage):
            raise WrongEndpointError(
                f"{answers}, or by sending on to one, for example to log in. vstore finds the newest commit by asking "
                "for the next one: serve the repository by a server that answers 404 for absent files."
            )
        raise WrongEndpointError(
            f"{answers}. That is no object store: check the endpoint. Many services have their web console on another "
            "port; in between may be a proxy, or a network that wants a log-in first."
        )

    def _damage(self, name: str, finding: str) -> CorruptionError:
        return CorruptionError(
            f"{name!r} in {self._storage.url!r} is damaged: {finding}. Restore the object from a backup; repo.fsck() "
            "then tells whether all is well. Without one, move 'log/', 'latest' and 'repo' elsewhere and have "
            "vstore.rebuild_catalog make a catalog of the packs."
        )


def has_log(storage: Storage) -> bool:
    """Tell whether there is a log in `storage`, if only a damaged one, or one that is just begun."""
    reader = LogReader(storage)
    if storage.is_local:
        return reader.is_present(0)
    try:
        # An answer alone proves nothing: a server that is no object store may have one for everything. And the reply to
        # a mere look has no room to say that the bucket is missing.
        return reader.read(0) is not None
    except FormatError:
        return True


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
    try:
        is_lost, is_claimed = (storage.size(name) is not None for name in (LATEST, REPO))
    except StorageError:
        is_lost = is_claimed = False
    if is_lost:
        return RepositoryNotFoundError(
            f"the repository at {storage.url!r} has lost its log: {log_name(0)!r} is missing. Restore 'log/' from a "
            "backup, or move 'log/', 'latest' and 'repo' elsewhere and have vstore.rebuild_catalog make a catalog of "
            "the packs."
        )
    if is_claimed:
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

    def advance(self, head: Head, *, instead_of: Head | None = None) -> Head:
        """Take note of `head`, `instead_of` one that turned out not to be in the log; return the newest now."""
        if self._pid != os.getpid():
            # Another thread may have held it when this process was forked.
            self._lock = threading.Lock()
            self._pid = os.getpid()
        with self._lock:
            current = self._head
            if (
                current is None
                or current is instead_of
                or (head.sequence, head.is_confirmed) > (current.sequence, current.is_confirmed)
            ):
                self._head = current = head
            return current
