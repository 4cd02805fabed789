from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from vstore.storage import mounts
from vstore.storage.mounts import (
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
    monkeypatch.setattr(mounts, "_mount_table", lambda: [("/", kind)])
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
    ]
    + ["autofs", "new-one"],
)
def test_network_and_unknown_types_are_not_local(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(mounts, "_mount_table", lambda: [("/", kind)])
    assert not is_local_filesystem("/repo")


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
