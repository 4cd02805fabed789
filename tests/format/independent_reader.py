"""Reads packs and snapshots by docs/format.md alone: no vstore, no numpy. What breaks a rule raises ValueError.

`read_snapshot` returns a whole hierarchy: documents and plain values by key, chunks by (array path, chunk index).
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import msgspec
from blake3 import blake3
from crc32c import crc32c
from numcodecs import zstd

MANIFEST, PAGE, SNAPSHOT, FOOTER = 3, 4, 5, 6
STORED, INLINE, VIRTUAL, DELETED = range(4)
ARRAY, VALUE = 2, 3
message = msgspec.msgpack.decode


Ref = namedtuple("Ref", "position kind source offset length digest checksum inline")
Virtual = namedtuple("Virtual", "location offset length checksum")


def check(condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(rule)


def read_sections(data: bytes, kind: int) -> list[bytes]:
    """Return the raw sections of an envelope of version 1."""
    check(
        len(data) >= 4 and data[:2] == bytes([kind, 1]) and 1 <= data[2] <= 4 and not data[3], "envelope head"
    )
    position, found = 4 + 9 * data[2], []
    for i in range(data[2]):
        compression, stored, raw = struct.unpack_from("<BII", data, 4 + 9 * i)
        body = data[position : position + stored]
        check(compression in (0, 1) and len(body) == stored and raw <= 64 * 2**20, "envelope section")
        found.append(bytes(zstd.decompress(body)) if compression else body)
        check(len(found[-1]) == raw, "envelope raw size")
        position += stored
    check(position == len(data), "envelope end")
    return found


def read_column(encoded: Any, n: int) -> list[int]:
    code, a, b, planes = encoded
    if code in (0, 1):
        return [(a + b * i * code) % 2**64 for i in range(n)]
    m = n if code == 2 else max(n - 1, 0)
    check(code in (2, 3) and 1 <= b <= 8 and len(planes) == b * m, "column")
    numbers = [sum(planes[k * m + i] << 8 * k for k in range(b)) for i in range(m)]
    if code == 2:
        return [(a + u) % 2**64 for u in numbers]
    steps = [u // 2 if u % 2 == 0 else -(u + 1) // 2 for u in numbers]
    return [value % 2**64 for value in accumulate(steps, initial=a)][:n]


def read_pack(pack: bytes) -> tuple[bytes, list[tuple[int, bytes, int, int]]]:
    """Return a pack's id and its blobs (kind, digest, offset, length), all checked."""
    check(pack[:16] == b"VSTOREPK\1" + bytes(7), "pack header")
    at, size, count, crc, version, pack_id, padding, own_crc, magic = struct.unpack(
        "<QIIII16s12sI8s", pack[-64:]
    )
    check(magic == b"VSTOREPE" and own_crc == crc32c(pack[-64:-12]), "trailer")
    check(version == 1 and not any(padding) and at + size + 64 == len(pack), "trailer fields")
    check(crc32c(pack[at : at + size]) == crc, "footer crc32c")
    head, digests = read_sections(pack[at : at + size], FOOTER)
    fields = message(head)
    check(fields["n"] == count and len(digests) == 32 * count, "footer count")
    kinds, offsets, lengths = (read_column(fields[name], count) for name in ("kind", "offset", "length"))
    blobs = [(kinds[i], digests[32 * i : 32 * i + 32], offsets[i], lengths[i]) for i in range(count)]
    end = 16
    for _, digest, offset, length in blobs:
        data = pack[offset : offset + length]
        blocks = range(0, length, 65_536) if length > 65_536 else ()
        table = struct.pack(f"<{len(blocks)}I", *(crc32c(data[i : i + 65_536]) for i in blocks))
        check(end <= offset and blake3(data).digest() == digest, "blob")
        end = offset + length + len(table)
        check(pack[offset + length : end] == table, "checksum table")
    check(end <= at, "blobs reach into the footer")
    return pack_id, blobs


