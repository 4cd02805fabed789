"""Every error vstore raises on purpose.

Classes are split by what the handler does next: a conflict is rebased, a storage error is retried, damage is
checked with fsck. Each error carries a stable `kind` (append-only) for programs, and a message for people that
names the object, what was expected, what was found, and the next thing to do.

    VStoreError
      ConflictError                       the branch or ref moved: look again, then decide
        MergeConflictError                two sides changed the same thing: choose a solver, or merge by hand
          RebaseFailedError               the same, while a session followed its branch
      NotFoundError (KeyError)            RepositoryNotFoundError, RefNotFoundError, SnapshotNotFoundError,
                                          SnapshotExpiredError, NodeNotFoundError
      AlreadyExistsError                  RepositoryExistsError, RefExistsError, NodeExistsError
      ReadOnlyError (ValueError)          written through something that only reads
      ProtectedBranchError                the branch was protected against this
      InvalidInputError (ValueError)      the call's arguments are wrong: UnrelatedHistoriesError, SolverError
      SessionStateError                   NothingToCommitError, ForkedProcessError
      StorageError                        ObjectNotFoundError, ObjectExistsError, OutOfSpaceError,
                                          AccessDeniedError, OutcomeUnknownError, CommitOutcomeUnknownError,
                                          UnsafeStorageError, UnreachableError, WrongEndpointError,
                                          BucketNotFoundError
      FormatError                         CorruptionError, MissingBlobError, UnsupportedFormatError
      VirtualChunkError                   VirtualChunkUnauthorizedError, VirtualChunkModifiedError
      InternalError                       a bug of ours: report it
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar

__all__ = [
    "AccessDeniedError",
    "AlreadyExistsError",
    "BucketNotFoundError",
    "CommitOutcomeUnknownError",
    "ConflictError",
    "CorruptionError",
    "ErrorKind",
    "ForkedProcessError",
    "FormatError",
    "InternalError",
    "InvalidInputError",
    "MergeConflictError",
    "MissingBlobError",
    "NodeExistsError",
    "NodeNotFoundError",
    "NotFoundError",
    "NothingToCommitError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "OutOfSpaceError",
    "OutcomeUnknownError",
    "ProtectedBranchError",
    "ReadOnlyError",
    "RebaseFailedError",
    "RefExistsError",
    "RefNotFoundError",
    "RepositoryExistsError",
    "RepositoryNotFoundError",
    "SessionStateError",
    "SnapshotExpiredError",
    "SnapshotNotFoundError",
    "SolverError",
    "StorageError",
    "UnreachableError",
    "UnrelatedHistoriesError",
    "UnsafeStorageError",
    "UnsupportedFormatError",
    "VStoreError",
    "VirtualChunkError",
    "VirtualChunkModifiedError",
    "VirtualChunkUnauthorizedError",
    "WrongEndpointError",
]


class ErrorKind(StrEnum):
    """The stable codes of errors. Append only: never rename or reuse one."""

    CONFLICT = "conflict"
    NOT_FOUND = "not-found"
    REPOSITORY_NOT_FOUND = "repository-not-found"
    REF_NOT_FOUND = "ref-not-found"
    SNAPSHOT_NOT_FOUND = "snapshot-not-found"
    SNAPSHOT_EXPIRED = "snapshot-expired"
    NODE_NOT_FOUND = "node-not-found"
    ALREADY_EXISTS = "already-exists"
    REPOSITORY_EXISTS = "repository-exists"
    REF_EXISTS = "ref-exists"
    READ_ONLY = "read-only"
    INVALID_INPUT = "invalid-input"
    SESSION_STATE = "session-state"
    NOTHING_TO_COMMIT = "nothing-to-commit"
    FORKED_PROCESS = "forked-process"
    STORAGE = "storage"
    OBJECT_NOT_FOUND = "object-not-found"
    OBJECT_EXISTS = "object-exists"
    OUT_OF_SPACE = "out-of-space"
    ACCESS_DENIED = "access-denied"
    OUTCOME_UNKNOWN = "outcome-unknown"
    COMMIT_OUTCOME_UNKNOWN = "commit-outcome-unknown"
    UNSAFE_STORAGE = "unsafe-storage"
    FORMAT = "format"
    CORRUPTION = "corruption"
    MISSING_BLOB = "missing-blob"
    UNSUPPORTED_FORMAT = "unsupported-format"
    VIRTUAL_CHUNK = "virtual-chunk"
    VIRTUAL_CHUNK_UNAUTHORIZED = "virtual-chunk-unauthorized"
    VIRTUAL_CHUNK_MODIFIED = "virtual-chunk-modified"
    INTERNAL = "internal"
    MERGE_CONFLICT = "merge-conflict"
    REBASE_FAILED = "rebase-failed"
    NODE_EXISTS = "node-exists"
    PROTECTED_BRANCH = "protected-branch"
    UNRELATED_HISTORIES = "unrelated-histories"
    SOLVER = "solver"
    BUCKET_NOT_FOUND = "bucket-not-found"
    UNREACHABLE = "unreachable"
    WRONG_ENDPOINT = "wrong-endpoint"


class VStoreError(Exception):
    """Base of all vstore errors."""

    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        # KeyError would show the message's repr.
        return self.message


class ConflictError(VStoreError):
    """A ref no longer holds what this change was built on.

    `expected_parent` and `actual_parent` are snapshot ids as hex text, or None where there is no such ref.
    """

    kind = ErrorKind.CONFLICT

    def __init__(
        self, message: str, *, expected_parent: str | None = None, actual_parent: str | None = None
    ) -> None:
        super().__init__(message)
        self.expected_parent = expected_parent
        self.actual_parent = actual_parent


class MergeConflictError(ConflictError):
    """Two sides changed the same thing in different ways, and no rule says which change holds.

    `conflicts` are all that were found, as `vstore.Conflict` values. Nothing was changed.
    """

    kind = ErrorKind.MERGE_CONFLICT

    def __init__(
        self,
        message: str,
        *,
        conflicts: Sequence[Any] = (),
        expected_parent: str | None = None,
        actual_parent: str | None = None,
    ) -> None:
        super().__init__(message, expected_parent=expected_parent, actual_parent=actual_parent)
        self.conflicts = tuple(conflicts)


class RebaseFailedError(MergeConflictError):
    """A session's changes conflict with what its branch became; the session is as it was before.

    `actual_parent` is the branch's snapshot that was tried.
    """

    kind = ErrorKind.REBASE_FAILED

    @property
    def snapshot(self) -> str | None:
        """The snapshot on which the changes could not be put, as hex text."""
        return self.actual_parent


class NotFoundError(VStoreError, KeyError):
    """Something named does not exist."""

    kind = ErrorKind.NOT_FOUND


class RepositoryNotFoundError(NotFoundError):
    """There is no repository at the location."""

    kind = ErrorKind.REPOSITORY_NOT_FOUND


class RefNotFoundError(NotFoundError):
    """There is no such branch or tag."""

    kind = ErrorKind.REF_NOT_FOUND


class SnapshotNotFoundError(NotFoundError):
    """No retained snapshot has this id or prefix."""

    kind = ErrorKind.SNAPSHOT_NOT_FOUND


class SnapshotExpiredError(NotFoundError):
    """The snapshot has expired: history keeps its place, and its content is kept no longer."""

    kind = ErrorKind.SNAPSHOT_EXPIRED


class NodeNotFoundError(NotFoundError):
    """There is no group or array at the path."""

    kind = ErrorKind.NODE_NOT_FOUND


class AlreadyExistsError(VStoreError):
    """Something of this name exists already."""

    kind = ErrorKind.ALREADY_EXISTS


class RepositoryExistsError(AlreadyExistsError):
    """The location already holds a repository, or something else."""

    kind = ErrorKind.REPOSITORY_EXISTS


class RefExistsError(AlreadyExistsError):
    """The branch or tag exists, or its name was used by a deleted tag."""

    kind = ErrorKind.REF_EXISTS


class NodeExistsError(AlreadyExistsError):
    """There is a group, an array or another key at the path already."""

    kind = ErrorKind.NODE_EXISTS


class ReadOnlyError(VStoreError, ValueError):
    """A write through a read-only session, store or repository.

    Also a ValueError, because Zarr's `Store` contract says so.
    """

    kind = ErrorKind.READ_ONLY


class ProtectedBranchError(VStoreError):
    """A protected branch was to be reset or deleted."""

    kind = ErrorKind.PROTECTED_BRANCH


class InvalidInputError(VStoreError, ValueError):
    """An argument, a key, a name or a URL that can't be accepted."""

    kind = ErrorKind.INVALID_INPUT


