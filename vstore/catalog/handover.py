"""What a catalog says when it hands over to one of the other kind, and which of two catalogs in a place counts.

Before anything else a conversion closes the old catalog by an update of its status, which every other update is
conditional on: from then on nothing is committed to it. A log stays behind, as nothing of a log is ever deleted; an
SQLite file is removed when its log is there. So both may be present, and at each moment one counts:

- the log, if it is whole, has not handed over, and SQLite has, or is just the operation before the log's handing over
  (SQLite that can't be locked can't be closed either);
- SQLite, if the log has handed over to it, or is not whole yet.

Anything else is two catalogs of which nobody can tell. Above: `log`, `location`, `vstore.transfer`.
"""

from __future__ import annotations

import json
import os
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vstore.catalog.base import STATUS
from vstore.catalog.state import Space, decode_identity, text_key
from vstore.config import load_object
from vstore.errors import CorruptionError, FormatError, MissingBlobError, RepositoryNotFoundError
from vstore.keys.objects import SQLITE_FILE
from vstore.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vstore.catalog.base import Identity
    from vstore.catalog.log_head import Head
    from vstore.format.page import Page, PageNames
    from vstore.format.record import Operation
    from vstore.format.refs import BlobRef
    from vstore.storage.base import Storage
    from vstore.tree import PageStore

CatalogKind: TypeAlias = Literal["sqlite", "log"]

MOVED_TO = "moved_to"
_DONE = "done"
CONVERSION = "convert_catalog"
"""In the details of the operation that closes a catalog: the kind that takes over."""
_STATUS_KEY = bytes([Space.VALUE]) + text_key(STATUS)


def closing_status(kind: CatalogKind, *, is_done: bool = False) -> bytes:
    """Return the status of a catalog that hands over to one of this kind, or has done so."""
    other = "sqlite" if kind == "log" else "log"
    reason = (
        f"its catalog was converted, or is being converted, to {kind!r}: open the repository again. If the conversion "
        f"was interrupted, repo.convert_catalog({kind!r}) goes on with it, repo.convert_catalog({other!r}) takes it "
        "back"
    )
    return json.dumps(
        {"availability": "read_only", "reason": reason, MOVED_TO: kind, _DONE: is_done}
    ).encode()


def moved_to(status: bytes | None) -> CatalogKind | None:
    """Return the kind of catalog that one with this status hands over to, or None."""
    kind = _fields(status).get(MOVED_TO)
    return kind if kind in ("sqlite", "log") else None


def _fields(status: bytes | None) -> dict[str, Any]:
    try:
        return {} if status is None else load_object(status, "the repository's status")
    except FormatError:
        # Damage is for who asks for the status.
        return {}


def conversion_of(operation: Operation) -> str | None:
    """Return the kind of catalog to which this operation hands over, or None."""
    return operation.details.get(CONVERSION)


def head_moved_to(head: Head) -> CatalogKind | None:
    """Return what `moved_to` does of a log's newest record: a closing status is small, and stays in the record."""
    return moved_to(head.record.entries.get(_STATUS_KEY))


def refuse_moved(storage: Storage, head: Head) -> None:
    """Raise if the log whose newest record is `head` is the repository's catalog no longer."""
    status = head.record.entries.get(_STATUS_KEY)
    kind = moved_to(status)
    if kind is None or not isinstance(storage, LocalStorage):
        return
    if has_sqlite(storage.root):
        raise RepositoryNotFoundError(
            f"{storage.url!r} has another catalog now: it was converted to {kind!r} since this object was opened. "
            "Nothing was changed; open the repository again."
        )
    if _fields(status).get(_DONE):
        # Going on with the log would forget all that was done since.
        raise CorruptionError(
            f"{SQLITE_FILE!r} is missing in {storage.url!r}: the catalog was converted to it, and 'log/' is as it was "
            "before that. Restore the file from a backup; or move 'log/', 'latest' and 'repo' elsewhere and make a new "
            "catalog of the packs by vstore.rebuild_catalog."
        )


def has_sqlite(directory: str) -> bool:
    """Tell whether there is an SQLite catalog, asked without loading sqlite3."""
    return os.path.lexists(os.path.join(directory, SQLITE_FILE))


def log_counts(storage: LocalStorage, pages: PageStore | None) -> bool | None:
    """Tell whether of two catalogs in a directory the log counts (else SQLite); None if that can't be told."""
    # Only here, as hardly any place has two.
    from vstore.catalog.log_head import LogReader
    from vstore.catalog.sqlite import SqliteCatalog

    try:
        head = LogReader(storage).resolve(None)
    except RepositoryNotFoundError:
        # Nothing but a jump: the conversion was interrupted before its record.
        return False
    if head_moved_to(head) == "sqlite":
        return False
    catalog = SqliteCatalog(storage.root)
    try:
        with catalog.reading() as view:
            if moved_to(view.value(STATUS)) == "log":
                return True
            # It could not be closed: does the log hand over from just this state?
            return _took_over(head, pages, view.identity, view.sequence + 1) or None
    finally:
        catalog.close()


def _took_over(head: Head, pages: PageStore | None, identity: Identity, sequence: int) -> bool:
    from vstore.catalog.log_state import LogView

    if decode_identity(head.record.identity) != identity or not sequence <= head.sequence:
        return False
    view = LogView(head.record, _NO_PAGES if pages is None else pages)
    return any(conversion_of(each) == "log" for each in islice(view.iter_operations(sequence + 1), 1))


class _NoPages:
    """Stands in for the pages of a record where they can't be read."""

    def page(self, ref: BlobRef) -> Page:
        raise MissingBlobError("the catalog's pages can't be read here")

    def names(self, ref: BlobRef) -> PageNames:
        raise MissingBlobError("the catalog's pages can't be read here")

    def expect(self, refs: Iterable[BlobRef]) -> None:
        pass


_NO_PAGES = _NoPages()
