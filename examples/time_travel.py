"""Read the past: a snapshot by tag, by id and by time; then undo a mistake by moving the branch back."""

import tempfile

import numpy as np
import zarr

import vstore


def mean(session: vstore.Session) -> float:
    return float(np.mean(zarr.open_array(session.store, path="t2m", mode="r")[:]))


with tempfile.TemporaryDirectory() as folder, vstore.Repository.create(folder) as repo:
    with repo.transaction("main", message="create t2m") as store:
        zarr.create_array(store, name="t2m", shape=(64, 64), chunks=(16, 16), dtype="f4")[:] = 280
    repo.create_tag("first", repo.lookup_branch("main"))

    for degrees in (281, 282, -999):
        with repo.transaction("main", message=f"set {degrees}", metadata={"degrees": degrees}) as store:
            zarr.open_array(store, path="t2m", mode="r+")[:] = degrees

    print("newest first")
    history = list(repo.ancestry(branch="main"))
    for info in history:
        print(f"  {info.id[:8]}  {info.written_at:%H:%M:%S.%f}  {info.message}  {info.metadata}")

    mistake, good = history[0], history[1]
    print("by tag  ", mean(repo.readonly_session(tag="first")))
    print("by id   ", mean(repo.readonly_session(snapshot_id=good.id[:12])))
    print("by time ", mean(repo.readonly_session("main", as_of=good.written_at)))
    assert mean(repo.readonly_session(tag="first")) == 280
    assert mean(repo.readonly_session("main", as_of=good.written_at)) == 282

    repo.reset_branch("main", good.id, from_snapshot_id=mistake.id)
    print("after the reset", mean(repo.readonly_session("main")))
    # Nothing is lost: the mistake stays readable by its id, and the operations log tells what was done.
    assert mean(repo.readonly_session(snapshot_id=mistake.id)) == -999
    print("operations:", ", ".join(operation.kind for operation in repo.ops_log()))
