"""The SQLite catalog: damage, forks, crashes, full disks, folders that can only be read, and what a commit costs."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    AddSnapshot,
    Applied,
    DropRef,
    DropSnapshots,
    EpochIs,
    MarkPacks,
    OpenSession,
    RefIs,
    Refused,
    SetRef,
    SetValue,
    Transaction,
)
from vstore.catalog.sqlite import SqliteCatalog, connection
from vstore.catalog.sqlite.connection import Connection, translate
from vstore.catalog.sqlite.rows import read_head, write_head
from vstore.errors import (
    AccessDeniedError,
    CommitOutcomeUnknownError,
    CorruptionError,
    ForkedProcessError,
    InternalError,
    InvalidInputError,
    OutcomeUnknownError,
    OutOfSpaceError,
    ReadOnlyError,
    RepositoryExistsError,
    RepositoryNotFoundError,
    StorageError,
    UnsafeStorageError,
    UnsupportedFormatError,
    VStoreError,
)
from vstore.format.record import OperationKind, PackMark, PackState, SessionEntry
from vstore.ids import SessionId, SnapshotId
from vstore.keys.objects import SQLITE_FILE
from vstore.testing.catalog_contract import (
    BRANCH,
    IDENTITY,
    MAIN,
    ROOT,
    TAG,
    apply,
    check_history,
    commit_on,
    entry_of,
    first_transaction,
    lease_of,
    pack_of,
    transaction_of,
)

NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "repo ?#%&é'"


@pytest.fixture
def catalog(folder: Path) -> Iterator[SqliteCatalog]:
    folder.mkdir()
    catalog = create(folder)
    yield catalog
    catalog.close()


def create(folder: Path | str) -> SqliteCatalog:
    return SqliteCatalog.create(str(folder), IDENTITY, first_transaction())


def sequence_of(catalog: SqliteCatalog) -> int:
    with catalog.reading() as view:
        return view.sequence


def tag(name: str) -> Transaction:
    return transaction_of([SetRef(TAG, name, ROOT.id)], [RefIs(TAG, name, ABSENT)])


def file_of(folder: Path | str) -> Path:
    return Path(folder) / SQLITE_FILE


def in_new_process(target: Callable[..., None], *arguments: object) -> None:
    """Run `target`, which asserts, in a process without threads, where it may fork."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def in_child(act: Callable[[], object]) -> bool:
    """Fork, and tell whether `act` ended without an error in the child."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- the file --------------------------------------------------------------------------------------------------


def test_after_close_there_is_one_file(catalog, folder):
    commit_on(catalog, MAIN, "first")
    assert len(os.listdir(folder)) == 3
    catalog.close()
    assert os.listdir(folder) == [SQLITE_FILE]


def test_close_also_closes_what_is_in_use_when_it_returns(catalog, folder):
    with catalog.reading() as view, catalog.reading():
        catalog.close()
        assert view.ref(BRANCH, MAIN) == ROOT.id
    assert os.listdir(folder) == [SQLITE_FILE]


def test_a_handle_that_is_dropped_closes_its_connections(folder):
    folder.mkdir()
    catalog = create(folder)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sequence_of, [catalog] * 50))
    assert len(os.listdir(folder)) == 3
    del catalog
    gc.collect()
    assert os.listdir(folder) == [SQLITE_FILE]


def test_a_handle_that_is_dropped_while_it_is_read_closes_its_connections(folder):
    """As by a generator that was left half-way; Python complains of what was not closed, which fails the test."""
    folder.mkdir()
    catalog = create(folder)
    reading = catalog.reading()
    reading.__enter__()
    in_a_circle = [catalog, reading]
    in_a_circle.append(in_a_circle)
    del catalog, reading, in_a_circle
    gc.collect()
    assert os.listdir(folder) == [SQLITE_FILE]


def test_few_idle_connections_are_kept(catalog):
    views = [catalog.reading() for _ in range(12)]
    for view in views:
        view.__enter__()
    for view in views:
        view.__exit__(None, None, None)
    assert len(catalog._pool._idle) == 4


def test_the_settings_that_make_commits_durable(catalog):
    with catalog._pool.lend() as conn:
        assert [
            conn.rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "page_size")
        ] == [
            b"wal",
            2,
            1024,
        ]
        assert conn.rows("PRAGMA busy_timeout") == [(30_000,)]
        assert conn.rows("PRAGMA journal_size_limit") == [(1024 * 1024,)]


def test_a_commit_writes_little(catalog, folder):
    log = folder / f"{SQLITE_FILE}-wal"
    commit_on(catalog, MAIN, "first")
    before = log.stat().st_size
    for number in range(100):
        commit_on(catalog, MAIN, f"commit {number}")
    assert (log.stat().st_size - before) / 100 < 5000
    catalog.close()
    before = file_of(folder).stat().st_size
    for number in range(400):
        commit_on(catalog, MAIN, f"another {number}")
    catalog.close()
    assert (file_of(folder).stat().st_size - before) / 400 < 350


def test_only_sqlite_opens_the_file_and_sqlite_utils_is_loaded_to_create_only(folder):
    folder.mkdir()
    create(folder).close()
    in_new_process(use_watched, str(folder))


def use_watched(folder: str) -> None:
    opened: list[str] = []
    sys.addaudithook(
        lambda event, args: opened.append(os.fsdecode(args[0])) if is_open(event, args) else None
    )
    catalog = SqliteCatalog.open(folder)
    commit_on(catalog, MAIN, "first")
    assert catalog.check() == []
    catalog.close()
    assert [path for path in opened if SQLITE_FILE in path] == []
    assert "sqlite_utils" not in sys.modules


def is_open(event: str, args: tuple[Any, ...]) -> bool:
    return event == "open" and isinstance(args[0], str | bytes)


def test_a_view_can_not_be_used_after_its_block(catalog):
    with catalog.reading() as view:
        operations = view.iter_operations()
        next(operations)
    with pytest.raises(InternalError, match="with"):
        view.ref(BRANCH, MAIN)
    with pytest.raises(InternalError):
        view.snapshot(ROOT.id)


def test_an_error_in_a_view_leaves_the_handle_usable(catalog):
    with pytest.raises(ZeroDivisionError), catalog.reading():
        raise ZeroDivisionError
    commit_on(catalog, MAIN, "first")


# --- what is not there, or not ours ----------------------------------------------------------------------------


def test_there_is_no_repository_without_a_file(folder):
    folder.mkdir()
    assert not SqliteCatalog.exists(str(folder))
    with pytest.raises(RepositoryNotFoundError, match=SQLITE_FILE):
        SqliteCatalog.open(str(folder))
    with pytest.raises(RepositoryNotFoundError):
        SqliteCatalog.open(str(folder / "missing"))
    assert os.listdir(folder) == []


@pytest.mark.parametrize("content", [b"", b"text", bytes(4096), b"SQLite format 3\0" + bytes(1008)])
def test_another_file_of_that_name_is_damage(folder, content):
    folder.mkdir()
    file_of(folder).write_bytes(content)
    assert SqliteCatalog.exists(str(folder))
    with pytest.raises(CorruptionError, match="backup"):
        SqliteCatalog.open(str(folder))
    with pytest.raises(RepositoryExistsError):
        create(folder)
    assert file_of(folder).read_bytes() == content


def test_a_folder_of_that_name_is_an_error(folder):
    (folder / SQLITE_FILE).mkdir(parents=True)
    with pytest.raises(VStoreError):
        SqliteCatalog.open(str(folder))


def run_sql(folder: Path, *statements: str) -> list[Any]:
    """Change the file behind the catalog's back."""
    conn = sqlite3.connect(file_of(folder), isolation_level=None)
    rows: list[Any] = []
    for statement in statements:
        rows += conn.execute(statement).fetchall()
    conn.close()
    return rows


