"""Which file system a path is on, by the system's mount table.

Only local ones are trusted with SQLite's locks and with memory maps: a network file system that is taken for local
costs data, the reverse costs some speed. So anything unknown counts as not local, and all of FUSE does: who answers
there (sshfs, s3fs, ntfs-3g) can't be told apart safely. docs/durability.md lists what is accepted.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import NamedTuple

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
# An overlay writes to its upper layer, for which Linux takes no network file system. vfat and exfat lack hard links,
# and refuse by themselves what needs them.
_LOCAL_OTHERS = {"tmpfs", "ramfs", "overlay", "apfs", "hfs", "ufs", "vfat", "exfat"}
LOCAL_TYPES = frozenset(_LOCAL_DISKS | _LOCAL_OTHERS)


class Mount(NamedTuple):
    """A mount: where it is, the type of its file system, its number, and that of the mount which it sits on."""

    point: str
    kind: str
    id: int = 1
    parent: int = 0


_MOUNTINFO = "/proc/self/mountinfo"
_OCTAL = re.compile(r"\\([0-7]{3})")
_MOUNT_LINE = r".+? on (/.*) \(([^,)]+)[^)]*\)"


def is_local_filesystem(path: str | os.PathLike[str]) -> bool:
    """Tell whether `path`, which need not exist yet, is surely on a file system of this machine."""
    return filesystem_type(path) in LOCAL_TYPES


def filesystem_type(path: str | os.PathLike[str]) -> str | None:
    """Return the file system's type as the system calls it ("ext4", "nfs4"), or None if it can't be told."""
    # Before the table is read: looking at the path has an automounter mount what it lies on.
    real = os.path.realpath(path)
    try:
        found = type_at(real, _mount_table())
        if found == "autofs":
            # A look at the very mount point does not; opening it does.
            with contextlib.suppress(OSError):
                os.close(os.open(real, os.O_RDONLY))
            found = type_at(real, _mount_table())
    except OSError:
        return None
    return found


def type_at(path: str, table: list[Mount]) -> str | None:
    """Return the type of the mount that holds the real path `path`."""
    above = [mount for mount in table if _is_below(path, mount.point)]
    known = {mount.id for mount in table}
    here: Mount | None = None
    # As the system walks the path: at each step into the first mount on the way that sits on the present one. The
    # longest mount point may be one that a later mount further up has covered.
    for _ in above:
        inner = [mount for mount in above if _sits_on(mount, here, known)]
        if not inner:
            break
        here = min(inner, key=lambda mount: len(mount.point))
    return None if here is None else here.kind


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point if point.endswith("/") else point + "/")


def _sits_on(mount: Mount, here: Mount | None, known: set[int]) -> bool:
    if here is None:
        return mount.parent not in known or mount.parent == mount.id
    return mount.parent == here.id and mount.id != here.id


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts in the text of Linux's /proc/self/mountinfo (proc(5))."""
    table = []
    for line in text.splitlines():
        mount, separator, source = line.partition(" - ")
        fields = mount.split(" ")
        if separator and len(fields) > 4:
            point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[4])
            table.append(Mount(point, source.split(" ")[0], int(fields[0]), int(fields[1])))
    return table


def parse_mount_output(text: str) -> list[Mount]:
    """Return the mounts in what macOS's mount(8) prints; there the longest mount point counts."""
    matches = (re.fullmatch(_MOUNT_LINE, line) for line in text.splitlines())
    found = sorted(((match[1], match[2]) for match in matches if match), key=lambda mount: len(mount[0]))
    mounts: list[Mount] = []
    for number, (point, kind) in enumerate(found, 1):
        on = [mount for mount in mounts if _is_below(point, mount.point)]
        mounts.append(Mount(point, kind, number, on[-1].id if on else 0))
    return mounts


def _mount_table() -> list[Mount]:
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
