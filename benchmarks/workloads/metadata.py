"""W5: many arrays, in one group or in many nested ones, are made, listed, opened, and one attribute is changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from importlib.util import find_spec
from statistics import mean, median
from typing import Any

from benchmarks.data import expect
from benchmarks.measure import Metrics, measuring
from benchmarks.processes import Case
from benchmarks.scales import MIB, Scale
from benchmarks.systems.base import System
from benchmarks.systems.zarr_systems import ZarrSystem
from benchmarks.workloads.base import (
    Against,
    Column,
    Context,
    Stage,
    Table,
    Unit,
    Workload,
    common,
    requests_each,
)

_MAX_FOR_XARRAY = 1_000
_CHANGES = 5
_FOR_NESTED = ["vstore", "icechunk", "zarr-local", "zarr-memory"]


def cases(scale: Scale) -> Iterator[Case]:
    for count in scale.arrays:
        yield {"label": f"{count:,} arrays in one group", "arrays": count}
    for count in scale.nested_groups:
        label = f"{count:,} arrays in nested groups"
        yield {"label": label, "arrays": count, "is_nested": True, "systems": _FOR_NESTED}


def create(system: System, context: Context) -> Metrics:
    """Make all arrays in one call, and commit."""
    import zarr

    assert isinstance(system, ZarrSystem)
    nodes = make_nodes(_paths(context.case))
    system.configure()
    system.create()
    before = dict(system.requests())
    with measuring() as measured:
        store = system.writable_store()
        made = sum(1 for _ in zarr.create_hierarchy(store=store, nodes=nodes))
        created_s = time.perf_counter()
        system.commit("make arrays")
        commit_s = time.perf_counter() - created_s
    expect(made == len(nodes), f"{made} nodes were made, not {len(nodes)}")
    return common(measured, system, before) | {"commit_s": commit_s}


def _paths(case: Case) -> list[str]:
    """Return the paths of the arrays; nested ones have a group of their own, in groups of ten, in groups of ten."""
    if case.get("is_nested"):
        return [f"g{n // 100}/g{n // 10 % 10}/g{n % 10}/a" for n in range(case["arrays"])]
    return [f"a{n:05d}" for n in range(case["arrays"])]


def make_nodes(paths: list[str]) -> dict[str, Any]:
    """Return arrays as xarray would write them, and the groups above them."""
    from zarr.core.group import GroupMetadata
    from zarr.core.metadata import ArrayV3Metadata

    nodes: dict[str, Any] = {"": GroupMetadata(attributes={"title": "many"})}
    for number, path in enumerate(paths):
        for end in (at for at, letter in enumerate(path) if letter == "/"):
            nodes.setdefault(path[:end], GroupMetadata(attributes={"level": path[:end].count("/")}))
        nodes[path] = ArrayV3Metadata(
            shape=(16,),
            data_type=_float32(),
            chunk_grid={"name": "regular", "configuration": {"chunk_shape": (16,)}},
            chunk_key_encoding={"name": "default", "configuration": {"separator": "/"}},
            fill_value=0.0,
            codecs=[{"name": "bytes", "configuration": {"endian": "little"}}],
            attributes={"units": "K", "long_name": f"variable {number}", "number": number},
            dimension_names=("x",),
        )
    return nodes


def _float32() -> Any:
    from zarr.core.dtype import Float32

    return Float32()


def look(system: System, context: Context) -> Metrics:
    """List the group twice, and open it with xarray if it is not too large for that."""
    assert isinstance(system, ZarrSystem)
    paths = _paths(context.case)
    system.configure()
    before = dict(system.requests())
    metrics: Metrics = {}
    with measuring() as measured:
        found = asyncio.run(_list_dir(system.readable_store()))
    metrics |= common(measured, system, before)
    metrics["list_first_s"] = measured.seconds
    expected = {"zarr.json", *(path.partition("/")[0] for path in paths)}
    expect(sorted(found) == sorted(expected), f"{len(found)} names are listed, not {len(expected)}")
    with measuring(peak=False) as measured:
        asyncio.run(_list_dir(system.readable_store()))
    metrics["list_again_s"] = measured.seconds
    if context.case.get("is_nested"):
        metrics |= _walk(system, len(paths))
    elif len(paths) <= _MAX_FOR_XARRAY and find_spec("xarray") is not None:
        import xarray

        count = len(paths)
        open_small(xarray)
        with measuring(peak=False) as measured:
            dataset = xarray.open_zarr(system.readable_store(), consolidated=False, chunks=None)
        metrics["xarray_s"] = measured.seconds
        expect(len(dataset.variables) == count, "xarray does not find all variables")
        last = dataset[f"a{count - 1:05d}"]
        expect(last.attrs["number"] == count - 1, "the attributes of a variable are not its own")
    return metrics


def _walk(system: ZarrSystem, arrays: int) -> Metrics:
    """Open all nodes below the root, and list a group two levels down."""
    import zarr

    with measuring(peak=False) as walked:
        members = zarr.open_group(system.readable_store(), mode="r").members(max_depth=None)
    expect(sum(isinstance(node, zarr.Array) for _, node in members) == arrays, "not all arrays are found")
    with measuring(peak=False) as listed:
        names = asyncio.run(_list_dir(system.readable_store(), "g0/g0"))
    expect("zarr.json" in names, "a nested group is not listed")
    return {"members_s": walked.seconds, "list_nested_s": listed.seconds}


def open_small(xarray: Any) -> Any:
    """Have xarray import what it imports late; return what it opened."""
    import zarr

    store = zarr.storage.MemoryStore()
    for _ in zarr.create_hierarchy(store=store, nodes=make_nodes(["a"])):
        pass
    return xarray.open_zarr(store, consolidated=False, chunks=None)


async def _list_dir(store: Any, folder: str = "") -> list[str]:
    return [name async for name in store.list_dir(folder)]


def attribute(system: System, context: Context) -> Metrics:
    """Change one attribute of one array and commit, a few times."""
    import zarr

    assert isinstance(system, ZarrSystem)
    path = _paths(context.case)[context.case["arrays"] // 2]
    system.configure()
    before = dict(system.requests())
    times, written = [], []
    with measuring() as whole:
        for number in range(_CHANGES):
            with measuring(peak=False) as measured:
                array = zarr.open_array(system.writable_store(), path=path, mode="r+")
                array.attrs["changed"] = number
                system.commit(f"change {number}")
            times.append(measured.seconds)
            written.append(measured.written_bytes)
    metrics = common(whole, system, before)
    metrics["change_s"] = median(times)
    metrics["first_change_s"] = times[0]
    if system.is_persistent:
        metrics["change_written_bytes"] = mean(size for size in written if size is not None)
    metrics |= requests_each(system, before, _CHANGES)
    found = dict(zarr.open_array(system.readable_store(), path=path, mode="r").attrs)
    expect(found["changed"] == _CHANGES - 1, "the changed attribute is not there")
    expect(found["units"] == "K", "an attribute that was not changed is not there")
    return metrics


def _suits(system: type[System]) -> bool:
    return issubclass(system, ZarrSystem)


WORKLOAD = Workload(
    names=("W5",),
    title="many arrays",
    cases=cases,
    stages={
        "create": Stage(create, lambda _: 128 * MIB),
        "look": Stage(look, lambda _: 64 * MIB),
        "attribute": Stage(attribute, lambda _: 64 * MIB),
    },
    suits=_suits,
    tables=(
        Table(
            "W5 many arrays",
            (
                Column("create + commit s", "create", "s", Unit.SECONDS),
                Column("x ice", "create", "s", against=Against.BASELINE),
                Column("commit ms", "create", "commit_s", Unit.MILLISECONDS),
                Column("list_dir ms", "look", "list_first_s", Unit.MILLISECONDS),
                Column("x ice", "look", "list_first_s", against=Against.BASELINE),
                Column("again ms", "look", "list_again_s", Unit.MILLISECONDS),
                Column("xarray s", "look", "xarray_s", Unit.SECONDS),
                Column("members s", "look", "members_s", Unit.SECONDS),
                Column("list_dir below ms", "look", "list_nested_s", Unit.MILLISECONDS),
                Column("attribute + commit ms", "attribute", "change_s", Unit.MILLISECONDS),
                Column("x ice", "attribute", "change_s", against=Against.BASELINE),
                Column("written", "attribute", "change_written_bytes", Unit.BYTES),
                Column("requests", "attribute", "requests_each"),
                Column("on disk", "create", "disk_bytes", Unit.BYTES),
                Column("files", "create", "disk_files"),
            ),
        ),
    ),
)
