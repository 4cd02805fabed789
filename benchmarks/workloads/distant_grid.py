"""D2: far away, rows, columns and boxes of chunks are read from a grid of two dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.data import check_equal, values
from benchmarks.measure import Metrics
from benchmarks.processes import Case
from benchmarks.scales import Scale
from benchmarks.systems.base import System
from benchmarks.systems.zarr_systems import ZarrSystem
from benchmarks.workloads.base import Context, Stage, Table, Workload
from benchmarks.workloads.distant import columns, watching

_EDGE = 128
"""Items along each side of a chunk: 64 KiB."""
_PATH = "grid"


def cases(scale: Scale) -> Iterator[Case]:
    rows, across = scale.distant_grid
    yield {"label": f"{rows} x {across} chunks of 64 KiB", "rows": rows, "columns": across}


def _data(case: Case) -> Any:
    shape = case["rows"] * _EDGE, case["columns"] * _EDGE
    return values(2, shape[0] * shape[1]).reshape(shape)


def write(system: System, context: Context) -> Metrics:
    """Write the array into a new store, and commit."""
    import zarr

    assert isinstance(system, ZarrSystem)
    data = _data(context.case)
    system.configure()
    system.create()
    with watching() as metrics:
        array = zarr.create_array(
            system.writable_store(),
            name=_PATH,
            shape=data.shape,
            chunks=(_EDGE, _EDGE),
            dtype="float32",
            compressors=None,
        )
        array[:] = data
        system.commit("write")
    return metrics


def _read(system: System, context: Context, rows: slice, across: slice) -> Metrics:
    import zarr

    assert isinstance(system, ZarrSystem)
    system.configure()
    with watching() as metrics:
        found = zarr.open_array(system.readable_store(), path=_PATH, mode="r")[rows, across]
    check_equal(found, _data(context.case)[rows, across], "what was read")
    return metrics


def row(system: System, context: Context) -> Metrics:
    """Open the store and read a row of chunks, which lie side by side."""
    start = context.case["rows"] // 2 * _EDGE
    return _read(system, context, slice(start, start + _EDGE), slice(None))


def column(system: System, context: Context) -> Metrics:
    """Open the store and read a column of chunks, which lie far apart."""
    start = context.case["columns"] // 2 * _EDGE
    return _read(system, context, slice(None), slice(start, start + _EDGE))


def box(system: System, context: Context) -> Metrics:
    """Open the store and read a quarter of the grid's rows and columns."""
    rows, across = context.case["rows"], context.case["columns"]
    return _read(
        system,
        context,
        slice(rows // 4 * _EDGE, rows // 2 * _EDGE),
        slice(across // 4 * _EDGE, across // 2 * _EDGE),
    )


def _suits(system: type[System]) -> bool:
    return issubclass(system, ZarrSystem)


WORKLOAD = Workload(
    names=("D2",),
    title="a grid of chunks, far away",
    cases=cases,
    stages={"write": Stage(write), "row": Stage(row), "column": Stage(column), "box": Stage(box)},
    suits=_suits,
    with_pipelines=True,
    is_distant=True,
    tables=(
        Table("D2 write and commit", columns("write", "write")),
        Table("D2 open and read a row of chunks", columns("row", "row")),
        Table("D2 open and read a column of chunks", columns("column", "column")),
        Table("D2 open and read a box of chunks", columns("box", "box")),
    ),
)
