"""The text of commit graphs: pictures of small ones, and any graph read back from its picture."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.graph import AncestryGraph, Commit, iter_lines
from vstore.ids import SnapshotId


def id_of(name: str) -> SnapshotId:
    return SnapshotId(name.encode().ljust(32, b"\0"))


def commits(*texts: str) -> list[Commit]:
    """Return commits from texts like "m: a b", a name and its parents, each with its name as message."""
    found = []
    for text in texts:
        name, _, parents = text.partition(":")
        found.append(Commit(id_of(name), tuple(map(id_of, parents.split())), name))
    return found


def draw(*texts: str) -> list[str]:
    """Return the lines without ids."""
    return [re.sub(r" [0-9a-f]{12} ", " ", line) for line in iter_lines(commits(*texts), {})]


# --- pictures ------------------------------------------------------------------------------------------------


def test_a_line_of_history() -> None:
    assert draw("c:b", "b:a", "a:") == ["* c", "* b", "* a"]


def test_two_branches_of_one_parent() -> None:
    assert draw("c:a", "b:a", "a:") == ["* c", "| * b", "|/", "* a"]


def test_a_merge_of_a_branch() -> None:
    assert draw("m:c b", "c:a", "b:a", "a:") == ["* m", "|\\", "* | c", "| * b", "|/", "* a"]


def test_a_merge_with_what_the_next_column_awaits() -> None:
    assert draw("x:y", "m:y b")[1:] == ["| * m", "| |\\", "|/ /"]
    assert draw("m:a b", "a:c b", "b:c", "c:") == ["* m", "|\\", "* | a", "|\\|", "| * b", "|/", "* c"]


def test_an_edge_across_one_column() -> None:
    assert draw("c:r", "b:s", "a:r", "s:r", "r:") == [
        "* c",
        "| * b",
        "| | * a",
        "| |/",
        "|/|",
        "| * s",
        "|/",
        "* r",
    ]


def test_an_edge_across_more_columns() -> None:
    assert draw("d:r", "c:s", "b:t", "a:r", "r:", "s:", "t:") == [
        "* d",
        "| * c",
        "| | * b",
        "| | | * a",
        "| |_|/",
        "|/| |",
        "* | | r",
        " / /",
        "* | s",
        " /",
        "* t",
    ]


def test_columns_on_the_right_make_room_and_close_up() -> None:
    assert draw("c:b", "e:f", "d:f", "m:b n") == [
        "* c",
        "| * e",
        "| | * d",
        "| |/",
        "| | * m",
        "| | |\\",
        "| |/ /",
        "|/| |",
    ]
    assert draw("m:a c", "a:d e", "e:d")[2:] == ["* | a", "|\\ \\", "| * | e", "|/ /"]


def test_a_merge_of_three_parents() -> None:
    assert draw("m:a b c", "a:r", "b:r", "c:r", "r:") == [
        "* m",
        "|\\",
        "|\\ \\",
        "* | | a",
        "| * | b",
        "|/ /",
        "| * c",
        "|/",
        "* r",
    ]


def test_a_root_does_not_look_like_the_child_of_what_is_below_it() -> None:
    assert draw("b:a", "a:", "d:c", "c:") == ["* b", "* a", "", "* d", "* c"]
    assert draw("x:y", "a:", "b:") == ["* x", "| * a", "|", "| * b"]


def test_a_parent_that_is_named_twice_is_one_parent() -> None:
    assert draw("b:a a", "a:") == ["* b", "* a"]


def test_there_may_be_nothing() -> None:
    assert draw() == []
    assert str(AncestryGraph(list, {})) == ""


# --- what a line says ----------------------------------------------------------------------------------------

ONE = Commit(id_of("a"), (), "first line\nsecond line")
SHORT = id_of("a").hex()[:12]
LABELS = {ONE.id: ["main", "tag: v1"]}


def test_a_line_has_the_short_id_the_labels_and_the_first_line_of_the_message() -> None:
    assert list(iter_lines([ONE], LABELS)) == [f"* {SHORT} (main, tag: v1) first line"]
    assert list(iter_lines([ONE], {})) == [f"* {SHORT} first line"]


@pytest.mark.parametrize("message", ["", " \n ", "\n"])
def test_a_message_may_be_empty(message: str) -> None:
    assert list(iter_lines([ONE._replace(message=message)], {})) == [f"* {SHORT}"]


def test_nothing_in_a_message_or_a_label_can_command_a_terminal() -> None:
    commit = ONE._replace(message="red \x1b[31m bell \x07 back \x9b0m right \u202e")
    for colours in (False, True):
        (line,) = iter_lines([commit], {ONE.id: ["na\x9bme"]}, colours=colours)
        assert "red \ufffd[31m bell \ufffd back \ufffd0m right \ufffd" in line
        assert "na\ufffdme" in line


def test_the_text_is_plain_and_printing_is_coloured_unless_it_is_not_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    graph = AncestryGraph(lambda: [ONE], LABELS)
    plain = f"* {SHORT} (main, tag: v1) first line"
    assert (str(graph), list(graph)) == (plain, [plain])
    graph.print()
    printed = capsys.readouterr().out
    assert printed == f"* \x1b[33m{SHORT}\x1b[m (\x1b[1;32mmain\x1b[m, \x1b[1;32mtag: v1\x1b[m) first line\n"
    assert re.sub(r"\x1b\[[0-9;]*m", "", printed) == plain + "\n"
    file = io.StringIO()
    AncestryGraph(lambda: [ONE], LABELS, plain=True).print(file)
    assert file.getvalue() == plain + "\n"


def test_lines_come_before_all_commits_are_known() -> None:
    def endless() -> Iterator[Commit]:
        number = 0
        while True:
            yield Commit(id_of(f"{number}"), (id_of(f"{number + 1}"),), f"number {number}")
            number += 1

    lines = iter(AncestryGraph(endless, {}))
    assert [next(lines).split(" ", 2)[2] for _ in range(3)] == ["number 0", "number 1", "number 2"]


# --- any graph -----------------------------------------------------------------------------------------------


def read(lines: list[str]) -> dict[str, set[str]]:
    """Return the parents of each commit, by following the lines of a picture with the eye."""
    parents: dict[str, set[str]] = {}
    # For each column, the commits whose edges come down in it.
    columns: dict[int, set[str]] = {}
    floating: set[str] = set()
    for number, line in enumerate(lines):
        if "*" in line:
            assert not floating
            marks, name = line.rsplit(" ", 1)
            at = marks.index("*") // 2
            assert set(marks[::2]) <= {"|", "*"}
            columns = {column: held for column, held in columns.items() if column <= len(marks) // 2}
            parents[name] = set()
            for child in columns.get(at, ()):
                parents[child].add(name)
            columns[at] = {name}
        else:
            below = lines[number + 1] if number + 1 < len(lines) else ""
            columns, floating = slide(columns, floating, line, crossing(below))
    return parents


def crossing(line: str) -> int | None:
    """Return the place where an edge crosses a column further: "/" at the left of a column that goes straight on."""
    found = [place for place, mark in enumerate(line) if mark == "/" and line[place + 1 : place + 2] == "|"]
    return found[0] if found and "*" not in line else None


def slide(
    columns: dict[int, set[str]], floating: set[str], line: str, crossing_below: int | None
) -> tuple[dict[int, set[str]], set[str]]:
    below: dict[int, set[str]] = {}
    drifting: set[str] = set()
    bars = {place for place, mark in enumerate(line) if mark == "_"}
    for place, mark in enumerate(line):
        if mark == "|":
            below.setdefault(place // 2, set()).update(columns[place // 2])
        elif mark == "\\":
            below.setdefault(place // 2 + 1, set()).update(columns[place // 2])
        elif mark == "/" and line[place + 1 : place + 2] == "|":
            assert floating
            below.setdefault(place // 2, set()).update(floating)
        elif mark == "/" and crossing_below is not None and not drifting:
            drifting = columns[place // 2 + 1]
            assert bars == set(range(crossing_below + 2, place, 2))
        elif mark == "/":
            below.setdefault(place // 2, set()).update(columns[place // 2 + 1])
    return below, drifting


@given(st.data())
def test_any_graph_can_be_read_back_from_its_picture(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 15))
    graph = {
        number: data.draw(st.lists(st.integers(number + 1, count - 1), max_size=3, unique=True))
        if number + 1 < count
        else []
        for number in range(count)
    }
    texts = [f"n{number}:" + " ".join(f"n{parent}" for parent in held) for number, held in graph.items()]
    drawn = draw(*texts)
    expected = {f"n{number}": {f"n{parent}" for parent in held} for number, held in graph.items()}
    assert read(drawn) == expected, "\n".join(drawn)
    assert not [line for line in drawn if line != line.rstrip()]
