"""Tasks for worker processes: each is a fresh Python that reads one task from its input and prints one result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Case: TypeAlias = dict[str, Any]
"""The parameters of one run of a workload: "label", and numbers.

"systems", if there, are those that it is for; one that "is_long" is not repeated within a round.
"""

ROOT = Path(__file__).resolve().parents[1]
RESULT = "RESULT "
"""What the line with a worker's result starts with: libraries may print other lines."""

TIMEOUT_S = 600

_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
_BYTECODE_FOLDER = "PYTHONPYCACHEPREFIX"


@dataclass(frozen=True, slots=True)
class Task:
    """What one worker does: some stages of a workload, with one system, in one folder."""

    workload: str
    system: str
    case: Case
    stages: tuple[str, ...]
    folder: str
    profile: bool = False
    spawned_at: float = 0.0
    """When the process was started, by `time.monotonic`, which all processes of a machine share."""

    @classmethod
    def from_json(cls, text: str) -> Task:
        fields = json.loads(text)
        return cls(**{**fields, "stages": tuple(fields["stages"])})


@dataclass(slots=True)
class Outcome:
    """What a worker reports: metrics for each stage, the error that ended it, profiles if they were asked for."""

    stages: dict[str, dict[str, float | None]] = field(default_factory=dict)
    error: str | None = None
    profiles: dict[str, str] = field(default_factory=dict)


class Worker:
    """A worker process under way."""

    def __init__(self, task: Task) -> None:
        self._task = task
        spawned_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._input = json.dumps(asdict(task) | {"spawned_at": spawned_at})

    def wait(self) -> Outcome:
        """Hand over the task, wait for the end, and return what was reported; never raises for a worker's failure."""
        try:
            output, errors = self._process.communicate(self._input, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return Outcome(error=f"took longer than {TIMEOUT_S} s")
        lines = [line for line in output.splitlines() if line.startswith(RESULT)]
        if not lines:
            tail = " | ".join(errors.strip().splitlines()[-3:])
            return Outcome(error=f"ended with status {self._process.returncode} and no result: {tail}")
        return Outcome(**json.loads(lines[-1][len(RESULT) :]))


@contextmanager
def keeping_compiled_code() -> Iterator[None]:
    """Let workers keep compiled modules where Python was told not to.

    Else each process would compile what a checkout holds, but not what pip has installed, and the start of a process
    is measured.
    """
    changed = {_NO_BYTECODE: None, _BYTECODE_FOLDER: str(ROOT / "benchmarks" / "__pycache__" / "workers")}
    before = {name: os.environ.get(name) for name in changed}
    if before[_NO_BYTECODE]:
        _set_environment(changed)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def run(task: Task) -> Outcome:
    """Run a task in a fresh process."""
    return Worker(task).wait()
