"""What bad input gets: a clear typed error, and nothing lost. Damage, full disks, missing rights, wrong names."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import vstore
from tests.repositories import (
    GROUP,
    LOCAL_KINDS,
    Place,
    array_document,
    commit,
    contents,
    quick_folder,
    write,
)
from tests.unit.storage.children import run_in_child
from vstore.blobs.reader import BlobReader
from vstore.blobs.spill import PackSpill
from vstore.catalog.base import FORMAT_VERSION
from vstore.catalog.location import create_catalog
from vstore.config import RepositoryConfig
from vstore.errors import FormatError, StorageError
from vstore.keys.objects import pack_name, parse_pack_name
from vstore.ops.fsck import check
from vstore.repository.creation import first_transaction
from vstore.storage.local import LocalStorage
from vstore.worktree.listing import iter_keys

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@pytest.fixture(params=LOCAL_KINDS)
def local(request: pytest.FixtureRequest) -> Iterator[Place]:
    with quick_folder() as folder:
        yield Place.new(request.param, folder)


# --- no repository -------------------------------------------------------------------------------------------


def an_empty_folder(path: Path) -> None:
    path.mkdir()


def some_folder(path: Path) -> None:
    (path / "packs").mkdir(parents=True)
    (path / "zarr.json").write_bytes(GROUP)
    (path / "notes.txt").write_text("hello")


def a_file(path: Path) -> None:
    path.write_text("hello")


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize("make", [an_empty_folder, some_folder, a_file, nothing])
def test_what_is_no_repository_is_not_opened_and_not_touched(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "place"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(vstore.RepositoryNotFoundError) as caught:
        vstore.open(path)
    assert str(path) in caught.value.message
    assert not vstore.Repository.exists(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_repository_can_not_be_made_where_there_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    with pytest.raises(vstore.InvalidInputError, match="file"):
        vstore.Repository.create(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "hello"


@pytest.mark.parametrize("location", ["", "ftp://host/x", "s3:", "memory://", 5, None, "a\0b"], ids=repr)
def test_what_is_no_location_is_refused(location: Any) -> None:
    for call in (vstore.open, vstore.Repository.create, vstore.Repository.exists):
        with pytest.raises(vstore.InvalidInputError):
            call(location)


def test_a_refused_creation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(vstore.InvalidInputError):
        vstore.Repository.create(tmp_path / "r", catalog="oracle")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_two_catalogs_in_one_place_are_refused(tmp_path: Path) -> None:
    vstore.Repository.create(tmp_path / "r").close()
    vstore.Repository.create(tmp_path / "other", catalog="log").close()
    shutil.copytree(tmp_path / "other" / "log", tmp_path / "r" / "log")
    for call in (vstore.open, vstore.Repository.create):
        with pytest.raises(vstore.CorruptionError, match="two catalogs"):
            call(tmp_path / "r")


# --- newer repositories --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format_version": FORMAT_VERSION + 1}, str(FORMAT_VERSION + 1)),
        ({"required_features": ("sealed-blobs",)}, "sealed-blobs"),
    ],
    ids=["version", "feature"],
)
def test_a_repository_of_a_newer_format_is_refused_by_name(
    tmp_path: Path, kind: str, change: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = vstore.Repository.create(tmp_path / "model")
    identity = made.handle.catalog.identity._replace(**change)
    storage = LocalStorage(tmp_path / "newer")
    storage.make_root()
    # The newer vstore that made it knows what it requires.
    with monkeypatch.context() as newer:
        newer.setattr("vstore.catalog.base.FORMAT_VERSION", FORMAT_VERSION + 1)
        newer.setattr("vstore.catalog.state.FORMAT_VERSION", FORMAT_VERSION + 1)
        newer.setattr("vstore.catalog.state.SUPPORTED_FEATURES", frozenset({"sealed-blobs"}))
        first = first_transaction(storage, identity, RepositoryConfig(), "ada")
        create_catalog(storage, identity, first, PackSpill(storage), kind=kind).close()
    assert vstore.Repository.exists(tmp_path / "newer")
    with pytest.raises(vstore.UnsupportedFormatError, match=named) as caught:
        vstore.open(tmp_path / "newer")
    assert "pgrade" in caught.value.message
    with pytest.raises(vstore.RepositoryExistsError):
        vstore.Repository.create(tmp_path / "newer")


def test_a_newer_schema_of_the_sqlite_catalog_is_refused(tmp_path: Path) -> None:
    vstore.Repository.create(tmp_path / "r").close()
    connection = sqlite3.connect(tmp_path / "r" / "catalog.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(vstore.UnsupportedFormatError, match="99"):
        vstore.open(tmp_path / "r")


# --- names ---------------------------------------------------------------------------------------------------

REFUSED_BY_GIT = [
    "",
    "@",
    "a b",
    "a..b",
    "a~1",
    "a^",
    "a:b",
    "a?",
    "a*",
    "a[b",
    "a\\b",
    "a@{b",
    "/a",
    "a/",
    "a//b",
    ".a",
    "a/.b",
    "a.",
    "a.lock",
    "a.lock/b",
    "-a",
    "a\x7f",
    "a\tb",
    "a\0b",
    "\ud800",
    "x" * 201,
    "deadbeef",
    "ab" * 32,
    None,
    5,
    b"bytes",
]


@pytest.mark.parametrize("name", REFUSED_BY_GIT, ids=ascii)
def test_names_that_git_would_refuse_are_refused(tmp_path: Path, name: Any) -> None:
    with vstore.Repository.create(tmp_path / "r") as repository:
        first = repository.lookup_branch("main")
        for call in (repository.create_branch, repository.create_tag):
            with pytest.raises(vstore.InvalidInputError, match="can't name"):
                call(name, first)
        assert repository.list_branches() == {"main"}
        assert repository.list_tags() == set()


@pytest.mark.parametrize("name", ["", "a b", "a..b", "\0", "\ud800", "ab" * 32], ids=ascii)
def test_names_that_can_not_be_are_not_found(place: Place, name: Any) -> None:
    with place.create() as repository:
        calls: list[Callable[[Any], object]] = [
            repository.lookup_branch,
            repository.delete_branch,
            repository.writable_session,
            repository.lookup_tag,
            repository.delete_tag,
            lambda name: repository.reset_branch(name, repository.lookup_branch("main")),
        ]
        for call in calls:
            with pytest.raises((vstore.RefNotFoundError, vstore.InvalidInputError)):
                call(name)


# --- read-only -----------------------------------------------------------------------------------------------


def test_a_write_through_a_readonly_store_is_a_typed_error_that_says_what_to_do(place: Place) -> None:
    with place.create() as repository:
        commit(repository, {"x": b"1"})
        store = repository.readonly_session("main").store
        value = default_buffer_prototype().buffer.from_bytes(b"2")
        calls: list[Callable[[], Any]] = [
            lambda: store.set("x", value),
            lambda: store.delete("x"),
            lambda: store.delete_dir(""),
            lambda: store.clear(),
        ]
        for call in calls:
            with pytest.raises(vstore.ReadOnlyError, match="writable_session"):
                sync(call())
        assert contents(repository.readonly_session("main")) == {"x": b"1"}


# --- damage --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damaged:
    """A small repository of several commits, and what each of its versions holds."""

    place: Place
    versions: dict[str, dict[str, bytes]]

    @property
    def folder(self) -> Path:
        return Path(self.place.location)

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    @property
    def packs(self) -> list[Path]:
        return sorted(path for path in (self.folder / "packs").rglob("*") if path.is_file())

    def read_everything(self) -> list[vstore.VStoreError]:
        """Read every key of every version as a new process would; return the errors.

        Whatever is read must be what was written.
        """
        errors: list[vstore.VStoreError] = []
        try:
            repository = self.place.open()
        except vstore.VStoreError as error:
            return [error]
        with repository:
            for snapshot_id, expected in self.versions.items():
                errors += read_version(repository, snapshot_id, expected)
        return errors


def read_version(
    repository: vstore.Repository, snapshot_id: str, expected: dict[str, bytes]
) -> list[vstore.VStoreError]:
    errors: list[vstore.VStoreError] = []
    try:
        session = repository.readonly_session(snapshot_id=snapshot_id)
        branch_history = [info.id for info in repository.ancestry(branch="main")]
        assert snapshot_id in branch_history
    except vstore.VStoreError as error:
        return [error]
    try:
        assert set(iter_keys(session.tree, "")) == set(expected)
    except vstore.VStoreError as error:
        errors.append(error)
    for key, value in expected.items():
        try:
            assert session.tree.read(key) == value, key
        except vstore.VStoreError as error:
            errors.append(error)
    return errors


@pytest.fixture
def damaged(local: Place) -> Damaged:
    versions = {}
    values: dict[str, bytes] = {}
    steps = [
        {"zarr.json": GROUP, "a/zarr.json": array_document((5000,), (1000,)), "a/c/0": b"inline"},
        {"a/c/1": b"stored" * 200, "notes": b"n" * 50},
        {"a/c/0": b"again" * 200, "b/zarr.json": array_document((3,)), "long": b"l" * 4500},
    ]
    with local.create() as repository:
        versions[repository.lookup_branch("main")] = values
        for new in steps:
            values = values | new
            versions[commit(repository, new)] = values
    return Damaged(local, versions)


def flip(path: Path, position: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ bits]))


def check_flip(damaged: Damaged, path: Path, position: int, bits: int, *, must_show: bool) -> None:
    where = f"{path.relative_to(damaged.folder)}, byte {position} ^ {bits}"
    flip(path, position, bits)
    try:
        errors = damaged.read_everything()
    finally:
        flip(path, position, bits)
    for error in errors:
        assert isinstance(error, FormatError | StorageError), f"{where}: {error!r} is no word for damage"
        assert path.name in error.message, f"{where}: {error.message} does not name the file"
    assert errors or not must_show, f"{where} went unnoticed"


def blob_ranges(path: Path) -> list[range]:
    """Return the bytes of a pack that hold blobs; all of this repository's are needed."""
    storage = LocalStorage(path.parents[2])
    pack = parse_pack_name(f"packs/{path.parent.name}/{path.name}")
    assert pack is not None
    footer = BlobReader(storage).read_footer(pack)[1]
    return [
        range(int(offset), int(offset + length))
        for offset, length in zip(footer.offsets, footer.lengths, strict=True)
    ]


