"""Boxes: sets of chunk indices, or of cells, as few half-open ranges."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


class Box(NamedTuple):
    """All indices with start <= index < stop in every dimension."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __str__(self) -> str:
        if not self.start:
            return "()"
        parts = [
            f"{low}" if high == low + 1 else f"{low}:{high}"
            for low, high in zip(self.start, self.stop, strict=True)
        ]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"

    @property
    def size(self) -> int:
        """How many indices it holds."""
        size = 1
        for low, high in zip(self.start, self.stop, strict=True):
            size *= high - low
        return size

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Yield every index, in row-major order."""
        ranges = (range(low, high) for low, high in zip(self.start, self.stop, strict=True))
        return itertools.product(*ranges)


def boxes_of(indices: I64) -> tuple[Box, ...]:
    """Return disjoint boxes that cover exactly the indices i64[n, d], sorted; few where the indices are regular."""
    if len(indices) == 0:
        return ()
    if indices.shape[1] == 0:
        return (Box((), ()),)
    starts = np.unique(indices, axis=0)
    stops = starts + 1
    for dimension in reversed(range(indices.shape[1])):
        starts, stops = _joined(starts, stops, dimension)
    order = np.lexsort(starts.T[::-1])
    pairs = zip(starts[order].tolist(), stops[order].tolist(), strict=True)
    return tuple(Box(tuple(low), tuple(high)) for low, high in pairs)


def _joined(starts: I64, stops: I64, dimension: int) -> tuple[I64, I64]:
    """Join boxes that touch along a dimension and are equal in all others."""
    others = [d for d in range(starts.shape[1]) if d != dimension]
    frame = np.concatenate((starts[:, others], stops[:, others]), axis=1)
    order = np.lexsort((starts[:, dimension], *frame.T[::-1]))
    starts, stops, frame = starts[order], stops[order], frame[order]
    touches = (frame[1:] == frame[:-1]).all(axis=1) & (starts[1:, dimension] == stops[:-1, dimension])
    first = np.flatnonzero(np.concatenate(([True], ~touches)))
    last = np.append(first[1:], len(starts)) - 1
    joined = stops[first].copy()
    joined[:, dimension] = stops[last, dimension]
    return starts[first], joined


def expand(boxes: Iterable[Box]) -> list[tuple[int, ...]]:
    """Return every index of disjoint boxes, sorted."""
    return sorted(itertools.chain.from_iterable(box.indices() for box in boxes))
