from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vstore.storage import mounts
from vstore.storage.mounts import (
    Mount,
    filesystem_type,
    is_local_filesystem,
    parse_mount_output,
    parse_mountinfo,
    type_at,
)

MOUNTINFO = r"""
21 26 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
80 26 0:45 / /home rw,relatime shared:30 - autofs systemd-1 rw,fd=30
81 80 0:46 / /home rw,relatime shared:31 master:2 propagate_from:1 - nfs4 server:/home rw
82 26 8:2 /sub /data rw - xfs /dev/sdb rw
83 82 0:47 / /data/with\040space\134and\011tab rw - fuse.sshfs me@host: rw
84 26 0:48 / /scratch rw - lustre mgs@tcp:/fs rw
85 26 0:49 / /database rw - tmpfs tmpfs rw
86 26 0:50 / /shared rw - virtiofs tag rw
87 26 0:51 / /ünïcode rw - btrfs /dev/sdc rw
not a line of a mount table
"""

MOUNT_OUTPUT = """\
/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
/dev/disk4s2 on /Volumes/My Disk (2) (hfs, local, nodev, nosuid)
//me@nas/share on /Volumes/share (smbfs, nodev, nosuid, mounted by me)
map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/usr/lib", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/repo", "nfs4"),
        ("/homes", "ext4"),
        ("/data", "xfs"),
        ("/data/repo", "xfs"),
        ("/database/repo", "tmpfs"),
        ("/data/with space\\and\ttab/repo", "fuse.sshfs"),
        ("/data/with", "xfs"),
        ("/scratch/x", "lustre"),
        ("/ünïcode/x", "btrfs"),
        ("/shared", "virtiofs"),
    ],
)
def test_the_longest_mount_point_decides_and_the_last_one_covers(path: str, kind: str) -> None:
    assert type_at(path, parse_mountinfo(MOUNTINFO)) == kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/Users/me", "apfs"),
        ("/Volumes/My Disk (2)/repo", "hfs"),
        ("/Volumes/share/repo", "smbfs"),
        ("/System/Volumes/Data/home/me", "autofs"),
    ],
)
def test_macos_mount_output(path: str, kind: str) -> None:
    assert type_at(path, parse_mount_output(MOUNT_OUTPUT)) == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs"])
def test_local_types(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(mounts, "_mount_table", lambda: [Mount("/", kind)])
    assert is_local_filesystem("/repo")


@pytest.mark.parametrize(
    "kind",
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "lustre",
        "gpfs",
        "ceph",
        "9p",
        "fuse",
        "fuse.s3fs",
        "fuseblk",
        "virtiofs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.fuse-overlayfs",
        "drvfs",
        "vboxsf",
        "beegfs",
        "afs",
        "gfs2",
        "ocfs2",
        "autofs",
        "new-one",
    ],
)
def test_network_and_unknown_types_are_not_local(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(mounts, "_mount_table", lambda: [Mount("/", kind)])
    assert not is_local_filesystem("/repo")


COVERED = """
1 1 0:2 / / rw - rootfs rootfs rw
26 1 8:1 / / rw - ext4 /dev/sda1 rw
30 26 8:2 / /data/fast rw - xfs /dev/sdb rw
31 26 0:50 / /data rw - nfs4 server:/data rw
32 31 8:3 / /data/scratch rw - ext4 /dev/sdc rw
40 26 8:4 / /twice rw - xfs /dev/sdd rw
41 40 0:51 / /twice rw - cifs //nas/x rw
50 26 0:52 / /bound rw - nfs4 server:/data rw
51 26 8:1 /home/me/bound /from-home rw - ext4 /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/usr", "ext4"),
        ("/data/fast/repo", "nfs4"),
        ("/data/scratch/repo", "ext4"),
        ("/twice/repo", "cifs"),
        ("/bound/repo", "nfs4"),
        ("/from-home/repo", "ext4"),
    ],
)
def test_a_mount_that_another_covers_does_not_count(path: str, kind: str) -> None:
    """A network file system mounted over a folder hides the local disk that was mounted inside it before."""
    assert type_at(path, parse_mountinfo(COVERED)) == kind


def test_a_root_that_is_no_mount(tmp_path: Path) -> None:
    """In a changed root, the mount of the root itself is not in the table: unknown."""
    table = parse_mountinfo("30 26 8:2 / /data rw - xfs /dev/sdb rw")
    assert type_at("/usr", table) is None
    assert type_at("/data/repo", table) == "xfs"


def test_an_automounter_is_asked_to_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    real = os.open

    def open_(path: object, *rest: int) -> int:
        opened.append(path)
        return real(path, *rest)  # type: ignore[call-overload, no-any-return]

    def table() -> list[Mount]:
        mounts = [Mount("/", "ext4"), Mount(os.fspath(tmp_path), "autofs", 2, 1)]
        return [*mounts, Mount(os.fspath(tmp_path), "nfs4", 3, 2)] if opened else mounts

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(mounts, "_mount_table", table)
    assert filesystem_type(tmp_path) == "nfs4"
    assert opened == [os.fspath(tmp_path)]


def test_an_unreadable_table_means_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_MOUNTINFO", "/nonexistent")
    monkeypatch.setattr(sys, "platform", "linux")
    assert filesystem_type("/") is None
    monkeypatch.setattr(sys, "platform", "win32")
    assert filesystem_type("/") is None
    assert not is_local_filesystem("/")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's mount table")
def test_this_machine(tmp_path: Path) -> None:
    assert filesystem_type("/proc") == "proc"
    assert filesystem_type("/proc/not/there/yet") == "proc"
    assert not is_local_filesystem("/proc")
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert filesystem_type(link) == "proc"
    assert filesystem_type(os.fspath(tmp_path)) is not None
