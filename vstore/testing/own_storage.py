"""The storage contract against a place of one's own: `python -m vstore.testing.storage_contract s3://bucket/folder`.

Each test works below a folder with a new name, which it removes at its end; nothing else in the bucket is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from vstore.catalog.log_probe import probe
from vstore.errors import VStoreError
from vstore.ids import new_nonce
from vstore.storage.base import Storage, require_writable
from vstore.storage.local import LocalStorage
from vstore.storage.location import open_storage
from vstore.testing.storage_contract import StorageContract


class Place:
    """A folder and its storage options; as a plugin of pytest it is what the tests run against."""

    def __init__(self, location: str, options: dict[str, Any]) -> None:
        self._location = location
        self._options = options

    @pytest.fixture
    def place(self) -> Place:
        return self

    @contextmanager
    def storage(self) -> Iterator[Storage]:
        """Give an empty storage in the folder."""
        name = f"{self._location.rstrip('/')}/vstore-contract-{new_nonce().hex()}"
        storage = open_storage(name, options=self._options, create=True)
        yield storage
        storage.delete([info.name for info in storage.list("")])
        storage.close()
        if isinstance(storage, LocalStorage):
            # Folders are no objects.
            shutil.rmtree(storage.root)


class TestOwnStorage(StorageContract):
    """The contract, against what the command names."""

    @pytest.fixture
    def storage(self, place: Place) -> Iterator[Storage]:
        with place.storage() as storage:
            yield storage


def main(arguments: Sequence[str]) -> int:
    """Run the contract as a command; return its exit status, 0 if the storage keeps it."""
    parser = ArgumentParser(
        prog="python -m vstore.testing.storage_contract",
        description="Try out whether a storage keeps what vstore relies on.",
        epilog="Credentials are taken from the environment, as always; they are not for the command line.\n"
        "Example: ... s3://bucket/folder endpoint=http://localhost:9000 region=us-east-1 "
        """'client_options={"allow_http": true}'""",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("location", help="a folder that may be written to, such as s3://bucket/folder")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="storage options; values may be JSON")
    given = parser.parse_args(arguments)
    pairs = [text.partition("=") for text in given.options]
    if not all(separator for _, separator, _ in pairs):
        parser.error("storage options are given as KEY=VALUE")
    place = Place(given.location, {key: _value(text) for key, _, text in pairs})
    try:
        # Once, before a hundred tests fail of the same: whether it can be reached, written to and trusted.
        with place.storage() as storage:
            require_writable(storage)
            probe(storage)
    except VStoreError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    # Settings and plugins of the folder that it is started in are not for these tests.
    own = [
        "-c",
        os.devnull,
        "--rootdir",
        os.path.dirname(__file__),
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
    ]
    return int(pytest.main([*own, "--import-mode=importlib", "-q", __file__], plugins=[place]))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
