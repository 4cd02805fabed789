"""Virtual chunks: version an array whose bytes stay in a file that was there before, without copying them."""

import os
import tempfile
from pathlib import Path

import numpy as np
import zarr

import vstore

ROWS, COLUMNS, HEADER_BYTES = 8, 1000, 64

with tempfile.TemporaryDirectory() as folder:
    # An uncompressed file as a model might leave it: a header, then rows of little-endian float32.
    values = np.arange(ROWS * COLUMNS, dtype="<f4").reshape(ROWS, COLUMNS)
    file = Path(folder, "data", "model.bin")
    file.parent.mkdir()
    file.write_bytes(bytes(HEADER_BYTES) + values.tobytes())

    # Virtual chunks are only read from where the opener of the repository allows.
    allowed = [file.parent.as_uri() + "/"]
    repo = vstore.Repository.create(Path(folder, "repository"), authorize_virtual_chunk_access=allowed)
    session = repo.writable_session("main")
    zarr.create_array(
        session.store, name="model", shape=values.shape, chunks=(1, COLUMNS), dtype="<f4", compressors=None
    )
    row_bytes = COLUMNS * 4
    session.store.set_virtual_refs_arr(
        "model",
        (ROWS, 1),
        [file.as_uri()] * ROWS,
        HEADER_BYTES + np.arange(ROWS, dtype=np.uint64) * row_bytes,
        np.full(ROWS, row_bytes, dtype=np.uint64),
        checksum=file.stat().st_mtime_ns // 1000,
    )
    session.commit("point at model.bin")

    model = zarr.open_array(repo.readonly_session("main").store, path="model", mode="r")
    assert np.array_equal(model[:], values)
    print(f"array of {model.shape} read from {file.name}, of which nothing was copied")

    # One row is replaced by bytes of our own; the file is untouched.
    with repo.transaction("main", message="correct row 3") as store:
        zarr.open_array(store, path="model", mode="r+")[3] = 0
    corrected = zarr.open_array(repo.readonly_session("main").store, path="model", mode="r")
    print("row 3 now:", corrected[3].max(), " row 4 still:", corrected[4].max())

    # A file that changes under its references is noticed, and never read as if nothing had happened.
    changed_s = file.stat().st_mtime + 10
    os.utime(file, (changed_s, changed_s))
    try:
        corrected[4]
    except vstore.VirtualChunkModifiedError as error:
        print("after the file changed:", error.kind)
    else:
        raise SystemExit("the change of the file went unnoticed")
    stranger = vstore.open(Path(folder, "repository"))
    try:
        zarr.open_array(stranger.readonly_session("main").store, path="model", mode="r")[4]
    except vstore.VirtualChunkUnauthorizedError as error:
        print("opened without leave:", error.kind)
    else:
        raise SystemExit("a file was read without leave")
