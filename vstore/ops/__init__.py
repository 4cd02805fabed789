"""Operations on a whole repository, each of which acts on its own or only says what it would do.

`expire` lets snapshots go by the rules of retention, `gc` deletes the packs that nothing needs, `compact` merges packs
and `rewrite` the metadata of a head; `fsck` verifies it all and `repair` puts back what a copy has, `rebuild` makes a
lost catalog anew, `storage_stats` says what takes how much. The other modules are parts of these.
"""