class UnrelatedHistoriesError(InvalidInputError):
    """Two snapshots have no retained common ancestor, so that nothing tells what each side changed."""

    kind = ErrorKind.UNRELATED_HISTORIES


class SolverError(InvalidInputError):
    """A conflict solver raised, or returned something that can't be used. Nothing was changed."""

    kind = ErrorKind.SOLVER


class SessionStateError(VStoreError):
    """The session can't do this in its present state."""

    kind = ErrorKind.SESSION_STATE


class NothingToCommitError(SessionStateError):
    """The session holds no change, and `allow_empty` was not given."""

    kind = ErrorKind.NOTHING_TO_COMMIT


class ForkedProcessError(SessionStateError):
    """Used in a forked child process, where it can't work safely."""

    kind = ErrorKind.FORKED_PROCESS


class StorageError(VStoreError):
    """The storage failed; nothing visible changed, and the call may be tried again."""

    kind = ErrorKind.STORAGE


class ObjectNotFoundError(StorageError):
    """An object or file that should be in the storage is not there."""

    kind = ErrorKind.OBJECT_NOT_FOUND


class ObjectExistsError(StorageError):
    """Create-if-absent found an object of this name."""

    kind = ErrorKind.OBJECT_EXISTS


class OutOfSpaceError(StorageError):
    """The disk or quota is full."""

    kind = ErrorKind.OUT_OF_SPACE


