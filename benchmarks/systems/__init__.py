"""All systems, by name. A name like "vstore+fused" is a system with one of zarr's codec pipelines."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from benchmarks.systems.base import DEFAULT_PIPELINE, System
from benchmarks.systems.distant import DISTANT
from benchmarks.systems.icechunk import Icechunk, IcechunkMemory
from benchmarks.systems.limits import LimitFile, LimitFiles, LimitMemory
from benchmarks.systems.tensorstore import TensorStoreFile, TensorStoreOcdbt
from benchmarks.systems.vstore import VStore, VStoreMemory
from benchmarks.systems.zarr_systems import FUSED, OWN, ZarrLocal, ZarrMemory, ZarrObstore

SYSTEMS: dict[str, type[System]] = {
    system.name: system
    for system in (
        VStore,
        VStoreMemory,
        Icechunk,
        IcechunkMemory,
        ZarrLocal,
        ZarrMemory,
        ZarrObstore,
        TensorStoreFile,
        TensorStoreOcdbt,
        LimitFile,
        LimitFiles,
        LimitMemory,
        *DISTANT,
    )
}

BASELINE = "icechunk"
DISTANT_BASELINE = "icechunk-s3"
LIMIT = "limit-file"

# The modules that a pipeline other than the default needs; Zarr before 3.4 has no fused pipeline.
_PIPELINE_CHECKS = {
    FUSED: ("zarr.core.codec_pipeline", "FusedCodecPipeline"),
    OWN: ("vstore.zarr_pipeline", ""),
}


def system_class(name: str) -> type[System]:
    """Return the class of a system, whatever its pipeline."""
    return SYSTEMS[name.partition("+")[0]]


def make_system(name: str, folder: Path) -> System:
    """Return a system that keeps its data in `folder`."""
    base, _, pipeline = name.partition("+")
    return SYSTEMS[base](folder, pipeline or DEFAULT_PIPELINE)


def variants(name: str) -> list[str]:
    """Return the names of a system with each of its codec pipelines."""
    pipelines = SYSTEMS[name].pipelines
    return [name if pipeline == DEFAULT_PIPELINE else f"{name}+{pipeline}" for pipeline in pipelines]


def why_unavailable(name: str) -> str | None:
    """Return why a system, or a variant of it, can't run here, or None."""
    base, _, pipeline = name.partition("+")
    for package in SYSTEMS[base].packages:
        if find_spec(package) is None:
            return f"{package} is not installed"
    if pipeline in _PIPELINE_CHECKS:
        module, attribute = _PIPELINE_CHECKS[pipeline]
        spec = find_spec(module)
        if spec is None or (attribute and attribute not in Path(str(spec.origin)).read_text()):
            return f"there is no {pipeline!r} pipeline in {module}"
    return None
