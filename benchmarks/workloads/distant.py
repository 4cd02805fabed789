"""What D1 to D4 have in common: requests and bytes are counted on the line, and each reader begins with nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import distance
from benchmarks.measure import Metrics, measuring
from benchmarks.workloads.base import Against, Column, Unit


@contextmanager
def watching() -> Iterator[Metrics]:
    """Yield metrics that are filled in when the block ends: time, memory, requests by kind, bytes each way."""
    metrics: Metrics = {}
    before = distance.traffic()
    with measuring() as measured:
        yield metrics
    after = distance.traffic()
    metrics |= {"s": measured.seconds, "cpu_s": measured.cpu_seconds, "peak_bytes": measured.peak_bytes}
    kinds = {kind: count - before["requests"].get(kind, 0) for kind, count in after["requests"].items()}
    metrics["requests"] = sum(kinds.values())
    metrics |= {f"requests_{kind}": count for kind, count in kinds.items() if count}
    metrics |= {name: after[name] - before[name] for name in ("sent_bytes", "received_bytes")}
    metrics["at_once"] = after["at_once"]


def columns(stage: str, header: str) -> tuple[Column, ...]:
    """Return the columns that most tables have."""
    return (
        Column(f"{header} s", stage, "s", Unit.SECONDS),
        Column("x ice", stage, "s", against=Against.DISTANT),
        Column("requests", stage, "requests"),
        *(
            Column(kind, stage, f"requests_{kind}")
            for kind in ("get", "head", "put", "part", "list", "delete")
        ),
        Column("at once", stage, "at_once"),
        Column("sent", stage, "sent_bytes", Unit.BYTES),
        Column("received", stage, "received_bytes", Unit.BYTES),
        Column("peak", stage, "peak_bytes", Unit.BYTES),
        Column("CPU s", stage, "cpu_s", Unit.SECONDS),
    )