def flip_everywhere(damaged: Damaged, step: int, bits: Callable[[int], int]) -> None:
    assert damaged.read_everything() == []
    for path in damaged.files:
        blobs = blob_ranges(path) if path in damaged.packs else []
        start = len(path.name) % step
        for position in range(start, path.stat().st_size, step):
            needed = any(position in blob for blob in blobs)
            check_flip(damaged, path, position, bits(position), must_show=needed)
    assert damaged.read_everything() == []


def test_no_flipped_byte_is_read_as_data(damaged: Damaged) -> None:
    flip_everywhere(damaged, 37, lambda position: 1 << position % 8)


@pytest.mark.deep
@pytest.mark.parametrize("bits", [1, 0x80, 0xFF])
def test_no_flipped_byte_at_all_is_read_as_data(damaged: Damaged, bits: int) -> None:
    flip_everywhere(damaged, 1, lambda position: bits)


def test_every_byte_of_a_small_pack_is_checked(damaged: Damaged) -> None:
    path = min(damaged.packs, key=lambda path: path.stat().st_size)
    blobs = blob_ranges(path)
    assert sum(map(len, blobs)) > 50
    for position in range(path.stat().st_size):
        check_flip(damaged, path, position, 0x10, must_show=any(position in blob for blob in blobs))


