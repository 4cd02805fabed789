"""The conflict matrix: edits of one small hierarchy, and what becomes of each two of them.

`EDITS` are the edits, each with what it changes in the terms of `tests.merge.model`; `MATRIX` says for each two
whether they go together or what the conflict is. `as_markdown` renders that for docs/merging.md:

    python -m tests.merge.cases
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tests.merge.model import ATTRIBUTES, CELLS, CHUNK, Changes, array_changes, group_changes, regular_grid
from vstore.session import Session

CRC = [{"name": "bytes"}, {"name": "crc32c"}]


def create_array(
    session: Session, path: str, *, dtype: str = "u1", cells: int = CELLS, **options: Any
) -> Any:
    """Create an array whose chunks' bytes are its cells."""
    return zarr.create_array(
        session.store,
        name=path,
        shape=(cells,),
        chunks=(CHUNK,),
        dtype=dtype,
        compressors=None,
        fill_value=0,
        **options,
    )


def make_base(session: Session) -> None:
    """Write what all edits start from."""
    zarr.create_group(session.store)
    group = zarr.create_group(session.store, path="g", attributes={"title": "base", "kept": 1})
    zarr.create_group(group.store, path="other")
    for path in ("g/a", "g/b", "other/c"):
        array = create_array(session, path, attributes=ATTRIBUTES)
        array[:] = np.arange(1, CELLS + 1)
    put(session, "g/notes", b"base")


# --- what edits are made of ----------------------------------------------------------------------------------


def put(session: Session, key: str, data: bytes) -> None:
    sync(session.store.set(key, default_buffer_prototype().buffer.from_bytes(data)))


def get(session: Session, key: str) -> bytes:
    found = sync(session.store.get(key, default_buffer_prototype()))
    assert found is not None, key
    return found.to_bytes()


def set_fields(session: Session, path: str, **fields: Any) -> None:
    """Change fields of an array's document in place, which Zarr itself has no call for."""
    document = json.loads(get(session, f"{path}/zarr.json"))
    put(session, f"{path}/zarr.json", json.dumps(document | fields).encode())


Act = Callable[[Session], object]


def set_group_attribute(name: str, value: str) -> Act:
    return lambda session: zarr.open_group(session.store, path="g").attrs.update({name: value})


def set_array_attribute(name: str, value: str) -> Act:
    return lambda session: zarr.open_array(session.store, path="g/a").attrs.update({name: value})


def resize(cells: int) -> Act:
    return lambda session: zarr.open_array(session.store, path="g/a").resize((cells,))


def write_chunk(number: int, first: int, path: str = "g/a") -> Act:
    def act(session: Session) -> None:
        array = zarr.open_array(session.store, path=path)
        array[number * CHUNK : (number + 1) * CHUNK] = [first, first + 1]

    return act


def delete_key(key: str) -> Act:
    return lambda session: sync(session.store.delete(key))


def delete_folder(path: str) -> Act:
    return lambda session: sync(session.store.delete_dir(path))


def change(**fields: Any) -> Act:
    return lambda session: set_fields(session, "g/a", **fields)


def move(source: str, target: str) -> Act:
    return lambda session: session.move(source, target)


def new_group(path: str) -> Act:
    return lambda session: zarr.create_group(session.store, path=path)


def new_array(path: str, dtype: str = "u1") -> Act:
    def act(session: Session) -> None:
        create_array(session, path, dtype=dtype, cells=4)[0:2] = [7, 8]

    return act


def append(session: Session) -> None:
    zarr.open_array(session.store, path="g/a").append(np.array([51, 52], "u1"))


def recreate(dtype: str) -> Act:
    """Delete and create again, with the same attributes, and one chunk of other cells."""

    def act(session: Session) -> None:
        sync(session.store.delete_dir("g/a"))
        create_array(session, "g/a", dtype=dtype, attributes=ATTRIBUTES)[2:4] = [61, 62]

    return act


