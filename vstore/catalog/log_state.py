"""The state in a log record: what a transaction makes of it, when it spills, and how it is viewed.

A record holds the newest keys and values itself and names a page tree with the older ones, which it overrides. `apply`
and `plan_spill` are pure; `LogView` reads pages where what is asked for was spilled. Keys are those of
`vstore.catalog.state`, each behind the byte of its space. Above: `log`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from vstore import tree
from vstore.catalog.state import (
    Plan,
    Space,
    StateView,
    decode_identity,
    encode_entry,
    encode_operation,
    operation_key,
)
from vstore.errors import CorruptionError
from vstore.format.log_record import TXID_SIZE, LogRecord
from vstore.format.page import Child, Entry, Totals
from vstore.format.record import Operation, decode_operation
from vstore.format.refs import BlobRef
from vstore.ids import SnapshotId, TransactionId
from vstore.tree import PageStore
from vstore.tree.writing import Change, TreePolicy

INLINE_BYTES = 10 * 1024
"""A record with more than this in its entries spills, so that with its transaction ids it stays below 16 KiB."""
KEPT_TXIDS = 256
"""So many transactions can be told apart without reading a page."""

_COLD = (Space.SNAPSHOT, Space.OPERATION, Space.EXPIRED)
COLD_KEPT_BYTES = 2 * 1024
HOT_BYTES = 4 * 1024
HOT_KEPT_BYTES = 1024
_ENTRY_OVERHEAD_BYTES = 6

POLICY = TreePolicy(leaf_bytes=4096, leaf_entries=256, measure=lambda entry: Totals())
"""Ids do not compress, and a spill touches as many leaves as it has snapshots: small leaves."""


def full_key(space: Space, key: bytes) -> bytes:
    """Return a key with its space in front."""
    return bytes([space]) + key


def apply(record: LogRecord, planned: Plan, nonce: bytes) -> LogRecord:
    """Return the record that follows `record`, before any spilling."""
    entries = dict(record.entries)

    def put(space: Space, key: bytes, value: bytes | None) -> None:
        whole = full_key(space, key)
        # Removed first, so that the order stays that of the last change.
        entries.pop(whole, None)
        if value is not None or is_spilled(record, space):
            entries[whole] = value

    for edit in planned.edits:
        put(edit.space, edit.key, edit.value)
    for snapshot in planned.dropped:
        put(Space.SNAPSHOT, snapshot, None)
    for entry in planned.entries:
        put(Space.SNAPSHOT, entry.id, encode_entry(entry))
    operation = planned.operation
    put(Space.OPERATION, operation_key(operation.sequence), encode_operation(operation))
    return replace(record, sequence=operation.sequence, nonce=nonce, epoch=planned.epoch, entries=entries)


def is_spilled(record: LogRecord, space: Space) -> bool:
    """Tell whether the record's page tree may hold keys of `space`."""
    return bool(record.spilled >> space & 1)


def plan_spill(record: LogRecord) -> list[Change]:
    """Return what must move from the record's entries into its page tree, sorted; nothing if it is small enough.

    Snapshots and operations go first, oldest first: the newest are what commits and openings ask for. Refs and the
    rest stay as long as they are few, because every reader needs them.
    """
    if b"" in record.entries:
        raise CorruptionError(
            "the newest record of the catalog has an entry without a key. repo.fsck() names all that is damaged."
        )
    cold = [key for key in record.entries if key[0] in _COLD]
    hot = [key for key in record.entries if key[0] not in _COLD]
    if _size(record, cold) + _size(record, hot) <= INLINE_BYTES:
        return []
    moved = _oldest(record, cold, COLD_KEPT_BYTES)
    if _size(record, hot) > HOT_BYTES:
        moved += _oldest(record, hot, HOT_KEPT_BYTES)
    return [_change(key, record.entries[key]) for key in sorted(moved)]


def _size(record: LogRecord, keys: Sequence[bytes]) -> int:
    return sum(entry_size(key, record.entries[key]) for key in keys)


def entry_size(key: bytes, value: bytes | None) -> int:
    """Return about what an entry takes of a record."""
    return len(key) + len(value or b"") + _ENTRY_OVERHEAD_BYTES


def _oldest(record: LogRecord, keys: list[bytes], kept_bytes: int) -> list[bytes]:
    """Return the first of `keys`, so many that the others have at most `kept_bytes`."""
    left = _size(record, keys)
    for index, key in enumerate(keys):
        if left <= kept_bytes:
            return keys[:index]
        left -= _size(record, [key])
    return list(keys)


def _change(key: bytes, value: bytes | None) -> Change:
    return Change(key, None if value is None else Entry(key, 0, value))


def spill(record: LogRecord, changes: list[Change], root: Child | None) -> LogRecord:
    """Return `record` with `changes` in the tree at `root` instead of in its entries."""
    moved = {change.key for change in changes}
    txids, spilled = record.txids, record.spilled
    for change in changes:
        spilled |= 1 << change.key[0]
        if change.key[0] == Space.OPERATION and change.entry is not None:
            txids += decode_operation(change.entry.value).transaction
    kept = {key: value for key, value in record.entries.items() if key not in moved}
    return replace(record, entries=kept, root=root, spilled=spilled, txids=txids[-KEPT_TXIDS * TXID_SIZE :])


_MANY_LOOK_UPS = 3


