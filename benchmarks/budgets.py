"""What vstore should reach: the budgets that were set before it was written, and what a run says of each.

A budget is a bound on one metric of one system, by itself or against another system of the same round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any

from benchmarks.harness import Rounds
from benchmarks.systems import BASELINE, LIMIT
from benchmarks.workloads.base import Unit


class Bound(Enum):
    """What a budget bounds, and which way."""

    AT_MOST = "at most {limit}"
    AT_MOST_OVER = "at most {limit} over {other}"
    AT_MOST_TIMES = "at most {limit} times {other}"
    AT_LEAST = "at least {limit}"
    AT_LEAST_FASTER = "at least {limit}x faster than {other}"
    AT_LEAST_TIMES = "at least {limit}x {other}"


@dataclass(frozen=True, slots=True)
class Budget:
    """`case` is how the label of the case it is for starts or ends; `other` the system that it is compared with."""

    workload: str
    what: str
    case: str
    system: str
    stage: str
    metric: str
    bound: Bound
    limit: float
    unit: Unit = Unit.NUMBER
    other: str = ""

    @property
    def is_least(self) -> bool:
        return self.bound in (Bound.AT_LEAST, Bound.AT_LEAST_FASTER, Bound.AT_LEAST_TIMES)

    @property
    def shown_in(self) -> Unit:
        """The unit of the figure that is compared with the limit."""
        return self.unit if self.bound in (Bound.AT_MOST, Bound.AT_MOST_OVER, Bound.AT_LEAST) else Unit.NUMBER


@dataclass(frozen=True, slots=True)
class Outcome:
    """A budget, the median of its figure over all rounds, and whether that keeps it."""

    budget: Budget
    measured: float

    @property
    def is_met(self) -> bool:
        if self.budget.is_least:
            return self.measured >= self.budget.limit
        return self.measured <= self.budget.limit


_PIPELINES = {"": "default pipeline", "+fused": "fused pipeline", "+own": "own pipeline"}


def _iter_bulk() -> Iterator[Budget]:
    over = {"64 KiB": (90e-6, 25e-6, 15e-6), "4 KiB": (85e-6, 35e-6, 12e-6)}
    for size, limits in over.items():
        for (suffix, pipeline), limit in zip(_PIPELINES.items(), limits, strict=True):
            yield Budget(
                "W1", f"write {size} chunks, {pipeline}, each", f" of {size}", f"vstore{suffix}", "write",
                "chunk_s", Bound.AT_MOST_OVER, limit, Unit.MICROSECONDS, LIMIT,
            )  # fmt: skip
    yield Budget(
        "W1", "write 1 MiB chunks", " of 1 MiB", "vstore", "write", "chunk_s", Bound.AT_MOST_TIMES, 1.6,
        Unit.MICROSECONDS, LIMIT,
    )  # fmt: skip
    faster = {"1 MiB": (5.0, None, None), "64 KiB": (5.0, 9.0, 10.0), "4 KiB": (3.5, 8.0, 15.0)}
    for size, least in faster.items():
        for (suffix, pipeline), limit in zip(_PIPELINES.items(), least, strict=True):
            if limit is not None:
                yield _faster(
                    f"first read of {size} chunks, {pipeline}", size, suffix, "first_chunk_s", limit
                )
    yield _faster("second read of 1 MiB chunks", "1 MiB", "", "again_chunk_s", 9.0)
    for size in ("64 KiB", "4 KiB"):
        yield _faster(f"one chunk of {size}", size, "", "one_p50_s", 2.3)
        yield _faster(f"one chunk of {size}, own pipeline", size, "+own", "one_p50_s", 4.0)


def _faster(what: str, size: str, suffix: str, metric: str, limit: float) -> Budget:
    return Budget(
        "W2", what, f" of {size}", f"vstore{suffix}", "read", metric, Bound.AT_LEAST_FASTER, limit,
        other=BASELINE,
    )  # fmt: skip


def _own(
    workload: str, what: str, case: str, stage: str, metric: str, limit: float, unit: Unit = Unit.NUMBER
) -> Budget:
    return Budget(workload, what, case, "vstore", stage, metric, Bound.AT_MOST, limit, unit)


def _iter_commits() -> Iterator[Budget]:
    for count in ("1,000", "100,000", "1,000,000"):
        case = f"{count} chunks"
        yield _own(
            "W3", f"one chunk of {count}: written, mean", case, "one", "overhead_bytes", 10e3, Unit.BYTES
        )
        yield _own("W3", f"one chunk of {count}: written, p99", case, "one", "p99_bytes", 70e3, Unit.BYTES)
        yield _own(
            "W3", f"one chunk of {count}: CPU, mean", case, "one", "commit_cpu_s", 1e-3, Unit.MILLISECONDS
        )
    case = "1,000,000 chunks"
    yield _own("W3", "100 spread chunks of 1,000,000", case, "spread", "commit_s", 5e-3, Unit.MILLISECONDS)
    yield _own(
        "W3", "100 spread chunks of 1,000,000: written", case, "spread", "overhead_bytes", 30e3, Unit.BYTES
    )


BUDGETS: tuple[Budget, ...] = (
    *_iter_bulk(),
    *_iter_commits(),
    Budget(
        "W4", "commits per second", "", "vstore", "commit", "commits_per_s", Bound.AT_LEAST_TIMES, 2.0,
        other=BASELINE,
    ),
    _own("W4", "kept beside the chunk, each commit", "", "look", "overhead_bytes", 2e3, Unit.BYTES),
    _own("W4", "files for each commit", "", "look", "files", 1.01),
    Budget(
        "W5", "make 10,000 arrays", "10,000 ", "vstore", "create", "s", Bound.AT_LEAST_FASTER, 3.0, other=BASELINE
    ),
    _own("W5", "list_dir of 10,000", "10,000 ", "look", "list_first_s", 20e-3, Unit.MILLISECONDS),
    _own("W5", "one attribute and commit", "10,000 ", "attribute", "change_s", 3e-3, Unit.MILLISECONDS),
    _own("W5", "one attribute: written", "10,000 ", "attribute", "change_written_bytes", 10e3, Unit.BYTES),
    _own("W6", "set and commit 1,000,000 refs", "1,000,000 ", "refer", "s", 0.3, Unit.SECONDS),
    _own("W6", "memory for that", "1,000,000 ", "refer", "peak_bytes", 64 * 2**20, Unit.BYTES),
    _own("W6", "bytes for each ref", "1,000,000 ", "refer", "bytes_per_ref", 8.0),
    _own("W6", "open and read the first chunk", "1,000,000 ", "look", "first_s", 5e-3, Unit.MILLISECONDS),
    _own("W7", "bytes, of a fresh copy", "", "collect", "bytes_over_fresh", 1.1),
    _own("W7", "files, of a fresh copy", "", "collect", "files_over_fresh", 1.1),
    _own("W8", "lost commits", "", "count", "lost", 0),
    Budget("W8", "commits per second", "", "vstore", "contend", "commits_per_s", Bound.AT_LEAST, 150.0),
    _own("W9", "growth by an identical rerun, of the data", "", "again", "growth", 0.01),
    _own("W10", "import vstore", "", "load", "import_s", 50e-3, Unit.MILLISECONDS),
    Budget(
        "W10", "start, open, one value", "", "vstore", "look", "value_s", Bound.AT_MOST_TIMES, 1.05,
        Unit.MILLISECONDS, "zarr-local",
    ),
    _own("S1", "1e8 refs as a stream: memory", "100,000,000 ", "fill", "peak_bytes", 256 * 2**20, Unit.BYTES),
)  # fmt: skip


def judge(results: dict[str, Any], workload: str | None = None) -> list[Outcome]:
    """Return what a run's results say of each budget (of one workload); those that it says nothing of are left out."""
    outcomes = []
    for budget in BUDGETS:
        if workload in (None, budget.workload):
            figures = list(_iter_figures(budget, results))
            if figures:
                outcomes.append(Outcome(budget, median(figures)))
    return outcomes


def _iter_figures(budget: Budget, results: dict[str, Any]) -> Iterator[float]:
    # W2 is part of what W1 ran.
    cases = results["workloads"].get("W1" if budget.workload == "W2" else budget.workload, {})
    for label, systems in cases.items():
        if label.startswith(budget.case) or label.endswith(budget.case):
            for number in range(len(systems.get(budget.system, []))):
                figure = _figure(budget, systems, number)
                if figure is not None:
                    yield figure


def _figure(budget: Budget, systems: dict[str, Rounds], number: int) -> float | None:
    value = _metric(budget, systems[budget.system], number)
    if value is None or not budget.other:
        return value
    other = _metric(budget, systems.get(budget.other, []), number)
    if other is None:
        return None
    if budget.bound is Bound.AT_MOST_OVER:
        return value - other
    above, below = (other, value) if budget.bound is Bound.AT_LEAST_FASTER else (value, other)
    return above / below if below else None


def _metric(budget: Budget, rounds: Rounds, number: int) -> float | None:
    if number >= len(rounds):
        return None
    value: float | None = rounds[number]["stages"].get(budget.stage, {}).get(budget.metric)
    return value
