"""A catalog's whole state on its way to another place: staged beside what is there, then shown in one step.

Below: `vstore.catalog.log_import` and `vstore.catalog.sqlite.importing`, one for each kind.
"""

from __future__ import annotations

from typing import Protocol, cast

from vstore.blobs.spill import PackSpill
from vstore.catalog.base import CatalogView
from vstore.catalog.exported import Exported
from vstore.catalog.handover import CatalogKind
from vstore.catalog.log_import import build_record, publish_record
from vstore.catalog.state import StateView
from vstore.clock import Clock
from vstore.errors import InvalidInputError
from vstore.format.log_record import LogRecord
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage

NOTHING = -1
"""The newest number of a catalog that is not there."""


class Staged(Protocol):
    """A state that is complete and durable, but nobody's yet."""

    def publish(self) -> None:
        """Make it what the place holds, in one step."""

    def discard(self) -> None:
        """Give it up, if it was not published; may be called at any time."""


def stage(storage: Storage, kind: CatalogKind, state: Exported, after: int, clock: Clock) -> Staged:
    """Prepare a catalog with `state` in `storage`, in place of one whose newest number is `after`, or of none.

    Only while the view of `state` is open; what is returned no longer needs it.
    """
    if kind == "log":
        return _StagedRecord(storage, build_record(state, PackSpill(storage)), after, clock)
    from vstore.catalog.sqlite.importing import NewFile, Replacement

    directory = directory_of(storage)
    if after == NOTHING:
        return NewFile(directory, state)
    return Replacement(directory, state, after)


class _StagedRecord:
    def __init__(self, storage: Storage, record: LogRecord, after: int, clock: Clock) -> None:
        self._storage = storage
        self._record = record
        self._after = after
        self._clock = clock

    def publish(self) -> None:
        publish_record(self._storage, self._record, self._after, self._clock)

    def discard(self) -> None:
        """Leave its pages to gc."""


def directory_of(storage: Storage) -> str:
    """Return the directory that `storage` is; `InvalidInputError` if it is none."""
    if not isinstance(storage, LocalStorage):
        raise InvalidInputError(
            f"{storage.url!r} is no directory, so it can't hold an SQLite catalog: choose 'log'."
        )
    return storage.root


def state_view(view: CatalogView) -> StateView:
    """Return a view as what both catalogs give: one of keys and values."""
    return cast("StateView", view)
