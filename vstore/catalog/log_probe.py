"""Trying out whether a storage keeps the one promise that the log catalog rests on: of racing creates one succeeds.

Some stores accept the condition and ignore it; a repository there would lose commits without any error.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

from vstore.clock import Clock
from vstore.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    StorageError,
    UnsafeStorageError,
)
from vstore.ids import new_nonce
from vstore.keys.objects import PROBE_PREFIX, is_probe_name, probe_name
from vstore.storage.base import Storage

RACERS = 4
ROUNDS = 2
_TRIES = 5
_PROBE_AGE_US = 600 * 1_000_000
"""A probe takes moments; one that is older has been left by a crash."""
_READ_TRIES = 3
_START_S = 10.0


def probe(storage: Storage) -> None:
    """Raise `UnsafeStorageError` if racing creates of a scratch object do not leave exactly one winner."""
    rounds = won = 0
    for _ in range(_TRIES):
        winners = _race(storage)
        won += winners != 0
        rounds += winners == 1
        if rounds == ROUNDS:
            return
    if not won:
        raise UnsafeStorageError(
            f"{storage.url!r} does not keep its promise of conditional writes: no create of a new object succeeded in "
            f"{_TRIES} trials. Choose another store, or a local directory."
        )
    raise StorageError(
        f"{storage.url!r} did not answer {_TRIES} trials of conditional writes clearly. Nothing was changed; try again."
    )


def sweep_probes(storage: Storage, clock: Clock) -> None:
    """Delete scratch objects that crashed probes left in a directory. On an object store it is not worth a listing."""
    if not storage.is_local:
        return
    limit_us = clock.now_us() - _PROBE_AGE_US
    left = [
        info.name
        for info in storage.list(PROBE_PREFIX)
        if info.modified_us < limit_us and is_probe_name(info.name)
    ]
    if left:
        storage.delete(left)


def _race(storage: Storage) -> int | None:
    """Run one race; return the number of winners, up to 1, or None if a reply was lost, so that it proves nothing."""
    name = probe_name(new_nonce())
    bodies = [new_nonce() for _ in range(RACERS)]
    start = Barrier(RACERS, timeout=_START_S)

    def create(body: bytes) -> bool | None:
        try:
            start.wait()
        except BrokenBarrierError:
            # The others did not come: there are no threads for them.
            return None
        return _create(storage, name, body)

    try:
        with ThreadPoolExecutor(RACERS) as pool:
            try:
                results = list(pool.map(create, bodies))
            except RuntimeError as error:
                start.abort()
                raise StorageError(
                    f"{storage.url!r} was not tried out: the system has no more threads ({error}). Nothing was changed."
                ) from error
        again = _create(storage, name, new_nonce())
        if None in results or again is None:
            return None
        winners = [body for body, won in zip(bodies, results, strict=True) if won]
        if not winners:
            # The winner may have been told that it lost: its client, or something on the way, repeated the request.
            return 0
        is_kept = _is_kept(storage, name, winners[0])
    finally:
        # Left behind after a crash it is only a few bytes.
        with contextlib.suppress(StorageError):
            storage.delete([name])
    if again or len(winners) > 1 or not is_kept:
        raise UnsafeStorageError(
            f"{storage.url!r} does not keep its promise of conditional writes: of {RACERS} racing creates of one "
            f"object {len(winners)} succeeded, a later one {'succeeded' if again else 'was refused'}, and the first "
            f"winner's bytes were {'kept' if is_kept else 'not kept'}. Commits could be lost here: choose another "
            "store, or a local directory."
        )
    return 1


def _is_kept(storage: Storage, name: str, body: bytes) -> bool:
    """Tell whether an object holds these bytes; what differs is read again, as it may have been damaged on the way."""
    try:
        return any(storage.read_whole(name, 1024) == body for _ in range(_READ_TRIES))
    except ObjectNotFoundError:
        return False


def _create(storage: Storage, name: str, body: bytes) -> bool | None:
    """Return whether a create succeeded, None if that can't be told."""
    try:
        storage.create(name, body)
    except ObjectExistsError:
        return False
    except OutcomeUnknownError:
        return None
    return True
