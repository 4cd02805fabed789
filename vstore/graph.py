r"""The history of snapshots as text, a line at a time, as `git log --graph --oneline --decorate` draws it. Pure.

Each line of history has a column. A `Commit` is `*` in its own; `\` leads to a column that a merge opens, `/` to the
column of the same parent further left, `_` across several. Only the open columns are kept, so any length of history
streams. `history` finds the commits, `repository` the labels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TextIO

from vstore.ids import SnapshotId

_SHORT_ID_DIGITS = 12
_PLAIN = "{}"
_YELLOW, _GREEN = "\x1b[33m{}\x1b[m", "\x1b[1;32m{}\x1b[m"


class Commit(NamedTuple):
    """A snapshot to be drawn; `parents` are only those that will be drawn too."""

    id: SnapshotId
    parents: tuple[SnapshotId, ...]
    message: str


class AncestryGraph:
    """The text of a commit graph: `str()` of it is the whole, iterating gives its lines as a stream, without colours.

    Each use draws anew, from the snapshots that were named when it was made.
    """

    def __init__(
        self,
        commits: Callable[[], Iterable[Commit]],
        labels: Mapping[SnapshotId, Sequence[str]],
        *,
        plain: bool = False,
    ) -> None:
        self._commits = commits
        self._labels = labels
        self._is_plain = plain

    def __iter__(self) -> Iterator[str]:
        return iter_lines(self._commits(), self._labels)

    def __str__(self) -> str:
        return "\n".join(self)

    def print(self, file: TextIO | None = None) -> None:
        """Write the lines to standard output or `file`, with ANSI colours unless the graph is plain."""
        out = sys.stdout if file is None else file
        for line in iter_lines(self._commits(), self._labels, colours=not self._is_plain):
            out.write(line + "\n")


def iter_lines(
    commits: Iterable[Commit], labels: Mapping[SnapshotId, Sequence[str]], *, colours: bool = False
) -> Iterator[str]:
    """Yield the lines for commits that come before all their parents."""
    columns: list[SnapshotId] = []
    free = -1
    for commit in commits:
        if commit.id not in columns:
            if free == len(columns):
                # The line above is a root in this very column, and would look like a child.
                yield _row(free, {})
            columns.append(commit.id)
        at = columns.index(commit.id)
        marks = ["*" if column == at else "|" for column in range(len(columns))]
        yield " ".join(marks) + " " + _describe(commit, labels.get(commit.id, ()), colours)
        yield from _follow(columns, at, tuple(dict.fromkeys(commit.parents)))
        free = at if not commit.parents else -1


def _describe(commit: Commit, labels: Sequence[str], colours: bool) -> str:
    short = (_YELLOW if colours else _PLAIN).format(commit.id.hex()[:_SHORT_ID_DIGITS])
    style = _GREEN if colours else _PLAIN
    shown = ", ".join(style.format(_printable(label)) for label in labels)
    first_line = next(iter(commit.message.strip().splitlines()), "")
    return " ".join(filter(None, (short, f"({shown})" if shown else "", _printable(first_line))))


def _printable(text: str) -> str:
    """Return `text` without what a terminal would take for a command."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _follow(columns: list[SnapshotId], at: int, parents: tuple[SnapshotId, ...]) -> Iterator[str]:
    """Yield what leads from the commit in column `at` to its parents' columns, and bring `columns` up to date."""
    if not parents:
        if at + 1 < len(columns):
            yield _row(at, {2 * column - 1: "/" for column in range(at + 1, len(columns))})
        del columns[at]
        return
    columns[at] = parents[0]
    for parent in reversed(parents[1:]):
        if columns[at + 1 : at + 2] == [parent]:
            # The column beside it awaits that parent already.
            yield _row(len(columns), {2 * at + 1: "\\"})
            continue
        yield _row(at + 1, {2 * column + 1: "\\" for column in range(at, len(columns))})
        columns.insert(at + 1, parent)
    for parent in parents:
        yield from _join(columns, parent)


def _join(columns: list[SnapshotId], parent: SnapshotId) -> Iterator[str]:
    """Yield what leads a second column of `parent` into the first one, if there are two."""
    found = [column for column, awaited in enumerate(columns) if awaited == parent]
    if len(found) < 2:
        return
    left, right = found
    slants = {2 * column - 1: "/" for column in range(right, len(columns))}
    yield _row(right, slants | {2 * column + 1: "_" for column in range(left + 1, right - 1)})
    del columns[right]
    if right - left > 1:
        yield _row(len(columns), {2 * left + 1: "/"})


def _row(straight: int, marks: Mapping[int, str]) -> str:
    """Return a line whose first `straight` columns go on, with marks at other places: column k is at place 2k."""
    cells = {2 * column: "|" for column in range(straight)} | dict(marks)
    return "".join(cells.get(place, " ") for place in range(max(cells, default=-1) + 1))
