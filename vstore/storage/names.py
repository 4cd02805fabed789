"""What every storage checks of its arguments before it touches anything."""

from __future__ import annotations

import re

from vstore.errors import InvalidInputError
from vstore.keys.objects import check_object_name

_FOLDER = re.compile(r"[0-9a-z]+(?:/[0-9a-z]+){0,3}")


def is_object_name(name: str) -> bool:
    """Tell whether vstore would write an object of this name."""
    try:
        check_object_name(name)
    except InvalidInputError:
        return False
    return True


def is_folder_name(name: str) -> bool:
    """Tell whether objects of vstore may lie below `name`, which bears no slash at its end."""
    return _FOLDER.fullmatch(name) is not None


def check_prefix(prefix: str) -> str:
    """Return the folder prefix of a listing: empty, or one that ends in a slash."""
    if prefix and not (prefix.endswith("/") and is_folder_name(prefix[:-1])):
        raise InvalidInputError(f"{prefix!r} is not a folder of vstore objects, such as 'packs/'")
    return prefix


def check_range(offset: int, length: int) -> None:
    if offset < 0 or length < 0:
        raise InvalidInputError(f"a range of {length} bytes from {offset} can't be read")