def test_a_newer_schema_is_refused_by_name(catalog, folder):
    catalog.close()
    run_sql(folder, "PRAGMA user_version = 2")
    with pytest.raises(UnsupportedFormatError, match="version 2"):
        sequence_of(catalog)
    with pytest.raises(UnsupportedFormatError):
        catalog.update(tag("v1"))


def test_required_features_are_refused_by_name(catalog):
    other = SqliteCatalog.open(catalog.directory)
    with catalog._pool.lend() as conn:
        conn.rows("BEGIN IMMEDIATE")
        _, head = read_head(conn)
        new = type(head)(head.sequence, 0, IDENTITY._replace(required_features=("sealed",)), head.tallies)
        write_head(conn, new)
        conn.rows("COMMIT")
    for act in (lambda: sequence_of(other), lambda: other.update(tag("v1")), other.check):
        with pytest.raises(UnsupportedFormatError, match="sealed"):
            raise_from_check(act)
    other.close()


def raise_from_check(act: Callable[[], object]) -> None:
    found = act()
    if isinstance(found, list) and found:
        raise UnsupportedFormatError(found[0])


def test_an_older_schema_is_brought_up_to_date_when_written(catalog, folder, monkeypatch):
    from vstore.migrations.catalog import MIGRATIONS

    commit_on(catalog, MAIN, "first")
    catalog.close()
    monkeypatch.setattr(connection, "SCHEMA_VERSION", 2)
    steps = list(MIGRATIONS._migrations)
    monkeypatch.setattr(MIGRATIONS, "_migrations", steps)

    @MIGRATIONS()
    def step_2_for_the_test(db: Any) -> None:
        db.execute("CREATE TABLE more (a)")
        db.execute("PRAGMA user_version = 2")

    commit_on(catalog, MAIN, "second")
    assert sequence_of(catalog) == 2
    catalog.close()
    assert run_sql(folder, "PRAGMA user_version", "SELECT count(*) FROM more") == [(2,), (0,)]


# --- damage ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, object]]:
    """Return the bytes of a small catalog with something of everything, and what is seen in it."""
    folder = tmp_path_factory.mktemp("specimen")
    catalog = create(folder)
    for number in range(24):
        commit_on(catalog, MAIN, f"commit {number}")
        if number % 3 == 0:
            apply(catalog, SetRef(TAG, f"v{number}", ROOT.id))
    apply(catalog, *(AddSnapshot(entry_of(f"extra {number}")) for number in range(6)))
    apply(catalog, DropRef(TAG, "v3", retire=True), SetValue(CONFIG, b'{"a": 1}'))
    states = [
        PackState(pack_of(1), PackMark.CONDEMNED, 0, None),
        PackState(pack_of(2), PackMark.RELOCATED, 0, pack_of(3)),
    ]
    apply(catalog, MarkPacks(tuple(states)), OpenSession(SessionEntry(SessionId(bytes(16)), 0, 1, 2)))
    apply(catalog, DropSnapshots(GONE), OpenSession(lease_of("reader", ROOT.id)))
    catalog.close()
    data = file_of(folder).read_bytes()
    seen: dict[str, object] = {}
    for name, look in LOOKS.items():
        seen[name] = look_at(catalog, look)
    catalog.close()
    return data, seen