def test_the_error_names_the_file_the_blob_and_what_it_holds(damaged: Damaged) -> None:
    newest = list(damaged.versions)[-1]
    with damaged.place.open() as repository:
        source = repository.readonly_session(snapshot_id=newest).tree.find("a/c/1")
    path = damaged.folder / pack_name(source.ref.pack)
    flip(path, source.ref.offset + 7, 4)
    with damaged.place.open() as repository:
        session = repository.readonly_session(snapshot_id=newest)
        with pytest.raises(vstore.CorruptionError) as caught:
            session.tree.read("a/c/1")
        assert session.tree.read("notes") == damaged.versions[newest]["notes"]
    for named in (pack_name(source.ref.pack), source.ref.digest.hex(), "a/c/1", "fsck"):
        assert named in caught.value.message


def test_damage_in_a_range_is_noticed_and_elsewhere_is_not_in_the_way(local: Place) -> None:
    """Blobs of more than 64 KiB are checked by blocks."""
    from vstore.blobs.reader import ByteSpan

    data = os.urandom(300_000)
    with local.create() as repository:
        commit(repository, {"a/zarr.json": array_document((300_000,), (300_000,)), "a/c/0": data})
        ref = repository.readonly_session("main").tree.find("a/c/0").ref
    flip(Path(local.location) / pack_name(ref.pack), ref.offset + 150_000, 1)
    with local.open() as repository:
        tree = repository.readonly_session("main").tree
        source = tree.find("a/c/0")
        for start, stop, is_bad in ((0, 131_072, False), (131_072, 131_073, True), (196_608, 300_000, False)):
            if is_bad:
                with pytest.raises(vstore.CorruptionError, match="a/c/0"):
                    tree.contents.read(source, ByteSpan(start, stop), "key 'a/c/0'")
            else:
                found = tree.contents.read(source, ByteSpan(start, stop), "key 'a/c/0'")
                assert bytes(found) == data[start:stop]
        with pytest.raises(vstore.CorruptionError):
            tree.read("a/c/0")
        assert not check(repository, data=True).is_clean


