"""D3: far away, many arrays are made and listed, and xarray writes, opens and reads a dataset of many variables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from benchmarks.data import check_equal, expect, values
from benchmarks.measure import Metrics
from benchmarks.processes import Case
from benchmarks.scales import MIB, Scale
from benchmarks.systems.base import System
from benchmarks.systems.zarr_systems import ZarrSystem
from benchmarks.workloads.base import Context, Stage, Table, Workload
from benchmarks.workloads.distant import columns, watching
from benchmarks.workloads.metadata import make_nodes, open_small

_TIMES, _LATITUDES, _LONGITUDES = 24, 60, 120
"""Chunks hold one time each: 28 kB."""


def cases(scale: Scale) -> Iterator[Case]:
    count = scale.distant_arrays
    yield {"label": f"{count:,} arrays in one group", "arrays": count}
    count = scale.distant_variables
    if find_spec("xarray") is not None:
        yield {"label": f"a dataset of {count} variables", "variables": count}


def create(system: System, context: Context) -> Metrics:
    """Make all arrays in one call, and commit."""
    import zarr

    assert isinstance(system, ZarrSystem)
    nodes = make_nodes([f"a{number:05d}" for number in range(context.case["arrays"])])
    system.configure()
    system.create()
    with watching() as metrics:
        made = sum(1 for _ in zarr.create_hierarchy(store=system.writable_store(), nodes=nodes))
        system.commit("make arrays")
    expect(made == len(nodes), f"{made} nodes were made, not {len(nodes)}")
    return metrics


def names(system: System, context: Context) -> Metrics:
    """Open the store and list the names in the group."""
    assert isinstance(system, ZarrSystem)
    system.configure()
    with watching() as metrics:
        found = asyncio.run(_list_dir(system.readable_store()))
    # Some list the group's own document.
    expect(len([name for name in found if name[0] == "a"]) == context.case["arrays"], "not all are listed")
    return metrics


async def _list_dir(store: Any) -> list[str]:
    return [name async for name in store.list_dir("")]


def members(system: System, context: Context) -> Metrics:
    """Open the store and all arrays in the group."""
    import zarr

    assert isinstance(system, ZarrSystem)
    system.configure()
    with watching() as metrics:
        found = zarr.open_group(system.readable_store(), mode="r").members()
    expect(len(found) == context.case["arrays"], "not all arrays are found")
    return metrics


def _dataset(case: Case) -> Any:
    import numpy as np
    import xarray

    shape = _TIMES, _LATITUDES, _LONGITUDES
    dimensions = ("time", "latitude", "longitude")
    size = _TIMES * _LATITUDES * _LONGITUDES
    return xarray.Dataset(
        {
            f"v{number:02d}": (dimensions, values(100 + number, size).reshape(shape), {"units": "K"})
            for number in range(case["variables"])
        },
        coords={
            "time": np.arange(_TIMES, dtype="f8"),
            "latitude": np.linspace(-90, 90, _LATITUDES),
            "longitude": np.linspace(0, 359, _LONGITUDES),
        },
    )


def save(system: System, context: Context) -> Metrics:
    """Write the dataset with xarray into a new store, and commit."""
    assert isinstance(system, ZarrSystem)
    dataset = _dataset(context.case)
    encoding = {name: {"chunks": (1, _LATITUDES, _LONGITUDES)} for name in dataset.data_vars}
    system.configure()
    system.create()
    with watching() as metrics:
        dataset.to_zarr(
            system.writable_store(),
            mode="w",
            encoding=encoding,
            zarr_format=3,
            consolidated=system.wants_consolidated,
        )
        system.commit("save")
    return metrics


def load(system: System, context: Context) -> Metrics:
    """Open the dataset and read one time of all variables."""
    import xarray

    assert isinstance(system, ZarrSystem)
    open_small(xarray).load()
    system.configure()
    with watching() as metrics:
        dataset = _open(system)
        found = dataset.isel(time=5).load()
    expected = _dataset(context.case)
    for name, variable in expected.data_vars.items():
        check_equal(found[name].values, variable[5].values, str(name))
    return metrics


def reopen(system: System, context: Context) -> Metrics:
    """Only open the dataset."""
    import xarray

    assert isinstance(system, ZarrSystem)
    open_small(xarray)
    system.configure()
    with watching() as metrics:
        dataset = _open(system)
    expect(len(dataset.data_vars) == context.case["variables"], "xarray does not find all variables")
    return metrics


def _open(system: ZarrSystem) -> Any:
    import xarray

    return xarray.open_zarr(system.readable_store(), consolidated=system.wants_consolidated, chunks=None)


def _suits(system: type[System]) -> bool:
    return issubclass(system, ZarrSystem)


def _has_arrays(case: Case) -> bool:
    return "arrays" in case


def _has_variables(case: Case) -> bool:
    return "variables" in case


WORKLOAD = Workload(
    names=("D3",),
    title="many arrays, far away",
    cases=cases,
    stages={
        "create": Stage(create, lambda _: 128 * MIB, applies=_has_arrays),
        "names": Stage(names, applies=_has_arrays),
        "members": Stage(members, applies=_has_arrays),
        "save": Stage(save, lambda _: 128 * MIB, applies=_has_variables),
        "reopen": Stage(reopen, applies=_has_variables),
        "load": Stage(load, applies=_has_variables),
    },
    suits=_suits,
    is_distant=True,
    tables=(
        Table("D3 make many arrays and commit", columns("create", "create")),
        Table("D3 open and list the names", columns("names", "names")),
        Table("D3 open and open all arrays", columns("members", "members")),
        Table("D3 write with xarray and commit", columns("save", "save")),
        Table("D3 open with xarray", columns("reopen", "open")),
        Table("D3 open with xarray and read one time of all variables", columns("load", "load")),
    ),
)
