"""A whole repository of which one object or row was damaged by someone who made all checksums and digests right again.

Whatever is done with it: success or a typed error, no more reads than the repository is large, nothing changed outside
its folder; and a collector that met an error has deleted nothing.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vstore
from tests.fuzz.mutations import mutated, mutated_envelope, mutated_log_object
from tests.fuzz.uses import MOST_READS, USES, build, copy, counted_reads, packs_in, use
from tests.repositories import quick_folder
from vstore.blobs.cache import CACHE
from vstore.catalog.sqlite import rows
from vstore.catalog.state import Space
from vstore.errors import MergeConflictError, SnapshotNotFoundError, VirtualChunkUnauthorizedError
from vstore.format.envelope import BlobKind
from vstore.format.refs import pack_message
from vstore.reachability import NeededBlob, Walk

CATALOGS = ("sqlite", "log")
EXPECTED: dict[str, tuple[type[Exception], ...]] = {
    "read": (VirtualChunkUnauthorizedError,),
    "as of": (SnapshotNotFoundError,),
    "merge": (MergeConflictError,),
}
"""What uses of the undamaged repository raise."""
METADATA = {BlobKind.MANIFEST, BlobKind.PAGE, BlobKind.SNAPSHOT}


class Original:
    """An undamaged repository, with its metadata blobs by digest."""

    def __init__(self, folder: Path, catalog: str) -> None:
        self.folder = folder / catalog / "repository"
        self.folder.parent.mkdir()
        build(self.folder, catalog)
        repository = vstore.Repository.open(self.folder)
        blobs = repository.handle.blobs_for(None)
        self.blobs: dict[bytes, bytes] = {}
        with repository.handle.catalog.reading() as view:
            entries = list(view.iter_snapshots())
        walk = Walk(blobs)
        for entry in entries:
            for found in walk.snapshot(entry):
                if isinstance(found, NeededBlob) and found.kind in METADATA:
                    self.blobs[found.ref.digest] = bytes(blobs.metadata(found.ref, ""))
        repository.close()


@pytest.fixture(scope="module")
def originals() -> Iterator[dict[str, Original]]:
    with quick_folder() as folder:
        yield {catalog: Original(folder, catalog) for catalog in CATALOGS}


def test_the_original_is_good_and_has_everything(originals: dict[str, Original]) -> None:
    """Else the tests below could not fail."""
    for original in originals.values():
        assert {data[0] for data in original.blobs.values()} == METADATA
        for name in USES:
            with quick_folder() as work:
                error = use(copy(original.folder, work / "repository"), name)
                assert type(error) in (type(None), *EXPECTED.get(name, ())), name


def check_uses(folder: Path, names: list[str]) -> None:
    for name in names:
        before = packs_in(folder)
        error = use(folder, name)
        if name == "gc" and error is not None:
            assert packs_in(folder) == before


some_uses = st.lists(st.sampled_from(sorted(USES)), min_size=2, max_size=3, unique=True)


@given(data=st.data(), names=some_uses, catalog=st.sampled_from(CATALOGS))
def test_one_blob(
    originals: dict[str, Original], data: st.DataObject, names: list[str], catalog: str
) -> None:
    original = originals[catalog]
    digest = data.draw(st.sampled_from(sorted(original.blobs)))
    forged = {digest: data.draw(mutated_envelope(original.blobs[digest]))}
    with quick_folder() as work, counted_reads(forged, most=3 * MOST_READS):
        check_uses(copy(original.folder, work / "repository"), names)
    CACHE.clear()


@given(data=st.data(), names=some_uses)
def test_one_record_of_the_log(originals: dict[str, Original], data: st.DataObject, names: list[str]) -> None:
    with quick_folder() as work:
        folder = copy(originals["log"].folder, work / "repository")
        records = sorted((folder / "log").iterdir())
        # The newest as a rule: it is the state.
        chosen = data.draw(st.just(records[-1]) | st.sampled_from(records))
        chosen.write_bytes(data.draw(mutated_log_object(chosen.read_bytes())))
        match data.draw(st.sampled_from(("same", "gone", "old"))):
            case "same":
                shutil.copy(chosen, folder / "latest")
            case "gone":
                (folder / "latest").unlink()
        check_uses(folder, names)


@given(data=st.data(), names=some_uses)
def test_one_value_of_the_log(originals: dict[str, Original], data: st.DataObject, names: list[str]) -> None:
    """The message of an entry, operation, ref or setting, in the newest record."""
    from vstore.format.log_record import LogRecord, decode_log_object, encode_record

    with quick_folder() as work:
        folder = copy(originals["log"].folder, work / "repository")
        newest = max((folder / "log").iterdir())
        record = decode_log_object(newest.read_bytes())
        assert isinstance(record, LogRecord)
        entries = dict(record.entries)
        key = data.draw(st.sampled_from(sorted(entries)))
        if data.draw(st.booleans()):
            entries[key] = data.draw(mutated(entries[key] or b""))
        else:
            entries[data.draw(mutated(key))] = entries.pop(key)
        forged = encode_record(msgspec.structs.replace(record, entries=entries))
        newest.write_bytes(forged)
        (folder / "latest").write_bytes(forged)
        check_uses(folder, names)


@given(data=st.data(), names=some_uses)
def test_one_row_of_sqlite(originals: dict[str, Original], data: st.DataObject, names: list[str]) -> None:
    with quick_folder() as work:
        folder = copy(originals["sqlite"].folder, work / "repository")
        with closing(sqlite3.connect(folder / "catalog.sqlite")) as database, database:
            forge_row(database, data)
        check_uses(folder, names)


def forge_row(database: sqlite3.Connection, data: st.DataObject) -> None:
    """Edit one row, and make its checksum and the tallies in the head right."""
    head = database.execute("SELECT value FROM state WHERE space = 0").fetchone()[0]
    if data.draw(st.integers(0, 5)) == 0:
        write_head(database, data.draw(mutated(head)))
        return
    table = data.draw(st.sampled_from(("state", "log")))
    fields = list(msgspec.msgpack.decode(head))
    tallies = {space: list(tally) for space, tally in fields[3].items()}
    if table == "log":
        found = database.execute("SELECT sequence, txid, snapshot, body FROM log").fetchall()
        row = rows.LogRow(*data.draw(st.sampled_from(found)))
        message = rows._inflate(row.body, row.snapshot)
        body = rows._deflate(data.draw(mutated(message)), row.snapshot)
        row = row._replace(body=body)
        database.execute(
            "UPDATE log SET body = ?, crc = ? WHERE sequence = ?", (body, rows.log_crc(row), row.sequence)
        )
        return
    found = database.execute("SELECT space, key, value, crc FROM state WHERE space > 0").fetchall()
    space, key, value, crc = data.draw(st.sampled_from(found))
    new_key, new_value = key, value
    if data.draw(st.integers(0, 3)) == 0:
        new_key = data.draw(mutated(key))
    else:
        new_value = data.draw(mutated(value))
    new_crc = rows.state_crc(space, new_key, new_value)
    database.execute("DELETE FROM state WHERE space = ? AND key = ?", (space, key))
    database.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)", (space, new_key, new_value, new_crc))
    tallies[space][1] = (tallies[space][1] - crc + new_crc) % 2**64
    fields[3] = tallies
    write_head(database, pack_message(fields))


def write_head(database: sqlite3.Connection, value: bytes) -> None:
    crc = rows.state_crc(rows.HEAD_SPACE, b"", value)
    database.execute("UPDATE state SET value = ?, crc = ? WHERE space = 0", (value, crc))


def test_spaces_of_the_catalog_are_in_the_original(originals: dict[str, Original]) -> None:
    with closing(sqlite3.connect(originals["sqlite"].folder / "catalog.sqlite")) as database:
        found = {space for (space,) in database.execute("SELECT DISTINCT space FROM state")}
    assert {Space.BRANCH, Space.TAG, Space.VALUE} <= found
