"""Two arrays made alike in two repositories: one under zarr's stock pipeline, one under vstore's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import vstore
from tests.repositories import Place, contents
from vstore import zarr_pipeline
from vstore.session import Session
from vstore.zarr_pipeline import reading, writing

STOCK = "zarr.core.codec_pipeline.BatchedCodecPipeline"


@contextmanager
def stock() -> Iterator[None]:
    with zarr.config.set({"codec_pipeline.path": STOCK}):
        yield


@dataclass
class Handovers:
    """Counts the requests that vstore's pipeline did, and those that it left to zarr's."""

    done: int = 0
    left: int = 0


@contextmanager
def watched(monkeypatch: Any) -> Iterator[Handovers]:
    """Count what becomes of requests to vstore's pipeline."""
    seen = Handovers()

    def counted(function: Any, left: Any) -> Any:
        async def call(*args: Any) -> Any:
            result = await function(*args)
            if result is left:
                seen.left += 1
            else:
                seen.done += 1
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read", counted(reading.read, None))
        patch.setattr(writing, "write", counted(writing.write, False))
        yield seen


@dataclass
class Pair:
    """The two arrays, with what makes them one: the same calls, the same answers, the same bytes."""

    repositories: tuple[vstore.Repository, vstore.Repository]
    make: Callable[[Any], Any]
    sessions: list[Session] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)

    @classmethod
    def new(cls, folder: Path, make: Callable[[Any], Any], kind: str = "sqlite", **options: Any) -> Pair:
        """Make the arrays with `make(store)`."""
        places = [Place.new(kind, folder / name) for name in ("stock", "own")]
        pair = cls((places[0].create(**options), places[1].create(**options)), make)
        pair.sessions = [repository.writable_session("main") for repository in pair.repositories]
        with stock():
            pair.arrays.append(make(pair.sessions[0].store))
        with zarr_pipeline.enable():
            pair.arrays.append(make(pair.sessions[1].store))
        return pair

    def both(self, act: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Do the same with both arrays: equal results, or errors of one type."""
        outcomes = []
        for array in self.arrays:
            try:
                outcomes.append(act(array))
            except Exception as error:  # noqa: BLE001 - whatever zarr raises, of either array
                outcomes.append(error)
        one, other = outcomes
        if isinstance(one, Exception) or isinstance(other, Exception):
            assert type(one) is type(other), (one, other)
            return one, other
        assert_same(one, other)
        return one, other

    def write(self, act: Callable[[Any], Any]) -> None:
        """Do the same with both arrays, and compare every key."""
        self.both(act)
        assert contents(self.sessions[0]) == contents(self.sessions[1])

    def commit(self, mode: str = "r+") -> None:
        """Commit both, and open the arrays anew in new sessions."""
        for number, (repository, session) in enumerate(zip(self.repositories, self.sessions, strict=True)):
            if session.has_uncommitted_changes:
                session.commit("written")
            self.sessions[number] = repository.writable_session("main")
        paths = [array.path for array in self.arrays]
        with stock():
            self.arrays[0] = zarr.open_array(self.sessions[0].store, path=paths[0], mode=mode)
        with zarr_pipeline.enable():
            self.arrays[1] = zarr.open_array(self.sessions[1].store, path=paths[1], mode=mode)

    def close(self) -> None:
        for repository in self.repositories:
            repository.close()


def assert_same(one: Any, other: Any) -> None:
    """Check that two results of zarr are alike to the bit, and to the type."""
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.flags["F_CONTIGUOUS"] == other.flags["F_CONTIGUOUS"]
        if one.dtype.hasobject or one.dtype.kind == "T":
            assert one.tolist() == other.tolist()
        else:
            assert one.tobytes() == other.tobytes()
    elif isinstance(one, np.generic) and not one.dtype.hasobject:
        assert one.tobytes() == other.tobytes()
    else:
        assert one is None or one == other
