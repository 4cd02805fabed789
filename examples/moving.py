"""Back up a repository in use, copy it to an object store and back, and give it the other kind of catalog."""

import tempfile
from pathlib import Path

import numpy as np
import zarr

import vstore

with tempfile.TemporaryDirectory() as folder, vstore.Repository.create(Path(folder, "repo")) as repo:
    with repo.transaction("main", message="create t2m") as store:
        zarr.create_array(store, name="t2m", shape=(64, 64), chunks=(16, 16), dtype="f4")[:] = 280
    print(repo.backup(Path(folder, "backup")))

    # The next backup copies only what is new.
    with repo.transaction("main", message="warmer") as store:
        zarr.open_array(store, path="t2m", mode="r+")[0] = 281
    print(repo.backup(Path(folder, "backup")))

    # A bucket would be "s3://bucket/weather". A call that was cut off is gone on with by the next one.
    print(repo.copy_to("memory://bucket/weather", dry_run=True))
    repo.copy_to("memory://bucket/weather")
    with vstore.Repository.open("memory://bucket/weather") as remote:
        print(remote.copy_to(Path(folder, "again"), verify=True))

    # Shared file systems and web servers need the log catalog.
    repo.convert_catalog("log")

    for name in ("repo", "backup", "again"):
        with vstore.Repository.open(Path(folder, name)) as copy:
            assert copy.id == repo.id
            assert copy.lookup_branch("main") == repo.lookup_branch("main")
            assert copy.fsck(data=True).is_clean
            values = zarr.open_array(copy.readonly_session("main").store, path="t2m", mode="r")[:]
            assert np.array_equal(values[:2, 0], [281, 280])
