"""The page tree: a copy-on-write sorted map of byte keys, each page of it a blob.

It serves twice: nodes by path, and an array's manifest pointers by tile; the log catalog keeps old entries in it, too.
`reading` finds entries, `writing` makes a new tree of an old one and a batch of changes, `differences` compares two.
Pages come from a `PageStore` and go to a `PageSink` (`pages`), both handed in. What only reads needs no more than is
imported here.
"""

from __future__ import annotations

from vstore.tree.pages import PageSink, PageStore, Place
from vstore.tree.reading import NameCursor, get, iter_entries, iter_pages, iter_reversed, totals_in_range

__all__ = [
    "NameCursor",
    "PageSink",
    "PageStore",
    "Place",
    "get",
    "iter_entries",
    "iter_pages",
    "iter_reversed",
    "totals_in_range",
]