def array_becomes_group(session: Session) -> None:
    sync(session.store.delete_dir("g/a"))
    zarr.create_group(session.store, path="g/a")


def swap(session: Session) -> None:
    session.move("g/a", "swapping")
    session.move("g/b", "g/a")
    session.move("swapping", "g/b")


# --- the edits -----------------------------------------------------------------------------------------------


def chunks_of(node: str, chunks: Mapping[int, bytes | None]) -> Changes:
    return {(node, "chunk", number): data for number, data in chunks.items()}


def new_array_changes(node: str, place: tuple[str, str], dtype: str) -> Changes:
    """Return what `new_array` changes."""
    data = np.array([7, 8], dtype).tobytes()
    return array_changes(node, place, dtype, 4, {}) | chunks_of(node, {0: data})


def deletion(*nodes: str) -> Changes:
    return {(node, "place", None): None for node in nodes}


@dataclass(frozen=True)
class Edit:
    """A change of the base: `text` says it to readers of the documentation, `changes` to the model."""

    name: str
    text: str
    act: Act
    changes: Changes


EDITS = (
    Edit("new-group", "new group `/g/n`", new_group("g/n"), group_changes("n-group", ("g", "n"))),
    Edit("new-array", "new array `/g/n`", new_array("g/n"), new_array_changes("n-u1", ("g", "n"), "u1")),
    Edit(
        "new-array-2",
        "new array `/g/n` of another dtype",
        new_array("g/n", "u2"),
        new_array_changes("n-u2", ("g", "n"), "u2"),
    ),
    Edit(
        "group-title",
        "attribute `title` of group `/g`",
        set_group_attribute("title", "one"),
        {("g", "attribute", "title"): "one"},
    ),
    Edit(
        "group-title-2",
        "the same, another value",
        set_group_attribute("title", "two"),
        {("g", "attribute", "title"): "two"},
    ),
    Edit(
        "group-note",
        "another attribute of `/g`",
        set_group_attribute("note", "one"),
        {("g", "attribute", "note"): "one"},
    ),
    Edit(
        "units",
        "attribute `units` of array `/g/a`",
        set_array_attribute("units", "m"),
        {("a", "attribute", "units"): "m"},
    ),
    Edit(
        "units-2",
        "the same, another value",
        set_array_attribute("units", "s"),
        {("a", "attribute", "units"): "s"},
    ),
    Edit(
        "note",
        "another attribute of `/g/a`",
        set_array_attribute("note", "one"),
        {("a", "attribute", "note"): "one"},
    ),
    Edit("grow", "grow `/g/a`", resize(10), {("a", "field", "shape"): [10]}),
    Edit("grow-more", "grow `/g/a` to another size", resize(12), {("a", "field", "shape"): [12]}),
    Edit(
        "append",
        "append a chunk to `/g/a`",
        append,
        {("a", "field", "shape"): [10]} | chunks_of("a", {4: bytes([51, 52])}),
    ),
    Edit(
        "shrink",
        "shrink `/g/a` to its chunks 0 and 1",
        resize(4),
        {("a", "field", "shape"): [4]} | chunks_of("a", {2: None, 3: None}),
    ),
    Edit("chunk-0", "write chunk 0 of `/g/a`", write_chunk(0, 11), chunks_of("a", {0: bytes([11, 12])})),
    Edit("chunk-0-2", "the same, other cells", write_chunk(0, 21), chunks_of("a", {0: bytes([21, 22])})),
    Edit("chunk-0-same", "write chunk 0 as it is", write_chunk(0, 1), {}),
    Edit("chunk-3", "write chunk 3 of `/g/a`", write_chunk(3, 31), chunks_of("a", {3: bytes([31, 32])})),
    Edit("no-chunk-0", "delete chunk 0 of `/g/a`", delete_key("g/a/c/0"), chunks_of("a", {0: None})),
    Edit("fill", "fill value of `/g/a`", change(fill_value=9), {("a", "field", "fill_value"): 9}),
    Edit(
        "dimensions",
        "dimension names of `/g/a`",
        change(dimension_names=["x"]),
        {("a", "field", "dimension_names"): ["x"]},
    ),
    Edit("codecs", "codecs of `/g/a`", change(codecs=CRC), {("a", "field", "codecs"): CRC}),
    Edit(
        "chunks",
        "chunk shape of `/g/a`",
        change(chunk_grid=regular_grid(4)),
        # Only two such chunks fit.
        {("a", "field", "chunk_grid"): regular_grid(4)} | chunks_of("a", {2: None, 3: None}),
    ),
    Edit(
        "recreate",
        "delete `/g/a`, create it again alike",
        recreate("u1"),
        chunks_of("a", {0: None, 1: bytes([61, 62]), 2: None, 3: None}),
    ),
    Edit(
        "recreate-2",
        "the same, with another dtype",
        recreate("u2"),
        deletion("a")
        | array_changes("a-u2", ("g", "a"), "u2", CELLS, ATTRIBUTES)
        | chunks_of("a-u2", {1: np.array([61, 62], "u2").tobytes()}),
    ),
    Edit(
        "to-group",
        "delete `/g/a`, create a group there",
        array_becomes_group,
        deletion("a") | group_changes("a-group", ("g", "a")),
    ),
    Edit("no-array", "delete `/g/a`", delete_folder("g/a"), deletion("a")),
    Edit(
        "no-group",
        "delete `/g` and all in it",
        delete_folder("g"),
        deletion("g", "a", "b") | {("notes", "value", None): None},
    ),
    Edit("no-other", "delete `/other` and all in it", delete_folder("other"), deletion("other", "c")),
    Edit("to-z", "move `/g/a` to `/g/z`", move("g/a", "g/z"), {("a", "place", None): ("g", "z")}),
    Edit("new-z", "new array `/g/z`", new_array("g/z"), new_array_changes("z", ("g", "z"), "u1")),
    Edit(
        "to-other",
        "move `/g/a` to `/other/a`",
        move("g/a", "other/a"),
        {("a", "place", None): ("other", "a")},
    ),
    Edit(
        "swap",
        "swap `/g/a` and `/g/b`",
        swap,
        {("a", "place", None): ("g", "b"), ("b", "place", None): ("g", "a")},
    ),
    Edit("to-h", "move `/g` to `/h`", move("g", "h"), {("g", "place", None): ("", "h")}),
    Edit("new-h", "new group `/h`", new_group("h"), group_changes("h", ("", "h"))),
    Edit(
        "into-other", "move `/g` to `/other/g`", move("g", "other/g"), {("g", "place", None): ("other", "g")}
    ),
    Edit(
        "into-g",
        "move `/other` to `/g/other`",
        move("other", "g/other"),
        {("other", "place", None): ("g", "other")},
    ),
    Edit(
        "other-chunk",
        "write chunk 0 of array `/g/b`",
        write_chunk(0, 41, "g/b"),
        chunks_of("b", {0: bytes([41, 42])}),
    ),
    Edit(
        "value",
        "write plain value `g/notes`",
        lambda session: put(session, "g/notes", b"one"),
        {("notes", "value", None): b"one"},
    ),
    Edit("no-value", "delete plain value `g/notes`", delete_key("g/notes"), {("notes", "value", None): None}),
)

