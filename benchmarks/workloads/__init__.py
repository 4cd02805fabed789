"""All workloads, by name. A module is imported when its workload is asked for: workers start quicker."""

from __future__ import annotations

from importlib import import_module

from benchmarks.workloads.base import Workload

_MODULES = {
    "W1": "bulk",
    "W2": "bulk",
    "W3": "commits",
    "W4": "history",
    "W5": "metadata",
    "W6": "virtual",
    "W7": "collect",
    "W8": "contention",
    "W9": "rerun",
    "W10": "start",
    "S1": "scale",
}
_DISTANT = {
    "D1": "distant_bulk",
    "D2": "distant_grid",
    "D3": "distant_groups",
    "D4": "distant_history",
}

PLANNED: dict[str, str] = {}
"""Names that are taken, and what they wait for."""

NAMES = tuple(_MODULES)
DISTANT_NAMES = tuple(_DISTANT)
"""Those that `benchmarks.distant` runs."""


def get_workload(name: str) -> Workload:
    """Return the workload that answers to a name; `KeyError` if none does."""
    workload: Workload = import_module(f"{__name__}.{(_MODULES | _DISTANT)[name]}").WORKLOAD
    return workload


def get_workloads(names: tuple[str, ...] = NAMES) -> list[Workload]:
    """Return the workloads that answer to any of `names`, each once, in the order of their numbers."""
    return list(
        {
            get_workload(name).name: get_workload(name) for name in (*NAMES, *DISTANT_NAMES) if name in names
        }.values()
    )
