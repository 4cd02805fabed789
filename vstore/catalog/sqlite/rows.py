"""The rows of `catalog.sqlite`, and how damage to them is noticed.

SQLite does not notice a flipped bit, so each row ends in a crc32c of all that it holds, its key included. That shows
a wrong row, but not a missing one: a flip in a key makes the row unfindable. Therefore the *head*, one row that every
commit rewrites anyway, holds a `Tally` of each space: how many rows it has, and the sum of their checksums. `view`
compares them before it says that something is absent, and on every listing.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, TypeAlias

import google_crc32c  # zarr has loaded it; the package crc32c, which takes any buffer, loads argparse
import msgspec

from vstore.catalog.base import Identity
from vstore.catalog.sqlite.connection import Connection, damage
from vstore.catalog.state import Space, decode_identity, encode_identity
from vstore.errors import CorruptionError
from vstore.format.log_record import MAX_SEQUENCE
from vstore.format.record import (
    Operation,
    SnapshotEntry,
    decode_operation_fields,
    entry_from_wire,
    entry_to_wire,
    operation_to_wire,
)
from vstore.format.refs import message_shape, pack_message, unpack_message
from vstore.ids import SnapshotId, TransactionId

HEAD_SPACE = 0
INDEX = 0
"""The tally of the snapshot ids in `log`, which are found through an index."""
LOG_COLUMNS = "SELECT sequence, txid, snapshot, body, crc FROM log"
STATE_TABLE = "state"
SNAPSHOTS_TABLE = "snapshots"

_MAX_BODY_BYTES = 64 * 1024 * 1024
_SHOWN_BYTES = 200
_crc32c: Callable[[bytes], int] = google_crc32c.value
_STATE_KEY = struct.Struct(">BI")
_LOG_KEY = struct.Struct(">QB")


class Tally(NamedTuple):
    """How many rows a part has, and the sum of their checksums modulo 2**64."""

    rows: int = 0
    total: int = 0

    def plus(self, crc: int) -> Tally:
        return Tally(self.rows + 1, (self.total + crc) % 2**64)

    def minus(self, crc: int) -> Tally:
        return Tally(self.rows - 1, (self.total - crc) % 2**64)


class Head(msgspec.Struct, frozen=True):
    """The catalog's newest sequence number, its epoch and identity, and the tallies by space (`INDEX`: the log's)."""

    sequence: int
    epoch: int
    identity: Identity
    tallies: dict[int, Tally]

    def tally(self, space: int) -> Tally:
        return self.tallies.get(space, Tally())

    def with_tally(self, space: int, tally: Tally) -> Head:
        return msgspec.structs.replace(self, tallies={**self.tallies, space: tally})

    def tallies_of(self, table: str) -> dict[int, Tally]:
        """Return the tallies of the spaces in a table, without those of empty ones."""
        return {
            space: tally
            for space, tally in self.tallies.items()
            if space != INDEX and table_of(space) == table and tally.rows
        }


def table_of(space: int) -> str:
    """Return the table that holds a space. Snapshots, which may be many, slow down no search for a ref."""
    return SNAPSHOTS_TABLE if space in (Space.SNAPSHOT, Space.EXPIRED) else STATE_TABLE


_U64: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class _HeadFields(msgspec.Struct, array_like=True):
    sequence: Annotated[int, msgspec.Meta(ge=-1, le=MAX_SEQUENCE)]
    epoch: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQUENCE)]
    identity: bytes
    tallies: Annotated[dict[_U64, tuple[_U64, _U64]], msgspec.Meta(max_length=256)]


_HEAD = message_shape(_HeadFields)
_BODY = message_shape(tuple[msgspec.Raw, msgspec.Raw])
_NIL = b"\xc0"


class LogRow(NamedTuple):
    """A row of `log`; `snapshot` is the one that it added, if it added just one, until that expires."""

    sequence: int
    transaction: TransactionId
    snapshot: SnapshotId | None
    body: bytes


# --- state -----------------------------------------------------------------------------------------------------


def state_crc(space: int, key: bytes, value: bytes) -> int:
    return _crc32c(b"".join((_STATE_KEY.pack(space, len(key)), key, value)))


def check_state_row(path: str, space: int, key: Any, value: Any, crc: Any) -> bytes:
    """Return the value of a row of `state` or `snapshots`, once its checksum was found right."""
    if not isinstance(key, bytes) or not isinstance(value, bytes) or crc != state_crc(space, key, value):
        raise damage(
            path,
            f"table 'state', row ({space}, {_shown(key)!r}), which holds {_subject(space, key)}, fails its checksum",
        )
    return value


def _shown(key: Any) -> Any:
    """Return as much of a damaged row's key as a message has room for."""
    return key[:_SHOWN_BYTES] if isinstance(key, bytes | bytearray) else key


def _subject(space: int, key: object) -> str:
    """Say what a row of `state` holds."""
    key = _shown(key)
    if space == HEAD_SPACE:
        return "the catalog's head"
    if space not in Space._value2member_map_:
        return "nothing that is known"
    what = Space(space).name.lower()
    if not isinstance(key, bytes):
        return f"a {what}"
    if space in (Space.BRANCH, Space.TAG, Space.VALUE):
        return f"{what} {key.decode(errors='replace')!r}"
    return f"{what} {key.hex()}"


