"""A repository's folder that somebody else filled: links that lead out of it, pipes and devices, files of any mode.

Reading follows links, as what is read is checked. Nothing is written or deleted behind one, and nothing is waited for.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import vstore
from tests.fuzz.uses import FAR, USES, build, packs_in, use
from tests.repositories import GROUP, commit, quick_folder
from vstore.errors import (
    CorruptionError,
    StorageError,
    UnsafeStorageError,
    VStoreError,
)
from vstore.ids import PackId, new_pack_id
from vstore.keys.objects import LATEST, log_name, pack_name, staging_name
from vstore.storage.local import LocalStorage

PACK = PackId(bytes.fromhex("ab" * 16))


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with files that have names of vstore's, which are none of the repository's business."""
    folder = tmp_path / "elsewhere"
    for name in (pack_name(PACK), log_name(0), staging_name(PACK), LATEST, f"{'ab' * 16}"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"precious")
    return folder


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    (tmp_path / "repository").mkdir()
    return LocalStorage(tmp_path / "repository")


LINKS = {
    "packs": ("packs", "packs"),
    "packs/ab": ("packs/ab", "packs/ab"),
    "log": ("log", "log"),
    "staging": ("staging", "staging"),
}


@pytest.mark.parametrize("link", LINKS)
def test_nothing_is_deleted_behind_a_link(storage: LocalStorage, elsewhere: Path, link: str) -> None:
    path = Path(storage.root) / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(elsewhere / link)
    before = state_of(elsewhere)
    names = [name for name in (pack_name(PACK), log_name(0), staging_name(PACK)) if name.startswith(link)]
    with pytest.raises(UnsafeStorageError, match="symbolic link"):
        storage.delete(names)
    assert state_of(elsewhere) == before


@pytest.mark.parametrize("link", ["packs/ab", "log", "staging"])
def test_nothing_is_written_behind_a_link(storage: LocalStorage, elsewhere: Path, link: str) -> None:
    path = Path(storage.root) / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(elsewhere / link)
    before = state_of(elsewhere)

    def seal() -> None:
        sink = storage.open_pack(PackId(b"\xab" + os.urandom(15)))
        sink.write(0, [b"bytes"])
        sink.seal(5)

    acts: dict[str, Callable[[], None]] = {
        "packs/ab": seal,
        "log": lambda: storage.create(log_name(1), b"record"),
        "staging": lambda: storage.write(LATEST, b"hint"),
    }
    with pytest.raises(UnsafeStorageError, match="symbolic link"):
        acts[link]()
    assert state_of(elsewhere) == before


def test_a_link_that_was_there_when_a_neighbour_was_made_is_refused_too(
    storage: LocalStorage, elsewhere: Path
) -> None:
    """Making one folder takes its neighbours for made."""
    (Path(storage.root) / "packs").mkdir()
    (Path(storage.root) / "packs" / "ab").symlink_to(elsewhere / "packs" / "ab")
    before = state_of(elsewhere)
    for first in (b"\xcd", b"\xab"):
        sink = storage.open_pack(PackId(first + os.urandom(15)))
        sink.write(0, [b"bytes"])
        if first == b"\xcd":
            sink.seal(5)
            continue
        with pytest.raises(UnsafeStorageError, match="symbolic link"):
            sink.seal(5)
    assert state_of(elsewhere) == before


def test_files_that_are_links_are_replaced_and_not_followed(storage: LocalStorage, elsewhere: Path) -> None:
    before = state_of(elsewhere)
    (Path(storage.root) / LATEST).symlink_to(elsewhere / LATEST)
    assert storage.read_whole(LATEST, 100) == b"precious"
    storage.write(LATEST, b"hint")
    assert storage.read_whole(LATEST, 100) == b"hint"
    (Path(storage.root) / "packs" / "ab").mkdir(parents=True)
    (Path(storage.root) / pack_name(PACK)).symlink_to(elsewhere / pack_name(PACK))
    storage.delete([pack_name(PACK)])
    assert storage.size(pack_name(PACK)) is None
    assert state_of(elsewhere) == before