def read_manifest(data: bytes) -> list[Ref]:
    head, digests, inline = read_sections(data, MANIFEST)
    fields = message(head)
    columns = [read_column(fields[name], fields["n"]) for name in ("pos", "kind", "src", "off", "len", "chk")]
    ends: dict[tuple[int, int], int] = {}
    refs: list[Ref] = []
    stored = 0
    for position, kind, src, off, length, chk in zip(*columns, strict=True):
        offset = (off + ends.get((kind, src), 0)) % 2**64 if fields["pred"] else off
        ends[kind, src] = offset + length
        checksum = fields["checks"][chk - 1] if chk else None
        source = digest = here = None
        if kind == STORED:
            source = fields["packs"][16 * src : 16 * src + 16]
            digest = digests[32 * stored : 32 * stored + 32]
            stored += 1
        elif kind == VIRTUAL:
            source = fields["locs"][src]
        elif kind == INLINE:
            here = inline[offset : offset + length]
        refs.append(Ref(position, kind, source, offset, length, digest, checksum, here))
    check(all(a.position < b.position for a, b in pairwise(refs)), "manifest order")
    check(32 * stored == len(digests), "manifest digests")
    return refs


def read_page(data: bytes) -> tuple[int, list[tuple[bytes, int, bytes]]]:
    """Return a page's level and its entries (key, tag, value)."""
    (level, n, key_lengths, keys, tags), (value_lengths, values) = map(message, read_sections(data, PAGE))
    found = []
    for lengths, body in ((key_lengths, keys), (value_lengths, values)):
        ends = list(accumulate(read_column(lengths, n), initial=0))
        check(ends[-1] == len(body), "page lengths")
        found.append([body[start:end] for start, end in pairwise(ends)])
    check(found[0] == sorted(set(found[0])), "page order")
    return level, list(zip(found[0], tags, found[1], strict=True))


def read_snapshot_blob(data: bytes) -> dict[str, Any]:
    """Return a snapshot's fields, its root as a child."""
    fields = message(read_sections(data, SNAPSHOT)[0])
    return {**fields, "root": message(fields["root"]) if fields.get("root") is not None else None}


def chunk_index(key: bytes, position: int, extents: list[int]) -> tuple[int, ...]:
    """Return the index of the chunk at a position of a tile."""
    tile = []
    while key:
        tile.append(int.from_bytes(key[1 : 1 + key[0]], "big"))
        key = key[1 + key[0] :]
    index = []
    for coordinate, extent in zip(reversed(tile), reversed(extents), strict=True):
        position, rest = divmod(position, extent)
        index.append(coordinate * extent + rest)
    return tuple(reversed(index))


def read_snapshot(get_pack_bytes: Callable[[bytes], bytes], ref: Any) -> dict[Any, Any]:
    """Return all documents, plain values and chunks of the snapshot at a blob ref; virtual ones as `Virtual`."""

    def blob(ref: Any) -> bytes:
        digest, pack, offset, length = ref
        data = bytes(get_pack_bytes(pack)[offset : offset + length])
        check(blake3(data).digest() == digest, "blob digest")
        return data

    def entries(child: Any, level: int | None = None) -> Iterator[tuple[bytes, int, bytes]]:
        page_level, found = read_page(blob(child[0]))
        check(level in (None, page_level), "page level")
        for entry in found:
            yield from entries(message(entry[2]), page_level - 1) if page_level else [entry]

    def chunk(ref: Ref) -> Any:
        if ref.kind == VIRTUAL:
            return Virtual(ref.source, ref.offset, ref.length, ref.checksum)
        return ref.inline if ref.kind == INLINE else blob((ref.digest, ref.source, ref.offset, ref.length))

    def put_chunks(path: str, extents: list[int], few: Any, tiles: Any) -> None:
        for tile, pointer in few if tiles is None else map(tile_of_entry, entries(message(tiles))):
            refs: dict[int, Ref] = {}
            for layer in reversed(pointer[0]):
                refs |= {
                    r.position: r for r in read_manifest(layer[0] if len(layer) == 2 else blob(layer[:4]))
                }
            for position, r in sorted(refs.items()):
                if r.kind != DELETED:
                    found[path, chunk_index(tile, position, extents)] = chunk(r)

    def tile_of_entry(entry: tuple[bytes, int, bytes]) -> tuple[bytes, Any]:
        return entry[0], message(entry[2])

    found: dict[Any, Any] = {}
    root = read_snapshot_blob(blob(ref))["root"]
    for key, tag, value in entries(root) if root is not None else ():
        path, fields = key[2:].replace(b"\0", b"/").decode(), message(value)
        named = (
            {path: fields[0]}
            if tag == VALUE
            else {f"{path}/{k}".lstrip("/"): v for k, v in fields[1].items()}
        )
        for name, content in named.items():
            found[name] = content if isinstance(content, bytes) else blob(content)
        if tag == ARRAY:
            put_chunks(path, *fields[2][:3])
    return found
