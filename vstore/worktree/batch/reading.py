"""Plans how a batch is read: what is kept in memory, what lies side by side in packs, and what is read one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt

from vstore.blobs.cache import cached_blob
from vstore.blobs.runs import LOCAL_GAP_BYTES, REMOTE_GAP_BYTES, RUN_BYTES, BlobColumns, plan_runs
from vstore.worktree.batch.keys import FEW, TilePart, locate
from vstore.worktree.batch.lookup import Stored, find
from vstore.worktree.batch.tasks import Kept, Others, ReadTask, RunContext, RunTask, Singles
from vstore.worktree.tree import Worktree


def plan_reads(
    tree: Worktree,
    keys: Sequence[str],
    *,
    run_bytes: int = RUN_BYTES,
    at_once: Callable[[Callable[[TilePart], object], Sequence[TilePart]], object] | None = None,
) -> list[ReadTask]:
    """Return tasks that together read the chunk of each key, in any order; may wait for metadata.

    A task holds at most `run_bytes`, or one chunk, in memory beside what it yielded. `at_once` applies a function to
    many items in threads: where manifests must be fetched, several come at once. Raises what a look-up raises.
    """
    located = locate(tree, keys) if len(keys) > FEW else None
    if located is None:
        return [Singles(tree, keys)]
    array = located.chunk.array
    if at_once is not None and len(located.parts) > 1 and array.base is not None and not array.cleared:
        # Into the cache, that is, from which the look-up takes them.
        at_once(lambda part: array.base_tile(part.key), located.parts)
    others, stored = find(tree, located)
    tasks: list[ReadTask] = [Others(tree, keys, others)] if others else []
    if stored.columns:
        tasks += _plan_stored(tree, keys, stored, run_bytes)
    return tasks


def _plan_stored(tree: Worktree, keys: Sequence[str], stored: Stored, run_bytes: int) -> list[ReadTask]:
    rows, sources, offsets, lengths, digests, verified = map(
        np.concatenate, zip(*stored.columns, strict=True)
    )
    is_local = tree.blobs.storage.is_local
    # What lies on a local disk is trusted once it was verified; what comes over a network is not.
    trusted = verified if is_local else np.zeros(len(rows), dtype=bool)
    marks = [mark for mark, at in stored.marks for _ in range(len(at))]
    mark_rows = np.concatenate([at for _, at in stored.marks])
    tasks: list[ReadTask] = []
    if not is_local:
        kept, left = _find_kept(rows, digests, run_bytes)
        if kept:
            tasks += kept
            columns = (rows, sources, offsets, lengths, digests, trusted, mark_rows)
            rows, sources, offsets, lengths, digests, trusted, mark_rows = (each[left] for each in columns)
            marks = list(compress(marks, left.tolist()))
    blobs = BlobColumns(list(stored.packs), sources, offsets, lengths, digests, trusted)
    context = RunContext(tree, keys, blobs, rows.tolist(), marks, mark_rows.tolist())
    gap = LOCAL_GAP_BYTES if is_local else REMOTE_GAP_BYTES
    tasks += [RunTask(context, run) for run in plan_runs(blobs, gap_bytes=gap, run_bytes=run_bytes)]
    return tasks


def _find_kept(
    rows: npt.NDArray[np.intp], digests: npt.NDArray[np.uint8], task_bytes: int
) -> tuple[list[Kept], npt.NDArray[np.bool_]]:
    """Return tasks for the chunks that the process keeps in memory, and which are left to be fetched."""
    left = np.ones(len(rows), dtype=bool)
    tasks: list[Kept] = []
    size = task_bytes
    for at, row in enumerate(rows.tolist()):
        data = cached_blob(digests[at].tobytes())
        if data is None:
            continue
        left[at] = False
        if size >= task_bytes:
            tasks.append(Kept([]))
            size = 0
        tasks[-1].chunks.append((row, data))
        size += len(data)
    return tasks, left
