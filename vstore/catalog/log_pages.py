"""The pages of a large log's state: written before the record that names them, and read as those of one state.

What a record can't hold moves to a tree of pages in packs (`log_state` says what). Newer states have no use for some
pages of older ones, and gc deletes those: who still reads an older state is told to look again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from vstore import tree
from vstore.catalog.log_patience import Patience
from vstore.catalog.log_state import POLICY, plan_spill, spill
from vstore.clock import Clock
from vstore.errors import InternalError, MissingBlobError, OutcomeUnknownError, StorageError
from vstore.format.log_record import LogRecord
from vstore.format.page import Page, PageNames
from vstore.format.refs import BlobRef
from vstore.tree import PageSink, PageStore
from vstore.tree.writing import Change, update

_SPILL_TRIES = 3

T = TypeVar("T")


class SpillStore(PageStore, Protocol):
    """Where the pages of large states are; pickles if the storage does."""

    def write_pages(self) -> AbstractContextManager[PageSink]:
        """Give a sink for one batch of pages; they are durable when the context ends without an error."""


class StaleStateError(StorageError):
    """The state that was being looked at is not the newest any more, and its pages were deleted: look again."""


def spill_surely(
    record: LogRecord, pages: PageStore, store: SpillStore, clock: Clock, *, anew: bool
) -> LogRecord:
    """Write the pages of a record, those that change or all `anew`, and return the record that names them.

    `pages` are those that it names. A pack whose outcome is unknown is written again, under a new name.
    """
    patience = Patience(clock)
    for tries_left in reversed(range(_SPILL_TRIES)):
        try:
            return _spill(record, pages, store, anew)
        except OutcomeUnknownError as error:
            if not tries_left:
                raise
            patience.note_trouble(error)
            patience.wait()
    raise InternalError("unreachable")


def _spill(record: LogRecord, pages: PageStore, store: SpillStore, anew: bool) -> LogRecord:
    changes = plan_spill(record)
    if not changes and not anew:
        return record
    root = record.root
    with store.write_pages() as sink:
        if anew:
            replaced = {change.key for change in changes}
            kept = [Change(e.key, e) for e in tree.iter_entries(pages, root) if e.key not in replaced]
            every = sorted([*kept, *(c for c in changes if c.entry is not None)], key=lambda c: c.key)
            root = update(pages, sink, None, every, POLICY)
        else:
            root = update(pages, sink, root, changes, POLICY)
    return spill(record, changes, root)


class StatePages:
    """The pages of one state: one that is gone because the catalog has moved on is told from one that is lost."""

    def __init__(self, pages: PageStore, is_replaced: Callable[[], bool]) -> None:
        self._pages = pages
        self._is_replaced = is_replaced

    def page(self, ref: BlobRef) -> Page:
        return self._read(self._pages.page, ref)

    def names(self, ref: BlobRef) -> PageNames:
        return self._read(self._pages.names, ref)

    def expect(self, refs: Iterable[BlobRef]) -> None:
        self._pages.expect(refs)

    def _read(self, read: Callable[[BlobRef], T], ref: BlobRef) -> T:
        try:
            return read(ref)
        except MissingBlobError as error:
            if not self._is_replaced():
                raise
            raise StaleStateError(
                "the catalog has changed since it was looked at, and garbage collection deleted a page of the state "
                "that was being read. Nothing was changed; try again."
            ) from error
