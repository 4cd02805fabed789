"""The command for what lies far away: vstore and its peers on the same S3 server, behind the same long line.

    python -m benchmarks.distant --quick
    python -m benchmarks.distant --only D1 --json benchmarks/results/distant/2026-11-26.json

Runs D1 to D4 against `ministack` behind a proxy that adds `--latency-ms` to each reply and counts what goes through.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.__main__ import has_failed, iter_results
from benchmarks.distance import distant_server, why_missing
from benchmarks.processes import ROOT
from benchmarks.report import show_results, show_side_by_side
from benchmarks.scales import FULL, SCALES
from benchmarks.systems import variants
from benchmarks.systems.base import DEFAULT_PIPELINE
from benchmarks.systems.distant import DISTANT
from benchmarks.workloads import DISTANT_NAMES, get_workloads
from benchmarks.workloads.base import Workload

LATENCY_MS = 50.0
RESULTS = ROOT / "benchmarks" / "results" / "distant"
"""Runs worth keeping: a JSON each, named by its date, and its tables."""
PAGE = ROOT / "docs" / "requests.md"
_MARK = "<!-- distant:"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0 if every system did what it should, 1 if one failed."""
    options = _parse(arguments)
    if options.write_page:
        write_page()
        return 0
    if options.show:
        sys.stdout.write(show_results(json.loads(options.show.read_text())))
        return 0
    missing = why_missing()
    if missing:
        sys.stderr.write(f"{missing}: pip install ministack\n")
        return 1
    # Servers end also when the run is told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    scale = SCALES[options.scale]
    earlier = _read(options.json)
    workloads = get_workloads(tuple(options.only or DISTANT_NAMES))
    if options.cases:
        workloads = [_with_cases(workload, options.cases) for workload in workloads]
    with distant_server(options.latency_ms / 1000):
        for results in iter_results(
            workloads,
            scale,
            options.systems or [kind.name for kind in DISTANT],
            options.rounds or scale.rounds,
            profile=options.profile,
        ):
            results["latency_ms"] = options.latency_ms
            ran = results["workloads"]
            results["workloads"] = _together(earlier, ran)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(show_results(results | {"workloads": ran}))
    return int(any(has_failed(cases) for cases in ran.values()))


def _with_cases(workload: Workload, part: str) -> Workload:
    """Return the workload with only the cases whose label has `part` in it."""
    return replace(workload, cases=lambda scale: [c for c in workload.cases(scale) if part in c["label"]])


def _together(earlier: dict[str, Any], ran: dict[str, Any]) -> dict[str, Any]:
    """Return all workloads in order; cases that were run again are the newer ones."""
    return {name: earlier.get(name, {}) | ran.get(name, {}) for name in sorted({*earlier, *ran})}


def _read(path: Path | None) -> dict[str, Any]:
    """Return the workloads of an earlier run that this one adds to."""
    if path is None or not path.exists():
        return {}
    workloads: dict[str, Any] = json.loads(path.read_text())["workloads"]
    return workloads


def write_page() -> None:
    """Put the tables of the newest saved run onto the page about requests, and beside each run."""
    saved = sorted(RESULTS.glob("*.json"))
    for path in saved:
        path.with_suffix(".txt").write_text(show_results(json.loads(path.read_text())))
    PAGE.write_text(with_tables(PAGE.read_text(), json.loads(saved[-1].read_text()) if saved else None))


def with_tables(page: str, results: dict[str, Any] | None) -> str:
    """Return the page with the tables of a run between its marks."""
    start = page.index("\n", page.index(_MARK)) + 1
    shown = "" if results is None else show_side_by_side(results)
    return page[:start] + shown + page[page.index("<!-- end -->", start) :]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distant", description=__doc__)
    parser.set_defaults(scale=FULL.name)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="scale", action="store_const", const="quick", help="about a minute")
    sizes.add_argument("--smoke", dest="scale", action="store_const", const="smoke", help="seconds")
    parser.add_argument(
        "--only", type=_names(DISTANT_NAMES, str.upper), metavar="D1,D4", help="these workloads"
    )
    parser.add_argument(
        "--cases", metavar="TEXT", help="only the cases with this in their label, as '64 KiB'"
    )
    known = [
        variant
        for kind in DISTANT
        for variant in (kind.name, f"{kind.name}+{DEFAULT_PIPELINE}", *variants(kind.name)[1:])
    ]
    parser.add_argument(
        "--systems", type=_names(known), metavar="A,B", help=f"of: {', '.join(dict.fromkeys(known))}"
    )
    parser.add_argument("--rounds", type=int, help="how often each system takes its turn")
    parser.add_argument("--latency-ms", type=float, default=LATENCY_MS, help="added to each reply")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="save the results, beside what is there of others"
    )
    parser.add_argument("--show", type=Path, metavar="PATH", help="only show the tables of saved results")
    parser.add_argument(
        "--write-page",
        action="store_true",
        help="bring docs/requests.md and the tables in benchmarks/results/distant in step with the saved runs",
    )
    parser.add_argument("--profile", action="store_true", help="show where each stage spends its time")
    return parser.parse_args(arguments)


def _names(known: Any, change: Any = str) -> Any:
    def parse(text: str) -> list[str]:
        wanted = [change(name.strip()) for name in text.split(",")]
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"there is no {unknown}")
        return wanted

    return parse


if __name__ == "__main__":
    sys.exit(main())
