"""docs/retention.md: its examples run and print what they say, and it names every rule."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import vstore
from tests.pages import check_examples

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "retention.md").read_text()


def test_examples_run_and_print_what_their_comments_say(tmp_path: Path) -> None:
    check_examples("retention.md", tmp_path)


def test_every_rule_is_named() -> None:
    assert not [each.name for each in fields(vstore.RetentionPolicy) if f"`{each.name}" not in PAGE]
