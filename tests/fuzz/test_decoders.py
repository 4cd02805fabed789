"""Any bytes, and bytes of ours that were damaged with their checksums made right again: a value or a typed error.

In bounded memory, and never by an error of Python's, numpy's or a codec's. What decodes is encoded and decoded again.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from tests.format.decoders import ENVELOPES, MESSAGES, PACKS, read
from tests.format.make_golden import GOLDEN
from tests.fuzz.mutations import (
    MIB,
    Decoder,
    claims_that_fit,
    mutated,
    mutated_ending,
    mutated_envelope,
    mutated_log_object,
    refused_cheaply,
)
from vstore.catalog.state import decode_entry, decode_identity, decode_operation
from vstore.changes.documents import parse_documents
from vstore.changes.tiling import choose_extents, join_indices
from vstore.config import RepositoryConfig, stored_retention
from vstore.errors import FormatError, InvalidInputError
from vstore.format.columns import ColumnCode, decode_column
from vstore.format.envelope import BlobKind, Section, encode_envelope
from vstore.format.log_record import LogRecord, decode_identity_object, decode_log_object, encode_record
from vstore.format.manifest import MAX_TILE_CHUNKS, decode_manifest, encode_manifest
from vstore.format.node import tile_of
from vstore.format.pack import TRAILER_SIZE, decode_footer, decode_header, decode_trailer, encode_ending
from vstore.format.page import Entry, decode_page, decode_page_names, encode_page
from vstore.format.refs import pack_message
from vstore.format.snapshot import decode_snapshot, encode_snapshot

LOG_GOLDEN = GOLDEN.parent / "log_v1"
LOG_FILES = sorted(path.name for path in LOG_GOLDEN.glob("*.bin"))


def open_ending(whole: bytes, claimed: int) -> Any:
    """Decode a pack's header, trailer and footer as a reader does that was told this size."""
    decode_header(whole)
    trailer = decode_trailer(whole[-TRAILER_SIZE:], claimed)
    return decode_footer(whole[trailer.footer_offset :][: trailer.footer_size], trailer), trailer


def decode_log(data: bytes) -> Any:
    return decode_identity_object(data) if data[:4] == b"VSLI" else decode_log_object(data)


PLAIN: dict[str, Decoder] = {
    **MESSAGES,
    "operation": decode_operation,
    "entry": decode_entry,
    "identity": decode_identity,
    "log object": decode_log,
    "tile key": tile_of,
    "settings": RepositoryConfig.from_json,
    "retention": stored_retention,
    "documents": lambda data: parse_documents({"zarr.json": data, ".zarray": data, ".zattrs": data}),
    **{name: decode for name, decode in ENVELOPES.items() if "none" not in name},
    "names": decode_page_names,
}


@pytest.mark.parametrize("name", PLAIN)
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    with refused_cheaply():
        PLAIN[name](data)


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
def test_damaged_messages(name: str, data: st.DataObject) -> None:
    with refused_cheaply():
        MESSAGES[name](data.draw(mutated(read(name))))


@pytest.mark.parametrize("name", ENVELOPES)
@given(data=st.data())
def test_damaged_envelopes(name: str, data: st.DataObject) -> None:
    damaged = data.draw(mutated_envelope(read(name)))
    with refused_cheaply():
        ENVELOPES[name](damaged)
        assert_same_again(damaged)


def assert_same_again(data: bytes) -> None:
    """Encode what was decoded, and decode it again: the same comes out."""
    match data[0]:
        case BlobKind.MANIFEST:
            found = decode_manifest(data)
            again = decode_manifest(encode_manifest(found))
            for name in found.__struct_fields__:
                one, other = getattr(found, name), getattr(again, name)
                assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
        case BlobKind.PAGE:
            page = decode_page(data)
            entries = [Entry(*fields) for fields in zip(page.keys, page.tags, page.values, strict=True)]
            assert decode_page(encode_page(page.level, entries)) == page
        case BlobKind.SNAPSHOT:
            snapshot = decode_snapshot(data)
            assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


