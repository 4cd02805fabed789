"""Two people work on one array: what only one of them changed is kept, what clashes is found, and nothing is lost."""

import tempfile

import numpy as np
import zarr

import vstore

with tempfile.TemporaryDirectory() as folder, vstore.Repository.create(folder) as repo:
    session = repo.writable_session("main")
    group = zarr.create_group(session.store)
    group.create_array("t2m", data=np.full((8, 8), 280.0), chunks=(4, 4), attributes={"units": "K"})
    repo_start = session.commit("start")

    # Anna corrects one corner on a branch; Ben writes another corner and a new attribute on main.
    repo.create_branch("anna", repo_start)
    anna, ben = repo.writable_session("anna"), repo.writable_session("main")
    zarr.open_array(anna.store, path="t2m")[:4, :4] += 1
    zarr.open_array(ben.store, path="t2m")[4:, 4:] -= 1
    zarr.open_array(ben.store, path="t2m").attrs["source"] = "station"
    anna.commit("warmer in the north-west")
    ben.commit("colder in the south-east")

    print(repo.diff(from_branch="main", to_branch="anna", values=True))
    repo.merge("anna", into="main")
    merged = zarr.open_array(repo.readonly_session("main").store, path="t2m")
    print(merged[0, 0], merged[7, 7], dict(merged.attrs))

    # Two sessions on one branch write cells of the same chunk: a conflict for chunks, but not for cells.
    first, second = repo.writable_session("main"), repo.writable_session("main")
    zarr.open_array(first.store, path="t2m")[0, 0] = 1
    zarr.open_array(second.store, path="t2m")[0, 1] = 2
    first.commit("first")
    try:
        second.commit("second", rebase_with="fail")
    except vstore.RebaseFailedError as error:
        print(*error.conflicts, sep="\n")
    second.commit("second", rebase_with="cells")
    print(zarr.open_array(repo.readonly_session("main").store, path="t2m")[0, :2])

    # Every operation can be undone, as long as the refs still hold what it left.
    print("undone:", repo.undo().details)
    print(repo.ancestry_graph())
