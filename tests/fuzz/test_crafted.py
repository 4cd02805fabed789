"""Repositories made to harm, one for each way that was thought of: a typed error, soon and in little memory."""

from __future__ import annotations

import itertools
import sqlite3
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

import vstore
from tests.fuzz.forging import TIME_US, array, forge, group, page, update
from tests.fuzz.mutations import MIB, refused_cheaply
from tests.fuzz.uses import USES, counted_reads, packs_in, use
from tests.repositories import GROUP, array_document, commit, quick_folder
from vstore.blobs.cache import CACHE
from vstore.blobs.metadata import MetadataBatch
from vstore.catalog.base import AddSnapshot, MarkPacks, SetRef, SetValue
from vstore.catalog.log_head import LogReader
from vstore.catalog.sqlite import rows
from vstore.changes.layering import IndexedLayer
from vstore.errors import (
    CorruptionError,
    FormatError,
    InvalidInputError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
    VStoreError,
)
from vstore.format.log_record import LogRecord, Tombstone, encode_record, encode_tombstone
from vstore.format.manifest import ChunkKind, Manifest, decode_manifest, encode_manifest
from vstore.format.node import Layer, TilePointer, Tiles, encode_pointer, tile_key
from vstore.format.page import MAX_LEVEL, Child, Totals
from vstore.format.record import PackMark, PackState, RefKind, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.format.snapshot import decode_snapshot
from vstore.history import find_as_of, merge_bases
from vstore.ids import Digest, PackId, SnapshotId
from vstore.keys.objects import LAST_SEQUENCE
from vstore.ops.marks import final_packs

TREE_USES = (
    *("read", "list", "compare", "merge", "edit", "delete", "gc dry", "gc", "expire", "fsck", "stats"),
    *("rewrite", "compact"),
)


