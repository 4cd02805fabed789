"""What an install holds, what README promises, and that the layers contract knows every module."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q -e "
TEST_COMMAND = SET_UP + "'.[test]' && .venv/bin/pytest"
MAIN_COMMAND = SET_UP + "'.[examples]' && .venv/bin/python examples/pipeline.py"


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def lines(name: str) -> list[str]:
    return [line.strip() for line in (ROOT / name).read_text().splitlines()]


@pytest.mark.parametrize("command", [TEST_COMMAND, MAIN_COMMAND])
def test_readme_states_the_command(command):
    assert command in lines("README.md")


def test_ci_runs_the_test_command_of_readme():
    assert TEST_COMMAND in lines(".ci/run")
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_ci_tries_the_pythons_of_the_classifiers(pyproject):
    prefix = "Programming Language :: Python :: 3."
    minors = [
        int(c.removeprefix(prefix)) for c in pyproject["project"]["classifiers"] if c.startswith(prefix)
    ]
    assert pyproject["project"]["requires-python"] == f">=3.{min(minors)}"
    text = (ROOT / ".ci/run").read_text()
    assert f"OLDEST_MINOR={min(minors)}\n" in text
    assert f"NEWEST_MINOR={max(minors)}\n" in text


def test_main_command_names_an_example():
    assert (ROOT / "examples/pipeline.py").is_file()


def test_package_is_typed():
    assert (ROOT / "vstore/py.typed").is_file()


def test_migrations_are_found_in_the_package():
    spec = importlib.util.find_spec("vstore.migrations")
    assert spec is not None
    assert spec.origin is not None, "migrations/ has no __init__.py"
    assert Path(spec.origin).parent.name == "migrations"


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for top in ("vstore", "migrations") for path in (ROOT / top).rglob("*.py")}
    assert not [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()]


def test_layers_contract_names_every_module_once(pyproject):
    contracts = {contract["id"]: contract for contract in pyproject["tool"]["importlinter"]["contracts"]}
    named = [name for row in contracts["layers"]["layers"] for name in re.findall(r"\w+", row)]
    assert len(named) == len(set(named))
    modules = {path.stem for path in (ROOT / "vstore").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "vstore").glob("*/*.py")}
    assert modules | packages <= set(named)


@pytest.mark.deep
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    for name in ("vstore", "migrations"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    wheels = tmp_path / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, source], check=True, timeout=300)
    (wheel,) = wheels.glob("*.whl")

    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vstore").rglob("*.py")}
    expected |= {
        "vstore/" + path.relative_to(ROOT).as_posix() for path in (ROOT / "migrations").rglob("*.py")
    }
    assert held == expected | {"vstore/py.typed"}

    target = tmp_path / "target"
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", target, wheel], check=True, timeout=300)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import vstore.migrations; print(vstore.migrations.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code, target],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert Path(done.stdout.strip()) == target / "vstore/migrations/__init__.py"
