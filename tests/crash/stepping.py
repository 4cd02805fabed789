"""A child process that is stopped before and after each of its system calls on a file system, by ptrace(2).

What Python's own hooks can't reach, SQLite's calls above all, is met like any other call. At a stop the caller may
copy the disk, let the call fail with an errno instead of being made, or kill the child. Linux on x86-64.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_SEIZE, _INTERRUPT, _SYSCALL, _POKEUSER, _GETEVENTMSG, _SYSCALL_INFO = (
    0x4206,
    0x4207,
    24,
    6,
    0x4201,
    0x420E,
)
_TRACE_SYSGOOD, _TRACE_CLONE, _EXIT_KILL = 0x1, 0x8, 0x100000
_ENTRY, _EXIT = 1, 2
_ORIG_RAX, _RAX = 15 * 8, 10 * 8
_WALL = 0x40000000
_CREATES = os.O_CREAT

_FD, _PATH, _AT_PATH, _TWO_PATHS, _TWO_AT_PATHS = range(5)
_PATHS_AT = {
    _PATH: ((0, None),),
    _AT_PATH: ((1, 0),),
    _TWO_PATHS: ((0, None), (1, None)),
    _TWO_AT_PATHS: ((1, 0), (3, 2)),
}
"""Which arguments are a path, and the folder that it is relative to."""
_CALLS = {
    1: ("write", _FD),
    18: ("pwrite64", _FD),
    296: ("pwritev", _FD),
    74: ("fsync", _FD),
    75: ("fdatasync", _FD),
    77: ("ftruncate", _FD),
    285: ("fallocate", _FD),
    2: ("open", _PATH),
    257: ("openat", _AT_PATH),
    83: ("mkdir", _PATH),
    258: ("mkdirat", _AT_PATH),
    87: ("unlink", _PATH),
    263: ("unlinkat", _AT_PATH),
    82: ("rename", _TWO_PATHS),
    264: ("renameat", _TWO_AT_PATHS),
    316: ("renameat2", _TWO_AT_PATHS),
    86: ("link", _TWO_PATHS),
    265: ("linkat", _TWO_AT_PATHS),
}
SYNCS = ("fsync", "fdatasync")


class _Info(ctypes.Structure):
    """ptrace_syscall_info; at the exit the first word of `words` is the result."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("words", ctypes.c_uint64 * 8),
    )


@dataclass
class Call:
    """A system call under the watched folder; `path` is relative to it, of what is renamed or linked the new name.

    `result` is None before the call, then what it returned, or a negative errno. `said` is what the child printed
    until now, line by line.
    """

    number: int
    name: str
    path: str
    said: list[str]
    source: str = ""
    result: int | None = None
    fail_with: int | None = None

    def __str__(self) -> str:
        moment = "before" if self.result is None else "after"
        return f"{moment} call {self.number}, {self.name} {self.path}"


def require_ptrace() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("needs Linux on x86-64: system calls are known by their numbers")


