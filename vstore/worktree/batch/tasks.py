"""The independent tasks that together read a batch, each for chunks that lie in one kind of place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from vstore.blobs.buffers import OverwrittenError
from vstore.blobs.runs import BlobColumns, Run, iter_run
from vstore.ids import BytesLike
from vstore.worktree.contents import ChunkSource
from vstore.worktree.tree import Worktree


class ReadTask(Protocol):
    """A part of a batch: reads its chunks and yields (row of the batch, bytes, or None where there are none).

    Bytes are valid for as long as they are held. Errors name the chunk's key.
    """

    @property
    def checks(self) -> bool:
        """Whether neighbours must be hashed, which is most of the work of large ones."""

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """Chunks of an object store that were read, and checked, before."""

    chunks: list[tuple[int, memoryview]]
    checks: ClassVar[bool] = False

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]:
        return iter(self.chunks)


@dataclass(frozen=True, slots=True)
class Singles:
    """Keys that are found and read one by one."""

    tree: Worktree
    keys: Sequence[str]
    checks: ClassVar[bool] = False

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]:
        for row, key in enumerate(self.keys):
            source = self.tree.find(key)
            yield row, None if source is None else self.tree.contents.read(source, None, f"key {key!r}")


@dataclass(frozen=True, slots=True)
class Others:
    """Chunks that are absent, at hand, in this session's writer, or in somebody else's files."""

    tree: Worktree
    keys: Sequence[str]
    sources: list[tuple[int, ChunkSource | None]]
    checks: ClassVar[bool] = False

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]:
        read = self.tree.contents.read
        for row, source in self.sources:
            key = self.keys[row]
            try:
                data = None if source is None else read(source, None, f"key {key!r}")
            except OverwrittenError:
                data = self.tree.read(key)
            yield row, data


@dataclass(frozen=True, slots=True)
class RunContext:
    """What the runs of one batch share; `rows`, `marks` and `mark_rows` go by the blobs' rows."""

    tree: Worktree
    keys: Sequence[str]
    blobs: BlobColumns
    rows: list[int]
    marks: list[bytearray | None]
    mark_rows: list[int]


@dataclass(frozen=True, slots=True)
class RunTask:
    """Neighbours in a pack, read at once."""

    context: RunContext
    run: Run

    @property
    def checks(self) -> bool:
        return not self.context.blobs.trusted[self.run.rows].all()

    def __iter__(self) -> Iterator[tuple[int, BytesLike | None]]:
        tree, keys, blobs, rows, marks, mark_rows = (
            self.context.tree,
            self.context.keys,
            self.context.blobs,
            self.context.rows,
            self.context.marks,
            self.context.mark_rows,
        )
        for at, data in iter_run(tree.blobs, self.run, blobs, lambda at: f"key {keys[rows[at]]!r}"):
            mark = marks[at]
            if mark is not None:
                mark[mark_rows[at]] = 1
            yield rows[at], data
