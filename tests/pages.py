"""Pages of the documentation whose examples are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def check_examples(page: str, folder: Path) -> None:
    """Run a page's examples in `folder`: one program, as each goes on where the one before ended.

    Every `print` must print what the comment behind it says.
    """
    text = (DOCS / page).read_text()
    program = "".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    assert len(promised) == program.count("print(")
    assert done.stdout.splitlines() == promised