NAMES = [
    (kind, name) for kind in (BRANCH, TAG) for name in (MAIN, "none", *(f"v{n}" for n in range(0, 24, 3)))
]
IDS = [
    ROOT.id,
    SnapshotId(bytes(32)),
    *(entry_of(f"extra {number}").id for number in range(6)),
]
GONE = (*IDS[2:4], entry_of("commit 0", ROOT.id).id)
"""One that has come alone, and two of several; no ref holds one."""


def commit_ids(view: Any) -> list[SnapshotId]:
    return [
        change.after for operation in view.iter_operations() for change in operation.changes if change.after
    ]


LOOKS: dict[str, Callable[[Any], object]] = {
    "the head": lambda view: (view.sequence, view.epoch, view.identity),
    "refs": lambda view: [view.ref(*name) for name in NAMES],
    "retired names": lambda view: [view.is_retired(*name) for name in NAMES],
    "branches": lambda view: list(view.iter_refs(BRANCH)),
    "tags": lambda view: list(view.iter_refs(TAG)),
    "snapshots by id": lambda view: [view.snapshot(snapshot) for snapshot in IDS],
    "snapshots of commits": lambda view: [view.snapshot(snapshot) for snapshot in commit_ids(view)],
    "snapshots by prefix": lambda view: [view.find_snapshots(f"{digit:x}", 99) for digit in range(16)],
    "snapshots": lambda view: sorted(view.iter_snapshots()),
    "expired by id": lambda view: [view.expired(snapshot) for snapshot in (*IDS, *GONE)],
    "expired": lambda view: sorted(view.iter_expired()),
    "operations": lambda view: list(view.iter_operations()),
    "transactions": lambda view: [view.find_transaction(bytes(16), 0), view.find_transaction(bytes(16), 20)],
    "values": lambda view: [view.value("config"), view.value("status")],
    "marks": lambda view: [view.pack_states(None), view.pack_states(frozenset([pack_of(2), pack_of(7)]))],
    "sessions": lambda view: [list(view.iter_sessions()), view.session(SessionId(b"x" * 16))],
}


def look_at(catalog: SqliteCatalog, look: Callable[[Any], object]) -> object:
    with catalog.reading() as view:
        return look(view)


