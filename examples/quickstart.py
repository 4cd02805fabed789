"""The example of README.md, run in a temporary directory: commit, tag, branch, and read both versions."""

import contextlib
import tempfile

import numpy as np
import xarray as xr

import vstore

with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    repo = vstore.Repository.create("weather")  # a directory; "s3://bucket/weather" works alike
    day = xr.Dataset({"t2m": (("y", "x"), np.full((180, 360), 280.0))})

    with repo.transaction("main", message="first day") as store:
        day.to_zarr(store)  # a plain Zarr store: zarr and dask write to it as well

    repo.create_tag("v1", repo.lookup_branch("main"))
    repo.create_branch("experiment", repo.lookup_branch("main"))
    session = repo.writable_session("experiment")
    (day + 1).to_zarr(session.store, mode="w")
    session.commit("one degree warmer")

    old = xr.open_zarr(repo.readonly_session(tag="v1").store)
    new = xr.open_zarr(repo.readonly_session("experiment").store)
    print(float(old.t2m.mean()), float(new.t2m.mean()))  # 280.0 281.0