def test_a_link_that_takes_the_place_of_a_folder_later_is_noticed(
    storage: LocalStorage, elsewhere: Path
) -> None:
    """What was found to be a folder may be a link by the time something is deleted."""
    sink = storage.open_pack(PACK)
    sink.write(0, [b"bytes"])
    sink.seal(5)
    (Path(storage.root) / "packs").rename(Path(storage.root) / "moved")
    (Path(storage.root) / "packs").symlink_to(elsewhere / "packs")
    before = state_of(elsewhere)
    with pytest.raises(UnsafeStorageError):
        storage.delete([pack_name(PACK)])
    assert state_of(elsewhere) == before


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        pytest.skip("only root makes devices")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(path.name)


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "make", [make_pipe, make_folder, make_device, make_socket, make_link_to_device, make_loop]
)
@pytest.mark.parametrize("name", [LATEST, log_name(0), pack_name(PACK), staging_name(PACK)])
def test_what_is_no_file_is_not_waited_for(
    storage: LocalStorage, make: Callable[[Path], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(storage.root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(path.parent)
    make(path)
    for read in (
        lambda: storage.read(name, 0, 10),
        lambda: storage.read_whole(name, 100),
        lambda: storage.read_tail(name, 10),
    ):
        with pytest.raises((CorruptionError, StorageError)):
            read()
    if name.startswith("staging/"):
        with pytest.raises((CorruptionError, StorageError)):
            storage.is_held(name)
    assert [info.name for info in storage.list("")] == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("catalog", ["sqlite", "log"])
@pytest.mark.parametrize("make", [make_pipe, make_device, make_link_to_device])
def test_every_file_of_a_repository_as_something_else(catalog: str, make: Callable[[Path], None]) -> None:
    with quick_folder() as work:
        folder = work / "repository"
        build(folder, catalog)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files[:: max(1, len(files) // 6)]:
            kept = path.read_bytes()
            path.unlink()
            make(path)
            for name in ("read", "gc", "fsck", "edit"):
                use(folder, name)
            path.unlink()
            path.write_bytes(kept)


@pytest.mark.parametrize("catalog", ["sqlite", "log"])
def test_gc_of_a_repository_whose_packs_are_linked_to_anothers(catalog: str) -> None:
    """The other one's packs are garbage by this one's catalog."""
    with quick_folder() as work:
        for name in ("mine", "yours"):
            vstore.Repository.create(work / name, catalog=catalog).close()
        other = vstore.Repository.open(work / "yours")
        for i in range(5):
            commit(other, {"zarr.json": GROUP, "x": bytes([i]) * 9000})
        other.close()
        for path in sorted((work / "yours" / "packs").iterdir()):
            (work / "mine" / "packs").mkdir(exist_ok=True)
            if not (work / "mine" / "packs" / path.name).exists():
                (work / "mine" / "packs" / path.name).symlink_to(path)
        before = packs_in(work / "yours")
        mine = vstore.Repository.open(work / "mine")
        report = mine.garbage_collect(FAR)
        assert report.deleted_packs == 0
        assert "symbolic link" in str(report)
        assert packs_in(work / "yours") == before
        mine.close()


def test_a_catalog_that_is_a_link_is_read_and_not_written(tmp_path: Path) -> None:
    vstore.Repository.create(tmp_path / "yours", catalog="sqlite").close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "catalog.sqlite").symlink_to(tmp_path / "yours" / "catalog.sqlite")
    before = state_of(tmp_path / "yours")
    with pytest.raises(UnsafeStorageError, match="symbolic link"):
        commit(vstore.Repository.open(tmp_path / "mine"), {"zarr.json": GROUP})
    assert state_of(tmp_path / "yours") == before


def test_a_repository_as_a_whole_may_be_linked_to(tmp_path: Path) -> None:
    build(tmp_path / "repository", "log")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "link").symlink_to(tmp_path / "repository")
    for name in USES:
        assert not isinstance(use(tmp_path / "links" / "link", name), UnsafeStorageError)


def test_sparse_files_are_no_memory(tmp_path: Path, storage: LocalStorage) -> None:
    """A read of more than a file has takes no memory for it; tried with descriptors, as on a shared disk."""
    described = LocalStorage(storage.root, mapped=False)
    sink = described.open_pack(PACK)
    sink.write(0, [b"bytes"])
    sink.seal(5)
    assert described.read(pack_name(PACK), 0, 5) == b"bytes"
    for length in (2**40, 2**61):
        with pytest.raises(CorruptionError):
            described.read(pack_name(PACK), 0, length)


def test_folders_that_vstore_does_not_make_are_not_looked_into(storage: LocalStorage) -> None:
    for folder in ("usr/bin", "packs/xyz", "packs/ab/cd", "log/log"):
        (Path(storage.root) / folder).mkdir(parents=True)
        (Path(storage.root) / folder).chmod(0)
    (Path(storage.root) / "packs" / "loop").symlink_to(storage.root)
    seen = []
    real = os.scandir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            os, "scandir", lambda path: seen.append(os.path.relpath(path, storage.root)) or real(path)
        )
        assert list(storage.list("")) == []
    assert sorted(seen) == [".", "log", "packs", "packs/ab"]


def test_files_that_may_not_be_read_say_so(storage: LocalStorage) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    storage.write(LATEST, b"hint")
    (Path(storage.root) / LATEST).chmod(0)
    with pytest.raises(VStoreError, match="permissions"):
        storage.read_whole(LATEST, 100)
    assert new_pack_id() != new_pack_id()
