"""README's example runs and prints what it says, README fits two screens, and the documents' links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAX_LINES = 100
MAX_CODE_LINES = 15


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs_and_prints_what_its_comment_says(block: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert promised
    assert done.stdout.splitlines() == promised


def test_example_is_short() -> None:
    (block,) = BLOCKS
    assert sum(1 for line in block.splitlines() if line.strip()) <= MAX_CODE_LINES
    assert len(README.splitlines()) <= MAX_LINES


def test_quickstart_is_the_example() -> None:
    imports, _, body = BLOCKS[0].partition("import vstore\n")
    quickstart = (ROOT / "examples/quickstart.py").read_text()
    assert imports in quickstart
    assert textwrap.indent(body.strip("\n"), "    ") in quickstart


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert not [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_that_a_document_names_exist(document: Path) -> None:
    named = re.findall(r"`vstore/([\w/]+\.py)`", document.read_text())
    assert not [name for name in named if not (ROOT / "vstore" / name).is_file()]


def test_decisions_are_numbered_without_gaps_and_complete() -> None:
    decisions = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [path.name[:5] for path in decisions] == [f"{n:04}-" for n in range(1, len(decisions) + 1)]
    for path in decisions:
        headings = re.findall(r"^## (\w+)$", path.read_text(), re.MULTILINE)
        assert headings == ["Problem", "Choice", "Alternatives", "Consequences"], path.name
