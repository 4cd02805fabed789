"""Which branch and tag names are allowed: git's rules, roughly, so that names stay usable in URLs and shells."""

from __future__ import annotations

import re

from vstore.errors import InvalidInputError
from vstore.ids import is_snapshot_text

MAIN = "main"
"""The branch that every repository has."""
MAX_REF_NAME_BYTES = 200

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\|#%\"'<>]")


def check_ref_name(name: str) -> str:
    """Return `name` if a branch or tag may be called so, else raise `InvalidInputError` with the reason."""
    reason = _why_invalid(name)
    if reason is not None:
        raise InvalidInputError(
            f"{name!r} can't name a branch or tag: {reason}. "
            "Use letters, digits, '-', '_', '.' and '/', for example 'experiment/2026-11'."
        )
    return name


def _why_invalid(name: object) -> str | None:
    if not isinstance(name, str):
        return f"it is a {type(name).__name__}, not a str"
    if not name:
        return "it is empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if size > MAX_REF_NAME_BYTES:
        return f"it is longer than {MAX_REF_NAME_BYTES} bytes"
    found = _FORBIDDEN.search(name)
    if found:
        return f"it holds {found[0]!r}"
    if ".." in name or "@{" in name or name == "@":
        return "'..', '@{' and '@' alone are not allowed"
    if name.startswith("-"):
        return "it starts with '-'"
    for part in name.split("/"):
        if not part:
            return "it starts or ends with '/' or has '//'"
        if part.startswith(".") or part.endswith((".", ".lock")):
            return "a part starts with '.' or ends with '.' or '.lock'"
    if is_snapshot_text(name):
        return "it looks like a snapshot id"
    return None
