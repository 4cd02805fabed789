"""Keys of a Zarr store: which document of which node, or which chunk of which array, a key names.

A key is `<node path>/<document name>` or `<array path>/<chunk key>`; the root's path is "". Chunk keys follow the
array's chunk key encoding: `default` ("c/0/1", or "c.0.1") and `v2` ("0.1", or "0/1").
"""

from __future__ import annotations

from enum import Enum

import msgspec

from vstore.errors import InvalidInputError

ZARR_JSON = "zarr.json"
ZARRAY = ".zarray"
ZGROUP = ".zgroup"
ZATTRS = ".zattrs"
DOCUMENT_NAMES = (ZARR_JSON, ZARRAY, ZGROUP, ZATTRS)
_DOCUMENTS = frozenset(DOCUMENT_NAMES)

_MAX_INDEX_DIGITS = 18


class NotAChunk(Enum):
    """Why a key below an array names none of its chunks."""

    OTHER_KEY = "other key"
    WRONG_DIMENSIONS = "wrong number of dimensions"


class ChunkKeyEncoding(msgspec.Struct, frozen=True):
    """How an array spells its chunk indices: `leading` is "c" or "", `separator` "/" or "."."""

    leading: str
    separator: str
    ndim: int

    def encode(self, index: tuple[int, ...]) -> str:
        """Return the chunk key of `index`, relative to the array."""
        if not self.leading:
            return self.separator.join(map(str, index)) if index else "0"
        return self.separator.join((self.leading, *map(str, index)))

    def decode(self, text: str) -> tuple[int, ...] | NotAChunk:
        """Return the index that `text` spells, if it is spelt canonically ("01" and "+1" name no chunk)."""
        if self.leading:
            if text == self.leading:
                return () if self.ndim == 0 else NotAChunk.OTHER_KEY
            head = self.leading + self.separator
            if not text.startswith(head):
                return NotAChunk.OTHER_KEY
            text = text[len(head) :]
        elif self.ndim == 0:
            return () if text == "0" else self._why_not(text)
        parts = text.split(self.separator)
        if len(parts) != self.ndim or not all(map(is_canonical_index, parts)):
            return self._why_not(text)
        return tuple(map(int, parts))

    def first_indices(self, folder: str) -> tuple[int, ...] | None:
        """Return the indices that all chunks below a folder inside the array begin with: (3,) for "c/3".

        () if any chunk may lie there, None if none does.
        """
        parts = folder.split("/") if folder else []
        if not parts:
            return ()
        if self.separator != "/" or (self.leading and parts.pop(0) != self.leading):
            return None
        if len(parts) >= self.ndim or not all(map(is_canonical_index, parts)):
            return None
        return tuple(map(int, parts))

    def _why_not(self, text: str) -> NotAChunk:
        if all(map(is_canonical_index, text.split(self.separator))):
            return NotAChunk.WRONG_DIMENSIONS
        return NotAChunk.OTHER_KEY


def is_canonical_index(text: str) -> bool:
    """Tell whether `text` is a chunk index as Zarr writes it: ASCII digits without a leading zero."""
    return (
        text.isascii()
        and text.isdigit()
        and (text[0] != "0" or len(text) == 1)
        and len(text) <= _MAX_INDEX_DIGITS
    )


def split_document_key(key: str) -> tuple[str, str] | None:
    """Return (node path, document name) if `key` ends in a document's name, else None."""
    path, _, name = key.rpartition("/")
    return (path, name) if name in _DOCUMENTS else None


def join_key(path: str, name: str) -> str:
    """Return the key of `name` below the node at `path`."""
    return f"{path}/{name}" if path else name


def parent_path(path: str) -> str:
    """Return the path of the node above; the root's parent is the root."""
    return path.rpartition("/")[0]


def iter_ancestors(path: str) -> list[str]:
    """Return the paths above `path`, nearest first, the root last; the root itself has none."""
    found = []
    while path:
        path = parent_path(path)
        found.append(path)
    return found


def normalize_prefix(prefix: str) -> str:
    """Return a directory prefix as a path: without slashes at its ends."""
    if not isinstance(prefix, str):
        raise InvalidInputError(f"{prefix!r} is not a path; give text such as 'group/array'.")
    return prefix.strip("/")
