"""A directory on a shared or unknown file system, by a made-up mount table: what is refused, and what works."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import vstore
from tests.repositories import Place, commit, contents
from vstore.errors import UnsafeStorageError
from vstore.storage import mounts
from vstore.storage.mounts import Mount

SHARED = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "9p", "fuse.sshfs", "fuseblk", "new-one")


def mount(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(mounts, "_mount_table", lambda: [Mount("/", kind)])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place("sqlite", tmp_path)
    mount(monkeypatch, "ext4")
    with place.create() as repository:
        commit(repository, {"value": b"v" * 1000})
    return place


@pytest.mark.parametrize("kind", SHARED)
def test_a_repository_with_sqlite_is_read_there_and_not_written(
    place: Place, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, kind)
    with place.open() as repository:
        assert contents(repository.readonly_session("main")) == {"value": b"v" * 1000}
        head = repository.lookup_branch("main")
        for act in (
            lambda: repository.writable_session("main"),
            lambda: repository.create_tag("v1", head),
            lambda: repository.reset_branch("main", head),
        ):
            with pytest.raises(UnsafeStorageError, match=r'Convert .* by repo\.convert_catalog\("log"\)'):
                act()
    assert os.listdir(place.location).count("catalog.sqlite") == 1


def test_it_is_converted_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(vstore.Repository, "convert_catalog"):
        pytest.skip("there is no convert_catalog yet")
    mount(monkeypatch, "nfs4")
    with place.open() as repository:
        repository.convert_catalog("log")
    with place.open() as repository:
        assert contents(repository.readonly_session("main")) == {"value": b"v" * 1000}
        commit(repository, {"more": b"m" * 1000})
    assert not (Path(place.location) / "catalog.sqlite").exists()


@pytest.mark.parametrize("kind", SHARED)
def test_new_repositories_get_the_log_there(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, kind)
    with pytest.raises(UnsafeStorageError, match='catalog="log", the default'):
        vstore.Repository.create(tmp_path / "a", catalog="sqlite")
    assert not vstore.Repository.exists(tmp_path / "a")
    with vstore.Repository.create(tmp_path / "a") as repository:
        commit(repository, {"value": b"v" * 1000})
        assert contents(repository.readonly_session("main")) == {"value": b"v" * 1000}
    assert (tmp_path / "a" / "log").is_dir()


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ENOENT, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("landed", [True, False])
def test_a_commit_whose_link_lost_its_reply_lands_once(
    tmp_path: Path, code: int, landed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats a request whose reply was lost, and reports what the repeat met: only reading back tells."""
    mount(monkeypatch, "nfs4")
    real = os.link
    lost: list[str] = []

    def link(source: str, target: str) -> None:
        if os.path.basename(target).isdigit() and not lost:
            lost.append(target)
            if landed:
                real(source, target)
            raise OSError(code, os.strerror(code))
        real(source, target)

    with vstore.Repository.create(tmp_path / "a") as repository:
        commit(repository, {"value": b"1" * 1000})
        monkeypatch.setattr(os, "link", link)
        head = commit(repository, {"value": b"2" * 1000}, "the change")
        assert lost
        assert repository.lookup_branch("main") == head
        assert next(entry.message for entry in repository.ancestry(branch="main")) == "the change"
        changes = [after for entry in repository.ops_log() for *_, after in entry.changes]
        assert changes.count(head) == 1
        assert repository.fsck(data=True).damages == []
