"""W9: the same array is written once more, as when a pipeline runs again; how much does the store grow?"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.data import ITEM_BYTES, check, values
from benchmarks.measure import Metrics, disk_usage, measuring
from benchmarks.processes import Case
from benchmarks.scales import Scale
from benchmarks.systems.base import System
from benchmarks.workloads.base import Against, Column, Context, Stage, Table, Unit, Workload, common
from benchmarks.workloads.bulk import PATH, bulk_case, data_bytes, warm_bytes, write


def cases(scale: Scale) -> Iterator[Case]:
    yield bulk_case(*scale.rerun)


def again(system: System, context: Context) -> Metrics:
    """Replace the array by an equal one."""
    case = context.case
    data = values(case["chunks"], data_bytes(case) // ITEM_BYTES)
    before = dict(system.requests())
    size_before = disk_usage(system.folder)[0]
    with measuring() as measured:
        system.write_array(PATH, data, case["chunk_bytes"] // ITEM_BYTES)
    metrics = common(measured, system, before)
    metrics["chunk_s"] = measured.seconds / case["chunks"]
    metrics["growth"] = (disk_usage(system.folder)[0] - size_before) / data_bytes(case)
    check(system.open_array(PATH).read_all(), case["chunks"], "the array that was written twice")
    return metrics


def _suits(system: type[System]) -> bool:
    return system.is_persistent and not system.name.startswith("limit-")


WORKLOAD = Workload(
    names=("W9",),
    title="an identical rerun",
    cases=cases,
    stages={"write": Stage(write, warm_bytes), "again": Stage(again, warm_bytes)},
    suits=_suits,
    rounds=lambda scale, rounds: rounds * scale.repeats_of_short,
    tables=(
        Table(
            "W9 an identical rerun, per chunk",
            (
                Column("first us", "write", "chunk_s", Unit.MICROSECONDS),
                Column("again us", "again", "chunk_s", Unit.MICROSECONDS),
                Column("x ice", "again", "chunk_s", against=Against.BASELINE),
                Column("growth / data", "again", "growth"),
            ),
        ),
    ),
)
