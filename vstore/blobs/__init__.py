"""Blobs in packs.

`writer` appends them (`slots` knows where a session's are, `packing` keeps one pack right, `sealing` gets full ones out
of the way, `buffers` is the memory that blobs wait in), `reader` finds and verifies them, `cache` keeps what was
decoded, `spill` is where a log catalog keeps its pages, `virtual` reads ranges of other people's files. Touches storage
and format; knows no refs and no sessions.
"""
