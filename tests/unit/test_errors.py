from __future__ import annotations

import copy
import pickle

import pytest

from vstore import errors
from vstore.errors import ErrorKind, VStoreError

# Programs know errors by these: append, never change. A class that goes keeps its kind reserved.
KINDS = {
    "AccessDeniedError": "access-denied",
    "AlreadyExistsError": "already-exists",
    "CommitOutcomeUnknownError": "commit-outcome-unknown",
    "ConflictError": "conflict",
    "CorruptionError": "corruption",
    "ForkedProcessError": "forked-process",
    "FormatError": "format",
    "InternalError": "internal",
    "InvalidInputError": "invalid-input",
    "MissingBlobError": "missing-blob",
    "NodeNotFoundError": "node-not-found",
    "NotFoundError": "not-found",
    "NothingToCommitError": "nothing-to-commit",
    "ObjectExistsError": "object-exists",
    "ObjectNotFoundError": "object-not-found",
    "OutOfSpaceError": "out-of-space",
    "OutcomeUnknownError": "outcome-unknown",
    "ReadOnlyError": "read-only",
    "RefExistsError": "ref-exists",
    "RefNotFoundError": "ref-not-found",
    "RepositoryExistsError": "repository-exists",
    "RepositoryNotFoundError": "repository-not-found",
    "SessionStateError": "session-state",
    "SnapshotExpiredError": "snapshot-expired",
    "SnapshotNotFoundError": "snapshot-not-found",
    "StorageError": "storage",
    "UnsafeStorageError": "unsafe-storage",
    "UnsupportedFormatError": "unsupported-format",
    "VirtualChunkError": "virtual-chunk",
    "VirtualChunkModifiedError": "virtual-chunk-modified",
    "VirtualChunkUnauthorizedError": "virtual-chunk-unauthorized",
    "MergeConflictError": "merge-conflict",
    "NodeExistsError": "node-exists",
    "ProtectedBranchError": "protected-branch",
    "RebaseFailedError": "rebase-failed",
    "SolverError": "solver",
    "UnrelatedHistoriesError": "unrelated-histories",
    "BucketNotFoundError": "bucket-not-found",
    "UnreachableError": "unreachable",
    "WrongEndpointError": "wrong-endpoint",
}


def all_errors(base: type[VStoreError] = VStoreError) -> list[type[VStoreError]]:
    found = []
    for cls in base.__subclasses__():
        if cls.__module__ == errors.__name__:
            found += [cls, *all_errors(cls)]
    return found


CLASSES = all_errors()


def test_kinds_never_change():
    assert {cls.__name__: cls.kind.value for cls in CLASSES} == KINDS


def test_each_class_has_a_kind_of_its_own():
    assert all("kind" in vars(cls) for cls in CLASSES)
    assert len({cls.kind for cls in CLASSES}) == len(CLASSES)
    assert {cls.kind for cls in CLASSES} == set(ErrorKind)


def test_every_error_is_exported():
    assert sorted(errors.__all__) == sorted({cls.__name__ for cls in CLASSES} | {"VStoreError", "ErrorKind"})


def test_the_drawing_in_the_docstring_names_every_error():
    assert [name for name in KINDS if name not in errors.__doc__] == []


@pytest.mark.parametrize("cls", CLASSES)
def test_message_is_shown_as_it_is(cls):
    error = cls('it\'s a "message"')
    assert str(error) == error.message == 'it\'s a "message"'
    assert error.args == ('it\'s a "message"',)


@pytest.mark.parametrize("cls", [VStoreError, *CLASSES])
@pytest.mark.parametrize("send", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_errors_pickle(cls, send):
    error = cls("why")
    error.add_note("a note")
    found = send(error)
    assert type(found) is cls
    assert (str(found), found.message, found.kind, found.__notes__) == ("why", "why", cls.kind, ["a note"])


def test_fields_survive_pickling():
    conflict = errors.ConflictError("moved", expected_parent="aa", actual_parent=None)
    found = pickle.loads(pickle.dumps(conflict))
    assert (found.expected_parent, found.actual_parent) == ("aa", None)
    unknown = pickle.loads(pickle.dumps(errors.CommitOutcomeUnknownError("?", transaction_id="ff")))
    assert unknown.transaction_id == "ff"


@pytest.mark.parametrize(
    ("cls", "bases"),
    [
        (errors.NotFoundError, KeyError),
        (errors.InvalidInputError, ValueError),
        (errors.ReadOnlyError, ValueError),
        (errors.RefNotFoundError, errors.NotFoundError),
        (errors.SnapshotExpiredError, errors.NotFoundError),
        (errors.RefExistsError, errors.AlreadyExistsError),
        (errors.NothingToCommitError, errors.SessionStateError),
        (errors.CommitOutcomeUnknownError, errors.StorageError),
        (errors.CorruptionError, errors.FormatError),
        (errors.MissingBlobError, errors.FormatError),
        (errors.UnsupportedFormatError, errors.FormatError),
        (errors.VirtualChunkModifiedError, errors.VirtualChunkError),
    ],
)
def test_handlers_catch_what_they_should(cls, bases):
    with pytest.raises(bases):
        raise cls("why")


def test_a_missing_blob_is_no_missing_key():
    """Zarr takes a KeyError for a chunk that was never written, and reads fill value."""
    for cls in (errors.StorageError, errors.FormatError, errors.VirtualChunkError, errors.InternalError):
        assert not any(issubclass(c, (KeyError, FileNotFoundError)) for c in [cls, *all_errors(cls)])
