"""Protected branches: names and globs, kept as one value of the catalog. What moves a branch back asks `handle`."""

from __future__ import annotations

import json
import re

from vstore.catalog.base import PROTECTED, CatalogView
from vstore.errors import InvalidInputError
from vstore.format.record import Operation, OperationKind
from vstore.handle import Handle, protected_patterns
from vstore.keys.refs import check_ref_name
from vstore.refs.change import Change, apply, replacement
from vstore.refs.operations import newest

_GLOB = re.compile(r"\[[^\]]+\]|[*?]")


def protect(handle: Handle, pattern: str) -> None:
    """Add a name or glob to those that are protected; nothing happens if it is there."""
    _check_pattern(pattern)

    def plan(view: CatalogView) -> Change | Operation:
        value = view.value(PROTECTED)
        patterns = protected_patterns(value)
        if pattern in patterns:
            return newest(view)
        return _protection(OperationKind.PROTECT_BRANCH, value, [*patterns, pattern], pattern)

    apply(handle, plan, request=(OperationKind.PROTECT_BRANCH, pattern))


def unprotect(handle: Handle, pattern: str) -> None:
    """Remove a name or glob from those that are protected."""

    def plan(view: CatalogView) -> Change:
        value = view.value(PROTECTED)
        patterns = protected_patterns(value)
        if pattern not in patterns:
            shown = ", ".join(map(repr, patterns))
            raise InvalidInputError(f"{pattern!r} is not protected; {shown or 'nothing'} is.")
        left = [other for other in patterns if other != pattern]
        return _protection(OperationKind.UNPROTECT_BRANCH, value, left, pattern)

    apply(handle, plan, request=(OperationKind.UNPROTECT_BRANCH, pattern))


def _protection(kind: OperationKind, old: bytes | None, patterns: list[str], pattern: str) -> Change:
    return replacement(kind, PROTECTED, old, json.dumps(sorted(patterns)).encode(), {"pattern": pattern})


def _check_pattern(pattern: str) -> None:
    try:
        check_ref_name(_GLOB.sub("x", pattern) if isinstance(pattern, str) else pattern)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{pattern!r} can't be a branch's name, or a glob with '*', '?' and '[...]' for branches: {error}"
        ) from None
