"""What a workload is: cases, stages that run in fresh processes, and the tables that show what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from benchmarks.measure import Measured, Metrics
from benchmarks.processes import Case, Task
from benchmarks.scales import Scale
from benchmarks.systems.base import System


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage may know beside its system."""

    task: Task
    folder: Path

    @property
    def case(self) -> Case:
        """The parameters of this run."""
        return self.task.case


StageFunction: TypeAlias = Callable[[System, Context], Metrics]


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a workload. Each runs in a process of its own, unless the system can't be shared by processes."""

    run: StageFunction
    warm_bytes: Callable[[Case], int] | None = None
    """How much memory is touched before."""
    is_cold: bool = False
    """Nothing may be imported before: the start itself is measured."""
    is_helper: bool = False
    """Started by another stage, not by the harness."""
    applies: Callable[[Case], bool] | None = None
    """Which cases it is for; None for all."""
    systems: type[System] = System
    """Which systems it is for."""


class Unit(Enum):
    """How numbers are shown. All metrics are in seconds, bytes or plain numbers."""

    MICROSECONDS = "us"
    MILLISECONDS = "ms"
    SECONDS = "s"
    BYTES = "B"
    NUMBER = ""


class Against(Enum):
    """What a column compares with, inside each round."""

    NOTHING = ""
    BASELINE = "times better than icechunk"
    DISTANT = "times better than icechunk, far away"
    LIMIT = "more than one file and a sync"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: a metric of a stage, in a unit, by itself or compared."""

    header: str
    stage: str
    metric: str
    unit: Unit = Unit.NUMBER
    against: Against = Against.NOTHING
    higher_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """One of W1 to W10. `names` are all names it answers to: writing and reading are one run."""

    names: tuple[str, ...]
    title: str
    cases: Callable[[Scale], Iterable[Case]]
    stages: dict[str, Stage]
    suits: Callable[[type[System]], bool]
    tables: tuple[Table, ...]
    with_pipelines: bool = False
    """Whether systems are also run with zarr's other codec pipelines."""
    is_distant: bool = False
    """Whether it is for systems in an object store that is far away, instead of for all others."""
    rounds: Callable[[Scale, int], int] = lambda scale, rounds: rounds
    """How many rounds it takes when the command asks for so many."""

    @property
    def name(self) -> str:
        return self.names[0]

    def stages_of(self, case: Case, system: type[System]) -> tuple[str, ...]:
        """Return the stages that the harness runs for a case with a system, in order."""
        return tuple(
            name
            for name, stage in self.stages.items()
            if not stage.is_helper
            and (stage.applies is None or stage.applies(case))
            and issubclass(system, stage.systems)
        )


def common(measured: Measured, system: System, before: dict[str, int]) -> Metrics:
    """Return what is recorded of every stage: CPU time, bytes written, peak memory, requests since `before`."""
    metrics: Metrics = {"s": measured.seconds, "cpu_s": measured.cpu_seconds}
    metrics["written_bytes"] = measured.written_bytes
    metrics["peak_bytes"] = measured.peak_bytes
    requests = requests_since(system, before)
    if requests:
        metrics["requests"] = sum(requests.values())
        metrics.update({f"requests_{kind}": count for kind, count in requests.items()})
    return metrics


def requests_since(system: System, before: dict[str, int]) -> dict[str, int]:
    """Return the requests of each kind since `before`."""
    return {kind: count - before.get(kind, 0) for kind, count in system.requests().items()}


def requests_each(system: System, before: dict[str, int], count: int) -> Metrics:
    """Return the requests since `before` for each of `count` operations, if requests are counted."""
    requests = requests_since(system, before)
    return {"requests_each": sum(requests.values()) / count} if requests else {}


def any_system(_: type[System]) -> bool:
    return True
