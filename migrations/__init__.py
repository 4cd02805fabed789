"""The schema of `catalog.sqlite`, step by step; in the installed package this folder is `vstore.migrations`.

`catalog` holds the steps. Only `vstore.catalog.sqlite` runs them: when it creates a catalog, and when it opens one
of an older schema for writing. A step that was released is never changed; a new one is added after it.
"""
