"""`python -m vstore.testing.storage_contract s3://bucket/folder` tries out a storage."""

from __future__ import annotations

import sys

from vstore.testing.own_storage import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
