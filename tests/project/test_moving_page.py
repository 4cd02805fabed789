"""docs/moving.md: its examples run and print what they say, and it names every option of a copy."""

from __future__ import annotations

import inspect
from pathlib import Path

import vstore
from tests.pages import check_examples

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "moving.md").read_text()


def test_examples_run_and_print_what_their_comments_say(tmp_path: Path) -> None:
    check_examples("moving.md", tmp_path)


def test_every_option_is_named() -> None:
    options = list(inspect.signature(vstore.Repository.copy_to).parameters)[2:]
    assert not [name for name in options if f"{name}=" not in PAGE]
