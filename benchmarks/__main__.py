"""The command: choose, run, show, save."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.harness import choose_systems, free_bytes, run_workload
from benchmarks.processes import ROOT, keeping_compiled_code
from benchmarks.report import show_budgets, show_results
from benchmarks.scales import FULL, HUGE_CHUNKS, SCALES, Scale
from benchmarks.systems import SYSTEMS, variants
from benchmarks.workloads import NAMES, PLANNED, get_workloads
from benchmarks.workloads.base import Workload

FORMAT = 1
"""Of the JSON; raised when readers of old results would misread new ones."""

_NEEDED_BYTES = 8 << 30
RESULTS = ROOT / "benchmarks" / "results"
"""Runs worth keeping: a JSON each, named by its date, and its tables."""
PAGE = ROOT / "docs" / "performance.md"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if every system did what it should, 1 if one failed."""
    options = _parse(arguments)
    show = show_budgets if options.budgets else show_results
    if options.write_page:
        write_page()
        return 0
    if options.show:
        sys.stdout.write(show(json.loads(options.show.read_text())))
        return 0
    scale = SCALES[options.scale]
    if options.huge:
        scale = replace(scale, large=(*scale.large, HUGE_CHUNKS))
    if scale.name == FULL.name and free_bytes() < _NEEDED_BYTES:
        sys.stderr.write(f"the full run needs {_NEEDED_BYTES >> 30} GiB of room for temporary files\n")
        return 1
    # Temporary files are removed also when the run is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rounds = options.rounds or scale.rounds
    for results in iter_results(options.only, scale, options.systems, rounds, profile=options.profile):
        # After each workload: a run that is cut short has told something.
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(show(results))
    return int(any(has_failed(cases) for cases in results["workloads"].values()))


def write_page() -> None:
    """Put the budgets of the newest saved run onto the page about performance, and its tables beside it."""
    saved = sorted(RESULTS.glob("*.json"))
    for path in saved:
        path.with_suffix(".txt").write_text(show_results(json.loads(path.read_text())))
    page = PAGE.read_text()
    start = page.index("\n", page.index("<!-- budgets:")) + 1
    shown = show_budgets(json.loads(saved[-1].read_text())) if saved else ""
    PAGE.write_text(page[:start] + shown + page[page.index("<!-- end -->") :])


def iter_results(
    workloads: list[Workload], scale: Scale, systems: list[str] | None, rounds: int, *, profile: bool = False
) -> Iterator[dict[str, Any]]:
    """Run workloads and yield, after each, all results so far in the form in which they are saved."""
    start = time.monotonic()

    def progress(line: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - start:5.0f} s] {line.rstrip()}\n")

    found = environment.describe()
    results: dict[str, Any] = {}
    notes = [f"{name} is not here yet: {why}" for name, why in PLANNED.items()]
    with keeping_compiled_code():
        for workload in workloads:
            chosen, skipped = choose_systems(workload, scale, systems)
            notes.extend(note for note in skipped if note not in notes)
            if chosen:
                results[workload.name] = run_workload(
                    workload, scale, chosen, rounds, profile=profile, report=progress
                )
            yield {
                "format": FORMAT,
                "scale": scale.name,
                "rounds": rounds,
                "seconds": round(time.monotonic() - start, 1),
                "environment": found,
                "notes": notes,
                "workloads": results,
            }


def has_failed(cases: dict[str, Any]) -> bool:
    """Tell whether any round of any system ended with an error."""
    return any(item["error"] for case in cases.values() for rounds in case.values() for item in rounds)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(scale=FULL.name)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="scale", action="store_const", const="quick", help="under two minutes")
    sizes.add_argument("--smoke", dest="scale", action="store_const", const="smoke", help="seconds")
    parser.add_argument(
        "--only", type=_workloads, default=get_workloads(), metavar="W1,W4", help="these workloads"
    )
    parser.add_argument("--systems", type=_systems, metavar="A,B", help=f"of: {', '.join(SYSTEMS)}; or all")
    parser.add_argument("--rounds", type=_positive, help="how often each system takes its turn")
    parser.add_argument("--json", type=Path, metavar="PATH", help="save the results")
    parser.add_argument("--show", type=Path, metavar="PATH", help="only show the tables of saved results")
    parser.add_argument(
        "--huge", action="store_true", help=f"also an array of {HUGE_CHUNKS:,} references, in S1"
    )
    parser.add_argument(
        "--budgets", action="store_true", help="show only what was budgeted, as a Markdown table"
    )
    parser.add_argument(
        "--write-page",
        action="store_true",
        help="bring docs/performance.md and the tables in benchmarks/results in step with the saved runs",
    )
    parser.add_argument("--profile", action="store_true", help="show where each stage spends its time")
    return parser.parse_args(arguments)


def _workloads(text: str) -> list[Workload]:
    wanted = {name.strip().upper() for name in text.split(",")}
    for name in wanted:
        if name in PLANNED:
            raise argparse.ArgumentTypeError(f"{name} is not here yet: {PLANNED[name]}")
    unknown = sorted(wanted - set(NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(f"no workload {unknown}; there are {', '.join(NAMES)}")
    return get_workloads(tuple(wanted))


def _systems(text: str) -> list[str]:
    if text == "all":
        return list(SYSTEMS)
    wanted = [name.strip() for name in text.split(",")]
    known = {variant for name in SYSTEMS for variant in [name, *variants(name)]}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no system {unknown}; there are {', '.join(SYSTEMS)}")
    return wanted


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
