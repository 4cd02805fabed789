"""docs/merging.md has the matrix as it is, and its examples run and print what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.merge.cases import as_markdown, letters_as_markdown

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "merging.md").read_text()


@pytest.mark.parametrize("render", [as_markdown, letters_as_markdown])
def test_page_has_the_matrix(render: Callable[[], str]) -> None:
    assert f"\n{render()}\n" in PAGE, (
        "docs/merging.md does not have the matrix of tests/merge/cases.py. Print it with "
        "`python -m tests.merge.cases`, and put it there."
    )


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
