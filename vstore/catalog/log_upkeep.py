"""Keeping a log small: tombstones in place of old records, and pages that lie in many packs brought together."""

from __future__ import annotations

from itertools import islice

from vstore.catalog.log_head import Head, LogReader
from vstore.catalog.log_state import LogView
from vstore.catalog.transaction import Transaction
from vstore.clock import Clock
from vstore.format.log_record import Tombstone, encode_tombstone
from vstore.format.record import OperationKind
from vstore.ids import new_transaction_id
from vstore.keys.objects import log_name
from vstore.storage.base import Storage

_FEW_PACKS = 4
"""A pack stays as long as one of its pages is needed: in more packs than this, most bytes are of pages that are not."""
_MAX_PAGES_ANEW = 20_000
"""More are not written anew at once: they are in memory then."""


def write_tombstones(storage: Storage, reader: LogReader, head: Head, keep: int) -> int:
    """Replace records older than the newest `keep` by tombstones; return how many. May be cut off anywhere."""
    written = 0
    # Downwards, to stop where an earlier run began.
    for sequence in range(head.sequence - max(keep, 1), -1, -1):
        if not isinstance(reader.read(sequence), Head):
            # Also where nothing is: the log began or went on behind a jump.
            break
        storage.write(log_name(sequence), encode_tombstone(Tombstone(sequence, head.sequence)))
        written += 1
    return written


def plan_gathering(view: LogView, clock: Clock) -> Transaction | None:
    """Return the transaction to apply with all pages written anew, or None if they lie well, or are too many."""
    pages = list(islice(view.iter_pages(), _MAX_PAGES_ANEW + 1))
    packs = {ref.pack for ref in pages}
    if len(packs) <= _FEW_PACKS or len(pages) > _MAX_PAGES_ANEW:
        return None
    details = {"pages": len(pages), "packs": len(packs)}
    kind, now = OperationKind.COMPACT, clock.now_us()
    return Transaction(new_transaction_id(), view.sequence, kind, now, "", (), (), details)