class AccessDeniedError(StorageError):
    """The storage refused for lack of permission or credentials."""

    kind = ErrorKind.ACCESS_DENIED


class OutcomeUnknownError(StorageError):
    """A write may or may not have happened; only reading it back can tell."""

    kind = ErrorKind.OUTCOME_UNKNOWN


class CommitOutcomeUnknownError(StorageError):
    """A catalog update may or may not have landed.

    Asking again with the same transaction finds out; nothing was cleaned up. `transaction_id` is hex text.
    """

    kind = ErrorKind.COMMIT_OUTCOME_UNKNOWN

    def __init__(self, message: str, *, transaction_id: str = "") -> None:
        super().__init__(message)
        self.transaction_id = transaction_id


class UnsafeStorageError(StorageError):
    """The storage can't give the guarantees that commits need."""

    kind = ErrorKind.UNSAFE_STORAGE


class UnreachableError(StorageError):
    """No connection came about, or no answer came over it: name, port, certificate, proxy, network or service."""

    kind = ErrorKind.UNREACHABLE


class WrongEndpointError(StorageError):
    """What answers is not the service that was meant, or not the right one of it: a web page, another region."""

    kind = ErrorKind.WRONG_ENDPOINT


class BucketNotFoundError(StorageError):
    """The bucket or container is not there; vstore makes none."""

    kind = ErrorKind.BUCKET_NOT_FOUND


class FormatError(VStoreError):
    """Stored bytes are not what the format says: check with fsck."""

    kind = ErrorKind.FORMAT


class CorruptionError(FormatError):
    """Stored bytes fail their checksum or digest, or break the format's rules."""

    kind = ErrorKind.CORRUPTION


class MissingBlobError(FormatError):
    """A blob that a retained snapshot needs is not where it should be."""

    kind = ErrorKind.MISSING_BLOB


class UnsupportedFormatError(FormatError):
    """Written by a newer vstore, or with a feature that this one lacks."""

    kind = ErrorKind.UNSUPPORTED_FORMAT


class VirtualChunkError(VStoreError):
    """A virtual chunk's source can't be read: missing, short, or of an unknown kind."""

    kind = ErrorKind.VIRTUAL_CHUNK


class VirtualChunkUnauthorizedError(VirtualChunkError):
    """The repository was opened without leave to read from this source."""

    kind = ErrorKind.VIRTUAL_CHUNK_UNAUTHORIZED


class VirtualChunkModifiedError(VirtualChunkError):
    """The source changed since the reference was written."""

    kind = ErrorKind.VIRTUAL_CHUNK_MODIFIED


class InternalError(VStoreError):
    """A bug in vstore: please report it with the traceback."""

    kind = ErrorKind.INTERNAL