def assert_unchanged_or_noticed(folder: Path, data: bytes, seen: dict[str, object], where: object) -> bool:
    """Look at damaged bytes in every way, each with a handle of its own; return whether anything was noticed."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file_of(folder)}{suffix}").unlink(missing_ok=True)
    file_of(folder).write_bytes(data)
    noticed = False
    for name, look in LOOKS.items():
        catalog = SqliteCatalog(str(folder))
        try:
            assert look_at(catalog, look) == seen[name], (where, name)
        except VStoreError:
            noticed = True
        finally:
            catalog.close()
    return noticed


def flipped(data: bytes, position: int, mask: int) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= mask
    return bytes(damaged)


def test_flipped_bytes_are_noticed_or_do_not_matter(specimen, tmp_path):
    data, seen = specimen
    noticed = 0
    for position in range(3, len(data), 199):
        mask = 1 << position % 8
        noticed += assert_unchanged_or_noticed(
            tmp_path, flipped(data, position, mask), seen, (position, mask)
        )
    assert noticed > 25


@pytest.mark.deep
@pytest.mark.parametrize("part", range(16))
def test_every_flipped_byte_is_noticed_or_does_not_matter(specimen, tmp_path, part):
    data, seen = specimen
    for position in range(part, len(data), 16):
        for mask in (0xFF, 1, 1 << position % 8):
            assert_unchanged_or_noticed(tmp_path, flipped(data, position, mask), seen, (position, mask))


def test_cut_files_are_noticed(specimen, tmp_path):
    data, seen = specimen
    for length in range(0, len(data), 509):
        assert assert_unchanged_or_noticed(tmp_path, data[:length], seen, length)


def test_flips_around_the_keys_of_the_index_are_noticed(specimen, tmp_path):
    # Before an id is its type: a blob that became text sorts elsewhere. Behind it is the number of its row.
    data, seen = specimen
    changes = [operation.changes[0] for operation in seen["operations"][10:20] if operation.changes]
    snapshot = next(change.after for change in changes if change.name == MAIN)
    position = data.find(snapshot)
    while position >= 0:
        for offset in (*range(-6, 0), *range(32, 37)):
            for mask in (1, 8):
                damaged = flipped(data, position + offset, mask)
                assert_unchanged_or_noticed(tmp_path, damaged, seen, (position, offset, mask))
        position = data.find(snapshot, position + 1)


def test_rows_out_of_order_are_noticed(specimen, tmp_path):
    data, seen = specimen
    for start in range(0, len(data), 1024):
        header = start + (100 if start == 0 else 0)
        is_leaf, count = data[header] in (0x0A, 0x0D), int.from_bytes(data[header + 3 : header + 5], "big")
        for cell in range(count - 1 if is_leaf else 0):
            pointers = header + 8 + 2 * cell
            damaged = bytearray(data)
            damaged[pointers : pointers + 4] = (
                data[pointers + 2 : pointers + 4] + data[pointers : pointers + 2]
            )
            assert_unchanged_or_noticed(tmp_path, bytes(damaged), seen, (start, cell))


def test_what_was_verified_stays_so_over_own_commits(catalog, monkeypatch):
    from vstore.catalog.sqlite.view import SqliteView

    loaded: list[str] = []
    load = SqliteView._load_table
    monkeypatch.setattr(
        SqliteView, "_load_table", lambda view, table: (loaded.append(table), load(view, table))[1]
    )
    for number in range(5):
        assert isinstance(catalog.update(tag(f"v{number}")), Applied)
    assert loaded == ["state"]
    other = SqliteCatalog.open(catalog.directory)
    assert isinstance(other.update(tag("another")), Applied)
    assert loaded == ["state"] * 2
    assert isinstance(catalog.update(tag("last")), Applied)
    assert loaded == ["state"] * 3
    other.close()


def test_own_commits_do_not_make_damage_look_verified(specimen, folder):
    folder.mkdir()
    file_of(folder).write_bytes(specimen[0])
    run_sql(folder, "DELETE FROM state WHERE key = CAST('v6' AS BLOB)")
    catalog = SqliteCatalog(str(folder))
    apply(catalog, SetRef(BRANCH, MAIN, ROOT.id))
    with pytest.raises(CorruptionError), catalog.reading() as view:
        view.ref(TAG, "v6")
    catalog.close()


def test_check_notices_what_reading_notices(specimen, tmp_path):
    data, _ = specimen
    for position in range(5, len(data), 311):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{file_of(tmp_path)}{suffix}").unlink(missing_ok=True)
        file_of(tmp_path).write_bytes(flipped(data, position, 0x10))
        catalog = SqliteCatalog(str(tmp_path))
        try:
            noticed = bool(catalog.check())
        except VStoreError:
            noticed = True
        finally:
            catalog.close()
        if not noticed:
            assert not assert_unchanged_or_noticed(
                tmp_path, flipped(data, position, 0x10), specimen[1], position
            )


@pytest.mark.parametrize(
    ("statement", "look"),
    [
        ("DELETE FROM state WHERE key = CAST('v6' AS BLOB)", "refs"),
        ("DELETE FROM state WHERE key = CAST('v6' AS BLOB)", "tags"),
        ("DELETE FROM state WHERE space = 3", "values"),
        ("DELETE FROM state WHERE space = 4 AND key > x'00000000000000000000000000000002'", "marks"),
        ("DELETE FROM state WHERE space = 0", "the head"),
        ("DELETE FROM snapshots WHERE key = (SELECT max(key) FROM snapshots WHERE space = 6)", "snapshots"),
        ("DELETE FROM snapshots WHERE space = 8", "expired"),
        ("DELETE FROM snapshots WHERE space = 8", "expired by id"),
        ("UPDATE snapshots SET value = x'00' WHERE space = 8", "expired by id"),
        ("UPDATE snapshots SET space = 6 WHERE space = 8", "snapshots"),
        ("UPDATE snapshots SET space = 6 WHERE space = 8", "expired by id"),
        ("DELETE FROM log WHERE sequence = 7", "operations"),
        ("DELETE FROM log WHERE sequence = (SELECT max(sequence) FROM log)", "operations"),
        ("DELETE FROM log WHERE sequence = 7", "snapshots"),
        ("UPDATE log SET snapshot = NULL WHERE sequence = 7", "snapshots by prefix"),
        ("UPDATE state SET key = CAST('v7' AS BLOB) WHERE key = CAST('v6' AS BLOB)", "refs"),
        ("UPDATE log SET txid = zeroblob(16) WHERE sequence = 7", "transactions"),
        ("UPDATE log SET crc = crc + 1 WHERE sequence = 7", "operations"),
        ("DROP TABLE snapshots", "snapshots"),
        ("DROP INDEX log_snapshot", "snapshots by prefix"),
    ],
)
def test_lost_and_changed_rows_are_noticed(specimen, folder, statement, look):
    folder.mkdir()
    file_of(folder).write_bytes(specimen[0])
    run_sql(folder, statement)
    catalog = SqliteCatalog(str(folder))
    with pytest.raises(CorruptionError) as caught:
        look_at(catalog, LOOKS[look])
    assert SQLITE_FILE in str(caught.value)
    assert "vstore.ops.fsck" in str(caught.value)
    assert catalog.check()
    catalog.close()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE state SET value = x'00' WHERE key = CAST('main' AS BLOB)",
            ["'state'", "(1, b'main')", "branch 'main'"],
        ),
        ("UPDATE state SET value = x'00' WHERE space = 0", ["'state'", "head"]),
        ("UPDATE log SET body = x'00' WHERE sequence = 0", ["'log'", "row 0", "operation"]),
        (
            f"UPDATE snapshots SET value = x'00' WHERE space = 8 AND key = x'{GONE[0].hex()}'",
            ["(8, ", f"expired {GONE[0].hex()}"],
        ),
    ],
)
def test_damage_is_named_by_table_row_and_meaning(specimen, folder, statement, words):
    folder.mkdir()
    file_of(folder).write_bytes(specimen[0])
    run_sql(folder, statement)
    catalog = SqliteCatalog(str(folder))
    with pytest.raises(CorruptionError) as caught:
        look_at(
            catalog,
            lambda view: (view.ref(BRANCH, MAIN), list(view.iter_operations()), view.expired(GONE[0])),
        )
    for word in (*words, str(folder)):
        assert word in str(caught.value)
    catalog.close()


def test_check_finds_a_ref_to_nowhere(catalog):
    apply(catalog, SetRef(BRANCH, "lost", entry_of("nowhere").id))
    (found,) = catalog.check()
    assert "'lost'" in found
    assert entry_of("nowhere").id.hex() in found


# --- errors of SQLite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, OutOfSpaceError),
        (sqlite3.SQLITE_BUSY, StorageError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StorageError),
        (sqlite3.SQLITE_READONLY, ReadOnlyError),
        (sqlite3.SQLITE_READONLY_DBMOVED, ReadOnlyError),
        (sqlite3.SQLITE_CANTOPEN, AccessDeniedError),
        (sqlite3.SQLITE_IOERR_FSYNC, StorageError),
        (sqlite3.SQLITE_CORRUPT, CorruptionError),
        (sqlite3.SQLITE_CORRUPT_INDEX, CorruptionError),
        (sqlite3.SQLITE_NOTADB, CorruptionError),
        (sqlite3.SQLITE_ERROR, CorruptionError),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, CorruptionError),
        (sqlite3.SQLITE_MISUSE, InternalError),
    ],
)
def test_errors_are_translated(code, expected):
    error = sqlite3.OperationalError("something")
    error.sqlite_errorcode = code
    found = translate(error, "/there/catalog.sqlite")
    assert type(found) is expected
    assert "/there/catalog.sqlite" in str(found)
    assert "something" in str(found)


def test_a_lock_that_is_held_too_long(catalog, folder, monkeypatch):
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_S", 0.05)
    catalog.close()
    other = sqlite3.connect(file_of(folder), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="lock"):
        catalog.update(tag("v1"))
    assert sequence_of(catalog) == 0
    other.execute("ROLLBACK")
    assert isinstance(catalog.update(tag("v1")), Applied)
    other.close()


def test_a_full_disk_changes_nothing(catalog):
    wanted = transaction_of([SetValue(CONFIG, os.urandom(200_000))])
    with catalog._pool.lend() as conn:
        (pages,) = conn.rows("PRAGMA page_count")[0]
        conn.rows(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(OutOfSpaceError, match="full"):
        catalog.update(wanted)
    assert sequence_of(catalog) == 0
    # The connection that met the error is not used again.
    assert isinstance(catalog.update(wanted), Applied)
    assert catalog.check() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of 1 MB, where that may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_loses_no_commit(small_disk):
    catalog = create(small_disk)
    acknowledged: list[int] = []
    (small_disk / "ballast").write_bytes(bytes(700_000))
    with pytest.raises(OutOfSpaceError):
        acknowledged.extend(commit_on(catalog, MAIN, f"commit {n}").sequence for n in range(2000))
    assert len(acknowledged) > 10
    with catalog.reading() as view:
        assert view.sequence == acknowledged[-1]
    (small_disk / "ballast").unlink()
    acknowledged.append(commit_on(catalog, MAIN, "later").sequence)
    check_history(catalog, acknowledged)
    catalog.close()


def test_creating_on_a_full_disk_leaves_nothing(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_030_000))
    with pytest.raises(StorageError):
        create(small_disk)
    assert os.listdir(small_disk) == ["ballast"]
    ballast.unlink()
    create(small_disk).close()


class FailingCommit(sqlite3.Connection):
    """Reports an error at the next COMMIT."""

    applied = False
    armed = 0

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement != "COMMIT" or not FailingCommit.armed:
            return super().execute(statement, *parameters)
        FailingCommit.armed -= 1
        if FailingCommit.applied:
            super().execute(statement)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error


@pytest.mark.parametrize("applied", [True, False])
def test_an_error_at_commit_is_looked_into(catalog, monkeypatch, applied):
    catalog.close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=FailingCommit))
    monkeypatch.setattr(FailingCommit, "applied", applied)
    monkeypatch.setattr(FailingCommit, "armed", 1)
    wanted = tag("v1")
    if applied:
        outcome = catalog.update(wanted)
    else:
        with pytest.raises(CommitOutcomeUnknownError) as caught:
            catalog.update(wanted)
        assert caught.value.transaction_id == wanted.transaction.hex()
        outcome = catalog.update(wanted)
    assert isinstance(outcome, Applied)
    assert catalog.update(wanted) == outcome
    assert sequence_of(catalog) == 1
    catalog.close()


def test_what_fails_after_an_unclear_commit_leaves_the_doubt(catalog, monkeypatch):
    catalog.close()
    connect = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=FailingCommit))
        patch.setattr(FailingCommit, "applied", False)
        patch.setattr(FailingCommit, "armed", 1)
        wanted = tag("v1")
        with pytest.raises(CommitOutcomeUnknownError):
            catalog.update(wanted)
    catalog.close()

    def fail(*arguments, **options):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", fail)
        with pytest.raises(CommitOutcomeUnknownError):
            catalog.update(wanted)
        with pytest.raises(StorageError) as caught:
            catalog.update(tag("v2"))
        assert not isinstance(caught.value, CommitOutcomeUnknownError)
    assert isinstance(catalog.update(wanted), Applied)
    assert sequence_of(catalog) == 1


def test_a_refusal_after_an_unclear_commit_is_final(catalog, monkeypatch):
    """What the failed try left in the write-ahead log must not come back when it is next recovered."""
    catalog.close()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=FailingCommit))
    monkeypatch.setattr(FailingCommit, "applied", False)
    monkeypatch.setattr(FailingCommit, "armed", 1)
    wanted = tag("v1")
    with pytest.raises(CommitOutcomeUnknownError):
        catalog.update(wanted)
    stricter = replace(wanted, preconditions=(EpochIs(7),))
    assert isinstance(catalog.update(stricter), Refused)
    with catalog.reading() as view:
        kinds = [operation.kind for operation in view.iter_operations()]
    assert kinds == [OperationKind.NO_OPERATION, OperationKind.CREATE_REPOSITORY]
    assert isinstance(catalog.update(stricter), Refused)
    assert sequence_of(catalog) == 1


# --- forks -----------------------------------------------------------------------------------------------------


def test_no_commit_of_a_forked_child_is_lost(folder):
    folder.mkdir()
    in_new_process(fork_and_commit, str(folder))


def fork_and_commit(folder: str) -> None:
    """What SQLite itself does not survive: the parent closes as the last user, by the locks, while the child writes."""
    catalog = create(folder)
    commit_on(catalog, MAIN, "before")
    child_is_open, parent_has_closed = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            commit_on(catalog, MAIN, "child 1")
            os.write(child_is_open[1], b"x")
            os.read(parent_has_closed[0], 1)
            for number in (2, 3, 4):
                commit_on(catalog, MAIN, f"child {number}")
            status = 0
        finally:
            os._exit(status)
    os.read(child_is_open[0], 1)
    commit_on(catalog, MAIN, "parent")
    catalog.close()
    os.write(parent_has_closed[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    check_history(catalog, range(1, 7))
    assert sequence_of(catalog) == 6
    catalog.close()


def test_a_child_forked_within_a_view_refuses_the_file(folder):
    folder.mkdir()
    in_new_process(fork_in_a_view, str(folder))


def fork_in_a_view(folder: str) -> None:
    catalog = create(folder)

    def refuse() -> None:
        for act in (
            lambda: view.snapshot(SnapshotId(bytes(32))),
            lambda: commit_on(catalog, MAIN, "child"),
            lambda: sequence_of(SqliteCatalog(folder)),
            lambda: in_child(lambda: sequence_of(catalog)) or raise_forked(),
        ):
            with pytest.raises(ForkedProcessError, match="spawn"):
                act()

    with catalog.reading() as view:
        assert in_child(refuse)
        assert view.ref(BRANCH, MAIN) == ROOT.id
    assert in_child(lambda: commit_on(catalog, MAIN, "child"))
    assert sequence_of(catalog) == 1
    # The child's copy of the view ends where its block does, and nothing happens to the parent.
    with catalog.reading():
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    commit_on(catalog, MAIN, "parent")
    catalog.close()


def raise_forked() -> None:
    raise ForkedProcessError("spawn")


def test_forking_waits_for_the_views_of_other_threads(folder):
    folder.mkdir()
    in_new_process(fork_beside_readers, str(folder))


def fork_beside_readers(folder: str) -> None:
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)
    catalog = create(folder)
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            with catalog.reading() as view:
                assert view.ref(BRANCH, MAIN)
                assert sequence_of(catalog) >= view.sequence

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    results = [in_child(lambda n=n: commit_on(catalog, MAIN, f"child {n}")) for n in range(10)]
    done.set()
    for reader in readers:
        reader.join()
    assert results == [True] * 10
    check_history(catalog, range(1, 11))
    catalog.close()


def test_a_child_forked_beside_a_long_view_refuses_the_file(folder):
    folder.mkdir()
    in_new_process(fork_beside_a_long_view, str(folder))


def fork_beside_a_long_view(folder: str) -> None:
    import warnings

    warnings.simplefilter("ignore", DeprecationWarning)
    catalog = create(folder)
    started, done = threading.Event(), threading.Event()

    def read() -> None:
        with catalog.reading():
            started.set()
            done.wait()

    def refuse() -> None:
        gc.collect()
        with pytest.raises(ForkedProcessError):
            sequence_of(catalog)

    reader = threading.Thread(target=read)
    reader.start()
    started.wait()
    assert in_child(refuse)
    done.set()
    reader.join()
    commit_on(catalog, MAIN, "parent")
    catalog.close()
    assert os.listdir(folder) == [SQLITE_FILE]


# --- creating and crashing -------------------------------------------------------------------------------------


def test_of_racing_creators_one_succeeds(tmp_path):
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(try_to_create, [str(folder)] * 4, range(4)))
        assert sum(results) == 1
        catalog = SqliteCatalog.open(str(folder))
        assert catalog.identity.created_us == results.index(True)
        assert catalog.check() == []
        catalog.close()
        assert os.listdir(folder) == [SQLITE_FILE]


def try_to_create(folder: str, number: int) -> bool:
    try:
        made = SqliteCatalog.create(folder, IDENTITY._replace(created_us=number), first_transaction())
    except RepositoryExistsError:
        return False
    made.close()
    return True


def test_a_first_transaction_that_expects_something_leaves_nothing(folder):
    folder.mkdir()
    with pytest.raises(InvalidInputError):
        SqliteCatalog.create(str(folder), IDENTITY, transaction_of([], [RefIs(BRANCH, MAIN, ROOT.id)]))
    assert os.listdir(folder) == []


def test_what_a_creator_left_is_swept_away(catalog, folder):
    left = [f"{SQLITE_FILE}.new-{'ab' * 16}{suffix}" for suffix in ("", "-wal", "-shm", "-journal")]
    others = [f"{SQLITE_FILE}.new-mine", f"{SQLITE_FILE}.bak", "notes"]
    for name in (*left, *others):
        (folder / name).write_bytes(b"")
    catalog.sweep()
    catalog.close()
    assert sorted(os.listdir(folder)) == sorted([SQLITE_FILE, *others])


def test_a_creator_that_was_swept_away_has_lost(folder, monkeypatch):
    """Gc of the repository that another made meanwhile removes the half-made catalog under its creator."""
    from vstore.catalog import sqlite

    folder.mkdir()
    real = sqlite._build

    def build(path: str, *rest: Any) -> None:
        monkeypatch.setattr(sqlite, "_build", real)
        real(path, *rest)
        winner = create(folder)
        winner.sweep()
        winner.close()

    monkeypatch.setattr(sqlite, "_build", build)
    with pytest.raises(RepositoryExistsError):
        create(folder)
    assert os.listdir(folder) == [SQLITE_FILE]


def test_a_catalog_whose_name_may_not_last_is_said_to_be_so(folder, monkeypatch):
    from vstore.catalog import sqlite

    def fail(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder.mkdir()
    monkeypatch.setattr(sqlite, "sync_directory", fail)
    with pytest.raises(OutcomeUnknownError, match="then open the repository"):
        create(folder)
    assert sequence_of(SqliteCatalog.open(str(folder))) == 0


def test_creating_killed_anywhere_leaves_a_whole_catalog_or_none(tmp_path):
    in_new_process(kill_creators, str(tmp_path))


def kill_creators(base: str) -> None:
    """Kill children at each statement, and before and after each change of a name."""
    import sqlite_utils  # noqa: F401 - once, not in each child

    whole = []
    for moment in range(200):
        folder = os.path.join(base, str(moment))
        os.mkdir(folder)
        killed = is_killed_at(moment, lambda folder=folder: create(folder).close())
        whole.append(SqliteCatalog.exists(folder))
        catalog = SqliteCatalog.open(folder) if whole[-1] else create(folder)
        commit_on(catalog, MAIN, "first")
        assert catalog.check() == []
        catalog.close()
        if not killed:
            break
    assert not killed
    assert moment > 20
    # First nothing, then all of it.
    assert whole == sorted(whole)
    assert 0 < sum(whole) < len(whole)


def is_killed_at(moment: int, act: Callable[[], object]) -> bool:
    """Run `act` in a child that is killed at the given moment; return False if it ended before."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            install_killer(moment)
            act()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def install_killer(moment: int) -> None:
    left = moment

    def tick() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            tick()
            result = function(*arguments, **options)
            tick()
            return result

        return call

    Connection.rows = watched(Connection.rows)  # type: ignore[method-assign]
    Connection.close = watched(Connection.close)  # type: ignore[method-assign]
    os.link = watched(os.link)
    os.unlink = watched(os.unlink)
    os.fsync = watched(os.fsync)


