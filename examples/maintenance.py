"""Keep a repository small and sound: expire old snapshots, collect garbage, compact, check, and see what takes room."""

import tempfile
from datetime import UTC, datetime

import numpy as np
import zarr

import vstore

with tempfile.TemporaryDirectory() as folder, vstore.Repository.create(folder) as repo:
    with repo.transaction("main", message="create t2m") as store:
        zarr.create_array(store, name="t2m", shape=(64, 64), chunks=(16, 16), dtype="f4")[:] = 280
    repo.create_tag("first", repo.lookup_branch("main"))
    rng = np.random.default_rng(0)
    for day in range(20):
        with repo.transaction("main", message=f"day {day}") as store:
            zarr.open_array(store, path="t2m", mode="r+")[:] = rng.normal(280, 5, (64, 64))

    stats = repo.storage_stats()
    print(f"before: {stats.total_bytes()} bytes of chunks in {len(stats.snapshots)} snapshots")

    # Tagged snapshots and the heads of branches always stay; a policy can be saved with the repository.
    keep = vstore.RetentionPolicy(keep_last=3)
    print(repo.expire_snapshots(policy=keep, dry_run=True))
    repo.expire_snapshots(policy=keep)

    # Garbage younger than a day is left alone, as somebody may be writing; here nobody is.
    print(repo.garbage_collect(datetime.now(UTC)))
    print(repo.compact())
    print(repo.garbage_collect(datetime.now(UTC)))

    report = repo.fsck(data=True)
    print(report)
    print(f"after: {repo.storage_stats().total_bytes()} bytes of chunks")
    assert report.is_clean
    assert [info.message for info in repo.ancestry(branch="main")][:3] == ["day 19", "day 18", "day 17"]
    assert float(zarr.open_array(repo.readonly_session(tag="first").store, path="t2m", mode="r")[0, 0]) == 280