class Stepped:
    """A child that runs `command`, prints "ready", waits for a line, and is watched from then on."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._folder = os.path.realpath(folder)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self._libc.ptrace.restype = ctypes.c_long
        self._made = 0
        self._text = b""
        self._open_calls: dict[int, Call] = {}
        self._entered: set[int] = set()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Stepped:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def kill(self) -> None:
        """End the child by SIGKILL, if it has not ended."""
        if self.process.returncode is None:
            self.process.kill()
            with contextlib.suppress(ChildProcessError):
                while True:
                    pid, _ = os.waitpid(-self.process.pid, _WALL)
                    if pid == self.process.pid:
                        break
            self.process.returncode = -signal.SIGKILL

    def run(self, visit: Callable[[Call], bool]) -> list[str]:
        """Let the child go on until it ends or `visit`, called before and after each call, returns False.

        Returns what it printed. `visit` may set `fail_with` before a call, which is then not made.
        """
        self._wait_until_ready()
        for thread in self._threads():
            self._ptrace(_SEIZE, thread, _TRACE_SYSGOOD | _TRACE_CLONE | _EXIT_KILL)
            self._ptrace(_INTERRUPT, thread)
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        while True:
            pid, status = os.waitpid(-self.process.pid, _WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if pid == self.process.pid:
                    self.process.returncode = os.waitstatus_to_exitcode(status)
                    return self._lines()
                continue
            deliver = 0
            kind = os.WSTOPSIG(status)
            if kind == signal.SIGTRAP | 0x80:
                if not self._visit(pid, visit):
                    return self._lines()
            elif status >> 16 == 0 and kind not in (signal.SIGTRAP, signal.SIGSTOP):
                deliver = kind
            with contextlib.suppress(ProcessLookupError):
                self._ptrace(_SYSCALL, pid, deliver)

    def _wait_until_ready(self) -> None:
        limit = time.monotonic() + 60
        while "ready" not in self._lines():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise AssertionError(f"the child ended or hung before it was ready: {self._lines()}")
            assert self.process.stdout is not None
            select.select([self.process.stdout], [], [], 1)

    def _threads(self) -> list[int]:
        return [int(name) for name in os.listdir(f"/proc/{self.process.pid}/task")]

    def _lines(self) -> list[str]:
        """Return the whole lines that the child has printed."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while select.select([fd], [], [], 0)[0]:
            data = os.read(fd, 65536)
            if not data:
                break
            self._text += data
        return self._text[: self._text.rfind(b"\n") + 1].decode().splitlines()

    def _visit(self, thread: int, visit: Callable[[Call], bool]) -> bool:
        info = _Info()
        self._ptrace(_SYSCALL_INFO, thread, ctypes.addressof(info), address=ctypes.sizeof(info))
        if info.op == _ENTRY:
            found = self._describe(thread, info)
            if found is None:
                return True
            self._made += 1
            name, path, source = found
            call = Call(self._made, name, path, self._lines(), source)
            self._open_calls[thread] = call
            goes_on = visit(call)
            if call.fail_with is not None:
                self._ptrace(_POKEUSER, thread, 2**64 - 1, address=_ORIG_RAX)
            return goes_on
        ended = self._open_calls.pop(thread, None)
        if info.op != _EXIT or ended is None:
            return True
        if ended.fail_with is not None:
            self._ptrace(_POKEUSER, thread, 2**64 - ended.fail_with, address=_RAX)
            ended.result = -ended.fail_with
        else:
            ended.result = ctypes.c_int64(info.words[0]).value
        return visit(ended)

    def _describe(self, thread: int, info: _Info) -> tuple[str, str, str] | None:
        """Return the name, path and source of a call that may change the watched folder, or None."""
        name, shape = _CALLS.get(info.words[0], ("", None))
        arguments = info.words[1:]
        if shape is None:
            return None
        if name == "open" and not arguments[1] & _CREATES:
            return None
        if name == "openat" and not arguments[2] & _CREATES:
            return None
        try:
            if shape == _FD:
                paths = [os.readlink(f"/proc/{thread}/fd/{ctypes.c_int(arguments[0]).value}")]
            else:
                paths = [self._path(thread, arguments, *where) for where in _PATHS_AT[shape]]
        except OSError:
            return None
        names = [self._name(path.removesuffix(" (deleted)")) for path in paths]
        return None if names[-1] is None else (name, names[-1], (names[0] or "") if len(names) > 1 else "")

    def _path(self, thread: int, arguments: list[int], number: int, folder: int | None) -> str:
        path = self._string(thread, arguments[number])
        if folder is None or os.path.isabs(path):
            return path
        fd = ctypes.c_int(arguments[folder]).value
        return os.path.join(os.readlink(f"/proc/{thread}/{'cwd' if fd < 0 else f'fd/{fd}'}"), path)

    def _name(self, path: str) -> str | None:
        inside = path == self._folder or path.startswith(f"{self._folder}/")
        return os.path.relpath(path, self._folder) if inside else None

    def _string(self, thread: int, address: int) -> str:
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            # Up to the end of a page: the next one need not be there.
            data = memory.read(4096 - address % 4096)
            if b"\0" not in data:
                data += memory.read(4096)
        return os.fsdecode(data.split(b"\0")[0])

    def _ptrace(self, request: int, thread: int, data: int = 0, *, address: int = 0) -> None:
        if self._libc.ptrace(request, thread, address, data) == -1 and ctypes.get_errno():
            code = ctypes.get_errno()
            ctypes.set_errno(0)
            if code == 1:
                pytest.skip("this system does not permit ptrace")
            raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def stepped(script: str, folder: Path, *arguments: str) -> Iterator[Stepped]:
    """Run a script that calls `tests.crash.stepping.started()` before what is to be watched below `folder`."""
    require_ptrace()
    with Stepped([sys.executable, "-c", script, str(folder), *arguments], folder) as child:
        yield child


def started() -> None:
    """Say, in the child, that what is to be watched begins now."""
    print("ready", flush=True)
    sys.stdin.readline()
