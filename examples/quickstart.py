"""The example of README.md, run in a temporary directory: commit, tag, branch, merge, and read both versions."""

import contextlib
import tempfile

import xarray as xr

import vstore

with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    repo = vstore.Repository.create("weather")  # a directory; "s3://bucket/weather" works alike
    day = xr.Dataset({"t2m": (("y", "x"), [[280.0] * 360] * 180)})

    session = repo.writable_session("main")
    day.to_zarr(session.store)  # a plain Zarr store: zarr and dask write to it as well
    first = session.commit("first day")

    repo.create_tag("v1", first)
    repo.create_branch("experiment", first)
    with repo.transaction("experiment", message="one degree warmer") as store:
        (day + 1).to_zarr(store, mode="w")
    repo.merge("experiment", into="main")  # three-way, by content, where both have moved

    old = xr.open_zarr(repo.readonly_session(tag="v1").store)
    new = xr.open_zarr(repo.readonly_session("main").store)
    print(float(old.t2m.mean()), float(new.t2m.mean()))  # 280.0 281.0