@pytest.mark.parametrize("name", LOG_FILES)
@given(data=st.data())
def test_damaged_log_objects(name: str, data: st.DataObject) -> None:
    damaged = data.draw(mutated_log_object((LOG_GOLDEN / name).read_bytes()))
    with refused_cheaply():
        found = decode_log(damaged)
        if isinstance(found, LogRecord):
            assert decode_log_object(encode_record(found)) == found


@pytest.mark.parametrize("name", [name for name in PACKS if "large" not in name])
@given(data=st.data())
def test_damaged_endings_of_packs(name: str, data: st.DataObject) -> None:
    """Also where storage claims the very size that the trailer asks for, however absurd."""
    whole, claimed = data.draw(mutated_ending(read(name)))
    with refused_cheaply():
        footer, trailer = open_ending(whole, claimed)
        again = encode_ending(trailer.pack, footer, trailer.footer_offset)
        assert len(decode_footer(again[:-TRAILER_SIZE], decode_trailer(again[-TRAILER_SIZE:], claimed))) >= 0
    with refused_cheaply():
        open_ending(*claims_that_fit(whole))


# --- columns ---------------------------------------------------------------------------------------------------

numbers = st.sampled_from((0, 1, 2, 255, 2**16, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)))
hostile_columns = st.tuples(
    st.sampled_from([*ColumnCode, 4, -1, 2**40]) | st.none(),
    numbers,
    numbers | st.integers(0, 9),
    st.binary(max_size=64) | st.integers(0, 8).map(lambda width: bytes(width * 5)),
)


@given(hostile_columns | st.lists(numbers, max_size=5), st.integers(0, 40) | st.just(MAX_TILE_CHUNKS))
def test_hostile_columns(column: Any, count: int) -> None:
    with refused_cheaply(peak_bytes=2 * MIB):
        assert len(decode_column(column, count)) == count


@given(st.lists(hostile_columns, min_size=6, max_size=6), numbers | st.integers(0, 40), st.booleans())
def test_manifests_of_hostile_columns(columns: list[Any], count: int, predicted: bool) -> None:
    names = ("pos", "kind", "src", "off", "len", "chk")
    message = dict(zip(names, columns, strict=True)) | {"n": count, "pred": predicted}
    message |= {"packs": bytes(32), "locs": ["file:///a", "file:///b"], "checks": [1, "etag"]}
    data = encode_envelope(
        BlobKind.MANIFEST, 1, (Section(pack_message(message), 1), Section(b""), Section(b""))
    )
    with refused_cheaply(peak_bytes=8 * MIB):
        decode_manifest(data)


@given(
    st.lists(hostile_columns, min_size=2, max_size=2), numbers | st.integers(0, 40), st.binary(max_size=40)
)
def test_pages_of_hostile_columns(columns: list[Any], count: int, body: bytes) -> None:
    names = (0, count, columns[0], body, bytes(min(max(count, 0), 40)))
    data = encode_envelope(
        BlobKind.PAGE, 1, (Section(pack_message(names), 3), Section(pack_message((columns[1], body)), 3))
    )
    with refused_cheaply(peak_bytes=8 * MIB):
        decode_page(data)


@given(st.lists(hostile_columns, min_size=3, max_size=3), st.integers(0, 40))
def test_footers_of_hostile_columns(columns: list[Any], count: int) -> None:
    whole = read("pack-empty.bin")
    trailer = decode_trailer(whole[-TRAILER_SIZE:], len(whole))
    message = dict(zip(("kind", "offset", "length"), columns, strict=True)) | {"n": count}
    data = encode_envelope(
        BlobKind.FOOTER, 1, (Section(pack_message(message), 1), Section(bytes(32 * count)))
    )
    trailer = msgspec.structs.replace(
        trailer, footer_size=len(data), blob_count=count, footer_crc=crc32c(data)
    )
    with refused_cheaply(peak_bytes=8 * MIB):
        decode_footer(data, trailer)