def read_head(connection: Connection, known: tuple[bytes, Head] | None = None) -> tuple[bytes, Head]:
    """Return the head's bytes, checked, and what they say; `known` saves decoding the same bytes again."""
    rows = connection.rows("SELECT value, crc FROM state WHERE space = 0 AND key = x''")
    if len(rows) != 1:
        raise damage(
            connection.path, "table 'state', row (0, b''), which holds the catalog's head, is missing"
        )
    value = check_state_row(connection.path, HEAD_SPACE, b"", *rows[0])
    if known is not None and known[0] == value:
        return known
    fields = unpack_message(value, "catalog's head", _HEAD)
    tallies = {part: Tally(*tally) for part, tally in fields.tallies.items()}
    return value, Head(fields.sequence, fields.epoch, decode_identity(fields.identity), tallies)


def write_head(connection: Connection, head: Head) -> bytes:
    """Put the head's row, and return its value."""
    value = pack_message((head.sequence, head.epoch, encode_identity(head.identity), head.tallies))
    write_state(connection, HEAD_SPACE, b"", value)
    return value


def write_state(connection: Connection, space: int, key: bytes, value: bytes) -> int:
    """Put a row into the table of `space` and return its checksum."""
    crc = state_crc(space, key, value)
    connection.rows(f"INSERT OR REPLACE INTO {table_of(space)} VALUES (?, ?, ?, ?)", space, key, value, crc)
    return crc


def index_crc(snapshot: bytes) -> int:
    """Return what a snapshot id adds to the tally of the log's index."""
    return _crc32c(snapshot)


# --- log -------------------------------------------------------------------------------------------------------


def log_crc(row: LogRow) -> int:
    head = _LOG_KEY.pack(row.sequence, len(row.snapshot or b""))
    return _crc32c(b"".join((head, row.transaction, row.snapshot or b"", row.body)))


def check_log_row(path: str, sequence: Any, transaction: Any, snapshot: Any, body: Any, crc: Any) -> LogRow:
    """Return a row of `log`, once its checksum was found right."""
    is_typed = (
        type(sequence) is int
        and isinstance(transaction, bytes)
        and isinstance(snapshot, bytes | None)
        and isinstance(body, bytes)
    )
    row = LogRow(sequence, transaction, snapshot, body)
    if not is_typed or not 0 <= sequence < 2**63 or len(snapshot or b"") > 255 or crc != log_crc(row):
        raise damage(path, f"table 'log', row {_shown(sequence)!r}, which holds that operation, fails its checksum")
    return row


def write_log_row(connection: Connection, operation: Operation, entry: SnapshotEntry | None) -> int:
    """Put an operation, with the one snapshot that it added and that is still retained; return the row's checksum."""
    snapshot = None if entry is None else entry.id
    message = pack_message(
        (operation_to_wire(operation)[2:], None if entry is None else entry_to_wire(entry))
    )
    row = LogRow(operation.sequence, operation.transaction, snapshot, _deflate(message, snapshot))
    crc = log_crc(row)
    connection.rows("INSERT OR REPLACE INTO log VALUES (?, ?, ?, ?, ?)", *row, crc)
    return crc


def log_row_of(connection: Connection, snapshot: SnapshotId) -> LogRow | None:
    """Return the row of the operation that added a snapshot which is still retained, or None."""
    rows = connection.rows(f"{LOG_COLUMNS} WHERE snapshot = ?", snapshot)
    return check_log_row(connection.path, *rows[0]) if rows else None


def decode_operation_row(path: str, row: LogRow) -> Operation:
    """Return the operation that a checked row holds."""
    with _naming_damage(path, row):
        fields, _ = unpack_message(_inflate(row.body, row.snapshot), "operation", _BODY)
        return decode_operation_fields(row.sequence, row.transaction, fields)


def decode_entry_row(path: str, row: LogRow) -> SnapshotEntry | None:
    """Return the snapshot that a checked row adds, if it adds just one."""
    with _naming_damage(path, row):
        _, entry = unpack_message(_inflate(row.body, row.snapshot), "operation", _BODY)
        if bytes(entry) == _NIL:
            return None
        found = entry_from_wire(unpack_message(entry, "snapshot entry"))
        if found.id != row.snapshot:
            raise CorruptionError(f"it holds the entry of another snapshot, {found.id.hex()}")
        return found


@contextlib.contextmanager
def _naming_damage(path: str, row: LogRow) -> Iterator[None]:
    try:
        yield
    except (CorruptionError, TypeError, ValueError, zlib.error) as error:
        raise damage(path, f"table 'log', row {row.sequence}, which holds that operation: {error}") from error


def _deflate(message: bytes, snapshot: bytes | None) -> bytes:
    # A commit's row spells its snapshot id and its parent's twice each. Measured: 294 bytes to 187, for 5 us.
    deflate = (
        zlib.compressobj(6, zlib.DEFLATED, -15, zdict=snapshot)
        if snapshot
        else zlib.compressobj(6, wbits=-15)
    )
    return deflate.compress(message) + deflate.flush()


def _inflate(body: bytes, snapshot: bytes | None) -> bytes:
    inflate = zlib.decompressobj(-15, zdict=snapshot) if snapshot else zlib.decompressobj(-15)
    message = inflate.decompress(body, _MAX_BODY_BYTES)
    if not inflate.eof or inflate.unused_data:
        raise ValueError("it does not decompress")
    return message