@pytest.fixture(params=["sqlite", "log"])
def repository(request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    with quick_folder() as folder:
        CACHE.clear()
        made = vstore.Repository.create(folder / "repository", catalog=request.param)
        commit(made, {"zarr.json": GROUP, "few/zarr.json": array_document((9,)), "few/c/0": bytes(600)})
        with made.handle.catalog.reading() as view:
            first = next(iter(view.iter_refs(RefKind.BRANCH)))[1]
        update(made, SetRef(RefKind.TAG, "v1", first), SetRef(RefKind.BRANCH, "side", first))
        yield made
        made.close()


def folder_of(repository: vstore.Repository) -> Path:
    return Path(repository.handle.storage.root)  # type: ignore[attr-defined]


# --- trees -----------------------------------------------------------------------------------------------------


def shared_children(batch: MetadataBatch) -> Child:
    """Twelve levels whose 64 entries all name the same page below: 64**12 leaves in two dozen kilobytes."""
    child = page(batch, 0, [group("", GROUP)])
    for level in range(1, MAX_LEVEL + 1):
        child = page(batch, level, [(b"n" + bytes([0, 48 + i]), child) for i in range(64)])
    return child


def shared_last_children(batch: MetadataBatch) -> Child:
    """Two pages at each level, both with the same last child: 2**12 ways to the leaf."""
    left = right = page(batch, 0, [group("zz", GROUP)])
    for level in range(1, MAX_LEVEL + 1):
        below = page(batch, level, [(b"n\0a", left), (b"n\0z", right)])
        left, right = below, page(batch, level, [(b"n\0b", left), (b"n\0z", right)])
    return right


def chain(batch: MetadataBatch) -> Child:
    """A chain of 3,000 pages that all say that they are of level 1."""
    child = page(batch, 0, [group("", GROUP)])
    for _ in range(3000):
        child = page(batch, 1, [(b"n", child)])
    return child


def keys_of_the_neighbour(batch: MetadataBatch) -> Child:
    low = page(batch, 0, [group("", GROUP), group("zebra", GROUP)])
    high = page(batch, 0, [group("middle", GROUP)])
    return page(batch, 1, [(b"n", low), (b"n\0m", high)])


def empty_pages(batch: MetadataBatch) -> Child:
    first = page(batch, 0, [group("", GROUP)])
    nothing = page(batch, 0, [])
    return page(batch, 1, [(b"n", first), *((b"n\0%03d" % i, nothing) for i in range(900))])


def skipped_level(batch: MetadataBatch) -> Child:
    return page(batch, 5, [(b"n", page(batch, 0, [group("", GROUP)]))])


@pytest.mark.parametrize(
    "tree", [shared_children, shared_last_children, chain, keys_of_the_neighbour, empty_pages, skipped_level]
)
def test_trees_whose_pages_do_not_belong_where_they_are(
    repository: vstore.Repository, tree: Callable[[MetadataBatch], Child]
) -> None:
    forge(repository, tree)
    folder = folder_of(repository)
    before = packs_in(folder)
    for name in TREE_USES:
        CACHE.clear()
        with counted_reads(most=400):
            error = use(folder, name)
        if name in ("list", "gc", "gc dry", "expire", "compact"):
            assert isinstance(error, CorruptionError), name
    assert before <= packs_in(folder)
    assert not repository.fsck().is_clean


def test_a_full_tree_of_all_levels_is_not_grown(repository: vstore.Repository) -> None:
    """Pages of a level that no reader takes would be written."""

    def full(batch: MetadataBatch) -> Child:
        def make(level: int, prefix: bytes) -> Child:
            if level == 0:
                return page(batch, 0, [group(prefix.decode() or "", GROUP)])
            # Full along the first way down only.
            rest = [page(batch, 0, [group(f"{prefix.decode()}{i}", GROUP)]) for i in ()]
            return page(batch, level, [(b"n", make(level - 1, prefix)), *rest])

        return make(MAX_LEVEL, b"")

    forge(repository, full)
    error = use(folder_of(repository), "edit")
    assert error is None
    assert use(folder_of(repository), "read") is None


@pytest.mark.parametrize("totals", [Totals(2**63, 0), Totals(0, 2**63), Totals(2**63, 2**63, False)])
def test_totals_that_overflow_are_not_written(repository: vstore.Repository, totals: Totals) -> None:
    def lying(batch: MetadataBatch) -> Child:
        # So many that the pages are not merged, but taken over as they are.
        first, second, third = (
            page(batch, 0, [group(f"{name}{i:03d}", GROUP) for i in range(200)]) for name in "abc"
        )
        second = second._replace(totals=totals)
        return page(
            batch, 1, [(b"n\0a", first), (b"n\0b", second), (b"n\0c", second._replace(ref=third.ref))]
        )

    forge(repository, lying)
    before = commit_state(repository)
    assert isinstance(use(folder_of(repository), "edit"), CorruptionError)
    assert commit_state(repository) == before


def commit_state(repository: vstore.Repository) -> int:
    with repository.handle.catalog.reading() as view:
        return view.sequence


def manifest_of(positions: list[int], inline: bytes = b"x") -> Manifest:
    count = len(positions)
    return Manifest(
        np.array(positions, np.uint16),
        np.full(count, ChunkKind.INLINE, np.uint8),
        np.zeros(count, np.uint32),
        np.zeros(count, np.uint64),
        np.full(count, len(inline), np.uint64),
        np.zeros(count, np.uint32),
        np.zeros((count, 32), np.uint8),
        inline,
    )


def pointer_of(*positions: int) -> TilePointer:
    return TilePointer((Layer(encode_manifest(manifest_of(list(positions))), 1),), Totals(1, 1))


TILES: dict[str, Callable[[MetadataBatch], Tiles]] = {
    "far away": lambda batch: Tiles((4,), {tile_key((2**64 - 1,)): pointer_of(0)}),
    "positions outside": lambda batch: Tiles((4,), {tile_key((0,)): pointer_of(0, 9)}),
    "more dimensions": lambda batch: Tiles((4, 1), {tile_key((0, 0)): pointer_of(0)}),
    "keys of other dimensions": lambda batch: Tiles(
        (4,), {}, page(batch, 0, [(tile_key((0, 1)), encode_pointer(b"", pointer_of(0)).value)])
    ),
    "no tile key": lambda batch: Tiles(
        (4,), {}, page(batch, 0, [(b"\xff\1", encode_pointer(b"", pointer_of(0)).value)])
    ),
    "the same page again": lambda batch: Tiles((4,), {}, page(batch, 0, [group("", GROUP)])),
}


@pytest.mark.parametrize("name", TILES)
def test_arrays_whose_tiles_can_not_be(repository: vstore.Repository, name: str) -> None:
    def tree(batch: MetadataBatch) -> Child:
        return page(batch, 0, [group("", GROUP), array("few", array_document((9,)), TILES[name](batch))])

    forge(repository, tree)
    errors = {use_name: use(folder_of(repository), use_name) for use_name in TREE_USES}
    assert any(isinstance(error, CorruptionError) for error in errors.values())


@pytest.mark.parametrize("totals", [Totals(-1, 0), Totals(0, -1), Totals(2**41, 0)])
def test_differences_to_totals_that_lie_are_not_written(totals: Totals) -> None:
    with pytest.raises(CorruptionError):
        encode_pointer(b"", pointer_of(0)._replace(totals=totals))


def test_a_layer_that_expands_is_counted_with_all_of_it() -> None:
    """Else a few kilobytes fill the cache with more than it may hold."""
    locations = [f"file:///{'x' * 3000}/{i}" for i in range(1000)]
    manifest = msgspec.structs.replace(manifest_of([0]), locations=tuple(locations))
    data = encode_manifest(manifest)
    assert len(data) < 20_000
    found = IndexedLayer(decode_manifest(data))
    assert found.memory_bytes > 3_000_000


def test_a_snapshot_that_expands_is_counted_with_all_of_it(repository: vstore.Repository) -> None:
    from vstore.format.snapshot import Snapshot, encode_snapshot

    data = encode_snapshot(Snapshot((), 1, "x" * 10 * MIB, b"{}", None))
    CACHE.clear()
    repository.handle.blobs_for(None)
    from vstore.blobs.reader import remember_snapshot

    remember_snapshot(BlobRef(Digest(bytes(32)), PackId(bytes(16)), 0, len(data)), decode_snapshot(data))
    assert CACHE.size_bytes > 10 * MIB
    CACHE.clear()


@pytest.mark.parametrize("size", [MIB, 63 * MIB])
def test_json_of_a_snapshot(size: int) -> None:
    """Each three bytes of it would make an object of 64."""
    from vstore.format.envelope import BlobKind, Section, encode_envelope
    from vstore.format.refs import pack_message

    text = b'{"a":[' + b"[]," * (size // 3) + b"[]]}"
    fields = {"parents": [], "time": 1, "message": "", "metadata": text, "root": None}
    data = encode_envelope(BlobKind.SNAPSHOT, 1, (Section(pack_message(fields), 3),))
    assert len(data) < 20_000
    with refused_cheaply(peak_bytes=2 * size + 128 * MIB):
        decode_snapshot(data)


def test_metadata_of_users_is_bounded_when_it_is_written(repository: vstore.Repository) -> None:
    with pytest.raises(InvalidInputError, match="are allowed"):
        repository.set_metadata({"a": "x" * 5 * MIB})


# --- history ---------------------------------------------------------------------------------------------------


def entry_of(number: int, time_us: int, parents: list[int], jump: int | None = None) -> SnapshotEntry:
    ref = BlobRef(Digest(bytes([number]) * 32), PackId(bytes(16)), 16, 100)
    ids = tuple(SnapshotId(bytes([parent]) * 32) for parent in parents)
    jump_id = None if jump is None else SnapshotId(bytes([jump]) * 32)
    return SnapshotEntry(ref, ids, time_us, 1, jump_id, 16, 100, ("m", b"{}"))


HISTORIES = {
    "its own jump": [entry_of(1, TIME_US, [2], 1), entry_of(2, TIME_US - 1, [])],
    "its own parent": [entry_of(1, TIME_US, [1], 1)],
    "a circle": [entry_of(1, TIME_US, [2], 2), entry_of(2, TIME_US, [3], 3), entry_of(3, TIME_US, [1], 1)],
    "parents from the future": [
        entry_of(1, 5, [2, 3]),
        entry_of(2, 50, [3]),
        entry_of(3, 500, [4]),
        entry_of(4, 7, [2]),
    ],
    "many parents": [
        entry_of(1, TIME_US, [2, 3] * 500),
        entry_of(2, TIME_US, [1, 3] * 500),
        entry_of(3, TIME_US, [1, 2]),
    ],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_that_go_round(repository: vstore.Repository, name: str) -> None:
    entries = HISTORIES[name]
    update(repository, *map(AddSnapshot, entries), SetRef(RefKind.BRANCH, "main", entries[0].id))
    with repository.handle.catalog.reading() as view:
        for one in entries:
            with refused_cheaply():
                find_as_of(view, one.id, 1)
            for other in entries:
                with refused_cheaply():
                    assert isinstance(merge_bases(view, one, other), list)
    for use_name in USES:
        use(folder_of(repository), use_name)
    assert len(list(repository.ancestry(snapshot_id=entries[0].id.hex()))) == len(entries)


def test_a_parent_that_is_not_older_is_named(repository: vstore.Repository) -> None:
    entries = HISTORIES["a circle"]
    update(repository, *map(AddSnapshot, entries))
    with (
        repository.handle.catalog.reading() as view,
        pytest.raises(CorruptionError, match="is not older than"),
    ):
        find_as_of(view, entries[0].id, 1)


def test_packs_that_replaced_each_other(repository: vstore.Repository) -> None:
    folder = folder_of(repository)
    names = sorted(packs_in(folder))
    packs = [PackId(bytes.fromhex(name)) for name in names]
    moved = [
        PackState(one, PackMark.RELOCATED, 0, other)
        for one, other in zip(packs, [*packs[1:], packs[0]], strict=True)
    ]
    update(repository, MarkPacks(tuple(moved)))
    for name in ("gc dry", "gc", "compact"):
        assert isinstance(use(folder, name), CorruptionError)
    assert packs_in(folder) == set(names)


def test_long_chains_of_relocations_are_followed_once() -> None:
    packs = [PackId(i.to_bytes(16, "big")) for i in range(100_000)]
    moved = dict(itertools.pairwise(packs))
    steps = 0

    class Counting(dict[PackId, PackId]):
        def __getitem__(self, key: PackId) -> PackId:
            nonlocal steps
            steps += 1
            return super().__getitem__(key)

    assert final_packs(packs, Counting(moved)) == {packs[-1]}
    assert steps < len(packs)


# --- the catalog -----------------------------------------------------------------------------------------------

VALUES = {
    "a list": b"[1]",
    "a number": b"7",
    "text": b'"x"',
    "nothing": b"null",
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "wrong fields": b'{"availability": [], "retention": 5, "inline_chunk_threshold_bytes": "x"}',
    "huge fields": b'{"retention": {"keep_within_us": %d}, "inline_chunk_threshold_bytes": 1e999}' % 10**400,
    "wrong rules": b'{"retention": {"keep_last": -5, "daily": []}}',
}


@pytest.mark.parametrize("name", ["config", "status", "protected", "metadata"])
@pytest.mark.parametrize("value", VALUES)
def test_settings_that_are_none(repository: vstore.Repository, name: str, value: str) -> None:
    from vstore.catalog import base

    names = {
        "config": base.CONFIG,
        "status": base.STATUS,
        "protected": base.PROTECTED,
        "metadata": base.METADATA,
    }
    if len(VALUES[value]) > 30_000 and not (folder_of(repository) / "catalog.sqlite").exists():
        pytest.skip("no record holds so much")
    update(repository, SetValue(names[name], VALUES[value]))
    for use_name in ("look", "edit", "gc", "expire", "fsck", "undo"):
        use(folder_of(repository), use_name)


def test_an_operation_of_sqlite_that_expands(tmp_path: Path) -> None:
    """A row of 20 kB that is 20 million empty lists."""
    folder = tmp_path / "repository"
    vstore.Repository.create(folder, catalog="sqlite").close()
    bomb = b"\xdd" + struct.pack(">I", 20 * MIB) + b"\x90" * (20 * MIB)
    for message in (
        b"\x92\x95\x02\x01\xa0\x90" + b"\x81\xa1a" + bomb + b"\xc0",
        b"\x92\x95\x02\x01\xa0" + bomb + b"\x80\xc0",
        b"\x92\x95\x02\x01\xa0\x90\x80" + bomb,
        b"\x92" + bomb + b"\xc0",
    ):
        with closing(sqlite3.connect(folder / "catalog.sqlite")) as database, database:
            row = rows.LogRow(*database.execute("SELECT sequence, txid, NULL, body FROM log").fetchone())
            row = row._replace(body=rows._deflate(message, None))
            assert len(row.body) < 100_000
            database.execute(
                "UPDATE log SET snapshot = NULL, body = ?, crc = ?", (row.body, rows.log_crc(row))
            )
        tracemalloc.start()
        assert isinstance(use(folder, "look"), VStoreError)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 150 * MIB


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW extra AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "CREATE TRIGGER extra AFTER INSERT ON state BEGIN DELETE FROM log; END",
        "CREATE TABLE extra (a, b GENERATED ALWAYS AS (zeroblob(1000000000)))",
        "CREATE TABLE extra (a DEFAULT (randomblob(1000000000)))",
        "CREATE VIRTUAL TABLE extra USING fts5(a)",
    ],
)
def test_schemas_that_compute(tmp_path: Path, statement: str) -> None:
    folder = tmp_path / "repository"
    vstore.Repository.create(folder, catalog="sqlite").close()
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as database, database:
        database.execute(statement)
    with pytest.raises(CorruptionError, match="which vstore did not make"):
        vstore.Repository.open(folder)


@pytest.mark.parametrize("space", [1, 6, 99])
def test_a_row_with_a_long_key_is_named_in_short(tmp_path: Path, space: int) -> None:
    folder = tmp_path / "repository"
    vstore.Repository.create(folder, catalog="sqlite").close()
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as database, database:
        database.execute("INSERT INTO state VALUES (?, ?, x'00', 1)", (space, b"k" * MIB))
    error = use(folder, "look")
    assert isinstance(error, CorruptionError)
    assert b"k" * 100 in error.message.encode()


def test_a_table_that_is_an_endless_view(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    vstore.Repository.create(folder, catalog="sqlite").close()
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as database, database:
        database.execute("DROP TABLE log")
        database.execute(
            "CREATE VIEW log AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
            "SELECT i AS sequence, x'' AS txid, NULL AS snapshot, x'' AS body, 0 AS crc FROM n"
        )
    with pytest.raises(CorruptionError):
        vstore.Repository.open(folder)


class Log:
    """A storage that is only a log, made up as it is read."""

    url = "made up"
    is_local = False

    def __init__(self, objects: Callable[[int], bytes | None], hint: bytes | None = None) -> None:
        self._objects, self._hint = objects, hint
        self.requests = 0

    def _find(self, name: str) -> bytes | None:
        self.requests += 1
        if name == "latest":
            return self._hint
        sequence = int(name.removeprefix("log/")) if name.startswith("log/") else LAST_SEQUENCE
        # Else it would be a server that answers everything, which is found out otherwise.
        return self._objects(sequence) if sequence < LAST_SEQUENCE else None

    def read_whole(self, name: str, limit: int) -> bytes:
        found = self._find(name)
        if found is None:
            raise ObjectNotFoundError(name)
        return found

    def size(self, name: str) -> int | None:
        found = self._find(name)
        return None if found is None else len(found)


def record_of(sequence: int) -> bytes:
    return encode_record(LogRecord(sequence, bytes(16), 0, b"", {}))


LOGS: dict[str, Callable[[int], bytes | None]] = {
    "endless": record_of,
    "endless tombstones": lambda sequence: encode_tombstone(Tombstone(sequence, sequence + 1)),
    "a tombstone to nowhere": lambda sequence: (
        encode_tombstone(Tombstone(0, 2**62)) if sequence == 0 else None
    ),
    "other numbers": lambda sequence: record_of(sequence + 1),
    "nothing that is read": lambda sequence: b"",
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("hint", [None, record_of(0), record_of(2**62)], ids=["no hint", "first", "last"])
def test_logs_that_are_made_up(name: str, hint: bytes | None) -> None:
    log = Log(LOGS[name], hint)
    if hint is not None and name == "a tombstone to nowhere":
        pytest.skip("the hint is right")
    with pytest.raises((FormatError, RepositoryNotFoundError)):
        LogReader(log).resolve(None)  # type: ignore[arg-type]
    assert log.requests < 25_000
