"""The main job: a netCDF file becomes a versioned store, which is branched, changed, checked and imported again.

    python examples/pipeline.py [FILE] [--repository DIRECTORY]

FILE is any file that xarray opens; by default the sample that ships inside xarray. Without --repository all happens in
a temporary directory. Run again on the same repository, it finds everything there and adds nothing.
"""

import argparse
import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

import vstore
from vstore.ops.fsck import check


class Plan(NamedTuple):
    """What is done on the branch: `variable` gets `step` more, and one entry is appended along `dimension`."""

    variable: str | None
    step: float
    dimension: str | None


def main() -> None:
    arguments = parse_arguments()
    try:
        data = xr.open_dataset(arguments.file)
    except (OSError, ValueError) as error:
        sys.exit(f"pipeline: xarray can't open {arguments.file}: {error}")
    try:
        with data, tempfile.TemporaryDirectory() as folder:
            run(data, arguments.file, arguments.repository or Path(folder, "repository"))
    except vstore.VStoreError as error:
        sys.exit(f"pipeline: {error}")
    except AssertionError as error:
        sys.exit(f"pipeline: what was read is not what was written: {error}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "file", nargs="?", type=Path, help="any file that xarray opens (default: xarray's sample)"
    )
    parser.add_argument("--repository", type=Path, metavar="DIRECTORY", help="default: a temporary directory")
    arguments = parser.parse_args()
    if arguments.file is None:
        arguments.file = Path(xr.__file__).parent / "tests/data/example_1.nc"
    if not arguments.file.exists():
        parser.error(f"there is no file {arguments.file}")
    return arguments


def run(data: xr.Dataset, file: Path, folder: Path) -> None:
    sizes = ", ".join(f"{name} {size}" for name, size in data.sizes.items()) or "no dimensions"
    print(f"{file.name}: {len(data.variables)} variables; {sizes}")
    plan = make_plan(data)
    with vstore.Repository.open_or_create(folder) as repo:
        first = import_file(repo, data, file)
        tag_and_branch(repo, first, folder)
        print(f"main is at {first[:8]}, tagged v1, and branched to experiment")
        changed = edit_branch(repo, data, plan)
        print(f"experiment is at {changed[:8]}: {describe(plan)}")
        show_versions(repo, data, expected_on_branch(data, plan))
        show_as_of(repo, data)
        show_log(repo)
        show_sizes(repo, folder)
        verify(repo)
        run_again(repo, data, file, plan, folder, (first, changed))


# --- the steps -------------------------------------------------------------------------------------------------


def import_file(repo: vstore.Repository, data: xr.Dataset, file: Path) -> str:
    """Write the whole file to main and commit; if main holds just that, its head is returned."""
    head = next(repo.ancestry(branch="main"))
    session = repo.writable_session("main")
    data.to_zarr(session.store, mode="w")
    if head.parent_id is not None and session.has_uncommitted_changes:
        sys.exit(f"pipeline: {repo} holds other data, which is left alone. Give another directory.")
    return session.commit(f"import {file.name}", {"file": file.name})


def tag_and_branch(repo: vstore.Repository, first: str, folder: Path) -> None:
    if "v1" not in repo.list_tags():
        repo.create_tag("v1", first)
    elif repo.lookup_tag("v1") != first:
        sys.exit(f"pipeline: {folder} holds a tag v1 of something else. Give another directory.")
    if "experiment" not in repo.list_branches():
        repo.create_branch("experiment", first)


def edit_branch(repo: vstore.Repository, data: xr.Dataset, plan: Plan) -> str:
    """Change one variable and append one entry on the branch, unless it has them already."""
    session = repo.writable_session("experiment")
    if plan.variable is not None:
        changed = change_values(data, plan)[[plan.variable]]
        region = {name: slice(0, size) for name, size in changed[plan.variable].sizes.items()}
        changed.drop_vars(list(changed.coords)).to_zarr(session.store, mode="r+", region=region)
    dimension = plan.dimension
    if dimension is not None and open_zarr(session).sizes[dimension] == data.sizes[dimension]:
        next_entry(data, plan).to_zarr(session.store, append_dim=dimension)
    try:
        return session.commit(describe(plan))
    except vstore.NothingToCommitError:
        return session.snapshot_id


def show_versions(repo: vstore.Repository, data: xr.Dataset, expected: xr.Dataset) -> None:
    """Show that main and the tag still read the file's values, and the branch the new ones."""
    xr.testing.assert_equal(open_zarr(repo.readonly_session("main")), data)
    xr.testing.assert_equal(open_zarr(repo.readonly_session(tag="v1")), data)
    found = open_zarr(repo.readonly_session("experiment"))
    xr.testing.assert_allclose(found, expected)
    if expected.equals(data):
        print("main, v1 and experiment read the same values, as the file leaves nothing to change")
    elif found.equals(data):
        sys.exit("pipeline: experiment still reads the old values")
    else:
        print("main and v1 read the old values, experiment the new ones")


def show_as_of(repo: vstore.Repository, data: xr.Dataset) -> None:
    """Show that the branch, as of the time of the import, reads the file's values."""
    moment = next(repo.ancestry(tag="v1")).written_at
    past = repo.readonly_session("experiment", as_of=moment)
    xr.testing.assert_equal(open_zarr(past), data)
    print(f"experiment as of {moment:%Y-%m-%d %H:%M:%S.%f} reads the old values")


def show_log(repo: vstore.Repository) -> None:
    print("\nlog of experiment")
    for info in repo.ancestry(branch="experiment"):
        print(f"  {info.id[:8]}  {info.written_at:%Y-%m-%d %H:%M:%S}  {info.message}")


def show_sizes(repo: vstore.Repository, folder: Path) -> None:
    print("\nsizes")
    for branch in ("main", "experiment"):
        totals = repo.readonly_session(branch).totals()
        print(f"  {branch:12} {totals.chunks:6,} chunks {totals.bytes:12,} bytes")
    files, size = measure(folder)
    print(f"  {'on disk':12} {files:6,} files  {size:12,} bytes")


def verify(repo: vstore.Repository) -> None:
    report = check(repo, data=True)
    if not report.is_clean:
        sys.exit("pipeline: fsck found damage:\n" + "\n".join(map(str, report.damages)))
    print(f"\nfsck: clean; {report.blobs:,} blobs of {report.bytes:,} bytes read and verified")


def run_again(
    repo: vstore.Repository,
    data: xr.Dataset,
    file: Path,
    plan: Plan,
    folder: Path,
    heads: tuple[str, str],
) -> None:
    """Do the import and the edit once more, and show that neither adds a commit, a file or a byte."""
    before = measure(folder)
    again = import_file(repo, data, file), edit_branch(repo, data, plan)
    after = measure(folder)
    if again != heads or after != before:
        sys.exit(f"pipeline: the second run grew the repository: {heads} {before} became {again} {after}")
    print(f"the same again: the same commits, still {after[0]:,} files and {after[1]:,} bytes")


# --- what to change and to append --------------------------------------------------------------------------------


def make_plan(data: xr.Dataset) -> Plan:
    variable = find_variable(data)
    # One step of a packed variable's integers, so that the new values can be stored as exactly as the old ones.
    step = 0 if variable is None else float(np.max(data[variable].encoding.get("scale_factor", 1)))
    return Plan(variable, step, find_dimension(data))


def describe(plan: Plan) -> str:
    change = "no numbers to change" if plan.variable is None else f"{plan.variable} + {plan.step:g}"
    growth = "nothing to append along" if plan.dimension is None else f"one more entry along {plan.dimension}"
    return f"{change}, {growth}"


def find_variable(data: xr.Dataset) -> str | None:
    """Return a variable of numbers, not all of them missing."""
    for name, variable in data.data_vars.items():
        if variable.dtype.kind in "fiu" and variable.size and bool(variable.notnull().any()):
            return str(name)
    return None


def find_dimension(data: xr.Dataset) -> str | None:
    """Return the dimension to append along: an unlimited one, else one of times, else the first that is used."""
    used = [
        name
        for name in data.sizes
        if data.sizes[name] and any(name in v.dims for v in data.data_vars.values())
    ]
    unlimited = [name for name in used if name in data.encoding.get("unlimited_dims", ())]
    times = [name for name in used if name in ("time", "t") or is_time(data[name])]
    return next(map(str, unlimited + times + used), None)


def is_time(variable: xr.DataArray) -> bool:
    return variable.dtype.kind in "mM" or isinstance(variable.to_index(), xr.CFTimeIndex)


def change_values(data: xr.Dataset, plan: Plan) -> xr.Dataset:
    """Return the data as it is on the branch before the appended entry."""
    if plan.variable is None:
        return data
    old = data[plan.variable]
    new = old.copy(data=old.values + old.dtype.type(plan.step))
    return data.assign({plan.variable: new})


def next_entry(data: xr.Dataset, plan: Plan) -> xr.Dataset:
    """Return the last entry along the plan's dimension again, one step further."""
    dimension = plan.dimension
    last = change_values(data, plan).isel({dimension: slice(-1, None)}).load()
    last = last.drop_vars(
        [name for name, variable in last.variables.items() if dimension not in variable.dims]
    )
    if dimension in last.coords and dimension is not None:
        coordinate = last[dimension]
        moved = coordinate.copy(data=next_value(data[dimension].values))
        last = last.assign_coords({dimension: moved})
    return last


def next_value(values: np.ndarray) -> np.ndarray:
    """Return, as an array of one, what would come next; a name or a flag is repeated."""
    last = values[-1:]
    if values.dtype.kind == "M":
        return last + (last - values[-2:-1] if len(values) > 1 else np.timedelta64(1, "D"))
    if values.dtype.kind == "O" and hasattr(values[0], "calendar"):
        return last + (last - values[-2:-1] if len(values) > 1 else timedelta(days=1))
    if values.dtype.kind in "fium":
        return last + (last - values[-2:-1] if len(values) > 1 else np.ones(1, "i8")).astype(values.dtype)
    return last


def expected_on_branch(data: xr.Dataset, plan: Plan) -> xr.Dataset:
    changed = change_values(data, plan)
    if plan.dimension is None:
        return changed
    return xr.concat([changed, next_entry(data, plan)], plan.dimension, data_vars="minimal", coords="minimal")


# --- looking -----------------------------------------------------------------------------------------------------


def open_zarr(session: vstore.Session) -> xr.Dataset:
    return xr.open_zarr(session.store)


def measure(folder: Path) -> tuple[int, int]:
    """Return how many files a folder holds and their bytes; SQLite's shared memory is not data."""
    paths = [
        Path(top, name) for top, _, names in os.walk(folder) for name in names if not name.endswith("-shm")
    ]
    return len(paths), sum(path.stat().st_size for path in paths)


if __name__ == "__main__":
    main()
