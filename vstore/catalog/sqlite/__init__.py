"""The SQLite catalog: `catalog.sqlite` in a local directory, the default there.

Every update is one `BEGIN IMMEDIATE` with the same preconditions and the same look-up of the transaction id as in the
log catalog; every view is one short read transaction. `rows` says what is kept and how damage is noticed, `view`
reads it, `pool` and `connection` know SQLite. The schema is made by the steps in `vstore.migrations`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator

from vstore.catalog.base import (
    Applied,
    Identity,
    Outcome,
    Refused,
    Transaction,
)
from vstore.catalog.conditions import check_preconditions, check_transaction
from vstore.catalog.sqlite.connection import Access, Connection, building, damage
from vstore.catalog.sqlite.pool import Pool, find_trouble
from vstore.catalog.sqlite.rows import (
    INDEX,
    Head,
    decode_operation_row,
    index_crc,
    log_row_of,
    table_of,
    write_head,
    write_log_row,
    write_state,
)
from vstore.catalog.sqlite.view import SqliteView, Verified
from vstore.catalog.state import Edit, Plan, Space, encode_entry, find_damage, plan, plan_no_operation
from vstore.errors import (
    AccessDeniedError,
    CommitOutcomeUnknownError,
    FormatError,
    InvalidInputError,
    OutcomeUnknownError,
    OutOfSpaceError,
    ReadOnlyError,
    RepositoryExistsError,
    StorageError,
    UnsafeStorageError,
    VStoreError,
)
from vstore.format.record import SnapshotEntry
from vstore.ids import SnapshotId, TransactionId, new_nonce
from vstore.keys.objects import SQLITE_FILE
from vstore.storage.files import storage_error, sync_directory
from vstore.storage.mounts import is_local_filesystem

__all__ = ["SqliteCatalog", "publish_file"]


_FREE_PART = 10
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_HALF_MADE = re.compile(rf"{re.escape(SQLITE_FILE)}\.new-[0-9a-f]{{32}}({'|'.join(_SUFFIXES)})")


class SqliteCatalog:
    """A `Catalog` in `directory`, an absolute path. Works after `os.fork`, unless a view was open then."""

    def __init__(self, directory: str, *, can_lock: Callable[[str], bool] = is_local_filesystem) -> None:
        self.directory = os.path.realpath(directory)
        self._path = os.path.join(self.directory, SQLITE_FILE)
        self._pool = Pool(self._path, lambda: can_lock(os.path.dirname(self._path)))
        self._verified = Verified()
        self._identity: Identity | None = None
        self._unsettled: set[TransactionId] = set()

    def __repr__(self) -> str:
        return f"SqliteCatalog({self.directory!r})"

    def __reduce__(self) -> tuple[type[SqliteCatalog], tuple[str]]:
        # What was verified here, and whether locks work, is for the other process to find out.
        return SqliteCatalog, (self.directory,)

    @classmethod
    def exists(cls, directory: str) -> bool:
        """Tell whether there is a catalog in `directory`, whole or damaged."""
        return os.path.lexists(os.path.join(directory, SQLITE_FILE))

    @classmethod
    def open(cls, directory: str) -> SqliteCatalog:
        """Open the catalog in `directory`."""
        catalog = cls(directory)
        with catalog.reading():
            return catalog

    @classmethod
    def create(cls, directory: str, identity: Identity, first: Transaction) -> SqliteCatalog:
        """Make a catalog whose operation 0 is `first`; of racing creators one succeeds.

        Raises `RepositoryExistsError` if there is one, `OutcomeUnknownError` if it was made but a power cut might take
        it away. A crash leaves either all of it under its name, or none; and files called `catalog.sqlite.new-*`,
        which `sweep` deletes.
        """
        check_transaction(first)
        catalog = cls(directory)
        if cls.exists(directory):
            raise _exists_error(catalog.directory)
        if not catalog._pool.can_lock():
            raise UnsafeStorageError(
                f"{catalog._path!r} can't be made: its folder is not on a file system known to be local, and SQLite's "
                'locks can\'t be trusted on others. Create the repository with catalog="log", the default there.'
            )
        temporary = f"{catalog._path}.new-{new_nonce().hex()}"
        try:
            _build(temporary, identity, first)
            publish_file(temporary, catalog._path)
        except OutcomeUnknownError:
            raise
        except (StorageError, ReadOnlyError) as error:
            # Another creator was quicker, and gc may already have swept away what this one was making.
            if cls.exists(directory):
                raise _exists_error(catalog.directory) from error
            trouble = find_trouble(catalog.directory)
            if trouble is None:
                raise
            raise storage_error(trouble, "create", catalog._path) from error
        finally:
            for suffix in _SUFFIXES:
                with contextlib.suppress(OSError):
                    os.unlink(temporary + suffix)
        return catalog

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            with self.reading():
                pass
        assert self._identity is not None
        return self._identity

    @contextlib.contextmanager
    def reading(self) -> Iterator[SqliteView]:
        with self._pool.lend(for_reading=True) as connection:
            view = self._begin(connection, "BEGIN")
            try:
                yield view
            finally:
                view.end()

    def recall(self) -> None:
        return None

    def can_lock(self) -> bool:
        """Tell whether SQLite's locks can be trusted in this directory."""
        return self._pool.can_lock()

    def lend(self) -> contextlib.AbstractContextManager[Connection]:
        """Lend a connection; what it has not committed is rolled back."""
        return self._pool.lend()

    def _begin(self, connection: Connection, statement: str) -> SqliteView:
        connection.rows(statement)
        view = SqliteView(connection, self._verified)
        self._identity = view.identity
        return view

    def confirm(self) -> bool:
        return True

    def check_writable(self) -> None:
        if self._pool.access is Access.WRITE:
            return
        if not self._pool.can_lock():
            raise UnsafeStorageError(
                f"{self._path!r} can't be written: its folder is not on a file system known to be local, and "
                "SQLite's locks can't be trusted on others, so that commits could be lost. Convert the repository, "
                'while nobody writes to it, by repo.convert_catalog("log"); or write on the machine that has the disk.'
            )
        raise AccessDeniedError(
            f"{self._path!r} can only be read: this process may not write to the file or to its folder. Check "
            "their permissions, and whether the disk is mounted read-only; then open the repository again."
        )

    def update(self, transaction: Transaction) -> Outcome:
        check_transaction(transaction)
        self.check_writable()
        while True:
            try:
                outcome = self._try(transaction)
            except (StorageError, FormatError) as error:
                if transaction.transaction not in self._unsettled or isinstance(
                    error, CommitOutcomeUnknownError
                ):
                    raise
                # As it is, it would say that an earlier try did not land either.
                raise self._unknown(transaction) from error
            if outcome is not None:
                self._unsettled.discard(transaction.transaction)
                return outcome

    def _try(self, transaction: Transaction) -> Outcome | None:
        """Apply or refuse; None is to try again, after an operation that settles an earlier try."""
        with self._pool.lend() as connection:
            view = self._begin(connection, "BEGIN IMMEDIATE")
            try:
                done = view.find_transaction(transaction.transaction, transaction.since)
                if done is not None and transaction.transaction not in self._unsettled:
                    return Applied(done)
                refusals = () if done else check_preconditions(view, transaction)
                if refusals and transaction.transaction not in self._unsettled:
                    return Refused(refusals, view.sequence, view.epoch)
                # Refused while frames of an earlier try may still be on the disk: write over them, then look again.
                # Found, but by its own word not synced (they came back when the log was recovered): sync it first.
                settles = bool(refusals or done)
                planned = (
                    plan_no_operation(view, transaction)
                    if settles
                    else plan(view, transaction, view.sequence + 1)
                )
                after = apply_plan(connection, view, planned, self._verified)
            finally:
                view.end()
            if not _commit(connection):
                self._unsettled.add(transaction.transaction)
                if settles:
                    raise self._unknown(transaction)
                return self._find_outcome(transaction)
            self._verified.follow(view.head, after)
            self._unsettled.discard(transaction.transaction)
            return None if settles else Applied(planned.operation)

    def _find_outcome(self, transaction: Transaction) -> Outcome:
        """Look up, on another connection, whether a commit whose COMMIT failed is in the catalog.

        The connection that failed is still open, so the log is not recovered from what its sync may have lost: if the
        transaction is seen, SQLite has synced it and failed after that.
        """
        with contextlib.suppress(StorageError), self.reading() as view:
            done = view.find_transaction(transaction.transaction, transaction.since)
            if done is not None:
                return Applied(done)
        raise self._unknown(transaction)

    def _unknown(self, transaction: Transaction) -> CommitOutcomeUnknownError:
        # Not there now; but frames that reached the disk may come back when the write-ahead log is next recovered.
        text = transaction.transaction.hex()
        trouble = find_trouble(self.directory)
        found = "" if trouble is None else f" (a trial write there failed too: {trouble.strerror})"
        return CommitOutcomeUnknownError(
            f"{self._path!r}: the disk failed while transaction {text} was being committed{found}, so it may or may "
            "not be there when the catalog is next opened. Check the disk and the system's log, then retry: that "
            "settles it, and nothing is lost or done twice.",
            transaction_id=text,
        )

    def tidy(self) -> None:
        """Give the pages that expired snapshots leave free back to the file system, once they are a tenth of all."""
        with self._pool.lend() as connection:
            ((free,),) = connection.rows("PRAGMA freelist_count")
            ((pages,),) = connection.rows("PRAGMA page_count")
            if free * _FREE_PART > pages:
                # Waits for readers and writers as an update does; durable as one.
                connection.rows("VACUUM")
            connection.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def sweep(self) -> None:
        try:
            for name in os.listdir(self.directory):
                if _HALF_MADE.fullmatch(name):
                    # Of a creator that crashed, or that has lost: the catalog is there.
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(self.directory, name))
        except OSError as error:
            raise storage_error(error, "clean up", self.directory) from error

    def check(self) -> list[str]:
        found: list[str] = []
        with self._pool.lend() as connection:
            for examine in (_sqlite_damage, self._view_damage):
                try:
                    found += examine(connection)
                except FormatError as error:
                    found.append(str(error))
        return found

    def _view_damage(self, connection: Connection) -> Iterator[str]:
        view = self._begin(connection, "BEGIN")
        view.verify()
        yield from find_damage(view)

    def close(self) -> None:
        self._pool.close()


