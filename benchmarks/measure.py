"""What a process can tell of itself and of a folder: time, CPU time, bytes written, peak memory, files.

Linux tells all of it in /proc; elsewhere what is missing is None.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Metrics: TypeAlias = dict[str, float | None]

_PAGE = 4096


@dataclass(slots=True)
class Measured:
    """What happened inside a `measuring` block; filled in when the block ends."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    written_bytes: int | None = None
    peak_bytes: int | None = None


@contextmanager
def measuring(*, peak: bool = True) -> Iterator[Measured]:
    """Measure a block. `peak` also measures by how much its memory peaked, which is too slow for tiny blocks."""
    result = Measured()
    before = None
    if peak:
        gc.collect()
        before = _reset_peak()
    written, cpu, start = _written_bytes(), time.process_time(), time.perf_counter()
    yield result
    result.seconds = time.perf_counter() - start
    result.cpu_seconds = time.process_time() - cpu
    now_written = _written_bytes()
    if written is not None and now_written is not None:
        result.written_bytes = now_written - written
    if before is not None:
        result.peak_bytes = max(0, _peak_bytes() - before)


def warm_memory(size_bytes: int) -> None:
    """Touch that much memory and give it back, so that the timed part does not pay for the host handing it out."""
    if size_bytes < _PAGE:
        return
    with mmap.mmap(-1, size_bytes) as memory:
        memory[::_PAGE] = b"\1" * len(range(0, size_bytes, _PAGE))


def disk_usage(folder: Path) -> tuple[int, int]:
    """Return the bytes and the number of all files below `folder`."""
    size = count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            size += os.lstat(os.path.join(parent, name)).st_size
            count += 1
    return size, count


def _written_bytes() -> int | None:
    """Bytes that this process gave to write calls so far; those written through maps are not in it."""
    try:
        with open("/proc/self/io") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("wchar"))
    except OSError:
        return None


def _reset_peak() -> int:
    """Start the peak anew where the system can, and return the memory that is in use now."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return _peak_bytes()
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    try:
        return _status_bytes("VmHWM")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
