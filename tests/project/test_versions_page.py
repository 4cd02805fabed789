"""docs/versions.md: its examples run and print what they say, and the arguments that it names are those of `diff`."""

from __future__ import annotations

import inspect
from pathlib import Path

import vstore
from tests.pages import check_examples

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "versions.md").read_text()


def test_examples_run_and_print_what_their_comments_say(tmp_path: Path) -> None:
    check_examples("versions.md", tmp_path)


def test_every_argument_of_diff_is_named() -> None:
    arguments = list(inspect.signature(vstore.Repository.diff).parameters)[1:]
    assert not [name for name in arguments if f"`{name}" not in PAGE]
