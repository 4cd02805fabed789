"""W10: a fresh process imports a package; another one opens a store and reads one value."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib import import_module

from benchmarks.data import check_equal, values
from benchmarks.measure import Metrics
from benchmarks.processes import Case
from benchmarks.scales import Scale
from benchmarks.systems.base import System
from benchmarks.workloads.base import Against, Column, Context, Stage, Table, Unit, Workload

PATH = "start"
_SEED = 10
_ITEMS = 1_000


def cases(_: Scale) -> Iterator[Case]:
    yield {"label": "one value"}


def write(system: System, context: Context) -> Metrics:
    """Write a small array."""
    system.create()
    system.write_array(PATH, values(_SEED, _ITEMS), _ITEMS)
    return {}


def load(system: System, context: Context) -> Metrics:
    """Import the system's package, which nothing before may have done."""
    package = system.packages[0]
    if package in sys.modules:
        raise RuntimeError(f"{package} was imported before its import could be measured")
    modules = len(sys.modules)
    start = time.perf_counter()
    import_module(package)
    return {"import_s": time.perf_counter() - start, "modules": len(sys.modules) - modules}


def look(system: System, context: Context) -> Metrics:
    """Open the store and read; the time counts from before the process was started."""
    value = system.open_array(PATH).read_chunk(0)
    seconds = time.monotonic() - context.task.spawned_at
    check_equal(value, values(_SEED, _ITEMS), "the one value")
    return {"value_s": seconds}


def _suits(system: type[System]) -> bool:
    return system.is_persistent and system.name != "limit-files"


WORKLOAD = Workload(
    names=("W10",),
    title="start",
    cases=cases,
    stages={
        "write": Stage(write),
        "load": Stage(load, is_cold=True),
        "look": Stage(look, is_cold=True),
    },
    suits=_suits,
    rounds=lambda scale, rounds: rounds * scale.repeats_of_start,
    tables=(
        Table(
            "W10 start",
            (
                Column("import ms", "load", "import_s", Unit.MILLISECONDS),
                Column("modules", "load", "modules"),
                Column("process, open, value ms", "look", "value_s", Unit.MILLISECONDS),
                Column("x ice", "look", "value_s", against=Against.BASELINE),
            ),
        ),
    ),
)
