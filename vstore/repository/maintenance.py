"""Keeping a repository well: the public methods that expire, collect, compact, check, measure, move and copy it.

Each hands over to its module in `vstore.ops` or `vstore.transfer`, and imports it when it is called: who only reads and
writes needs none of them. Below: `leases`; above: `repository`, whose class has these methods.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from vstore import leases
from vstore.clock import from_datetime
from vstore.errors import InvalidInputError
from vstore.leases import SessionInfo
from vstore.repository.opened import Opened
from vstore.twins import async_twin

if TYPE_CHECKING:
    from vstore.ops.compact import CompactReport
    from vstore.ops.expire import ExpireReport
    from vstore.ops.fsck import FsckReport
    from vstore.ops.gc import GcReport
    from vstore.ops.storage_stats import StorageStats
    from vstore.repository import Repository
    from vstore.retention import RetentionPolicy
    from vstore.transfer.replicate import CopyReport


class Maintenance(Opened):
    """What a `Repository` can do for itself."""

    # --- deleting --------------------------------------------------------------------------------------------

    def expire_snapshots(
        self,
        older_than: datetime | None = None,
        *,
        delete_expired_branches: bool = False,
        delete_expired_tags: bool = False,
        policy: RetentionPolicy | None = None,
        dry_run: bool = False,
    ) -> ExpireReport:
        """Let snapshots go by the repository's saved `RetentionPolicy`, and return which; `garbage_collect` frees them.

        `older_than`, an aware datetime, lets those go too that are older, unless the policy keeps them; `policy` takes
        the place of the saved one. Snapshots that no branch or tag reaches go by `unreachable_after` alone. Heads of
        branches, tags, leases and all that protected branches reach are never let go, but a branch (not "main") or tag
        whose own snapshot would be is deleted with it on request. History keeps the place of what expired.

        Safe beside everything else: branches, tags and leases that are made meanwhile win. An interrupted run is gone
        on with by the next one; a `dry_run` only says what would go, and how many bytes gc could free then. Raises
        `InvalidInputError`, `ReadOnlyError`, `CorruptionError` if something is damaged, or `ConflictError` if the
        repository never stood still.
        """
        from vstore.ops.expire import ExpireRequest, expire

        request = ExpireRequest(
            older_than=older_than,
            delete_branches=delete_expired_branches,
            delete_tags=delete_expired_tags,
            policy=policy,
        )
        return expire(self._handle, request, dry_run=dry_run)

    def garbage_collect(
        self,
        delete_object_older_than: datetime | None = None,
        *,
        dry_run: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> GcReport:
        """Delete what no branch, tag or retained snapshot needs, and return what was done.

        Safe beside commits, readers and other collectors, at any time and on any clock. `delete_object_older_than`,
        an aware datetime, says how old garbage must be by the storage's clock (default: a day), which spares work in
        progress from failing cleanly. A `dry_run` only says what would go. `progress` is called with (done, total,
        what). An interrupted run is finished by the next one.

        Raises `CorruptionError`, and deletes nothing, if metadata can't be read; `ReadOnlyError`.
        """
        from vstore.ops.gc import collect
        from vstore.ops.marks import silent

        cutoff = None if delete_object_older_than is None else from_datetime(delete_object_older_than)
        return collect(self._handle, cutoff_us=cutoff, dry_run=dry_run, progress=progress or silent)

    def compact(
        self,
        *,
        rewrite_heads: bool = False,
        dry_run: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> CompactReport:
        """Merge small packs and rewrite mostly dead ones, and return what was done.

        Snapshots and their ids stay as they are, and open readers go on reading. `garbage_collect` deletes the packs
        that were replaced. With `rewrite_heads` the branches' heads are rewritten afterwards, each by a commit, as
        `rewrite_manifests` does. Safe beside everything else; a `dry_run` only says what would be done. Raises
        `CorruptionError` if metadata or what is to be copied is damaged; `ReadOnlyError`.
        """
        from vstore.ops.compact import compact
        from vstore.ops.marks import silent

        return compact(
            self._handle, rewrite_heads=rewrite_heads, dry_run=dry_run, progress=progress or silent
        )

    def rewrite_manifests(
        self, message: str, *, branch: str, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Commit the branch's head with its metadata written anew, and return the new snapshot's id.

        It reads the same; but each tile of an array has one manifest, and every reference names the pack where the
        bytes are now, so that reading it costs as little as reading a fresh copy. Best done after `compact`, which
        moves the bytes. Nothing is committed, and the head's id returned, where that would gain nothing.

        Raises `ConflictError` if the branch keeps moving; `RefNotFoundError`; `CorruptionError`.
        """
        from vstore.ops.rewrite import rewrite_head

        return rewrite_head(self._handle, branch, message, {**self._default_metadata, **(metadata or {})})

    # --- checking --------------------------------------------------------------------------------------------

    def fsck(
        self,
        *,
        data: bool = False,
        sample: float | None = None,
        seed: int = 0,
        repair_from: Repository | Any = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> FsckReport:
        """Verify the catalog, all metadata and what packs list, and return what is damaged and what that affects.

        With `data` every blob is read and checked against its digest. With `sample` a share of them (a float up to
        1.0) or so many of them (an int); equal `seed`s choose equal blobs. `repair_from`, another copy of this
        repository (with the same id) or its location, is where damaged and missing packs are fetched from; nothing is
        deleted, and what the copy does not have either is reported. `progress` is called with (done, total, what).

        Safe beside everything else. Raises `InvalidInputError` if `repair_from` is no copy of this repository,
        `ReadOnlyError` if something is to be repaired where nothing can be written.
        """
        from vstore.ops.fsck import check

        repository = cast("Repository", self)
        return check(
            repository, data=data, sample=sample, seed=seed, repair_from=repair_from, progress=progress
        )

    def storage_stats(
        self, *, top: int = 10, progress: Callable[[int, int, str], None] | None = None
    ) -> StorageStats:
        """Return the bytes of each array, branch, tag and snapshot, shared and exclusive, without reading chunks.

        Covers all retained snapshots. `top` is how many of the largest changes are listed. `progress` is called with
        (done, total, what).
        """
        from vstore.ops.marks import silent
        from vstore.ops.storage_stats import storage_stats

        return storage_stats(self._handle, top=top, progress=progress or silent)

    # --- moving house ----------------------------------------------------------------------------------------

    def convert_catalog(self, kind: str, *, progress: Callable[[int, int, str], None] | None = None) -> None:
        """Give the repository a catalog of the other kind, "sqlite" or "log", in its place; all that it knows stays.

        No one else should be at work: what others hold open fails cleanly from the first step on, and nothing is ever
        committed to the old catalog; they open the repository again. This object goes on with the new catalog. A call
        that was interrupted is finished by the next one, or taken back by asking for the old kind; until then the
        repository can be opened and read. Converting to the kind that is there does nothing else.

        Raises `UnsafeStorageError` where the new kind can't be trusted, `InvalidInputError` for SQLite on an object
        store, `StorageError` if somebody else converts.
        """
        from vstore.ops.marks import silent
        from vstore.transfer.convert import convert_catalog

        catalog = convert_catalog(self._handle, kind, progress or silent)
        self._handle = self._handle.with_catalog(catalog)

    def copy_to(
        self,
        location: Any,
        *,
        storage_options: Mapping[str, Any] | None = None,
        catalog: str | None = None,
        verify: bool = False,
        dry_run: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> CopyReport:
        """Copy the whole repository to another place, or bring a copy there up to date, and return what was done.

        The copy is the same repository: same id, snapshot ids, branches, tags, history, operations log and settings. It
        is of one moment, near the end of the call; the source may be in full use. `location` and `storage_options` are
        those of `Repository.create`; it must be empty, or hold a copy which nobody has committed to, or what is left of
        a call that was interrupted, which is gone on with. `catalog` is "sqlite" or "log" (default: what suits the
        place). With `verify` every blob is checked against its digest before its pack counts as copied; from a source
        that is no local directory that is done always. A `dry_run` only says what would be copied. `progress` is called
        with (done, total, what).

        Until the last step the place holds no repository, or the copy as it was. Raises `AlreadyExistsError` if it is
        not empty, `ConflictError` if the copy there has commits of its own, `CorruptionError` and `MissingBlobError` if
        the source is damaged.
        """
        from vstore.ops.marks import silent
        from vstore.storage.location import open_storage
        from vstore.transfer.replicate import CopyRequest, replicate

        target = open_storage(location, options=storage_options)
        request = CopyRequest(target, catalog, verify, dry_run)
        return replicate(self._handle, request, progress or silent)

    def backup(
        self,
        path: str | os.PathLike[str],
        *,
        catalog: str | None = None,
        verify: bool = False,
        dry_run: bool = False,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> CopyReport:
        """Make or renew a backup in a local directory while the repository is in use, and return what was done.

        Only packs that are not there yet are copied; all is durable when the call returns. To restore, open the backup
        as a repository, copy it back with its own `copy_to`, or mend the original from it with `fsck(repair_from=)`.
        Otherwise it is `copy_to`.
        """
        from vstore.storage.local import LocalStorage
        from vstore.storage.location import open_storage

        target = open_storage(path)
        if not isinstance(target, LocalStorage):
            raise InvalidInputError(f"a backup goes to a local directory; copy_to() copies to {target.url}.")
        return self.copy_to(target, catalog=catalog, verify=verify, dry_run=dry_run, progress=progress)

    # --- leases and sessions ---------------------------------------------------------------------------------

    def list_leases(self) -> list[SessionInfo]:
        """Return the leases that readers took, the oldest first; one whose time is over blocks nothing any more."""
        return [session for session in leases.list_sessions(self._handle) if session.snapshot_id is not None]

    def list_sessions(self) -> list[SessionInfo]:
        """Return all sessions that the catalog knows, the oldest first: leases, and writers with uncommitted packs."""
        return leases.list_sessions(self._handle)

    def abandon_session(self, session_id: str | SessionInfo) -> None:
        """End the registration of a writer or a lease that crashed, by its id as `list_sessions` has it.

        If the writer is alive its commit fails with `SessionStateError`, and nothing of it becomes visible; a reader
        goes on, but its snapshot may expire. Raises `NotFoundError` if there is no such registration.
        """
        leases.abandon(self._handle, session_id)

    expire_snapshots_async = async_twin(expire_snapshots)
    list_leases_async = async_twin(list_leases)
    list_sessions_async = async_twin(list_sessions)
    abandon_session_async = async_twin(abandon_session)
    garbage_collect_async = async_twin(garbage_collect)
    compact_async = async_twin(compact)
    rewrite_manifests_async = async_twin(rewrite_manifests)
    fsck_async = async_twin(fsck)
    storage_stats_async = async_twin(storage_stats)
    convert_catalog_async = async_twin(convert_catalog)
    copy_to_async = async_twin(copy_to)
    backup_async = async_twin(backup)
