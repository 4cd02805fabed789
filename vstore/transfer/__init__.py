"""Moving house: the whole repository into another place, or into the other kind of catalog, with all that it knows.

`convert` changes the catalog's kind in place, `replicate` copies a repository elsewhere. Their parts: `plan` says
which packs a state needs, `packs` moves the bytes, `target` looks at what is there already, `catalogs` carries the
state over.
"""
