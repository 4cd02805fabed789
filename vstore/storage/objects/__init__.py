"""Any obstore store as storage: S3, Google Cloud Storage, Azure, HTTP (read-only), memory.

`storage` makes the requests, `pack` is a pack on its way up, `stores` makes and names obstore's stores, `requests`
turns obstore's errors into ours. The only package that imports obstore, and not before the first use.
"""

from __future__ import annotations

from vstore.storage.objects.storage import ObjectStorage

__all__ = ["ObjectStorage"]
