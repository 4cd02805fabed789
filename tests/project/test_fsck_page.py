"""docs/fsck.md: its examples run and print what they say, and it names every figure that is counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.pages import check_examples
from vstore.ops.storage_stats import RefStats, SnapshotStats, StorageStats

PAGE = (Path(__file__).resolve().parents[2] / "docs/fsck.md").read_text()


def test_examples_run_and_print_what_their_comments_say(tmp_path: Path) -> None:
    check_examples("fsck.md", tmp_path)


def test_every_figure_is_named() -> None:
    figures = {field.name for field in dataclasses.fields(StorageStats)}
    figures |= {*RefStats._fields, *SnapshotStats._fields}
    known = figures - {"unreadable", "versions_bytes", "kind", "name", "id", "message", "is_exact"}
    assert not [name for name in known if f"`{name}" not in PAGE]
