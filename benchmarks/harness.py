"""Rounds: each system takes its turn in each round, in fresh processes, and the order rotates."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from benchmarks.measure import disk_usage
from benchmarks.processes import Case, Outcome, Task, run
from benchmarks.scales import Scale
from benchmarks.systems import SYSTEMS, system_class, variants, why_unavailable
from benchmarks.systems.base import DEFAULT_PIPELINE
from benchmarks.workloads.base import Workload

T = TypeVar("T")

Rounds: TypeAlias = list[dict[str, Any]]
"""One item for each round: {"stages": {stage: {metric: number}}, "error": text or None}."""

Report: TypeAlias = Callable[[str], None]


def run_workload(
    workload: Workload,
    scale: Scale,
    systems: Sequence[str],
    rounds: int,
    *,
    profile: bool = False,
    report: Report = lambda _: None,
) -> dict[str, dict[str, Rounds]]:
    """Run all cases and return {case label: {system: rounds}}."""
    results: dict[str, dict[str, Rounds]] = {}
    for case in workload.cases(scale):
        suited = systems_of(case, systems)
        by_system: dict[str, Rounds] = {system: [] for system in suited}
        for number in range(rounds if case.get("is_long") else workload.rounds(scale, rounds)):
            for system in rotated(suited, number):
                report(f"{workload.name} {case['label']}, round {number + 1}: {system}")
                outcome = run_once(workload, case, system, profile=profile)
                by_system[system].append({"stages": outcome.stages, "error": outcome.error})
                if outcome.error:
                    report(f"{workload.name} {case['label']}: {system} FAILED: {outcome.error}\n")
                for stage, text in outcome.profiles.items():
                    report(f"profile of {system}, stage {stage!r}\n{text}\n")
        if by_system:
            results[case["label"]] = by_system
    return results


def systems_of(case: Case, systems: Sequence[str]) -> list[str]:
    """Return those of `systems` that a case is for: some say, where others have nothing to tell."""
    return [name for name in systems if name.partition("+")[0] in case.get("systems", SYSTEMS)]


def run_once(workload: Workload, case: Case, system: str, *, profile: bool = False) -> Outcome:
    """Run the stages of one case with one system in a new folder; stop at the first error."""
    kind = system_class(system)
    with tempfile.TemporaryDirectory(prefix="benchmarks-", ignore_cleanup_errors=True) as folder:
        total = Outcome()
        for stages in _processes(workload, case, system):
            task = Task(workload.name, system, case, stages, folder, profile)
            before = disk_usage(Path(folder) / "store")
            outcome = run(task)
            after = disk_usage(Path(folder) / "store")
            total.stages |= outcome.stages
            total.profiles |= outcome.profiles
            if outcome.error:
                total.error = f"{'+'.join(stages)}: {outcome.error}".replace(folder, "<folder>")
                break
            if kind.is_persistent and not kind.is_distant:
                total.stages[stages[-1]] |= {
                    "disk_bytes": after[0],
                    "disk_files": after[1],
                    "disk_growth_bytes": after[0] - before[0],
                    "disk_growth_files": after[1] - before[1],
                }
        kind.remove(Path(folder) / "store")
    return total


def _processes(workload: Workload, case: Case, system: str) -> Iterator[tuple[str, ...]]:
    """Yield the stages of each process; what is only in memory needs one process for all."""
    kind = system_class(system)
    stages = workload.stages_of(case, kind)
    if kind.is_persistent:
        for stage in stages:
            yield (stage,)
    else:
        yield stages


def rotated(items: Sequence[T], number: int) -> list[T]:
    """Return the items in the order of round `number`: each round starts one later."""
    start = number % len(items) if items else 0
    return [*items[start:], *items[:start]]


def choose_systems(
    workload: Workload, scale: Scale, wanted: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Return the systems and variants that a workload runs with, and notes on those that can't."""
    names = wanted or scale.systems or tuple(SYSTEMS)
    chosen, notes = [], []
    for name in SYSTEMS:
        for variant in variants(name) if workload.with_pipelines else [name]:
            asked = {name, variant, f"{variant}+{DEFAULT_PIPELINE}"}
            if not (asked & set(names)) or not workload.suits(SYSTEMS[name]):
                continue
            if SYSTEMS[name].is_distant != workload.is_distant:
                continue
            why = why_unavailable(variant)
            if why is None:
                chosen.append(variant)
            else:
                notes.append(f"{variant} is skipped: {why}")
    return chosen, notes


def free_bytes() -> int:
    """Return the room where the benchmarks put their files."""
    return shutil.disk_usage(tempfile.gettempdir()).free
