"""The benchmarks run, check the data they read, and save results in the documented form. No times are judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.budgets import BUDGETS, judge
from benchmarks.data import WrongDataError, check, values
from benchmarks.distant import RESULTS as DISTANT_RESULTS
from benchmarks.distant import main as run_distant
from benchmarks.distant import with_tables
from benchmarks.harness import choose_systems, rotated, systems_of
from benchmarks.line import RequestHeads, kind_of
from benchmarks.measure import disk_usage, measuring
from benchmarks.processes import Task
from benchmarks.report import align, figure, show_budgets, show_results
from benchmarks.scales import FULL, HUGE_CHUNKS, QUICK, SMOKE
from benchmarks.systems import SYSTEMS, why_unavailable
from benchmarks.systems.base import Reader
from benchmarks.systems.zarr_systems import ZarrMemory
from benchmarks.worker import run_task
from benchmarks.workloads import DISTANT_NAMES, NAMES, PLANNED, get_workload, get_workloads
from benchmarks.workloads.base import Against, Column
from benchmarks.workloads.commits import p99
from tests.servers import find

ROOT = Path(__file__).resolve().parents[2]
FUSED_MEMORY = [name for name in ("zarr-memory+fused",) if why_unavailable(name) is None]
"""Older zarr has no fused pipeline."""
FULL_AND_HUGE = replace(FULL, large=(*FULL.large, HUGE_CHUNKS))


def run(folder: Path, *arguments: str, timeout_s: int = 240) -> tuple[dict[str, Any], str]:
    """Run the command at the smallest scale, with temporary files in `folder`; return its results and tables."""
    saved = folder / "results.json"
    temporary = folder / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--json", saved, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(temporary.iterdir())
    return json.loads(saved.read_text()), done.stdout


def check_form(results: dict[str, Any]) -> None:
    assert (results["format"], results["scale"], results["rounds"]) == (1, "smoke", 1)
    assert {"date", "python", "cpus", "versions", "commit"} <= set(results["environment"])
    assert results["environment"]["versions"]["numpy"] == np.__version__
    for name, cases in results["workloads"].items():
        assert [case["label"] for case in get_workload(name).cases(SMOKE)] == list(cases)
        for rounds in (rounds for case in cases.values() for rounds in case.values()):
            assert rounds
            for item in rounds:
                assert item["error"] is None
                assert item["stages"]
                numbers = [number for stage in item["stages"].values() for number in stage.values()]
                assert all(number is None or isinstance(number, int | float) for number in numbers)


def test_a_small_run(tmp_path: Path) -> None:
    results, shown = run(tmp_path, "--only", "W1,W4", "--systems", "vstore,zarr-memory")
    check_form(results)
    assert list(results["workloads"]) == ["W1", "W4"]
    (bulk,) = results["workloads"]["W1"].values()
    assert {"vstore", "zarr-memory", *FUSED_MEMORY} <= set(bulk)
    assert set(bulk["vstore"][0]["stages"]) == {"write", "read"}
    assert bulk["vstore"][0]["stages"]["write"]["disk_bytes"] > 20 * 4096
    for title in ("W1 bulk write", "W2 bulk read", "W4 small commits"):
        assert title in shown
    assert str(tmp_path) not in json.dumps(results) + shown
    assert show_results(results) == shown


@pytest.mark.deep
def test_all_workloads(tmp_path: Path) -> None:
    results, _ = run(tmp_path, timeout_s=1800)
    check_form(results)
    assert list(results["workloads"]) == [workload.name for workload in get_workloads()]


# --- budgets ------------------------------------------------------------------------------------------------


def results_of(workload: str, label: str, **systems: list[dict[str, Any]]) -> dict[str, Any]:
    """Return results with a case of one workload; `systems` have the metrics of each round's one stage."""
    cases = {
        name.replace("_", "-"): [{"stages": stages, "error": None} for stages in rounds]
        for name, rounds in systems.items()
    }
    return {"workloads": {workload: {label: cases}}}


def test_a_budget_is_judged_by_ratios_inside_rounds() -> None:
    reads = {
        "vstore": [{"read": {"first_chunk_s": 1.0}}, {"read": {"first_chunk_s": 3.0}}],
        "icechunk": [{"read": {"first_chunk_s": 4.0}}, {"read": {"first_chunk_s": 18.0}}],
    }
    (outcome,) = judge(results_of("W1", "8 chunks of 1 MiB", **reads), "W2")[:1]
    assert (outcome.measured, outcome.is_met) == (5.0, True)
    reads["icechunk"][0]["read"]["first_chunk_s"] = 3.9
    (outcome,) = judge(results_of("W1", "8 chunks of 1 MiB", **reads), "W2")[:1]
    assert not outcome.is_met


