"""What the writers of `test_kill` commit. They import this, and so it imports little."""

from __future__ import annotations

from tests.repositories import array_document
from vstore.session import Session

COMMITS = 60
CHUNK = 1_100_000


def write_version(session: Session, number: int) -> None:
    """Write what version `number` holds: inline and stored chunks, a document, a value, and a deleted key."""
    tree = session.tree_for_writing()
    for key, value in version(number).items():
        tree.set(key, value)
    tree.delete(f"value {number - 2}")


def version(number: int) -> dict[str, bytes]:
    digit = bytes([number % 251])
    return {
        "a/zarr.json": array_document((100 * CHUNK,), (CHUNK,), attributes={"version": number}),
        f"a/c/{number % 7}": digit * CHUNK,
        f"a/c/{10 + number % 5}": digit * 300,
        f"value {number}": digit * 5000,
    }
