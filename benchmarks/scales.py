"""How large the workloads are: `full` for figures, `quick` for a look, `smoke` for the tests of the harness itself."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of all workloads, and how often each is repeated."""

    name: str
    rounds: int
    bulk: tuple[tuple[int, int], ...]
    """Bytes of a chunk, number of chunks."""
    existing_chunks: tuple[int, ...]
    spread_chunks: int
    commits_each: int
    history_commits: int
    long_history_commits: int
    arrays: tuple[int, ...]
    nested_groups: tuple[int, ...]
    """Innermost groups, with an array in each."""
    large: tuple[int, ...]
    """Chunks of the arrays of S1."""
    commits_to_large: int
    listed_chunks: int
    """Larger arrays are not listed."""
    virtual_refs: int
    writers: int
    commits_per_writer: int
    rerun: tuple[int, int]
    """Bytes of a chunk, number of chunks."""
    repeats_of_short: int
    """How often in each round the workloads run that take a few seconds only: W4, W6, W8, W9."""
    repeats_of_start: int
    """The same for W10, which takes less than a second."""
    distant_bulk: tuple[tuple[int, int], ...]
    """Bytes of a chunk, number of chunks; of D1, as are all below of D1 to D4."""
    distant_commits: int
    distant_threads: int
    distant_reads: int
    """Chunks that each of the threads reads."""
    distant_grid: tuple[int, int]
    distant_arrays: int
    distant_variables: int
    distant_history: int
    systems: tuple[str, ...] | None = None
    """What runs unless the command names systems; None for all."""


FULL = Scale(
    name="full",
    rounds=1,
    # 512 MiB at most: on virtual machines memory that was not touched lately can cost seconds per GiB.
    bulk=((MIB, 512), (64 * KIB, 4_096), (4 * KIB, 20_000)),
    existing_chunks=(1_000, 100_000, 1_000_000),
    spread_chunks=100,
    # For a 99th percentile; slow systems stop after 5 seconds.
    commits_each=200,
    history_commits=1_000,
    long_history_commits=10_000,
    arrays=(1_000, 10_000),
    nested_groups=(1_000,),
    large=(1_000_000, 10_000_000),
    commits_to_large=20,
    listed_chunks=10_000_000,
    virtual_refs=1_000_000,
    writers=4,
    commits_per_writer=50,
    rerun=(64 * KIB, 1_024),
    repeats_of_short=2,
    repeats_of_start=3,
    distant_bulk=((4 * KIB, 2_000), (64 * KIB, 2_000), (MIB, 200)),
    distant_commits=5,
    distant_threads=8,
    distant_reads=25,
    distant_grid=(40, 50),
    distant_arrays=1_000,
    distant_variables=30,
    distant_history=100,
    systems=(
        "vstore",
        "vstore-memory",
        "icechunk",
        "zarr-local",
        "zarr-memory",
        "tensorstore-ocdbt",
        "limit-file",
    ),
)

QUICK = Scale(
    name="quick",
    rounds=1,
    # No chunks of 1 MiB: for so short a time they only measure what else the disk is doing.
    bulk=((64 * KIB, 256), (4 * KIB, 1_000)),
    existing_chunks=(100_000,),
    spread_chunks=100,
    commits_each=5,
    history_commits=100,
    long_history_commits=500,
    arrays=(1_000,),
    nested_groups=(),
    large=(200_000,),
    commits_to_large=5,
    listed_chunks=200_000,
    virtual_refs=100_000,
    writers=4,
    commits_per_writer=10,
    rerun=(64 * KIB, 128),
    repeats_of_short=1,
    repeats_of_start=2,
    distant_bulk=((64 * KIB, 200),),
    distant_commits=2,
    distant_threads=8,
    distant_reads=5,
    distant_grid=(10, 12),
    distant_arrays=100,
    distant_variables=10,
    distant_history=12,
    systems=("vstore", "icechunk", "zarr-local", "zarr-memory", "tensorstore-ocdbt", "limit-file"),
)

SMOKE = Scale(
    name="smoke",
    rounds=1,
    bulk=((4 * KIB, 20),),
    existing_chunks=(50,),
    spread_chunks=5,
    commits_each=3,
    history_commits=5,
    long_history_commits=25,
    arrays=(10,),
    nested_groups=(10,),
    large=(100,),
    commits_to_large=3,
    listed_chunks=100,
    virtual_refs=100,
    writers=2,
    commits_per_writer=3,
    rerun=(4 * KIB, 10),
    repeats_of_short=1,
    repeats_of_start=1,
    distant_bulk=((4 * KIB, 20),),
    distant_commits=2,
    distant_threads=2,
    distant_reads=3,
    distant_grid=(3, 4),
    distant_arrays=5,
    distant_variables=3,
    distant_history=4,
    systems=("vstore", "zarr-memory"),
)

HUGE_CHUNKS = 100_000_000
"""What --huge adds to S1: minutes, and gigabytes of references."""

SCALES = {scale.name: scale for scale in (FULL, QUICK, SMOKE)}
