"""From results to tables: medians with their spread, and ratios that were taken inside each round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.budgets import Bound, Outcome, judge
from benchmarks.harness import Rounds
from benchmarks.systems import BASELINE, DISTANT_BASELINE, LIMIT, system_class
from benchmarks.workloads import get_workload
from benchmarks.workloads.base import Against, Column, Table, Unit

_FACTORS = {Unit.MICROSECONDS: 1e6, Unit.MILLISECONDS: 1e3, Unit.SECONDS: 1.0, Unit.NUMBER: 1.0}
_OTHERS = {Against.BASELINE: BASELINE, Against.DISTANT: DISTANT_BASELINE, Against.LIMIT: LIMIT}
_BYTE_UNITS = ("B", "kB", "MB", "GB")


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of all rounds, and the smallest and the largest."""

    median: float
    least: float
    most: float
    rounds: int


def figure(column: Column, system: str, results: dict[str, Rounds]) -> Figure | None:
    """Return what a column shows of a system; None if there is nothing to show."""
    found = [value for value in _values(column, system, results) if value is not None]
    return Figure(median(found), min(found), max(found), len(found)) if found else None


def _values(column: Column, system: str, results: dict[str, Rounds]) -> Iterator[float | None]:
    other = _OTHERS.get(column.against)
    for number in range(len(results[system])):
        value = _metric(column, results[system], number)
        if other is None or value is None:
            yield value
            continue
        against = _metric(column, results.get(other, []), number)
        yield None if against is None else _compare(column, value, against)


def _metric(column: Column, rounds: Rounds, number: int) -> float | None:
    if number >= len(rounds):
        return None
    value: float | None = rounds[number]["stages"].get(column.stage, {}).get(column.metric)
    return value


def _compare(column: Column, value: float, against: float) -> float | None:
    if column.against is Against.LIMIT:
        return value - against
    above, below = (value, against) if column.higher_is_better else (against, value)
    return above / below if below else None


def show_results(results: dict[str, Any]) -> str:
    """Return all tables of a run as text."""
    parts = [_heading(results)]
    for name, cases in results["workloads"].items():
        for table in get_workload(name).tables:
            parts.extend(filter(None, (_table(table, label, case) for label, case in cases.items())))
        for also in get_workload(name).names:
            parts.extend(filter(None, [_judgement(also, results)]))
    if results["notes"]:
        parts.append("\n".join(results["notes"]))
    return "\n\n".join(parts) + "\n"


def _heading(results: dict[str, Any]) -> str:
    environment = results["environment"]
    versions = ", ".join(f"{name} {text}" for name, text in environment["versions"].items() if text)
    return (
        f"{environment['date']}, {results['scale']} run, {environment['cpus']} CPUs, Python {environment['python']}\n"
        f"{versions}; vstore at {environment['commit']}\n"
        "Medians, with (least to most) where there were several rounds. x ice: times better than icechunk in the same\n"
        "round. over limit: more than one file and a sync in the same round. [s]: synced. [1]: all in one process."
    )


def _table(table: Table, label: str, results: dict[str, Rounds]) -> str:
    """Return a table as text; "" if it has nothing to tell."""
    rows = list(_iter_rows(table, results))
    failures = [
        f"{system} FAILED: {item['error']}"
        for system, rounds in results.items()
        for item in rounds
        if item["error"]
    ]
    if not failures and not any(any(row[1:]) for row in rows[1:]):
        return ""
    return "\n".join([f"{table.title}: {label}", align(_without_empty(rows)), *failures])


def _iter_rows(table: Table, results: dict[str, Rounds]) -> Iterator[list[str]]:
    yield ["system", *(column.header for column in table.columns)]
    for system in results:
        cells = [_cell(column, figure(column, system, results)) for column in table.columns]
        if any(cells):
            yield [_row_name(system), *cells]


