"""docs/outcomes.md: its examples run and print what they say."""

from __future__ import annotations

from pathlib import Path

from tests.pages import check_examples


def test_examples_run_and_print_what_their_comments_say(tmp_path: Path) -> None:
    check_examples("outcomes.md", tmp_path)
