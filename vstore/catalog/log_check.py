"""Looking for damage in a log: the identity, the newest records, gaps among the numbers, and the state."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from vstore.catalog.log_head import KEPT_RECORDS, Head, LogReader
from vstore.catalog.log_state import LogView
from vstore.catalog.state import find_damage
from vstore.errors import CorruptionError, FormatError, ObjectNotFoundError, StorageError
from vstore.format.log_record import MAX_RECORD_BYTES, Tombstone, decode_identity_object
from vstore.keys.objects import LATEST, LOG_PREFIX, REPO, log_name, parse_log_name
from vstore.storage.base import Storage, read_twice


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
    absent: list[int] = []
    for sequence in range(head.sequence, max(head.sequence - KEPT_RECORDS, -1), -1):
        try:
            found = reader.read(sequence)
        except FormatError as error:
            yield str(error)
            continue
        if found is None:
            absent.append(sequence)
        elif absent:
            yield from _missing(storage, absent, found)
            absent = []
    try:
        gaps = _gaps(storage, head.sequence)
    except StorageError:
        # A read-only HTTP server lists nothing.
        yield from _missing(storage, absent, reader.read(0)) if absent else ()
        return
    count = sum(len(gap) for gap in gaps if not _is_jump(reader, gap))
    if count:
        yield f"{count} of the numbers up to {head.sequence} are missing in {storage.url!r}"


def _missing(storage: Storage, absent: list[int], before: Head | Tombstone | None) -> Iterator[str]:
    """Yield a sentence for each absent number, newest first, unless what is before them jumps over them."""
    if isinstance(before, Tombstone) and before.head == absent[0] + 1:
        return
    for sequence in absent:
        yield f"{log_name(sequence)!r} is missing in {storage.url!r}"


def _gaps(storage: Storage, newest: int) -> list[range]:
    """Return the ranges of numbers up to `newest` that are not listed."""
    found = (parse_log_name(info.name) for info in storage.list(LOG_PREFIX))
    numbers = array("Q", (number for number in found if number is not None and number <= newest))
    there = sorted(numbers)
    return [
        range(before + 1, after)
        for before, after in zip([-1, *there], [*there, newest + 1], strict=True)
        if before + 1 < after
    ]


def _is_jump(reader: LogReader, gap: range) -> bool:
    """Tell whether the number before a gap says that the log goes on behind it."""
    if gap.start == 0:
        return False
    try:
        before = reader.read(gap.start - 1)
    except FormatError:
        return False
    return isinstance(before, Tombstone) and before.head == gap.stop


def iter_view_damage(view: LogView) -> Iterator[str]:
    """Yield a sentence for each damage found in a state, of which every entry is read."""
    for _ in view.iter_snapshots():
        pass
    for _ in view.iter_sessions():
        pass
    yield from find_damage(view)


def _identity_damage(storage: Storage, head: Head) -> Iterator[str]:
    try:
        identity = read_twice(
            storage, lambda: decode_identity_object(storage.read_whole(REPO, MAX_RECORD_BYTES))
        )
        if identity != head.record.identity:
            yield f"{REPO!r} in {storage.url!r} is of another repository than the log"
    except ObjectNotFoundError:
        # Who made number 0 may not have come so far: nothing depends on it, and the next writer makes it.
        return
    except CorruptionError as error:
        yield f"{REPO!r} in {storage.url!r} is damaged: {error}"
