"""Writers killed before or after any of their system calls: what they leave never blocks anyone, and gc removes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.powered import OPERATIONS, make_base
from tests.crash.stepping import Call, stepped
from tests.crash.verdict import TELLING, WRITER, place_on, verify
from tests.repositories import LOCAL_KINDS, quick_folder


def kill_at(number: int, kind: str, operation: str, folder: Path) -> bool:
    """Kill the writer before its call `number`; return False if it had ended by then."""
    place = place_on(folder, kind, operation)
    if operation != "create":
        make_base(place)
    with stepped(WRITER, folder, str(place.location), kind, operation) as writer:
        said = writer.run(lambda call: call.number < number)
        killed = writer.process.returncode is None
    verify(place, said[1:], operation)
    return killed


def calls_of(kind: str, operation: str) -> list[Call]:
    calls: list[Call] = []
    with quick_folder() as folder:
        place = place_on(folder, kind, operation)
        if operation != "create":
            make_base(place)
        with stepped(WRITER, folder, str(place.location), kind, operation) as writer:
            writer.run(lambda call: calls.append(call) or True)
    return [call for call in calls if call.result is not None]


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_creator_killed_halfway(kind: str, tmp_path: Path) -> None:
    """With a half-made catalog or scratch objects; with the catalog's file under both of its names; after it all."""
    calls = calls_of(kind, "create")
    named = next(
        c.number for c in calls if c.name == "link" and c.path.endswith(("catalog.sqlite", "log/" + "0" * 20))
    )
    halfway = next(c.number for c in calls if c.name == ("pwrite64" if kind == "sqlite" else "link"))
    for number in (halfway + 3, named, named + 1, named + 3):
        with quick_folder() as folder:
            assert kill_at(number, kind, "create", folder)


@pytest.mark.deep
@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_writer_killed_anywhere(kind: str, operation: str) -> None:
    if operation == "many tags":
        pytest.skip("its steps are those of one tag, many times")
    for call in calls_of(kind, operation):
        if call.name in TELLING:
            with quick_folder() as folder:
                kill_at(call.number, kind, operation, folder)
