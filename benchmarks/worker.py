"""The entry point of worker processes. Imports little: how long a process needs to start is measured as well."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import Metrics, warm_memory
from benchmarks.processes import RESULT, Outcome, Task
from benchmarks.systems import make_system
from benchmarks.systems.base import System
from benchmarks.workloads import get_workload
from benchmarks.workloads.base import Context

_PROFILE_LINES = 25


def main() -> None:
    """Read a task from standard input, run its stages, print the outcome."""
    outcome = run_task(Task.from_json(sys.stdin.read()))
    sys.stdout.write(f"\n{RESULT}{json.dumps(asdict(outcome))}\n")


def run_task(task: Task) -> Outcome:
    """Run the stages of a task on one system object, one after another."""
    outcome = Outcome()
    system = make_system(task.system, Path(task.folder) / "store")
    workload = get_workload(task.workload)
    try:
        if not any(workload.stages[name].is_cold for name in task.stages):
            system.warm_up(Path(task.folder) / f"warm-{os.getpid()}")
        for name in task.stages:
            stage = workload.stages[name]
            warm_memory(0 if stage.warm_bytes is None else stage.warm_bytes(task.case))
            context = Context(task, Path(task.folder))
            if task.profile:
                outcome.stages[name], outcome.profiles[name] = _profiled(stage.run, system, context)
            else:
                outcome.stages[name] = stage.run(system, context)
        system.close()
    except Exception as error:  # noqa: BLE001  a worker reports whatever went wrong
        outcome.error = f"{type(error).__name__}: {error}".partition("\n")[0]
    return outcome


def _profiled(
    run: Callable[[System, Context], Metrics], system: System, context: Context
) -> tuple[Metrics, str]:
    import cProfile
    import io
    import pstats

    profile = cProfile.Profile()
    metrics = profile.runcall(run, system, context)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(_PROFILE_LINES)
    return metrics, text.getvalue()


if __name__ == "__main__":
    main()
