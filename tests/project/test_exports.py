"""What `import vstore` offers: every name resolves, nothing heavy is loaded, and all that is public is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

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


OPEN_AND_READ = """
import sys
import vstore, zarr
before = set(sys.modules)
repository = vstore.open(sys.argv[1])
store = repository.readonly_session("main").store
value = zarr.open_array(store, path="a", mode="r")[3]
loaded = set(sys.modules) - before
assert value == 3
repository.close()
print(*sorted(loaded))
"""
FOR_OTHER_WORK = {
    "vstore.blobs.sealing", "vstore.blobs.slots", "vstore.blobs.writer", "vstore.branching",
    "vstore.catalog.log", "vstore.changes.diff", "vstore.commit", "vstore.comparison", "vstore.graph",
    "vstore.merge", "vstore.migrations", "vstore.ops", "vstore.refs.branches", "vstore.refs.protection",
    "vstore.refs.undo", "vstore.repository.creation", "vstore.shield", "vstore.storage.objects",
    "vstore.testing", "vstore.tree.differences", "vstore.tree.writing", "vstore.worktree.batch",
    "vstore.worktree.clearing", "vstore.worktree.compare", "vstore.worktree.encode",
    "vstore.worktree.frozen", "vstore.worktree.listing", "vstore.worktree.moving",
    "vstore.worktree.reindexing", "vstore.worktree.reshape", "vstore.worktree.virtual",
    "vstore.zarr_pipeline.coder", "vstore.zarr_pipeline.reading", "vstore.zarr_pipeline.writing",
}  # fmt: skip
"""What reading one value of a local repository does without: imports are most of the time of a short process."""
PACKAGES_TO_READ = {"blake3", "google_crc32c", "msgspec", "numcodecs", "numpy", "sqlite3", "vstore", "zarr"}
"""The packages that it may load, beside what these load themselves and small modules of the standard library."""


def test_opening_and_reading_loads_only_what_it_needs(tmp_path: Path) -> None:
    with vstore.Repository.create(tmp_path / "r") as repository:
        session = repository.writable_session("main")
        zarr.create_array(session.store, name="a", data=np.arange(10), chunks=(5,))
        session.commit("an array")
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_READ, tmp_path / "r"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(done.stdout.split())
    assert "vstore.worktree.tree" in loaded
    assert sorted(loaded & FOR_OTHER_WORK) == []
    packages = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert sorted(packages - PACKAGES_TO_READ) == []
    # These belong to commands, servers and other heavy things.
    assert sorted(loaded & {"argparse", "concurrent.futures.process", "multiprocessing", "http", "ssl"}) == []


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
