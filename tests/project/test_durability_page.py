"""docs/durability.md lists the file systems that the code takes for local, and the bounds that it names hold."""

from __future__ import annotations

import re
from pathlib import Path

from vstore.storage.mounts import LOCAL_TYPES
from vstore.storage.staged import SYNC_BYTES

TEXT = (Path(__file__).parents[2] / "docs/durability.md").read_text()


def test_the_local_file_systems_are_listed() -> None:
    rows = [line.split("|")[1:3] for line in TEXT.splitlines() if line.count("|") == 4]
    taken = " ".join(name for name, verdict in rows if "yes" in verdict or "hard links" in verdict)
    refused = " ".join(name for name, verdict in rows if verdict.strip().startswith("refused; the log"))
    assert set(re.findall(r"\w+", taken)) >= LOCAL_TYPES
    assert not set(re.findall(r"\w+", refused)) & LOCAL_TYPES


def test_the_background_sync_is_that_of_the_code() -> None:
    assert f"from {SYNC_BYTES >> 20} MiB on" in TEXT
