"""Trying out whether a storage keeps the one promise that the log catalog rests on: of racing creates one succeeds.

Some stores accept the condition and ignore it; a repository there would lose commits without any error.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from vstore.errors import ObjectExistsError, OutcomeUnknownError, StorageError, UnsafeStorageError
from vstore.ids import new_nonce
from vstore.keys.objects import probe_name
from vstore.storage.base import Storage

RACERS = 4
ROUNDS = 2
_TRIES = 5


def probe(storage: Storage) -> None:
    """Raise `UnsafeStorageError` if racing creates of a scratch object do not leave exactly one winner."""
    rounds = 0
    for _ in range(_TRIES):
        rounds += _race(storage)
        if rounds == ROUNDS:
            return
    raise StorageError(
        f"{storage.url!r} did not answer {_TRIES} trials of conditional writes clearly. Nothing was changed; try again."
    )


def _race(storage: Storage) -> bool:
    """Run one race; return False if a reply was lost, so that it proves nothing."""
    name = probe_name(new_nonce())
    bodies = [new_nonce() for _ in range(RACERS)]
    start = Barrier(RACERS)

    def create(body: bytes) -> bool | None:
        start.wait()
        return _create(storage, name, body)

    try:
        with ThreadPoolExecutor(RACERS) as pool:
            results = list(pool.map(create, bodies))
        again = _create(storage, name, new_nonce())
        stored = storage.read_whole(name, 1024)
    finally:
        # Left behind after a crash it is only a few bytes.
        with contextlib.suppress(StorageError):
            storage.delete([name])
    if None in results or again is None:
        return False
    winners = [body for body, won in zip(bodies, results, strict=True) if won]
    if again or winners != [stored]:
        raise UnsafeStorageError(
            f"{storage.url!r} does not keep its promise of conditional writes: of {RACERS} racing creates of one "
            f"object {len(winners)} succeeded, a later one {'succeeded' if again else 'was refused'}, and the "
            f"winner's bytes were {'kept' if stored in winners else 'not kept'}. Commits could be lost here: choose "
            "another store, or a local directory."
        )
    return True


def _create(storage: Storage, name: str, body: bytes) -> bool | None:
    """Return whether a create succeeded, None if that can't be told."""
    try:
        storage.create(name, body)
    except ObjectExistsError:
        return False
    except OutcomeUnknownError:
        return None
    return True
