"""Which file system a path is on, by the system's mount table.

Only local ones are trusted with SQLite's locks and with memory maps: a network file system that is taken for local
costs data, the reverse costs some speed. So anything unknown counts as not local.
"""

from __future__ import annotations

import os
import re
import sys

_LOCAL_DISKS = {
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "zfs",
    "f2fs",
    "jfs",
    "reiserfs",
    "bcachefs",
    "nilfs2",
}
_LOCAL_OTHERS = {"tmpfs", "ramfs", "overlay", "apfs", "hfs", "ufs", "vfat", "exfat"}
LOCAL_TYPES = frozenset(_LOCAL_DISKS | _LOCAL_OTHERS)

_MOUNTINFO = "/proc/self/mountinfo"
_OCTAL = re.compile(r"\\([0-7]{3})")
_MOUNT_LINE = r".+? on (/.*) \(([^,)]+)[^)]*\)"


def is_local_filesystem(path: str | os.PathLike[str]) -> bool:
    """Tell whether `path`, which need not exist yet, is surely on a file system of this machine."""
    return filesystem_type(path) in LOCAL_TYPES


def filesystem_type(path: str | os.PathLike[str]) -> str | None:
    """Return the file system's type as the system calls it ("ext4", "nfs4"), or None if it can't be told."""
    try:
        table = _mount_table()
    except OSError:
        return None
    return type_at(os.path.realpath(path), table)


def type_at(path: str, table: list[tuple[str, str]]) -> str | None:
    """Return the type of the mount that holds the real path `path`; a later mount covers an earlier one."""
    found, length = None, -1
    for point, kind in table:
        folder = point if point.endswith("/") else point + "/"
        if (path + "/").startswith(folder) and len(folder) >= length:
            found, length = kind, len(folder)
    return found


def parse_mountinfo(text: str) -> list[tuple[str, str]]:
    """Return mount points and types from the text of Linux's /proc/self/mountinfo (proc(5))."""
    table = []
    for line in text.splitlines():
        mount, separator, source = line.partition(" - ")
        fields = mount.split(" ")
        if separator and len(fields) > 4:
            table.append((_OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[4]), source.split(" ")[0]))
    return table


def parse_mount_output(text: str) -> list[tuple[str, str]]:
    """Return mount points and types from what macOS's mount(8) prints."""
    matches = (re.fullmatch(_MOUNT_LINE, line) for line in text.splitlines())
    return [(match[1], match[2]) for match in matches if match]


def _mount_table() -> list[tuple[str, str]]:
    if sys.platform == "linux":
        with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
            return parse_mountinfo(file.read())
    if sys.platform == "darwin":
        import subprocess

        try:
            done = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=10, check=True)
        except subprocess.SubprocessError:
            return []
        return parse_mount_output(done.stdout)
    return []
