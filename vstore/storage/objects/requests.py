"""Object stores: what obstore's errors mean, which are worth another try, what they are to the layers above.

Which exception obstore raises when is a matter of trial, and what it knows only its text says; `causes` reads that.
After an unclear answer to a create only reading back tells.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vstore.errors import (
    AccessDeniedError,
    ForkedProcessError,
    InvalidInputError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    StorageError,
    UnsafeStorageError,
    VStoreError,
)
from vstore.storage.objects.causes import Place, code_of, find_cause
from vstore.storage.objects.secrets import Redactor

_STATUS = re.compile(r"status code: (\d{3})")
_RANGE = re.compile(r"range|Requested \d+\.\.\d+, got", re.IGNORECASE)
_NOT_PARTIAL = re.compile(r"non-partial response when range requested|Range request not supported")
_ANYWHERE = Place()

_REPEATED_STATUSES = frozenset({408, 409, 425, 429})
"""Of those below 500; 409 is how S3 answers a write that another one disturbs."""
_LASTING_STATUSES = frozenset({501, 505})
_REPEATED_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "OperationTimedOut",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)


class ShortReplyError(StorageError):
    """Another number of bytes came than was asked for. Repeated once."""


class PanicError(StorageError):
    """obstore broke down. Its exception is none that `except Exception` would meet."""


class RangeTroubleError(StorageError):
    """The range that was asked for is not within the object, or the server makes nothing of it."""


def request_errors() -> tuple[type[Exception], ...]:
    """Return what requests to obstore raise that is not a bug."""
    from obstore.exceptions import BaseError

    return (BaseError, OSError, NotImplementedError, ShortReplyError, PanicError)


@contextmanager
def panics_caught() -> Iterator[None]:
    """Make a `PanicError` of an exception that says so only by the name of its class."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PanicError(f"obstore panicked: {error}") from None


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


def was_answered(error: Exception) -> bool:
    """Tell whether the service itself said no, so that it is there and can be reached."""
    from obstore.exceptions import GenericError

    return not isinstance(error, GenericError | OSError) or status_of(error) is not None


def status_of(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def timed_out(error: Exception) -> bool:
    """Tell whether a request was given up because nothing, or not all, came in time."""
    return "TimedOut" in str(error) and status_of(error) is None


def is_worth_repeating(error: Exception, place: Place = _ANYWHERE) -> bool:
    """Tell whether the same request may well succeed a moment later."""
    from obstore import exceptions as o

    text = str(error)
    cause = find_cause(text, place)
    if cause is not None and cause.lasts:
        return False
    status, code = status_of(error), code_of(text)
    if isinstance(error, ShortReplyError) or status == 409:
        return True
    lasting = (
        PanicError,
        o.AlreadyExistsError,
        o.PreconditionError,
        o.PermissionDeniedError,
        o.UnauthenticatedError,
        o.NotSupportedError,
        o.InvalidPathError,
        FileNotFoundError,
        PermissionError,
        NotImplementedError,
    )
    if isinstance(error, lasting) or _NOT_PARTIAL.search(text) or _is_range_trouble(text):
        return False
    if status is None:
        # A connection that broke, a timeout, a body cut short or garbled, an error in the body of a success.
        return not code or code in _REPEATED_CODES
    if status == 400:
        return code in _REPEATED_CODES
    return status in _REPEATED_STATUSES or (status >= 500 and status not in _LASTING_STATUSES)


def translate(
    error: Exception, doing: str, redact: Redactor, *, place: Place = _ANYWHERE, creates: bool = False
) -> VStoreError:
    """Return what `error` is to the layers above: "could not <doing>: ...".

    `place` is what was asked. `creates` if the request was a create, so that an unclear error leaves doubt.
    """
    from obstore import exceptions as o

    text = str(error)
    found = f"could not {doing}: {redact(text) or type(error).__name__}."
    cause = find_cause(text, place)
    if cause is not None:
        found = f"could not {doing}: {redact.of_all(cause.finding)}."
        if cause.refuses or not creates:
            return cause.error(f"{found} {redact.of_all(cause.remedy)}")
    if isinstance(error, PanicError) and "InvalidUri" in text:
        return InvalidInputError(
            f"could not {doing}: the endpoint is no URL. Write http:// or https:// before it, also in the environment "
            "(AWS_ENDPOINT_URL)."
        )
    if isinstance(error, o.PermissionDeniedError | o.UnauthenticatedError | PermissionError):
        return AccessDeniedError(f"{found} Check the credentials, and what they allow on this location.")
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(f"{found} If all else is missing too, check the location.")
    if _NOT_PARTIAL.search(text):
        return UnsafeStorageError(
            f"{found} The server, or a proxy on the way, answers requests for a part of an object with all of it. Keep "
            "the repository where the header Range is honoured: nginx, Apache and object stores do that."
        )
    if isinstance(error, o.NotSupportedError | NotImplementedError) or (creates and status_of(error) == 501):
        return UnsafeStorageError(
            f"{found} This kind of store has no conditional writes, so it can't hold a repository that is written to."
        )
    if creates:
        if isinstance(error, o.AlreadyExistsError | o.PreconditionError) and not _is_conflict(error):
            return ObjectExistsError(f"{found} Read it back to see whose it is.")
        return OutcomeUnknownError(f"{found} Whether it was done is unknown; read it back to find out.")
    if isinstance(error, o.InvalidPathError):
        return StorageError(
            f"{found} Remove what has such a name from this location: vstore did not write it."
        )
    if _is_range_trouble(text):
        return RangeTroubleError(f"{found} Check the object's size.")
    return StorageError(f"{found} Check the network and the service, then try again.")


def has_no_body(error: Exception) -> bool:
    """Tell whether a service refused, or said that there is nothing, without a word why, as replies to HEAD must."""
    text = str(error)
    status = status_of(error)
    return status is not None and status < 500 and "Error performing HEAD" in text


def _is_range_trouble(text: str) -> bool:
    status = _STATUS.search(text)
    if status is not None:
        return status[1] == "416" or code_of(text) == "InvalidRange"
    # What obstore itself finds wrong: its own stores, and replies that make no sense.
    return _RANGE.search(text.partition("\n")[0]) is not None and "Error performing" not in text


def _is_conflict(error: Exception) -> bool:
    """Tell whether a 409 says no more than that another write was under way, as S3's does: perhaps nothing is there."""
    return status_of(error) == 409 and "BlobAlreadyExists" not in str(error)
