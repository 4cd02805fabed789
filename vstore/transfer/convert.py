"""Changes the kind of a repository's catalog in its place: SQLite to a log, or a log to SQLite.

The order, in which at each moment one catalog counts (`vstore.catalog.handover` says which):

1. The old catalog is closed by an update of its status. Every other update is conditional on that, so that from here on
   nobody, whatever they hold open, commits to it. (SQLite on a shared file system can't be locked, and so not closed:
   vstore never writes it there.)
2. The new one is made of the closed state, complete and durable, beside the old one.
3. It gets its name. It counts from here on, and is open.
4. SQLite is removed. A log stays where it is: nothing of a log is ever deleted, as who comes from an old record must
   find the newest.

Stopped anywhere, the repository can be opened, and a second call goes on, or takes back what is not beyond step 3.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from vstore.blobs.spill import PackSpill
from vstore.catalog.base import (
    ABSENT,
    STATUS,
    Applied,
    Catalog,
    CatalogView,
    SetValue,
    Transaction,
    ValueIs,
)
from vstore.catalog.exported import Exported, fillers
from vstore.catalog.handover import (
    CONVERSION,
    CatalogKind,
    closing_status,
    conversion_of,
    has_sqlite,
    moved_to,
)
from vstore.catalog.location import find_catalog, open_catalog
from vstore.catalog.log import LogCatalog
from vstore.catalog.log_head import LogReader
from vstore.catalog.log_import import NEAR, newest_number, next_number
from vstore.errors import (
    ConflictError,
    InternalError,
    InvalidInputError,
    RepositoryNotFoundError,
    StorageError,
    UnsafeStorageError,
    VStoreError,
)
from vstore.format.record import Operation, OperationKind
from vstore.handle import Handle
from vstore.ids import new_transaction_id
from vstore.ops.marks import Progress
from vstore.storage.base import Storage
from vstore.storage.files import close_quietly, lock_file, require_posix, storage_error
from vstore.storage.local import LocalStorage
from vstore.transfer.catalogs import NOTHING, directory_of, stage, state_view

_TRIES = 20
_FAR = 100_000
"""Numbers that an update of a copy, which was interrupted, may have jumped: what was done since the one before it."""
_COPY_AGAIN = "Copy the repository to it again: that goes on from there."


def convert_catalog(handle: Handle, kind: str, progress: Progress) -> Catalog:
    """Give the repository a catalog of this kind, and return it; `Repository.convert_catalog` documents it."""
    if kind not in ("sqlite", "log"):
        raise InvalidInputError(f"{kind!r} is no kind of catalog: choose 'sqlite' or 'log'.")
    wanted: CatalogKind = "sqlite" if kind == "sqlite" else "log"
    with sole_change_of(handle.storage):
        _Conversion(handle, wanted, progress).run()
    return open_catalog(handle.storage, PackSpill(handle.storage), clock=handle.clock)


@contextlib.contextmanager
def sole_change_of(storage: Storage) -> Iterator[None]:
    """Keep other conversions and copies into the same directory away, of any process of this machine."""
    if not isinstance(storage, LocalStorage):
        yield
        return
    require_posix()
    try:
        fd = os.open(storage.root, os.O_RDONLY)
    except OSError as error:
        raise storage_error(error, "open the folder", storage.root) from error
    try:
        # Shared file systems may not lock folders.
        with contextlib.suppress(UnsafeStorageError):
            try:
                lock_file(fd, storage.root)
            except UnsafeStorageError:
                raise
            except StorageError:
                raise StorageError(
                    f"{storage.root!r} is being converted, or copied into, by somebody else. Nothing was changed; "
                    "wait until that is done."
                ) from None
        yield
    finally:
        close_quietly(fd)


class _Conversion:
    def __init__(self, handle: Handle, kind: CatalogKind, progress: Progress) -> None:
        self._handle = handle
        self._storage = handle.storage
        self._kind = kind
        self._progress = progress
        self._unclosed_at: int | None = None

    def run(self) -> None:
        if self._kind == "sqlite":
            directory_of(self._storage)
        counting = find_catalog(self._storage, PackSpill(self._storage))
        # The handle may be of what was here before.
        self._handle.catalog.close()
        self._catalog = open_catalog(self._storage, PackSpill(self._storage), clock=self._handle.clock)
        try:
            # What a hint alone has shown is not carried over.
            self._catalog.confirm()
            if counting == self._kind:
                self._mend()
            else:
                self._convert()
        finally:
            self._catalog.close()

    # --- to the other kind -------------------------------------------------------------------------------------

    def _convert(self) -> None:
        can_close = self._check()
        self._progress(0, 4, "closing the old catalog")
        try:
            if can_close:
                self._close()
            else:
                self._unclosed_at = self._sequence()
            self._progress(1, 4, "making the new catalog")
            with self._catalog.reading() as view:
                state = self._state(view)
                staged = stage(self._storage, self._kind, state, self._after(), self._handle.clock)
        except BaseException:
            # Nothing is lost yet: let them go on with the old one, also if memory is short or a key was pressed.
            with contextlib.suppress(VStoreError):
                self._reopen()
            raise
        try:
            self._progress(2, 4, "putting it in place")
            self._require_still()
            staged.publish()
        finally:
            staged.discard()
        self._progress(3, 4, "removing the old catalog")
        self._require_still()
        self._clean_up()
        self._progress(4, 4, "done")

    def _check(self) -> bool:
        """Raise where the new kind would be of no use; return whether the old one can be closed."""
        if self._kind == "sqlite":
            from vstore.catalog.sqlite import SqliteCatalog
            from vstore.catalog.sqlite.importing import remove_catalog

            if has_sqlite(directory_of(self._storage)):
                # What the conversion to this log did not come to remove.
                remove_catalog(directory_of(self._storage))
            new = SqliteCatalog(directory_of(self._storage))
            if not new.can_lock():
                new.check_writable()
            self._catalog.check_writable()
            return True
        self._check_log_possible()
        try:
            self._catalog.check_writable()
        except UnsafeStorageError:
            return False
        return True

    def _require_still(self) -> None:
        """Raise if a catalog that could not be closed was written to."""
        if self._unclosed_at is not None and self._sequence() != self._unclosed_at:
            raise ConflictError(
                f"{self._storage.url!r} was written to while it was converted, on the machine that has the disk. "
                "Nothing was removed. Close the repository there, move the folder 'log' elsewhere, then convert again."
            )

    def _check_log_possible(self) -> None:
        from vstore.catalog.log_probe import probe

        probe(self._storage)

    def _close(self) -> None:
        """Refuse all further updates, unless that was done by a call which was interrupted."""

        def details(status: bytes | None) -> dict[str, Any]:
            return {CONVERSION: self._kind, "status": None if status is None else status.decode()}

        self._set_status(
            lambda view: None if moved_to(view.value(STATUS)) else closing_status(self._kind), details
        )
        # A log that was left has numbers which must be passed over.
        while self._kind == "log" and self._needed_number() > self._sequence():
            self._catalog.update(self._transaction((), (), {}))

    def _needed_number(self) -> int:
        return self._needed_number_after(self._sequence())

    def _sequence(self) -> int:
        with self._catalog.reading() as view:
            return view.sequence

    def _after(self) -> int:
        """Return the newest number of the catalog whose place the new one takes."""
        if self._kind == "sqlite":
            return NOTHING
        try:
            return newest_number(self._storage)
        except RepositoryNotFoundError:
            return NOTHING

    def _state(self, view: CatalogView) -> Exported:
        """Return the state that the new catalog starts with: the old one's, with the status before it was closed."""
        if moved_to(view.value(STATUS)):
            original = self._original_status(view)
            return Exported(state_view(view), values={STATUS: original})
        # Not closed, as it can't be written: the closing operation is in the new catalog alone.
        closing = Operation(
            view.sequence + 1,
            new_transaction_id(),
            OperationKind.SET_STATUS,
            self._handle.clock.now_us(),
            self._handle.author,
            (),
            {CONVERSION: self._kind},
        )
        last = self._needed_number_after(view.sequence + 1)
        more = fillers(view.sequence + 2, last, closing.time_us, closing.author)
        return Exported(state_view(view), more=(closing, *more))

    def _needed_number_after(self, sequence: int) -> int:
        after = self._after()
        if after > sequence + NEAR:
            raise StorageError(
                f"the log in {self._storage.url!r} has {after} operations, far beyond the {sequence} of this "
                "repository. Move the folder 'log' elsewhere, then try again."
            )
        return max(sequence, next_number(self._storage, after, sequence))

    def _original_status(self, view: CatalogView) -> bytes | None:
        for operation in islice(view.iter_operations(), NEAR):
            if conversion_of(operation):
                status = operation.details.get("status")
                return None if status is None else str(status).encode()
        raise InternalError("a closed catalog has no operation that closed it. Please report this.")

    # --- back, or the rest of it -------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Finish or take back what an interrupted call has left, where the catalog is of the wanted kind already."""
        with self._catalog.reading() as view:
            is_closed = moved_to(view.value(STATUS)) is not None
        if is_closed:
            self._reopen()
        if self._kind == "log":
            self._pass_over_jump()
        self._clean_up()

    def _reopen(self) -> None:
        """Put back the status from before the catalog was closed."""

        def status(view: CatalogView) -> bytes | None:
            if not moved_to(view.value(STATUS)):
                return None
            return self._original_status(view) or b'{"availability":"online","reason":null}'

        self._set_status(status, lambda _: {})

    def _pass_over_jump(self) -> None:
        """Make the record that an interrupted update of a copy has left out, of what was there before it."""
        after = self._after()
        number = next_number(self._storage, after, after, near=_FAR, remedy=_COPY_AGAIN)
        if number == after + 1:
            return
        with self._catalog.reading() as view:
            more = fillers(view.sequence + 1, number, self._handle.clock.now_us(), self._handle.author)
            state = Exported(state_view(view), more=more)
            staged = stage(self._storage, "log", state, after, self._handle.clock)
        staged.publish()

    def _clean_up(self) -> None:
        if not isinstance(self._storage, LocalStorage):
            return
        if self._kind == "sqlite":
            self._end_log(self._storage)
        from vstore.catalog.sqlite import SqliteCatalog
        from vstore.catalog.sqlite.importing import remove_catalog

        SqliteCatalog(self._storage.root).sweep()
        if self._kind == "log":
            self._catalog.close()
            remove_catalog(self._storage.root)

    def _end_log(self, storage: LocalStorage) -> None:
        """Note in a log that was left that SQLite took over: without that file it is not to be gone on with."""
        log = LogCatalog(storage, PackSpill(storage), clock=self._handle.clock)
        status = closing_status("sqlite")
        updates = (SetValue(STATUS, closing_status("sqlite", is_done=True)),)
        # No more than a safeguard; gc may have deleted pages that only the log needed.
        with contextlib.suppress(VStoreError):
            since = LogReader(storage).resolve(None).sequence
            log.update(self._transaction((ValueIs(STATUS, status),), updates, {}, since))

    # --- updates -----------------------------------------------------------------------------------------------

    def _set_status(
        self,
        choose: Callable[[CatalogView], bytes | None],
        details: Callable[[bytes | None], dict[str, Any]],
    ) -> None:
        """Set the status that `choose` makes of a view, unless it makes none."""
        for _ in range(_TRIES):
            with self._catalog.reading() as view:
                old, new = view.value(STATUS), choose(view)
            if new is None:
                return
            condition = ValueIs(STATUS, ABSENT if old is None else old)
            outcome = self._catalog.update(
                self._transaction((condition,), (SetValue(STATUS, new),), details(old))
            )
            if isinstance(outcome, Applied):
                return
        raise ConflictError("the repository's status was changed by somebody else all the time. Try again.")

    def _transaction(
        self,
        conditions: tuple[ValueIs, ...],
        updates: tuple[SetValue, ...],
        details: dict[str, Any],
        since: int | None = None,
    ) -> Transaction:
        kind = OperationKind.SET_STATUS if updates else OperationKind.NO_OPERATION
        return Transaction(
            new_transaction_id(),
            self._sequence() if since is None else since,
            kind,
            self._handle.clock.now_us(),
            self._handle.author,
            conditions,
            updates,
            details,
        )
