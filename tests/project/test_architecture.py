"""docs/architecture.md says what the code does: the contract's layers, the constants' bounds, the errors there are."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from vstore import errors

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/architecture.md").read_text()
UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its head."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_layers_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    present = {path.stem for path in (ROOT / "vstore").glob("*.py")}
    present |= {path.parent.name for path in (ROOT / "vstore").glob("*/__init__.py")}
    expected = [present.intersection(re.findall(r"\w+", row)) for row in reversed(layers)]
    stated = [set(re.findall(r"`(\w+)`", cells[0])) for cells in rows("Layers")]
    assert stated == [row for row in expected if row]


@pytest.mark.parametrize("cells", rows("Bounds"), ids=lambda cells: cells[2].strip("`"))
def test_bound_is_that_of_the_constant(cells: list[str]) -> None:
    number, _, unit = cells[1].partition(" ")
    module, _, name = cells[2].strip("`").rpartition(".")
    value = getattr(importlib.import_module(f"vstore.{module}"), name)
    assert int(number.replace(",", "")) * UNITS[unit] == value


def test_errors_are_all_there_by_name_or_by_a_base() -> None:
    named = {name for cells in rows("Errors") for name in re.findall(r"`(\w+Error)`", cells[0])}
    assert named <= set(errors.__all__)
    classes = set(map(errors.__dict__.get, errors.__all__)) - {errors.VStoreError, errors.ErrorKind}
    leaves = {error for error in classes if not error.__subclasses__()}
    assert not [leaf for leaf in leaves if not named & {base.__name__ for base in leaf.__mro__}]
