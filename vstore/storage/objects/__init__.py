"""Any obstore store as storage: S3, Google Cloud Storage, Azure, HTTP (read-only), memory.

`storage` says what is asked, `client` sends it: as often as `retry` says, no more at once than it was told to, as the
user's `options` have it. `requests` turns obstore's errors into ours, `listing` is a listing under way, `pack` a pack
on its way up. `stores` makes obstore's stores, `secrets` knows what of them may be shown, `providers` calls a user's
credential provider. The only package that imports obstore, and not before the first use.
"""

from __future__ import annotations

from vstore.storage.objects.storage import ObjectStorage

__all__ = ["ObjectStorage"]
