"""vstore: a transactional, versioned store for Zarr arrays.

    import vstore, zarr

    repo = vstore.Repository.create("weather")
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="t2m", shape=(100, 100), dtype="f4")[:] = 280
    session.commit("first version")

Everything is imported when it is first used, so that `import vstore` itself is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstore.blobs.cache import set_cache_bytes
    from vstore.changes.boxes import Box
    from vstore.changes.diff import Diff, ValueChange
    from vstore.changes.metadata import MISSING
    from vstore.config import RepositoryConfig
    from vstore.errors import (
        AccessDeniedError,
        AlreadyExistsError,
        BucketNotFoundError,
        CommitOutcomeUnknownError,
        ConflictError,
        CorruptionError,
        ErrorKind,
        ForkedProcessError,
        FormatError,
        InternalError,
        InvalidInputError,
        MergeConflictError,
        MissingBlobError,
        NodeExistsError,
        NodeNotFoundError,
        NotFoundError,
        NothingToCommitError,
        ObjectExistsError,
        ObjectNotFoundError,
        OutcomeUnknownError,
        OutOfSpaceError,
        ProtectedBranchError,
        ReadOnlyError,
        RebaseFailedError,
        RefExistsError,
        RefNotFoundError,
        RepositoryExistsError,
        RepositoryNotFoundError,
        SessionStateError,
        SnapshotExpiredError,
        SnapshotNotFoundError,
        SolverError,
        StorageError,
        UnreachableError,
        UnrelatedHistoriesError,
        UnsafeStorageError,
        UnsupportedFormatError,
        VirtualChunkError,
        VirtualChunkModifiedError,
        VirtualChunkUnauthorizedError,
        VStoreError,
        WrongEndpointError,
    )
    from vstore.leases import SessionInfo
    from vstore.merge.conflicts import Conflict, ConflictType, UseValue, VersionSelection
    from vstore.merge.solvers import BasicConflictSolver, ConflictDetector
    from vstore.ops.rebuild import rebuild_catalog
    from vstore.repository import OperationInfo, Repository, SnapshotInfo, open  # noqa: A004
    from vstore.retention import RetentionPolicy
    from vstore.session import Session
    from vstore.store import SessionStore

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "AlreadyExistsError",
    "BasicConflictSolver",
    "Box",
    "BucketNotFoundError",
    "CommitOutcomeUnknownError",
    "Conflict",
    "ConflictDetector",
    "ConflictError",
    "ConflictType",
    "CorruptionError",
    "Diff",
    "ErrorKind",
    "ForkedProcessError",
    "FormatError",
    "InternalError",
    "InvalidInputError",
    "MISSING",
    "MergeConflictError",
    "MissingBlobError",
    "NodeExistsError",
    "NodeNotFoundError",
    "NotFoundError",
    "NothingToCommitError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "OperationInfo",
    "OutOfSpaceError",
    "OutcomeUnknownError",
    "ProtectedBranchError",
    "ReadOnlyError",
    "RebaseFailedError",
    "RefExistsError",
    "RefNotFoundError",
    "Repository",
    "RepositoryConfig",
    "RepositoryExistsError",
    "RepositoryNotFoundError",
    "RetentionPolicy",
    "Session",
    "SessionInfo",
    "SessionStateError",
    "SessionStore",
    "SnapshotExpiredError",
    "SnapshotInfo",
    "SnapshotNotFoundError",
    "SolverError",
    "StorageError",
    "UnreachableError",
    "UnrelatedHistoriesError",
    "UnsafeStorageError",
    "UnsupportedFormatError",
    "UseValue",
    "VStoreError",
    "ValueChange",
    "VersionSelection",
    "VirtualChunkError",
    "VirtualChunkModifiedError",
    "VirtualChunkUnauthorizedError",
    "WrongEndpointError",
    "open",
    "rebuild_catalog",
    "set_cache_bytes",
    "__version__",
]

_HOMES = {
    "BasicConflictSolver": "vstore.merge.solvers",
    "Box": "vstore.changes.boxes",
    "Conflict": "vstore.merge.conflicts",
    "ConflictDetector": "vstore.merge.solvers",
    "ConflictType": "vstore.merge.conflicts",
    "Diff": "vstore.changes.diff",
    "MISSING": "vstore.changes.metadata",
    "OperationInfo": "vstore.repository",
    "Repository": "vstore.repository",
    "RepositoryConfig": "vstore.config",
    "RetentionPolicy": "vstore.retention",
    "Session": "vstore.session",
    "SessionInfo": "vstore.leases",
    "SessionStore": "vstore.store",
    "SnapshotInfo": "vstore.repository",
    "UseValue": "vstore.merge.conflicts",
    "ValueChange": "vstore.changes.diff",
    "VersionSelection": "vstore.merge.conflicts",
    "open": "vstore.repository",
    "rebuild_catalog": "vstore.ops.rebuild",
    "set_cache_bytes": "vstore.blobs.cache",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vstore' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "vstore.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