def test_a_missing_pack_is_named(damaged: Damaged) -> None:
    for path in damaged.packs:
        moved = path.rename(path.with_name("elsewhere"))
        errors = damaged.read_everything()
        assert errors
        for error in errors:
            assert isinstance(error, vstore.MissingBlobError)
            assert path.name in error.message
        moved.rename(path)
    assert damaged.read_everything() == []


def test_a_missing_catalog_is_no_repository(damaged: Damaged) -> None:
    name = "catalog.sqlite" if damaged.place.kind == "sqlite" else "log"
    (damaged.folder / name).rename(damaged.folder / "elsewhere")
    with pytest.raises(vstore.RepositoryNotFoundError):
        damaged.place.open()


@pytest.mark.parametrize("local", ["log"], indirect=True)
def test_a_lost_hint_is_no_loss(damaged: Damaged) -> None:
    hint = damaged.folder / "latest"
    for content in (None, b"", b"garbage", (damaged.folder / "log" / f"{0:020}").read_bytes()):
        if content is None:
            hint.unlink()
        else:
            hint.write_bytes(content)
        assert damaged.read_everything() == []
    with damaged.place.open() as repository:
        commit(repository, {"x": b"1"})


def test_every_length_of_a_cut_catalog(damaged: Damaged) -> None:
    paths = [path for path in damaged.files if path not in damaged.packs]
    for path in paths:
        whole = path.read_bytes()
        for length in {0, 1, 100, len(whole) // 2, len(whole) - 1, *range(0, len(whole), 997)}:
            path.write_bytes(whole[:length])
            for error in damaged.read_everything():
                assert isinstance(error, FormatError | StorageError), (
                    f"{path.name} cut to {length}: {error!r}"
                )
                assert path.name in error.message, f"cut to {length}: {error.message}"
        path.write_bytes(whole)
    assert damaged.read_everything() == []


CUT_WHILE_OPEN = """
import os, pickle, sys
import vstore
from vstore.blobs.cache import CACHE

with open(sys.argv[1], "rb") as file:
    location, paths, versions = pickle.load(file)

def read_everything(repository):
    found = 0
    for snapshot_id, expected in versions.items():
        try:
            session = repository.readonly_session(snapshot_id=snapshot_id)
        except vstore.VStoreError as error:
            found += isinstance(error, (vstore.FormatError, vstore.StorageError))
            continue
        for key, value in expected.items():
            try:
                assert session.tree.read(key) == value, key
            except (vstore.FormatError, vstore.StorageError):
                found += 1
    return found

noticed = 0
for path in paths:
    with open(path, "rb") as file:
        whole = file.read()
    for length in sorted({0, 1, 16, len(whole) // 3, len(whole) // 2, len(whole) - 41, len(whole) - 1}):
        for when in ("before", "after"):
            repository = vstore.Repository.open(location)
            if when == "after":
                # Packs are mapped now.
                assert read_everything(repository) == 0
            CACHE.clear()
            os.truncate(path, length)
            noticed += read_everything(repository)
            CACHE.clear()
            with open(path, "r+b") as file:
                file.write(whole)
            repository.close()
    repository = vstore.Repository.open(location)
    assert read_everything(repository) == 0
    repository.close()
print(noticed)
"""


def test_a_pack_that_was_cut_raises_and_kills_nobody(damaged: Damaged, tmp_path: Path) -> None:
    import pickle

    argument = tmp_path / "argument"
    argument.write_bytes(pickle.dumps((damaged.place.location, damaged.packs, damaged.versions)))
    command = [sys.executable, "-c", CUT_WHILE_OPEN, str(argument)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != -signal.SIGBUS, "the process was killed"
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


# --- a full disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own of 4 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="vstore-test-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = (
        subprocess.run(command, capture_output=True, text=True, check=False)
        if shutil.which("mount")
        else None
    )
    if done is None or done.returncode:
        folder.rmdir()
        pytest.skip(f"can't mount a small file system: {done.stderr.strip() if done else 'no mount command'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path, leave_bytes: int) -> Path:
    """Fill the disk but for so many bytes."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536) == 65536:
                pass
        except OSError:
            pass
    size = ballast.stat().st_size
    os.truncate(ballast, max(size - leave_bytes, 0))
    return ballast


@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("chunk_bytes", [1000, 100_000])
def test_a_commit_on_a_full_disk_can_be_made_when_there_is_space(
    small_disk: Path, kind: str, chunk_bytes: int
) -> None:
    values = {"a/zarr.json": array_document((20 * chunk_bytes,), (chunk_bytes,))}
    values |= {f"a/c/{n}": bytes([n]) * chunk_bytes for n in range(5)}
    failures = 0
    for pages in range(16) if chunk_bytes == 1000 else range(0, 180, 5):
        place = Place.new(kind, small_disk / str(pages))
        place.location.parent.mkdir()
        repository = place.create()
        before = commit(repository, {"x": b"1"})
        session = repository.writable_session("main")
        ballast = fill(small_disk, pages * 4096)
        try:
            write(session, values)
            session.commit("on a full disk")
        except vstore.OutOfSpaceError:
            failures += 1
            assert repository.lookup_branch("main") == before
            assert contents(repository.readonly_session("main")) == {"x": b"1"}
            ballast.unlink()
            write(session, values)
            session.commit("with space")
        ballast.unlink(missing_ok=True)
        with place.open() as reopened:
            assert contents(reopened.readonly_session("main")) == values | {"x": b"1"}
            assert len(list(reopened.ancestry(branch="main"))) == 3
            assert check(reopened, data=True).damages == []
        repository.close()
        shutil.rmtree(small_disk / str(pages))
    assert failures >= 3, "the disk was hardly ever full"


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_what_waits_in_memory_is_committed_when_there_is_space(small_disk: Path, kind: str) -> None:
    """Only the commit fails: what was written before need not be written again."""
    values = {"a/zarr.json": array_document((20_000,), (1000,))}
    values |= {f"a/c/{n}": bytes([n]) * 1000 for n in range(15)}
    place = Place.new(kind, small_disk)
    with place.create() as repository:
        session = repository.writable_session("main")
        write(session, values)
        ballast = fill(small_disk, 0)
        for _ in range(3):
            with pytest.raises(vstore.OutOfSpaceError):
                session.commit("on a full disk")
        ballast.unlink()
        session.commit("with space")
    with place.open() as repository:
        assert contents(repository.readonly_session("main")) == values
        assert check(repository, data=True).damages == []


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_full_disk_can_be_read(small_disk: Path, kind: str) -> None:
    place = Place.new(kind, small_disk)
    with place.create() as repository:
        commit(repository, {"x": b"1" * 5000})
    fill(small_disk, 0)
    with place.open() as repository:
        assert contents(repository.readonly_session("main")) == {"x": b"1" * 5000}


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_full_disk_is_called_full(small_disk: Path, kind: str) -> None:
    place = Place.new(kind, small_disk)
    place.create().close()
    ballast = fill(small_disk, 0)

    def open_and_commit() -> None:
        with place.open() as repository:
            commit(repository, {"x": b"2" * 5000})

    with pytest.raises(vstore.OutOfSpaceError, match="space"):
        open_and_commit()
    ballast.unlink()
    open_and_commit()


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_no_repository_is_made_on_a_full_disk(small_disk: Path, kind: str) -> None:
    ballast = fill(small_disk, 0)
    place = Place.new(kind, small_disk)
    with pytest.raises(vstore.OutOfSpaceError):
        place.create()
    assert not vstore.Repository.exists(place.location)
    ballast.unlink()
    place.create().close()


# --- missing rights ------------------------------------------------------------------------------------------


@pytest.fixture(params=LOCAL_KINDS)
def reachable(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place that every user can reach, as pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="vstore-test-"))
    folder.chmod(0o755)
    yield Place.new(request.param, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def without_rights(body: Callable[[], object]) -> None:
    """Run `body` in a child that is not root."""

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        body()

    run_in_child(child)


def give_to_nobody(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)


def make_read_only(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_folder_without_write_permission_can_be_read_but_not_written(reachable: Place) -> None:
    with reachable.create() as repository:
        made = commit(repository, {"x": b"1" * 5000})
    make_read_only(reachable.location)

    def body() -> None:
        with reachable.open() as repository:
            assert repository.lookup_branch("main") == made
            assert contents(repository.readonly_session("main")) == {"x": b"1" * 5000}
            assert check(repository, data=True).is_clean
            calls: list[Callable[[], object]] = [
                lambda: commit(repository, {"x": b"2"}),
                lambda: repository.create_tag("v1", made),
                lambda: repository.set_metadata({"a": 1}),
            ]
            for call in calls:
                with pytest.raises(vstore.AccessDeniedError, match="permission"):
                    call()
            assert repository.lookup_branch("main") == made

    without_rights(body)


def test_a_session_is_refused_before_it_takes_writes_that_it_could_not_commit(reachable: Place) -> None:
    reachable.create().close()
    make_read_only(reachable.location)

    def body() -> None:
        with reachable.open() as repository, pytest.raises(vstore.AccessDeniedError, match="permission"):
            repository.writable_session("main")

    without_rights(body)


def test_no_repository_is_made_in_a_folder_without_write_permission(reachable: Place) -> None:
    folder = reachable.location.parent
    make_read_only(folder)

    def body() -> None:
        for location in (folder, folder / "r", folder / "r" / "s"):
            with pytest.raises(vstore.AccessDeniedError, match="permission"):
                replace(reachable, location=location).create()

    without_rights(body)
    assert list(folder.iterdir()) == []


def test_a_folder_that_may_not_be_looked_into(reachable: Place) -> None:
    reachable.create().close()
    reachable.location.chmod(0)
    if os.geteuid() == 0:
        os.chown(reachable.location, 0, 0)

    def body() -> None:
        with pytest.raises((vstore.AccessDeniedError, vstore.RepositoryNotFoundError)):
            reachable.open()

    without_rights(body)


@pytest.mark.parametrize("chunk_bytes", [1000, 100_000])
def test_rights_lost_during_a_session_and_found_again(reachable: Place, chunk_bytes: int) -> None:
    values = {"a/zarr.json": array_document((5 * chunk_bytes,), (chunk_bytes,))}
    values |= {f"a/c/{n}": bytes([n]) * chunk_bytes for n in range(5)}
    with reachable.create() as repository:
        before = commit(repository, {"x": b"1"})
    give_to_nobody(reachable.location.parent)

    def body() -> None:
        signal.alarm(30)
        with reachable.open() as repository:
            session = repository.writable_session("main")
            for path in [reachable.location, *reachable.location.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)

            def write_and_commit() -> None:
                write(session, values)
                session.commit("a commit")

            with pytest.raises(
                (vstore.AccessDeniedError, vstore.ReadOnlyError), match=r"permission|writable"
            ):
                write_and_commit()
            assert repository.lookup_branch("main") == before
            for path in [reachable.location, *reachable.location.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)
            write_and_commit()
            assert contents(repository.readonly_session("main")) == values | {"x": b"1"}

    without_rights(body)
