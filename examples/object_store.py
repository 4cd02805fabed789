"""A repository in an object store: here in memory, so that it runs anywhere.

A bucket needs only another location: `vstore.Repository.create("s3://bucket/weather", storage_options={...})`, where
the options are those of `obstore.store.from_url`, or any store made with obstore.
"""

import numpy as np
import zarr
from obstore.store import MemoryStore

import vstore

bucket = MemoryStore()
repo = vstore.Repository.create(bucket)
with repo.transaction("main", message="a thousand chunks") as store:
    array = zarr.create_array(store, name="noise", shape=(1000, 500), chunks=(1, 500), dtype="f8")
    array[:] = np.random.default_rng(0).random(array.shape)

# A second opener, as another machine would be.
reader = vstore.open(bucket).readonly_session("main")
found = zarr.open_array(reader.store, path="noise", mode="r")
assert np.array_equal(found[:], array[:])
print(f"{reader.totals().chunks} chunks of {reader.totals().bytes:,} bytes in all are these objects:")
for batch in bucket.list():
    for item in sorted(batch, key=lambda item: item["path"]):
        print(f"  {item['size']:10,}  {item['path']}")

# A URL does as well; memory:// stores live as long as the process.
named = vstore.Repository.open_or_create("memory://example/weather")
print("and another repository at", named)
