"""What stands around every request to obstore: the guard against forks, and what its errors mean.

Which exception obstore raises when is a matter of trial (see `_translate`); after an unclear answer to a write only
reading back tells.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from vstore.errors import (
    AccessDeniedError,
    ForkedProcessError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    StorageError,
    UnsafeStorageError,
    VStoreError,
)

_SECRETS_OF_URLS = re.compile(r"(?<=://)[^/@\s]*@|\?[^\s\"')]*")


@contextlib.contextmanager
def request(attempt: str, where: str, *, writes: bool = False) -> Iterator[None]:
    """Run a request, described by "could not <attempt> <where>"; `writes` if an unclear error leaves doubt."""
    from obstore.exceptions import BaseError

    check_process()
    try:
        yield
    except (BaseError, OSError, NotImplementedError) as error:
        found = f"could not {attempt} {where}: {first_line(error)}."
        # A traceback would show the original, with the secrets of its URL.
        shown = error if _SECRETS_OF_URLS.search(str(error)) is None else None
        raise _translate(error, found, writes) from shown


def check_process() -> None:
    """Refuse to go on in a process that was forked after the first request: obstore would hang there for ever."""
    global _first_pid
    pid = os.getpid()
    if _first_pid is None:
        _first_pid = pid
    elif _first_pid != pid:
        raise forked(_first_pid)


_first_pid: int | None = None


def forked(parent: int) -> ForkedProcessError:
    return ForkedProcessError(
        f"process {os.getpid()} was forked from process {parent}, which had used an object store before; its "
        "connections do not survive that. Start workers by spawn or forkserver instead, for example "
        'multiprocessing.get_context("spawn"), and open the repository in each of them.'
    )


def _translate(error: Exception, found: str, writes: bool) -> VStoreError:
    from obstore import exceptions as o

    if isinstance(error, o.AlreadyExistsError | o.PreconditionError):
        return ObjectExistsError(f"{found} Read it back to see whose it is.")
    if isinstance(error, o.PermissionDeniedError | o.UnauthenticatedError | PermissionError):
        return AccessDeniedError(f"{found} Check the credentials, and what they allow on this location.")
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(f"{found} If all else is missing too, check the bucket's name.")
    if isinstance(error, o.NotSupportedError) and "Range request" in found:
        return StorageError(
            f"{found} The server answers requests for a part of a file with all of it. Serve the repository by one "
            "that honours the header Range, as nginx, Apache and object stores do."
        )
    if isinstance(error, o.NotSupportedError | NotImplementedError):
        return UnsafeStorageError(f"{found} This kind of store can't hold a repository that is written to.")
    if writes:
        return OutcomeUnknownError(f"{found} Whether it was done is unknown; read it back to find out.")
    return StorageError(f"{found} Check the network and the service, then try again.")


def first_line(error: Exception) -> str:
    """Return what obstore says, without its debug dump and without the secrets of URLs."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return _SECRETS_OF_URLS.sub("", line).rstrip(". ")
