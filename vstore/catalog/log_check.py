"""Looking for damage in a log's objects: the identity, the newest records, and gaps among the numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from vstore.catalog.log_head import KEPT_RECORDS, Head, LogReader
from vstore.errors import CorruptionError, FormatError, ObjectNotFoundError, StorageError
from vstore.format.log_record import MAX_RECORD_BYTES, decode_identity_object
from vstore.keys.objects import LATEST, LOG_PREFIX, REPO, log_name
from vstore.storage.base import Storage


def iter_log_damage(storage: Storage, reader: LogReader, head: Head) -> Iterator[str]:
    """Yield a sentence for each damage found, up to the record `head`."""
    yield from _identity_damage(storage, head)
    hint = reader.hint()
    if hint is not None and reader.confirm(hint) is None:
        yield (
            f"{LATEST!r} in {storage.url!r} holds record {hint.sequence} of "
            f"{'this' if hint.record.identity == head.record.identity else 'another'} repository, which is not in the "
            f"log: it was put there by a copy, or the log lost it. The log's own end, {head.sequence}, counts, and the "
            "next commit replaces the hint"
        )
    for sequence in range(head.sequence, max(head.sequence - KEPT_RECORDS, -1), -1):
        try:
            if reader.read(sequence) is None:
                yield f"{log_name(sequence)!r} is missing in {storage.url!r}"
        except FormatError as error:
            yield str(error)
    # A read-only HTTP server lists nothing.
    with contextlib.suppress(StorageError):
        newest = log_name(head.sequence)
        count = sum(1 for info in storage.list(LOG_PREFIX) if info.name <= newest)
        if count <= head.sequence:
            yield f"{head.sequence + 1 - count} of the numbers up to {head.sequence} are missing in {storage.url!r}"


def _identity_damage(storage: Storage, head: Head) -> Iterator[str]:
    try:
        identity = decode_identity_object(storage.read_whole(REPO, MAX_RECORD_BYTES))
        if identity != head.record.identity:
            yield f"{REPO!r} in {storage.url!r} is of another repository than the log"
    except ObjectNotFoundError:
        # Who made number 0 may not have come so far: nothing depends on it, and the next writer makes it.
        return
    except CorruptionError as error:
        yield f"{REPO!r} in {storage.url!r} is damaged: {error}"
