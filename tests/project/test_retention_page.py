"""docs/retention.md: its examples run and print what they say, and it names every rule."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import vstore

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "retention.md").read_text()


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


def test_every_rule_is_named() -> None:
    assert not [each.name for each in fields(vstore.RetentionPolicy) if f"`{each.name}" not in PAGE]