# --- what becomes of each two --------------------------------------------------------------------------------

LETTERS = {
    "N": "two nodes would be at one path",
    "P": "a node would have no parent group",
    "M": "one attribute, field or shape was changed in two ways",
    "C": "a chunk was changed in two ways",
    "X": "one side wrote chunks, the other changed what chunks mean, or cut them off",
    "D": "one side deleted what the other changed or moved",
    "V": "a node was moved to two places, or two nodes into each other",
    "K": "a plain value was changed in two ways",
}
"""What a conflict in `MATRIX` is; a dot there is none."""

# ruff: noqa: E501
MATRIX = """
new-group     .
new-array     N  .
new-array-2   N  N  .
group-title   .  .  .  .
group-title-2 .  .  .  M  .
group-note    .  .  .  .  .  .
units         .  .  .  .  .  .  .
units-2       .  .  .  .  .  .  M  .
note          .  .  .  .  .  .  .  .  .
grow          .  .  .  .  .  .  .  .  .  .
grow-more     .  .  .  .  .  .  .  .  .  M  .
append        .  .  .  .  .  .  .  .  .  .  M  .
shrink        .  .  .  .  .  .  .  .  .  M  M  M  .
chunk-0       .  .  .  .  .  .  .  .  .  .  .  .  .  .
chunk-0-2     .  .  .  .  .  .  .  .  .  .  .  .  .  C  .
chunk-0-same  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .
chunk-3       .  .  .  .  .  .  .  .  .  .  .  .  X  .  .  .  .
no-chunk-0    .  .  .  .  .  .  .  .  .  .  .  .  .  C  C  .  .  .
fill          .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .
dimensions    .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .
codecs        .  .  .  .  .  .  .  .  .  .  .  X  X  X  X  .  X  X  .  .  .
chunks        .  .  .  .  .  .  .  .  .  .  .  X  X  X  X  .  X  X  .  .  X  .
recreate      .  .  .  .  .  .  .  .  .  .  .  .  .  C  C  .  C  .  .  .  X  X  .
recreate-2    .  .  .  .  .  .  D  D  D  D  D  D  D  D  D  .  D  D  D  D  D  D  D  .
to-group      .  .  .  .  .  .  D  D  D  D  D  D  D  D  D  .  D  D  D  D  D  D  D  N  .
no-array      .  .  .  .  .  .  D  D  D  D  D  D  D  D  D  .  D  D  D  D  D  D  D  .  .  .
no-group      P  P  P  D  D  D  D  D  D  D  D  D  D  D  D  .  D  D  D  D  D  D  D  P  P  .  .
no-other      .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .
to-z          .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  D  D  D  D  .  .
new-z         .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  P  .  N  .
to-other      .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  D  D  D  D  P  V  .  .
swap          .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  DN DN D  D  .  V  .  V  .
to-h          .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  D  .  .  .  .  .  .
new-h         .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  N  .
into-other    .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  D  P  .  .  .  .  V  .  .
into-g        .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  P  D  .  .  .  .  .  .  V  .
other-chunk   .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  D  .  .  .  .  .  .  .  .  .  .
value         .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  K  .  .  .  .  .  .  .  .  .  .  .
no-value      .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  K  .
"""
"""A row for each edit; a column for each edit up to that, as nothing depends on which side is which."""


