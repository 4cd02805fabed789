"""Every example runs without arguments, quietly, and leaves nothing behind. The main job also takes other files."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
MAX_LINES = 40


def run(script: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in `folder`, with warnings as errors and temporary files below `folder`/temporary."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-W", "error", script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    done = run(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert 1 <= len(done.stdout.splitlines()) <= MAX_LINES
    left = [path for path in tmp_path.rglob("*") if path != tmp_path / "temporary"]
    assert not left


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_example_is_explained(script: Path) -> None:
    assert script.read_text().startswith('"""')


# --- the main job on other files -----------------------------------------------------------------------------------

PIPELINE = EXAMPLES / "pipeline.py"


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs the script with these arguments in this process, which has imported what it needs."""
    monkeypatch.chdir(tmp_path)

    def run_here(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", [str(PIPELINE), *arguments])
        stdout, stderr = io.StringIO(), io.StringIO()
        code: object = 0
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                runpy.run_path(str(PIPELINE), run_name="__main__")
            except SystemExit as ended:
                code = ended.code or 0
        if isinstance(code, str):
            # As Python itself does with it.
            print(code, file=stderr)
        return Done(code if isinstance(code, int) else 1, stdout.getvalue(), stderr.getvalue())

    return run_here


def packed_series() -> xr.Dataset:
    """Integers packed by scale and offset, with gaps, along an unlimited time."""
    values = np.arange(20.0).reshape(5, 4) / 10
    values[1, 2] = np.nan
    times = np.arange("2000-01-01", "2000-01-06", dtype="M8[D]").astype("M8[ns]")
    data = xr.Dataset({"a": (("time", "x"), values)}, {"time": times})
    data["a"].encoding = {"dtype": "i2", "scale_factor": 0.1, "add_offset": 5.0, "_FillValue": -1}
    data.encoding["unlimited_dims"] = ["time"]
    return data


DATA = {
    "packed": packed_series(),
    "no time": xr.Dataset({"n": (("y", "x"), np.arange(6, dtype="u1").reshape(2, 3))}),
    "no numbers": xr.Dataset({"flag": ("x", [True, False])}),
    "empty dimension": xr.Dataset({"a": (("time", "x"), np.zeros((0, 4))), "b": ("x", np.arange(4.0))}),
}


@pytest.mark.parametrize("name", DATA)
def test_pipeline_takes_any_file_and_a_second_run_adds_nothing(
    name: str, tmp_path: Path, pipeline: Callable[..., Done]
) -> None:
    DATA[name].to_netcdf(tmp_path / "data.nc")
    first = pipeline("data.nc", "--repository", "repository")
    assert (first.returncode, first.stderr) == (0, "")
    assert "one more entry along" in first.stdout
    assert "main and v1 read the old values, experiment the new ones" in first.stdout
    packs = pack_sizes(tmp_path)
    second = pipeline("data.nc", "--repository", "repository")
    assert (second.returncode, second.stderr) == (0, "")
    assert pack_sizes(tmp_path) == packs


def pack_sizes(folder: Path) -> dict[str, int]:
    packs = (folder / "repository/packs").rglob("*")
    return {path.name: path.stat().st_size for path in packs if path.is_file()}


def test_pipeline_says_when_there_is_nothing_to_append_along(
    tmp_path: Path, pipeline: Callable[..., Done]
) -> None:
    xr.Dataset({"a": ((), 3.0)}).to_netcdf(tmp_path / "scalar.nc")
    done = pipeline("scalar.nc")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to append along" in done.stdout


def test_pipeline_fails_clearly(tmp_path: Path, pipeline: Callable[..., Done]) -> None:
    (tmp_path / "text.txt").write_text("no data")
    DATA["packed"].to_netcdf(tmp_path / "one.nc")
    DATA["no time"].to_netcdf(tmp_path / "two.nc")
    assert pipeline("one.nc", "--repository", "taken").returncode == 0
    (tmp_path / "file").write_text("")
    failures = {
        ("absent.nc",): "there is no file absent.nc",
        ("text.txt",): "xarray can't open text.txt",
        ("two.nc", "--repository", "taken"): "holds other data",
        ("one.nc", "--repository", "file"): "a repository needs a directory",
    }
    for arguments, message in failures.items():
        done = pipeline(*arguments)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_pipeline_fails_when_a_byte_is_damaged(tmp_path: Path, pipeline: Callable[..., Done]) -> None:
    values = np.random.default_rng(0).random((50, 50))
    xr.Dataset({"a": (("y", "x"), values)}).to_netcdf(tmp_path / "data.nc")
    assert pipeline("data.nc", "--repository", "repository").returncode == 0
    largest = max((tmp_path / "repository/packs").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[1000] ^= 1
    largest.chmod(0o644)
    largest.write_bytes(data)
    done = pipeline("data.nc", "--repository", "repository")
    assert done.returncode != 0
    assert "damaged" in done.stderr