def test_budgets_over_the_limit_and_by_themselves() -> None:
    written = {
        "vstore": [{"write": {"chunk_s": 120e-6}}],
        "limit_file": [{"write": {"chunk_s": 35e-6}}],
    }
    (outcome,) = judge(results_of("W1", "8 chunks of 64 KiB", **written))
    assert outcome.measured == pytest.approx(85e-6)
    assert outcome.is_met
    written["vstore"][0]["write"]["chunk_s"] = 126e-6
    assert not judge(results_of("W1", "8 chunks of 64 KiB", **written))[0].is_met
    lost = results_of(
        "W8", "4 processes", vstore=[{"count": {"lost": 1}, "contend": {"commits_per_s": 150.0}}]
    )
    assert [outcome.is_met for outcome in judge(lost)] == [False, True]


def test_every_budget_names_what_there_is() -> None:
    """A budget on a stage or metric that no longer exists would never be missed."""
    for budget in BUDGETS:
        workload = get_workload(budget.workload)
        assert budget.stage in workload.stages
        shown = {(column.stage, column.metric) for table in workload.tables for column in table.columns}
        assert (budget.stage, budget.metric) in shown, budget.what
        assert budget.system.partition("+")[0] in SYSTEMS
        labels = [case["label"] for case in workload.cases(FULL_AND_HUGE)]
        assert any(label.startswith(budget.case) or label.endswith(budget.case) for label in labels), (
            budget.what
        )


def test_the_page_shows_the_budgets_of_the_newest_saved_run() -> None:
    saved = sorted((ROOT / "benchmarks/results").glob("*.json"))
    page = (ROOT / "docs/performance.md").read_text()
    start, end = page.index("<!-- budgets:"), page.index("<!-- end -->")
    shown = page[start:end].partition("\n")[2].strip()
    expected = show_budgets(json.loads(saved[-1].read_text())).strip() if saved else ""
    assert shown == expected, "python -m benchmarks --write-page puts them there"
    for path in saved:
        assert path.with_suffix(".txt").read_text() == show_results(json.loads(path.read_text())), path.name


# --- far away -----------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_small_run_far_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find("ministack")
    saved = tmp_path / "results.json"
    arguments = ["--smoke", "--latency-ms", "1", "--systems", "vstore-s3", "--json", str(saved)]
    assert run_distant([*arguments, "--only", "D4"]) == 0
    shown = capsys.readouterr().out
    assert "D4 small commits" in shown
    results = json.loads(saved.read_text())
    (case,) = results["workloads"]["D4"].values()
    (round_,) = case["vstore-s3"]
    assert round_["error"] is None
    commits = round_["stages"]["commit"]
    # Of each commit a pack, a record and the hint, and of the tag the last two.
    assert commits["requests_put"] == 3 * 4 + 2
    assert commits["sent_bytes"] > 4 * 4096
    assert round_["stages"]["collect"]["objects"] > 0


def test_the_line_knows_requests_however_their_bytes_come() -> None:
    put = b"PUT /bucket/a%20b HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123\r\n\r\n89"
    get = b"GET /bucket?list-type=2&prefix=a HTTP/1.1\r\nHost: x\r\n\r\n"
    stream = put + get + put
    for size in (1, 7, len(stream)):
        heads = RequestHeads()
        found = [
            head for start in range(0, len(stream), size) for head in heads.feed(stream[start : start + size])
        ]
        assert [kind_of(*head) for head in found] == ["put", "list", "put"]
    with pytest.raises(ValueError, match="how long"):
        RequestHeads().feed(b"PUT /bucket/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")


def test_kinds_of_requests() -> None:
    assert kind_of("GET", "/bucket/a/b") == "get"
    assert kind_of("HEAD", "/bucket/a") == "head"
    assert kind_of("GET", "/bucket?prefix=a") == "list"
    assert kind_of("POST", "/bucket?delete") == "delete"
    assert kind_of("PUT", "/bucket/a?partNumber=1&uploadId=x") == "part"


def test_the_page_about_requests_shows_the_newest_run_far_away() -> None:
    saved = sorted(DISTANT_RESULTS.glob("*.json"))
    page = (ROOT / "docs/requests.md").read_text()
    newest = json.loads(saved[-1].read_text()) if saved else None
    assert page == with_tables(page, newest), "python -m benchmarks.distant --write-page puts them there"
    for path in saved:
        assert path.with_suffix(".txt").read_text() == show_results(json.loads(path.read_text())), path.name


