"""docs/object-stores.md names every option of vstore's, with its default."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from vstore.storage.objects.options import OWN_SETTINGS, RequestOptions

TEXT = (Path(__file__).resolve().parents[2] / "docs/object-stores.md").read_text()


def test_options_and_defaults_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", TEXT, re.MULTILINE)
    stated = {name: value for name, value in rows if name in OWN_SETTINGS}
    defaults = {each.name: each.default for each in fields(RequestOptions) if each.name in OWN_SETTINGS}
    assert stated.pop("storage_class") == "the bucket's"
    assert defaults.pop("storage_class") is None
    assert stated == {
        name: f"{value:g}" if type(value) is float else str(value) for name, value in defaults.items()
    }