def test_an_update_killed_anywhere_is_applied_or_not(tmp_path):
    in_new_process(kill_updaters, str(tmp_path))


def kill_updaters(folder: str) -> None:
    catalog = create(folder)
    for moment in range(200):
        wanted = tag(f"v{moment}")
        killed = is_killed_at(moment, lambda wanted=wanted: catalog.update(wanted))
        assert sequence_of(catalog) in (moment, moment + 1)
        outcome = catalog.update(wanted)
        assert isinstance(outcome, Applied)
        assert outcome.operation.sequence == sequence_of(catalog) == moment + 1
        if not killed:
            break
    assert not killed
    assert moment > 10
    assert catalog.check() == []
    catalog.close()


# --- folders that can only be read -----------------------------------------------------------------------------


def test_a_file_system_without_trusted_locks_can_only_be_read(catalog, folder):
    commit_on(catalog, MAIN, "first")
    shared = SqliteCatalog(str(folder), can_lock=lambda path: False)
    with pytest.raises(AccessDeniedError, match="write-ahead log"):
        sequence_of(shared)
    catalog.close()
    assert sequence_of(shared) == 1
    for act in (shared.check_writable, lambda: shared.update(tag("v1"))):
        with pytest.raises(UnsafeStorageError, match=r'repo\.convert_catalog\("log"\)'):
            act()
    assert shared.check() == []
    commit_on(catalog, MAIN, "second")
    catalog.close()
    assert sequence_of(shared) == 2
    assert os.listdir(folder) == [SQLITE_FILE]
    shared.close()


