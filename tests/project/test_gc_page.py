"""docs/gc.md: its example runs and prints what it says."""

from __future__ import annotations

from pathlib import Path

from tests.pages import check_examples


def test_the_example_runs_and_prints_what_its_comments_say(tmp_path: Path) -> None:
    check_examples("gc.md", tmp_path)