def apply_plan(connection: Connection, view: SqliteView, planned: Plan, verified: Verified) -> Head:
    """Write what `planned` says within the open transaction, and return the new head."""
    head = view.head
    # One entry goes into the operation's own row: a row less in each commit. More have rows of their own.
    single: SnapshotEntry | None = planned.entries[0] if len(planned.entries) == 1 else None
    edits = list(planned.edits)
    if single is None:
        edits += [Edit(Space.SNAPSHOT, entry.id, encode_entry(entry)) for entry in planned.entries]
    else:
        head = head.with_tally(INDEX, head.tally(INDEX).plus(index_crc(single.id)))
    for snapshot in planned.dropped:
        head = _drop_snapshot(connection, view, head, snapshot)
    crc = write_log_row(connection, planned.operation, single)
    if single is not None:
        verified.remember_entry(single, crc)
    for edit in edits:
        head = _apply_edit(connection, head, edit, view.take_crc(edit.space, edit.key))
    head = Head(planned.operation.sequence, planned.epoch, head.identity, head.tallies)
    verified.head = write_head(connection, head), head
    return head


def _drop_snapshot(connection: Connection, view: SqliteView, head: Head, snapshot: SnapshotId) -> Head:
    """Remove a retained snapshot's entry, which is in the row of the operation that added it or in one of its own."""
    row = log_row_of(connection, snapshot)
    if row is None:
        old = view.take_crc(Space.SNAPSHOT, snapshot)
        return _apply_edit(connection, head, Edit(Space.SNAPSHOT, snapshot, None), old)
    write_log_row(connection, decode_operation_row(connection.path, row), None)
    return head.with_tally(INDEX, head.tally(INDEX).minus(index_crc(snapshot)))


