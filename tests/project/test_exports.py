"""What `import vstore` offers: every name resolves, nothing heavy is loaded, and all that is public is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vstore
from vstore import errors

HEAVY = {"numpy", "numcodecs", "zarr", "obstore", "sqlite_utils", "sqlite3", "msgspec", "blake3", "asyncio"}


@pytest.mark.parametrize("name", vstore.__all__)
def test_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(vstore, name) is not None
    assert name in dir(vstore)


def test_star_import_gives_every_name() -> None:
    names: dict[str, object] = {}
    exec("from vstore import *", names)
    assert set(vstore.__all__) <= set(names)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        vstore.Nonsense  # noqa: B018


def test_type_checkers_see_the_names_that_are_exported() -> None:
    tree = ast.parse(Path(vstore.__file__).read_text())
    (guarded,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) | {"__version__"} == set(vstore.__all__)
    for name, module in seen.items():
        assert getattr(vstore, name) is getattr(importlib.import_module(str(module)), name)


def test_every_error_is_exported() -> None:
    assert set(errors.__all__) <= set(vstore.__all__)


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, vstore; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert sorted(loaded & HEAVY) == []


@pytest.mark.parametrize("name", sorted(set(vstore.__all__) - {"__version__"}))
def test_what_is_exported_has_docstrings(name: str) -> None:
    value = getattr(vstore, name)
    # A dataclass or enum without a docstring gets one that says nothing.
    assert value.__doc__
    assert not value.__doc__.startswith((f"{name}(", "An enumeration"))
    if inspect.isclass(value):
        assert not [member for member, held in public_members(value) if not inspect.getdoc(held)]


def public_members(value: type) -> Iterator[tuple[str, object]]:
    """Yield the methods and properties that vstore itself adds to a class."""
    for base in value.__mro__:
        if base.__module__.partition(".")[0] == "vstore":
            for name, member in vars(base).items():
                unwrapped = getattr(member, "__func__", member)
                if not name.startswith("_") and (
                    inspect.isfunction(unwrapped) or isinstance(member, property)
                ):
                    # Through the class, so that what a base class documents counts.
                    yield name, getattr(value, name)