class LogView(StateView):
    """The state that a record holds; `pages` reads what was spilled."""

    def __init__(self, record: LogRecord, pages: PageStore) -> None:
        self.record = record
        self.sequence = record.sequence
        self.epoch = record.epoch
        self.identity = decode_identity(record.identity)
        self._pages = pages
        self._sorted_keys: list[bytes] | None = None
        self._looked_up = 0

    @property
    def _keys(self) -> list[bytes]:
        if self._sorted_keys is None:
            self._sorted_keys = sorted(self.record.entries)
        return self._sorted_keys

    def _get(self, space: Space, key: bytes) -> bytes | None:
        whole = full_key(space, key)
        if whole in self.record.entries:
            return self.record.entries[whole]
        if not is_spilled(self.record, space):
            return None
        self._looked_up += 1
        # Such as a walk through the history, whose ids are in no order.
        is_one_of_many = self._looked_up == _MANY_LOOK_UPS
        found = tree.get(self._pages, self.record.root, whole, is_one_of_many=is_one_of_many)
        return None if found is None else found.value

    def _scan(
        self, space: Space, start: bytes = b"", stop: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        low = full_key(space, start)
        high = bytes([space + 1]) if stop is None else full_key(space, stop)
        newer = self._keys[bisect_left(self._keys, low) : bisect_left(self._keys, high)]
        index = 0
        for entry in self._stored(space, low, high):
            while index < len(newer) and newer[index] < entry.key:
                yield from self._present(newer[index])
                index += 1
            if index < len(newer) and newer[index] == entry.key:
                continue
            yield entry.key[1:], entry.value
        for key in newer[index:]:
            yield from self._present(key)

    def _stored(self, space: Space, low: bytes, high: bytes) -> Iterator[Entry]:
        if is_spilled(self.record, space):
            yield from tree.iter_entries(self._pages, self.record.root, low, high)

    def _present(self, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        value = self.record.entries[key]
        if value is not None:
            yield key[1:], value

    def seems_retained(self, snapshot: SnapshotId) -> bool:
        return self.record.entries.get(full_key(Space.SNAPSHOT, snapshot)) is not None

    # Operations: those in the entries are newer than all in the tree, and numbers are dense.

    def _own_operations(self) -> list[bytes]:
        first = bisect_left(self._keys, bytes([Space.OPERATION]))
        return self._keys[first : bisect_left(self._keys, bytes([Space.OPERATION + 1]))]

    def iter_operations(self, before: int | None = None) -> Iterator[Operation]:
        expected = self.sequence if before is None else min(self.sequence, before - 1)
        for value in self._operation_values(expected + 1):
            operation = decode_operation(value)
            if operation.sequence != expected:
                raise CorruptionError(
                    f"the operations log of the catalog has number {operation.sequence} where {expected} belongs. "
                    "repo.fsck() names all that is damaged."
                )
            yield operation
            expected -= 1
        if expected != -1:
            raise CorruptionError(
                f"operation {expected} is missing from the catalog. repo.fsck() names all that is damaged."
            )

    def _operation_values(self, before: int) -> Iterator[bytes]:
        own = self._own_operations()
        limit = full_key(Space.OPERATION, operation_key(max(before, 0)))
        for key in reversed(own[: bisect_left(own, limit)]):
            yield self.record.entries[key] or b""
        if is_spilled(self.record, Space.OPERATION):
            stop = min(limit, own[0]) if own else limit
            for entry in tree.iter_reversed(self._pages, self.record.root, stop):
                if entry.key[0] != Space.OPERATION:
                    return
                yield entry.value

    def find_transaction(self, transaction: TransactionId, since: int) -> Operation | None:
        own = self._own_operations()
        for key in reversed(own):
            operation = decode_operation(self.record.entries[key] or b"")
            if operation.transaction == transaction:
                return operation if operation.sequence > since else None
        oldest = self.sequence + 1 - len(own)
        txids = self.record.txids
        known = oldest - len(txids) // TXID_SIZE
        for index in range(0, len(txids), TXID_SIZE):
            if txids[index : index + TXID_SIZE] == transaction:
                sequence = known + index // TXID_SIZE
                return self._operation(sequence) if sequence > since else None
        return self._find_in_tree(transaction, since + 1, known)

    def _operation(self, sequence: int) -> Operation:
        value = self._get(Space.OPERATION, operation_key(sequence))
        if value is None:
            raise CorruptionError(
                f"operation {sequence} is missing from the catalog. repo.fsck() names all that is damaged."
            )
        return decode_operation(value)

    def _find_in_tree(self, transaction: TransactionId, first: int, stop: int) -> Operation | None:
        if first >= stop:
            return None
        low = full_key(Space.OPERATION, operation_key(first))
        high = full_key(Space.OPERATION, operation_key(stop))
        for entry in tree.iter_entries(self._pages, self.record.root, low, high):
            operation = decode_operation(entry.value)
            if operation.transaction == transaction:
                return operation
        return None

    def iter_pages(self) -> Iterator[BlobRef]:
        for ref, _ in tree.iter_pages(self._pages, self.record.root, lambda ref: False):
            yield ref


class EntriesView(LogView):
    """What a record holds itself, for who must not wait for pages: what was spilled is absent."""

    def _get(self, space: Space, key: bytes) -> bytes | None:
        return self.record.entries.get(full_key(space, key))

    def _stored(self, space: Space, low: bytes, high: bytes) -> Iterator[Entry]:
        return iter(())