# --- what documents say ----------------------------------------------------------------------------------------

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(
        [0, 1, -1, 2**31, 2**62 - 1, 2**62, 2**63, 2**64, 10**400, 1.5, float("nan"), float("inf")]
    )
    | st.sampled_from(["", "regular", "rectilinear", "default", "v2", "/", ".", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
sizes = st.lists(st.sampled_from([0, 1, 5, 2**31, 2**62 - 1]), max_size=5)
edges = st.lists(
    st.sampled_from([1, 2**61]) | st.lists(st.sampled_from([1, 3, 2**61, 10**30]), min_size=2, max_size=2),
    max_size=4,
)
grids = (
    st.fixed_dictionaries(
        {
            "name": st.just("regular"),
            "configuration": st.fixed_dictionaries({"chunk_shape": sizes | json_values}) | json_values,
        }
    )
    | st.fixed_dictionaries(
        {
            "name": st.just("rectilinear"),
            "configuration": st.fixed_dictionaries(
                {"chunk_shapes": st.lists(edges, max_size=5) | json_values}
            ),
        }
    )
    | json_values
)
documents = st.fixed_dictionaries(
    {
        "zarr_format": st.sampled_from([2, 3]),
        "node_type": st.just("array"),
        "shape": sizes | json_values,
        "data_type": json_values,
        "chunk_grid": grids,
        "chunk_key_encoding": json_values
        | st.fixed_dictionaries({"name": st.just("default"), "configuration": json_values}),
        "codecs": json_values,
        "dtype": json_values,
        "chunks": sizes | json_values,
        "dimension_separator": json_values,
    }
)


@given(documents)
def test_documents_of_hostile_arrays(document: dict[str, Any]) -> None:
    data = json.dumps(document).encode()
    with refused_cheaply(peak_bytes=MIB):
        spec = parse_documents({"zarr.json": data, ".zarray": data})
        if spec is not None and spec.array is not None and spec.array.grid is not None:
            extents = choose_extents(spec.array.grid)
            assert all(extent >= 1 for extent in extents)
            assert int(np.prod(extents, dtype=object)) <= MAX_TILE_CHUNKS


@given(
    st.lists(st.sampled_from([0, 1, 2**20, 2**48, 2**61, 2**62, 2**63, 2**64 - 1]), max_size=4),
    st.lists(st.integers(0, 65_535), min_size=1, max_size=20),
)
def test_tiles_where_there_can_be_none(tile: list[int], positions: list[int]) -> None:
    extents = (4,) * len(tile)
    with contextlib.suppress(FormatError):
        indices = join_indices(tuple(tile), np.array(positions), extents)
        assert (indices >= 0).all()


@pytest.mark.parametrize("depth", [10, 900, 990, 995, 1000, 5000, 100_000])
def test_deep_documents(depth: int) -> None:
    """Around the depth at which reading JSON, or writing it again, meets the interpreter's limit."""
    data = (
        b'{"zarr_format":3,"node_type":"array","shape":[1],"data_type":"u1","chunk_grid":{"name":"regular",'
    )
    data += b'"configuration":{"chunk_shape":[1]}},"codecs":' + b"[" * depth + b"]" * depth + b"}"
    with refused_cheaply(InvalidInputError, peak_bytes=32 * MIB):
        parse_documents({"zarr.json": data})
    with refused_cheaply():
        RepositoryConfig.from_json(b'{"retention":' + b"[" * depth + b"]" * depth + b"}")


def test_every_kind_of_log_object_is_among_the_golden_files() -> None:
    assert {(LOG_GOLDEN / name).read_bytes()[:4] for name in LOG_FILES} == {b"VSLR", b"VSLT", b"VSLI"}