def _apply_edit(connection: Connection, head: Head, edit: Edit, old: int | None) -> Head:
    tally = head.tally(edit.space)
    if old is not None:
        tally = tally.minus(old)
    if edit.value is not None:
        tally = tally.plus(write_state(connection, edit.space, edit.key, edit.value))
    elif old is not None:
        connection.rows(
            f"DELETE FROM {table_of(edit.space)} WHERE space = ? AND key = ?", edit.space, edit.key
        )
    return head.with_tally(edit.space, tally)


def _commit(connection: Connection) -> bool:
    """Commit; return False where only looking again can tell whether that worked."""
    try:
        connection.rows("COMMIT")
    except OutOfSpaceError:
        # The last frame, which would make the transaction valid, was not written.
        raise
    except StorageError:
        return False
    return True


def _sqlite_damage(connection: Connection) -> Iterator[str]:
    for (line,) in connection.rows("PRAGMA integrity_check(100)"):
        text = bytes(line).decode(errors="replace")
        if text != "ok":
            yield str(damage(connection.path, f"SQLite's integrity check says: {text}"))


# --- creating --------------------------------------------------------------------------------------------------


def _build(path: str, identity: Identity, first: Transaction) -> None:
    """Make a complete catalog at `path`, durable and without a write-ahead log."""
    with building(path) as connection:
        write_head(connection, Head(-1, 0, identity, {}))
        verified = Verified()
        view = SqliteView(connection, verified)
        refusals = check_preconditions(view, first)
        if refusals:
            raise InvalidInputError(
                f"the first transaction of a repository expects what is not there: {refusals}"
            )
        apply_plan(connection, view, plan(view, first, 0), verified)


def publish_file(temporary: str, path: str) -> None:
    """Give the file its name, unless there is one already; durable when it returns."""
    folder = os.path.dirname(path)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists_error(folder) from None
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise UnsafeStorageError(
                f"{path!r} can't be created: its file system does not allow hard links. Use one that does."
            ) from error
        raise storage_error(error, "create", path) from error
    try:
        sync_directory(folder)
    except OSError as error:
        raise OutcomeUnknownError(
            f"{path!r} was made, but its folder can't be synced ({error.strerror}): whether it would survive a power "
            "cut is unknown. Check the disk and the system's log; then open the repository."
        ) from error


def _exists_error(directory: str) -> VStoreError:
    return RepositoryExistsError(
        f"{directory!r} already holds a repository. Open it, or choose another directory."
    )