def show_side_by_side(results: dict[str, Any]) -> str:
    """Return Markdown tables with a column for each system: seconds and requests of each stage."""
    environment = results["environment"]
    versions = ", ".join(f"{name} {text}" for name, text in environment["versions"].items() if text)
    heading = (
        f"{environment['date'][:10]}, {results['scale']} run of {results['rounds']} round(s), vstore at "
        f"{environment['commit']}, Python {environment['python']}, {environment['cpus']} CPUs; {versions}. "
        "Seconds, and in brackets requests."
    )
    parts = [heading]
    for name, cases in results["workloads"].items():
        for label, systems in cases.items():
            rows = [_side_by_side(table, systems) for table in get_workload(name).tables]
            header = [label, *systems]
            rule = ["---", *("---:" for _ in systems)]
            lines = [f"| {' | '.join(row)} |" for row in (header, rule, *filter(None, rows))]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _side_by_side(table: Table, results: dict[str, Rounds]) -> list[str] | None:
    """Return a row for a table whose first column is a time, and which has one of requests; None if it is empty."""
    seconds = table.columns[0]
    requests = next(column for column in table.columns if column.metric == "requests")
    cells = []
    for system in results:
        time, count = figure(seconds, system, results), figure(requests, system, results)
        cells.append(
            "" if time is None or count is None else f"{_short(time.median)} ({_short(count.median)})"
        )
    return [table.title.partition(" ")[2], *cells] if any(cells) else None


def _judgement(workload: str, results: dict[str, Any]) -> str:
    outcomes = judge(results, workload)
    if not outcomes:
        return ""
    rows = [["budget", "bound", "measured", ""], *map(_budget_row, outcomes)]
    return f"{workload} budgets of vstore\n{align(rows)}"


def show_budgets(results: dict[str, Any]) -> str:
    """Return a Markdown table of all budgets that a run says something of."""
    environment = results["environment"]
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("icechunk", "zarr"))
    rows = [["workload", "budget", "bound", "measured", ""], ["---", "---", "---", "---:", "---"]]
    rows += [[outcome.budget.workload, *_budget_row(outcome)] for outcome in judge(results)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    heading = (
        f"{environment['date'][:10]}, {results['scale']} run of {results['rounds']} round(s), vstore at "
        f"{environment['commit']}, {versions}, Python {environment['python']}, {environment['cpus']} CPUs:"
    )
    return "\n".join([heading, "", *lines]) + "\n"


def _budget_row(outcome: Outcome) -> list[str]:
    budget = outcome.budget
    limit = _with_unit(budget.limit, budget.unit if "x" not in budget.bound.value else Unit.NUMBER)
    if budget.bound is Bound.AT_MOST_TIMES:
        limit = _short(budget.limit)
    measured = _with_unit(outcome.measured, budget.shown_in)
    if budget.other and budget.bound is not Bound.AT_MOST_OVER:
        measured += "x"
    bound = budget.bound.value.format(limit=limit, other=budget.other)
    return [budget.what, bound, measured, "met" if outcome.is_met else "**missed**"]


def _with_unit(value: float, unit: Unit) -> str:
    if unit is Unit.BYTES:
        return _bytes(value)
    return f"{_short(value * _FACTORS[unit])} {unit.value}".rstrip()


def _row_name(system: str) -> str:
    kind = system_class(system)
    return system + (" [s]" if kind.is_durable else "") + ("" if kind.is_persistent else " [1]")


def _without_empty(rows: list[list[str]]) -> list[list[str]]:
    """Leave out the columns in which no system has a figure."""
    kept = [at for at in range(len(rows[0])) if any(row[at] for row in rows[1:])]
    return [[row[at] for at in kept] for row in rows]


def _cell(column: Column, found: Figure | None) -> str:
    if found is None:
        return ""
    text = _number(column, found.median)
    if found.rounds == 1 or found.least == found.most:
        return text
    return f"{text} ({_number(column, found.least)} to {_number(column, found.most)})"


def _number(column: Column, value: float) -> str:
    if column.against in (Against.BASELINE, Against.DISTANT):
        return f"{_short(value)}x"
    if column.unit is Unit.BYTES:
        return _bytes(value)
    return _short(value * _FACTORS[column.unit])


def _short(value: float) -> str:
    """Return a number with about three digits that count."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return f"{value:,.{digits}f}"


def _bytes(value: float) -> str:
    for unit in _BYTE_UNITS[:-1]:
        if abs(value) < 1000:
            return f"{_short(value)} {unit}"
        value /= 1000
    return f"{_short(value)} {_BYTE_UNITS[-1]}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a text table: a header, a line, first column to the left and numbers to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])
