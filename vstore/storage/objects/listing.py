"""A listing as a lazy stream that goes on where it stopped when a page of it fails.

Servers answer a page at a time and may lie: what is yielded lies in the folder that was asked for. A listing is taken
up behind the last name seen, which is right only in the order of names; one that turns out to have another is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vstore.errors import StorageError
from vstore.storage.objects.client import Client

PAGE = 1000


class Listing:
    """The objects below the folder `path` of an obstore store ("" for all), as obstore's dicts.

    `where` names it in messages. With `in_order` the store is taken to list in the order of names until it does not.
    """

    def __init__(self, client: Client, path: str, where: str, *, in_order: bool) -> None:
        self._client = client
        self._path = path
        self._where = where
        self._in_order = in_order
        self._pages: Iterator[Any] | None = None
        self._taken_up_behind: str | None = None
        self._last: str | None = None

    def __iter__(self) -> Iterator[Any]:
        while True:
            # Where the order is not known only the first page may be asked for again.
            repeats = self._in_order or self._last is None
            page = self._client.run(self._next_page, f"list {self._where}", repeats=repeats)
            if page is None:
                return
            for meta in page:
                if self._is_new(meta["path"]):
                    yield meta

    def _next_page(self, store: Any) -> Any:
        if self._pages is None:
            self._taken_up_behind = self._last
            self._previous: str | None = None
            self._pages = iter(store.list(self._path.rstrip("/") or None, offset=self._last, chunk_size=PAGE))
        pages, self._pages = self._pages, None  # a stream that has failed once is at its end
        page = next(pages, None)
        self._pages = pages
        return page

    def _is_new(self, path: str) -> bool:
        if self._previous is not None and path <= self._previous:
            if path == self._previous:
                return False
            if self._taken_up_behind is not None:
                raise StorageError(
                    f"the listing of {self._where} broke off, and can't be taken up because the store does not list in "
                    "the order of names. Try again."
                )
            self._in_order = False
        self._previous = path
        # Some servers ignore where they are to start.
        if self._taken_up_behind is not None and path <= self._taken_up_behind:
            return False
        self._last = path
        return path.startswith(self._path)
