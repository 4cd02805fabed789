"""Small disks of their own for tests: file systems in image files, mounted through loop devices.

An image that is copied while it is mounted is the disk as a power cut would leave it at that moment: what no sync has
forced out is not in it. What such a copy does not show: a cut in the middle of a sync, and a drive that reorders or
loses what it has acknowledged.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vstore.blobs.cache import CACHE

MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
_SIZES = {"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}
_OPTIONS = {"ext4": "loop,commit=300", "xfs": "loop,nouuid", "btrfs": "loop,commit=300"}
_BLOCK = 4096


def make_image(path: Path, kind: str = "ext4") -> None:
    """Make a file system of this kind in the file `path`; skips the test where that can't be done."""
    command = MAKERS[kind]
    search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    program = shutil.which(command[0], path=search)
    if program is None:
        pytest.skip(f"needs {command[0]}")
    with open(path, "wb") as file:
        file.truncate(_SIZES[kind])
    subprocess.run([program, *command[1:], os.fspath(path)], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def mounted(image: Path, point: Path, kind: str = "ext4") -> Iterator[Path]:
    """Mount an image; skips the test where that is not permitted."""
    _mount(["-t", kind, "-o", _OPTIONS[kind], os.fspath(image)], point)
    try:
        yield point
    finally:
        unmount(point)


@contextlib.contextmanager
def memory_disk(point: Path, size: str = "1m") -> Iterator[Path]:
    """Mount a tmpfs of this size, which can be filled; skips the test where that is not permitted."""
    _mount(["-t", "tmpfs", "-o", f"size={size}", "vstore-test"], point)
    try:
        yield point
    finally:
        unmount(point)


def _mount(arguments: list[str], point: Path) -> None:
    if shutil.which("mount") is None:
        pytest.skip("needs the command mount")
    point.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", *arguments, os.fspath(point)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        refused = "permission" in done.stderr or "permitted" in done.stderr or "superuser" in done.stderr
        if refused or "loop device" in done.stderr or "unknown filesystem" in done.stderr:
            pytest.skip(f"needs leave to mount a disk: {done.stderr.strip()}")
        raise AssertionError(f"a disk could not be mounted: {done.stderr}")


def unmount(point: Path) -> None:
    CACHE.clear()
    for _ in range(2):
        if subprocess.run(["umount", os.fspath(point)], capture_output=True, check=False).returncode == 0:
            return
        # A map of a file there is in a cycle.
        gc.collect()
    # A failed test's traceback holds a file there; the disk goes when that does.
    subprocess.run(["umount", "-l", os.fspath(point)], check=True)


def copy_image(image: Path, target: Path) -> None:
    """Copy an image without its holes, to a new file: a loop device may still hold the old one."""
    target.unlink(missing_ok=True)
    with open(image, "rb", buffering=0) as source, open(target, "wb", buffering=0) as copy:
        size = os.fstat(source.fileno()).st_size
        copy.truncate(size)
        for start, end in _extents(source.fileno(), size):
            os.lseek(copy.fileno(), start, os.SEEK_SET)
            while start < end:
                start += os.sendfile(copy.fileno(), source.fileno(), start, end - start)


def digest_of(image: Path) -> bytes:
    """Return what tells the image's bytes from another's."""
    from blake3 import blake3

    found = blake3()
    with open(image, "rb", buffering=0) as file:
        for start, end in _extents(file.fileno(), os.fstat(file.fileno()).st_size):
            found.update(start.to_bytes(8, "big"))
            found.update(os.pread(file.fileno(), end - start, start))
    return found.digest()


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def write_some_back(folder: Path, chance: random.Random) -> None:
    """Write some dirty pages below `folder` to its disk, as the system may at any time, in any order."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or chance.random() < 0.5:
            continue
        fd = os.open(path, os.O_RDONLY)
        try:
            for block in range(0, os.fstat(fd).st_size, _BLOCK):
                if chance.random() < 0.5:
                    _libc().sync_file_range(fd, block, _BLOCK, 7)
        finally:
            os.close(fd)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return libc