def test_a_copy_that_a_writer_overtook_is_made_again(catalog, folder, monkeypatch):
    commit_on(catalog, MAIN, "first")
    catalog.close()
    copy = connection._copy
    made = []

    def overtaken(path: str) -> Connection:
        found = copy(path)
        made.append(found)
        if len(made) == 1:
            commit_on(catalog, MAIN, "second")
            catalog.close()
        return found

    monkeypatch.setattr(connection, "_copy", overtaken)
    shared = SqliteCatalog(str(folder), can_lock=lambda path: False)
    assert sequence_of(shared) == 2
    assert len(made) == 2
    # As long as the file stays the same, so does the copy.
    assert sequence_of(shared) == 2
    assert len(made) == 2
    shared.close()


def test_nothing_is_created_on_a_file_system_without_trusted_locks(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(SqliteCatalog.__init__, "__kwdefaults__", {"can_lock": lambda path: False})
    with pytest.raises(UnsafeStorageError, match="local"):
        create(folder)
    assert os.listdir(folder) == []


@pytest.fixture
def public_folder() -> Iterator[str]:
    """Give a folder that other users can reach."""
    folder = tempfile.mkdtemp(prefix="vstore-test-")
    os.chmod(folder, 0o755)
    yield folder
    os.chmod(folder, 0o755)
    shutil.rmtree(folder)


def as_reader(folder: str) -> None:
    """Become a user who may read the folder but not write to it."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    else:
        os.chmod(file_of(folder), 0o444)
        os.chmod(folder, 0o555)
    assert not os.access(folder, os.W_OK)


def test_a_folder_that_is_read_only(public_folder):
    catalog = create(public_folder)
    commit_on(catalog, MAIN, "first")
    catalog.close()
    in_new_process(read_only_alone, public_folder)
    os.chmod(public_folder, 0o755)
    assert os.listdir(public_folder) == [SQLITE_FILE]


def read_only_alone(folder: str) -> None:
    as_reader(folder)
    catalog = SqliteCatalog.open(folder)
    assert sequence_of(catalog) == 1
    with catalog.reading() as view, catalog.reading() as inner:
        assert len(list(view.iter_operations())) == len(list(inner.iter_operations())) == 2
    for act in (catalog.check_writable, lambda: catalog.update(tag("v1"))):
        with pytest.raises(AccessDeniedError, match="only be read"):
            act()
    with pytest.raises(VStoreError):
        create(os.path.join(folder))
    assert catalog.check() == []
    catalog.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs two users")
def test_reading_beside_a_writer_who_is_another_user(public_folder):
    catalog = create(public_folder)
    commit_on(catalog, MAIN, "first")
    in_new_process(read_beside_writer, public_folder)
    catalog.close()


def read_beside_writer(folder: str) -> None:
    writes, ready = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        as_reader(folder)
        catalog = SqliteCatalog.open(folder)
        status = 1
        try:
            assert sequence_of(catalog) == 1
            os.write(ready[1], b"x")
            os.read(writes[0], 1)
            assert sequence_of(catalog) == 2
            with pytest.raises(AccessDeniedError):
                catalog.update(tag("v1"))
            status = 0
        finally:
            os._exit(status)
    os.read(ready[0], 1)
    writer = SqliteCatalog.open(folder)
    commit_on(writer, MAIN, "second")
    os.write(writes[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    writer.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs two users")
def test_what_a_crashed_writer_left_is_not_overlooked(public_folder):
    catalog = create(public_folder)
    commit_on(catalog, MAIN, "first")
    # As after a crash: the newest commit is in the write-ahead log, and there is no shared memory.
    saved = Path(public_folder, "saved")
    saved.mkdir()
    for suffix in ("", "-wal"):
        # Not by this process, whose locks it would drop.
        subprocess.run(["cp", f"{file_of(public_folder)}{suffix}", saved], check=True)
    catalog.close()
    for name in os.listdir(saved):
        os.replace(saved / name, Path(public_folder, name))
    saved.rmdir()
    in_new_process(read_leftovers, public_folder)
    assert sequence_of(catalog) == 1
    catalog.close()


def read_leftovers(folder: str) -> None:
    as_reader(folder)
    with pytest.raises(AccessDeniedError, match="write-ahead log"):
        SqliteCatalog.open(folder)


def test_the_file_may_be_read_only_in_a_writable_folder(public_folder):
    catalog = create(public_folder)
    catalog.close()
    os.chmod(file_of(public_folder), stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    os.chmod(public_folder, 0o777)
    in_new_process(read_only_file, public_folder)


def read_only_file(folder: str) -> None:
    if os.getuid() == 0:
        os.setuid(NOBODY)
    catalog = SqliteCatalog.open(folder)
    assert sequence_of(catalog) == 0
    with pytest.raises(AccessDeniedError):
        catalog.update(tag("v1"))
    catalog.close()
