"""docs/fsck.md: its examples run and print what they say, and it names every figure that is counted."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

from vstore.ops.storage_stats import RefStats, SnapshotStats, StorageStats

PAGE = (Path(__file__).resolve().parents[2] / "docs/fsck.md").read_text()


def test_examples_run_and_print_what_their_comments_say(tmp_path: Path) -> None:
    """They are one program, as each goes on where the one before ended."""
    program = "".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    assert len(promised) == program.count("print(")
    assert done.stdout.splitlines() == promised


def test_every_figure_is_named() -> None:
    figures = {field.name for field in dataclasses.fields(StorageStats)}
    figures |= {*RefStats._fields, *SnapshotStats._fields}
    known = figures - {"unreadable", "versions_bytes", "kind", "name", "id", "message", "is_exact"}
    assert not [name for name in known if f"`{name}" not in PAGE]
