"""Blobs in packs.

`writer` appends them (`packing` keeps one pack right, `buffers` is the memory that they wait in), `reader` finds and
verifies them, `cache` keeps what was decoded, `spill` is where a log catalog keeps its pages, `virtual` reads ranges of
other people's files. Touches storage and format; knows no refs and no sessions.
"""