# --- data are verified --------------------------------------------------------------------------------------


def test_wrong_data_are_noticed() -> None:
    found = values(1, 3_000_000)
    check(found, 1, "the array")
    for index in (0, 1_500_000, len(found) - 1):
        damaged = found.copy()
        damaged[index] += 1
        with pytest.raises(WrongDataError):
            check(damaged, 1, "the array")
    with pytest.raises(WrongDataError):
        check(found, 2, "the array")


class _Forgetful(ZarrMemory):
    """Reads zeros where the last chunk should be."""

    def open_array(self, path: str) -> Reader:
        self.writable_store()._store_dict.pop(f"{path}/c/19", None)
        return super().open_array(path)


def test_a_system_that_loses_data_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "zarr-memory", _Forgetful)
    workload = get_workload("W1")
    (case,) = workload.cases(SMOKE)
    outcome = run_task(Task("W1", "zarr-memory", case, workload.stages_of(case, _Forgetful), str(tmp_path)))
    assert outcome.error is not None
    assert outcome.error.startswith("WrongDataError: the first read")
    assert set(outcome.stages) == {"write"}


# --- the harness's own arithmetic ---------------------------------------------------------------------------


def test_rounds_rotate() -> None:
    assert [rotated("abc", number) for number in range(4)] == [
        list("abc"),
        list("bca"),
        list("cab"),
        list("abc"),
    ]


def test_ratios_are_taken_inside_a_round() -> None:
    def rounds(*seconds: float) -> list[dict[str, Any]]:
        return [{"stages": {"write": {"s": number}}, "error": None} for number in seconds]

    results = {"vstore": rounds(1, 8, 3), "icechunk": rounds(4, 8, 6), "limit-file": rounds(0.5, 1, 2)}
    ratio = figure(Column("x", "write", "s", against=Against.BASELINE), "vstore", results)
    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.most, ratio.rounds) == (2, 1, 4, 3)
    rate = figure(
        Column("x", "write", "s", against=Against.BASELINE, higher_is_better=True), "vstore", results
    )
    assert rate is not None
    assert (rate.median, rate.least, rate.most) == (0.5, 0.25, 1)
    over = figure(Column("over", "write", "s", against=Against.LIMIT), "vstore", results)
    assert over is not None
    assert (over.median, over.least, over.most) == (1, 0.5, 7)
    assert figure(Column("absent", "write", "other"), "vstore", results) is None


def test_systems_are_chosen_by_scale_and_by_name() -> None:
    bulk, history = get_workload("W2"), get_workload("W4")
    assert {"zarr-memory", *FUSED_MEMORY} <= set(choose_systems(bulk, FULL, ["zarr-memory"])[0])
    assert choose_systems(history, FULL, ["zarr-memory", "vstore"])[0] == ["vstore"]
    assert set(choose_systems(history, QUICK, None)[0]) <= set(QUICK.systems or ())


def test_a_case_may_be_for_some_systems_only() -> None:
    systems = ["vstore", "vstore+fused", "icechunk"]
    assert systems_of({"label": "all"}, systems) == systems
    assert systems_of({"label": "some", "systems": ["vstore"]}, systems) == ["vstore", "vstore+fused"]


def test_the_99th_percentile_of_few_is_the_largest() -> None:
    assert p99([1.0, 5.0, 2.0]) == 5.0
    assert p99([*([1.0] * 199), 500.0]) < 10


def test_every_number_has_a_workload_or_a_plan() -> None:
    numbered = {name for name in (*NAMES, *PLANNED) if name.startswith("W")}
    assert numbered == {f"W{n}" for n in range(1, 11)}
    assert all(get_workload(name).is_distant == (name in DISTANT_NAMES) for name in (*NAMES, *DISTANT_NAMES))


def test_measuring(tmp_path: Path) -> None:
    with measuring() as measured:
        (tmp_path / "file").write_bytes(bytes(10_000_000))
    assert measured.seconds > 0
    if sys.platform == "linux":
        assert measured.written_bytes is not None
        assert measured.written_bytes >= 10_000_000
    assert disk_usage(tmp_path) == (10_000_000, 1)


def test_tables_are_aligned() -> None:
    assert align([["system", "a"], ["x", "100"]]).splitlines() == [
        "system    a",
        "-----------",
        "x       100",
    ]
