"""The log catalog: immutable numbered records in any storage that can create an object only if it is absent.

A record holds the whole state after one operation, so the newest one is the catalog. To change it is to create the
next number; who finds it taken reads what is there and decides anew. No reply is trusted but a clean success: all
others are settled by reading the number back and looking for the own nonce. The rules, tested by these names:

    L1  a number has one record for ever; an old one may become a tombstone, none is ever freed
    L2  a transaction is in the log at most once, and exactly once if it was acknowledged
    L3  every acknowledged record is an ancestor of every later head
    L4  no handle shows an older state than it has shown before

Neighbours: `log_head` finds the newest record, `log_state` says what is in it, `log_pages` keeps what it can't hold,
`log_unsettled` remembers unclear replies, `log_probe` tries out the storage, `log_upkeep` keeps the log small.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

from vstore.catalog.base import (
    Applied,
    Identity,
    Outcome,
    Refused,
    Transaction,
)
from vstore.catalog.conditions import check_preconditions, check_transaction
from vstore.catalog.handover import refuse_moved
from vstore.catalog.log_check import iter_log_damage, iter_view_damage
from vstore.catalog.log_head import KEPT_RECORDS, Head, LogReader, Newest
from vstore.catalog.log_pages import SpillStore, StaleStateError, StatePages, spill_surely
from vstore.catalog.log_patience import Patience
from vstore.catalog.log_probe import probe, sweep_probes
from vstore.catalog.log_state import EntriesView, LogView, apply
from vstore.catalog.log_unsettled import Unsettled
from vstore.catalog.log_upkeep import plan_gathering, write_tombstones
from vstore.catalog.state import Plan, decode_identity, encode_identity, plan, plan_no_operation
from vstore.clock import SYSTEM_CLOCK, Clock
from vstore.errors import (
    AccessDeniedError,
    CommitOutcomeUnknownError,
    FormatError,
    InternalError,
    InvalidInputError,
    ObjectExistsError,
    OutcomeUnknownError,
    OutOfSpaceError,
    RepositoryExistsError,
    StorageError,
    UnsafeStorageError,
)
from vstore.format.log_record import (
    MAX_RECORD_BYTES,
    LogRecord,
    Tombstone,
    decode_log_object,
    encode_identity_object,
    encode_record,
)
from vstore.ids import new_nonce
from vstore.keys.objects import LATEST, REPO, log_name
from vstore.storage.base import Storage, require_writable
from vstore.tree import PageStore

__all__ = ["LogCatalog", "SpillStore", "StaleStateError"]


class LogCatalog:
    """A `Catalog` in `storage`. Works after `os.fork` if the storage does."""

    def __init__(self, storage: Storage, spill_store: SpillStore, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._storage = storage
        self._pages = spill_store
        self._clock = clock
        self._reader = LogReader(storage)
        self._seen = Newest()
        self._unsettled = Unsettled()
        self._is_probed = False

    def __repr__(self) -> str:
        return f"LogCatalog({self._storage.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        # With what was seen, so that the copy does not go backwards either (L4) and starts without looking.
        head = self._seen.get()
        return {
            "storage": self._storage,
            "pages": self._pages,
            "clock": self._clock,
            "head": None if head is None else (head.data, head.is_confirmed),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        LogCatalog.__init__(self, state["storage"], state["pages"], clock=state["clock"])
        if state["head"] is not None:
            data, is_confirmed = state["head"]
            record = decode_log_object(data)
            assert isinstance(record, LogRecord)
            self._seen.advance(Head(record, data, is_confirmed))

    @classmethod
    def exists(cls, storage: Storage) -> bool:
        """Tell whether there is a log in `storage`: number 0 is the first object made, and is never freed."""
        return LogReader(storage).is_present(0)

    @classmethod
    def open(
        cls, storage: Storage, spill_store: SpillStore, *, clock: Clock = SYSTEM_CLOCK, looks: bool = True
    ) -> LogCatalog:
        """Open the log in `storage`; nothing is written.

        Unless it `looks`, the hint will do, if there is one: one request, which shows that there is a log, and what is
        required to read it. Whether the log goes on from there, and requires more, the first view finds out.
        """
        catalog = cls(storage, spill_store, clock=clock)
        hint = None if looks else catalog._reader.hint()
        if hint is not None:
            catalog._see(hint)
            return catalog
        with catalog.reading():
            return catalog

    @classmethod
    def create(
        cls,
        storage: Storage,
        identity: Identity,
        first: Transaction,
        spill_store: SpillStore,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> LogCatalog:
        """Start a log whose operation 0 is `first`; of racing creators one succeeds.

        Raises `RepositoryExistsError` if there is one, `UnsafeStorageError` if the storage can't be trusted. A crash
        leaves a whole log or none: it is there from the moment when number 0 is.
        """
        check_transaction(first)
        if cls.exists(storage):
            raise _exists_error(storage)
        catalog = cls(storage, spill_store, clock=clock)
        probe(storage)
        catalog._is_probed = True
        catalog._start(identity, first)
        with contextlib.suppress(StorageError):
            # The next writer makes it if this fails.
            catalog._ensure_identity_object()
        return catalog

    def _start(self, identity: Identity, first: Transaction) -> None:
        blank = LogRecord(-1, b"", 0, encode_identity(identity), {})
        view = LogView(blank, self._pages)
        refusals = check_preconditions(view, first)
        if refusals:
            raise InvalidInputError(
                f"the first transaction of a repository expects what is not there: {refusals}"
            )
        planned = plan(view, first, 0)
        patience = Patience(self._clock)
        while not self._try_to_start(blank, planned, first, patience):
            self._wait(patience, first)

    def _try_to_start(self, blank: LogRecord, planned: Plan, first: Transaction, patience: Patience) -> bool:
        """Put number 0 once; False is to try again. Whoever holds the number holds it for good."""
        try:
            if self._append(blank, planned, first, patience):
                return True
            found = self._reader.read(0)
        except (StorageError, FormatError) as error:
            if first.transaction not in self._unsettled:
                raise
            if not _may_pass(error):
                # The caller must not clean up: the record may be there, or come.
                self._raise_unknown(first, error)
            patience.note_trouble(error)
            return False
        if isinstance(found, Head) and self._view(found).find_transaction(first.transaction, -1):
            # An earlier try of this very call, whose reply was lost.
            return True
        if found is not None:
            raise _exists_error(self._storage)
        return False

    def _view(self, head: Head) -> LogView:
        return LogView(head.record, self._pages_of(head.record))

    def _pages_of(self, record: LogRecord) -> PageStore:
        """Return the pages of one state, which gc deletes when newer states have no use for them."""
        return StatePages(self._pages, lambda: self._resolve().record.root != record.root)

    @property
    def identity(self) -> Identity:
        head = self._seen.get() or self._resolve()
        return decode_identity(head.record.identity)

    @contextlib.contextmanager
    def reading(self) -> Iterator[LogView]:
        head = self._resolve()
        refuse_moved(self._storage, head)
        yield self._view(head)

    def recall(self) -> LogView | None:
        head = self._seen.get()
        return None if head is None else EntriesView(head.record, self._pages)

    def _resolve(self) -> Head:
        return self._see(self._reader.resolve(self._seen.get()))

    def _see(self, head: Head) -> Head:
        # Refuse a repository that needs a newer vstore before anything is believed of it.
        decode_identity(head.record.identity)
        return self._seen.advance(head)

    def confirm(self) -> bool:
        return self._confirm(self._seen.get() or self._resolve()) is not None

    def _resolve_surely(self) -> Head:
        """Return the newest record as it is in the log, whatever the hint says."""
        return self._confirm(self._resolve()) or self._resolve()

    def _confirm(self, head: Head) -> Head | None:
        """Return the newest record, or None if `head` is not in the log: the hint lied, and is not asked again."""
        found = self._reader.confirm(head)
        if found is not None:
            return self._seen.advance(found)
        # What it showed was never in this log, so that going back from it loses nothing (L4).
        self._seen.advance(self._reader.resolve_unaided(), instead_of=head)
        return None

    def check_writable(self) -> None:
        require_writable(self._storage)
        if not self._is_probed:
            probe(self._storage)
            self._ensure_identity_object()
            self._is_probed = True

    def _ensure_identity_object(self) -> None:
        """Make `repo` if it is missing: who made number 0 may not have come so far. Nothing depends on it."""
        if self._storage.size(REPO) is None:
            head = self._seen.get() or self._resolve()
            with contextlib.suppress(ObjectExistsError, OutcomeUnknownError):
                self._storage.create(REPO, encode_identity_object(head.record.identity))

    # --- update ------------------------------------------------------------------------------------------------

    def update(self, transaction: Transaction) -> Outcome:
        return self._update(transaction)

    def _update(self, transaction: Transaction, *, anew: bool = False) -> Outcome:
        """Apply or refuse `transaction`; `anew` has all pages of the new state written anew."""
        check_transaction(transaction)
        require_writable(self._storage)
        patience = Patience(self._clock)
        while True:
            outcome = self._try(transaction, patience, anew)
            if outcome is not None:
                self._unsettled.forget(transaction.transaction)
                return outcome
            self._wait(patience, transaction)

    def _try(self, transaction: Transaction, patience: Patience, anew: bool) -> Outcome | None:
        """Go once through steps 1 to 5; None is to go through them again."""
        try:
            head = self._resolve_surely()
            view = self._view(head)
            done = view.find_transaction(transaction.transaction, transaction.since)
            if done is not None:
                return Applied(done)
            self._unsettled.settle(transaction.transaction, head.sequence)
            refusals = check_preconditions(view, transaction)
            if refusals and transaction.transaction not in self._unsettled:
                return Refused(refusals, view.sequence, view.epoch)
            # Refused while an earlier try may still land on the next number: take that number, then look again.
            planned = (
                plan_no_operation(view, transaction)
                if refusals
                else plan(view, transaction, view.sequence + 1)
            )
            landed = self._append(
                head.record, planned, None if refusals else transaction, patience, anew=anew
            )
        except StaleStateError:
            patience.note_loss()
            return None
        except (StorageError, FormatError) as error:
            if transaction.transaction not in self._unsettled:
                raise
            if not _may_pass(error):
                self._raise_unknown(transaction, error)
            patience.note_trouble(error)
            return None
        return Applied(planned.operation) if landed and not refusals else None

    def _append(
        self,
        record: LogRecord,
        planned: Plan,
        transaction: Transaction | None,
        patience: Patience,
        *,
        anew: bool = False,
    ) -> bool:
        """Put the record that follows `record`; tell whether it is surely there, and be it by reading it back."""
        changed = apply(record, planned, new_nonce())
        new = spill_surely(changed, self._pages_of(changed), self._pages, self._clock, anew=anew)
        data = encode_record(new)
        if len(data) > MAX_RECORD_BYTES:
            raise InternalError(f"a log record of {len(data)} bytes exceeds the format's limit")
        before = None if transaction is None else self._unsettled.number(transaction.transaction)
        if transaction is not None:
            self._unsettled.note(transaction.transaction, new.sequence)
        try:
            self._storage.create(log_name(new.sequence), data)
        except (ObjectExistsError, OutcomeUnknownError) as error:
            found = self._reader.read(new.sequence)
            if found is None:
                # It may land yet (a slow request), or someone else's did not land after all (a 409).
                patience.note_trouble(error)
                return False
            if isinstance(found, Tombstone) or found.record.nonce != new.nonce:
                if isinstance(found, Head):
                    self._seen.advance(found)
                patience.note_loss()
                self._did_not_land(transaction, before)
                if isinstance(found, Tombstone) and self._reader.read(found.head) is None:
                    raise _jump_error(self._storage) from error
                return False
        except StorageError as error:
            # Surely not created, by the storage's contract.
            self._did_not_land(transaction, before)
            if not _may_pass(error):
                raise
            patience.note_trouble(error)
            return False
        self._acknowledge(Head(new, data, True))
        return True

    def _did_not_land(self, transaction: Transaction | None, before: int | None) -> None:
        if transaction is not None:
            self._unsettled.restore(transaction.transaction, before)

    def _acknowledge(self, head: Head) -> None:
        self._seen.advance(head)
        newest = self._seen.get()
        if newest is None or newest.sequence == head.sequence:
            # A hint: it may be lost, damaged, or overtake a newer one.
            with contextlib.suppress(StorageError):
                self._storage.write(LATEST, head.data, durable=False)

    def _wait(self, patience: Patience, transaction: Transaction) -> None:
        """Wait before the next try; if they are spent, raise what can be said."""
        if not patience.is_spent:
            patience.wait()
            return
        if transaction.transaction in self._unsettled:
            self._raise_unknown(transaction, patience.error)
        raise StorageError(
            f"{self._storage.url!r}: transaction {transaction.transaction.hex()} was not applied, after "
            f"{patience.losses} numbers lost to other writers and {patience.troubles} failures"
            f"{f' (the last: {patience.error})' if patience.error else ''}. Nothing was changed; try again."
        ) from patience.error

    def _raise_unknown(self, transaction: Transaction, cause: Exception | None) -> NoReturn:
        text = transaction.transaction.hex()
        raise CommitOutcomeUnknownError(
            f"{self._storage.url!r}: whether transaction {text} was applied as number "
            f"{self._unsettled.number(transaction.transaction)} can't be told: the reply was lost, and the record may "
            "be there or still arrive. Nothing was cleaned up; retry to find out"
            f"{f' (the last failure: {cause})' if cause else ''}.",
            transaction_id=text,
        ) from cause

    # --- maintenance -------------------------------------------------------------------------------------------

    def write_tombstones(self, keep: int = KEPT_RECORDS) -> int:
        """Replace records older than the newest `keep` by tombstones; return how many. May be cut off anywhere."""
        return write_tombstones(self._storage, self._reader, self._resolve_surely(), keep)

    def tidy(self) -> None:
        """Write tombstones in place of old records, and pages that lie in many packs into one."""
        self.write_tombstones()
        with self.reading() as view:
            gathering = plan_gathering(view, self._clock)
        if gathering is not None:
            self._update(gathering, anew=True)

    def sweep(self) -> None:
        sweep_probes(self._storage, self._clock)

    def check(self) -> list[str]:
        found: list[str] = []
        for examine in (self._log_damage, self._view_damage):
            try:
                found += examine()
            except FormatError as error:
                found.append(str(error))
        return list(dict.fromkeys(found))

    def _log_damage(self) -> Iterator[str]:
        head = self._resolve_surely()
        yield from iter_log_damage(self._storage, self._reader, head)

    def _view_damage(self) -> Iterator[str]:
        with self.reading() as view:
            yield from iter_view_damage(view)

    def close(self) -> None:
        """Nothing is held; the storage is the caller's."""


def _may_pass(error: Exception) -> bool:
    """Tell whether trying again may help."""
    lasting = (FormatError, AccessDeniedError, OutOfSpaceError, UnsafeStorageError, CommitOutcomeUnknownError)
    return not isinstance(error, lasting)


def _jump_error(storage: Storage) -> StorageError:
    return StorageError(
        f"{storage.url!r} is a copy that is being brought up to date, or was when that was interrupted, so "
        "that nothing else can be written here. Nothing was changed. Run the copy again; or, if its source is lost, "
        "let repo.convert_catalog('log') take the interrupted update back."
    )


def _exists_error(storage: Storage) -> RepositoryExistsError:
    return RepositoryExistsError(
        f"{storage.url!r} already holds a repository. Open it, or choose another location."
    )