def matrix() -> dict[tuple[str, str], str]:
    """Return the letters of each two edits, in both orders; "" where they go together."""
    found = {}
    rows = [line.split() for line in MATRIX.strip().splitlines()]
    assert [row[0] for row in rows] == [edit.name for edit in EDITS]
    for one, *cells in rows:
        for other, cell in zip(EDITS, cells, strict=False):
            found[one, other.name] = found[other.name, one] = cell.strip(".")
    assert len(found) == len(EDITS) ** 2
    return found


def as_markdown() -> str:
    """Return the matrix as it stands in docs/merging.md."""
    cells = matrix()
    numbers = [f"{number}" for number in range(1, len(EDITS) + 1)]
    lines = ["| | " + " | ".join(["", *numbers]) + " |", "| --- " * (len(EDITS) + 2) + "|"]
    for number, edit in zip(numbers, EDITS, strict=True):
        row = [cells[edit.name, other.name] or "." for other in EDITS]
        lines.append("| " + " | ".join([number, edit.text, *row]) + " |")
    return "\n".join(lines) + "\n"


def letters_as_markdown() -> str:
    return "".join(f"- **{letter}**: {text}\n" for letter, text in LETTERS.items())


if __name__ == "__main__":
    print(letters_as_markdown())
    print(as_markdown())
