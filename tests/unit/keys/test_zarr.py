from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding, V2ChunkKeyEncoding

from vstore.keys.zarr import (
    DOCUMENT_NAMES,
    ChunkKeyEncoding,
    NotAChunk,
    is_canonical_index,
    iter_ancestors,
    join_key,
    normalize_prefix,
    parent_path,
    split_document_key,
)

indices = st.lists(st.integers(0, 10**18 - 1) | st.integers(0, 20), max_size=5).map(tuple)


@given(st.sampled_from(["c", ""]), st.sampled_from("/."), indices)
def test_chunk_keys_are_zarrs_own(leading, separator, index):
    ours = ChunkKeyEncoding(leading, separator, len(index))
    zarrs = (DefaultChunkKeyEncoding if leading else V2ChunkKeyEncoding)(separator=separator)
    key = ours.encode(index)
    assert key == zarrs.encode_chunk_key(index)
    assert ours.decode(key) == index


@pytest.mark.parametrize(
    ("leading", "separator", "ndim", "text", "expected"),
    [
        ("c", "/", 2, "c/0/1", (0, 1)),
        ("c", ".", 2, "c.0.1", (0, 1)),
        ("", ".", 2, "0.1", (0, 1)),
        ("", "/", 2, "0/1", (0, 1)),
        ("c", "/", 0, "c", ()),
        ("", ".", 0, "0", ()),
        ("c", "/", 1, "c", NotAChunk.OTHER_KEY),
        ("c", "/", 0, "c/0", NotAChunk.WRONG_DIMENSIONS),
        ("", ".", 0, "0.0", NotAChunk.WRONG_DIMENSIONS),
        ("", ".", 0, "1", NotAChunk.WRONG_DIMENSIONS),
        ("", ".", 0, "x", NotAChunk.OTHER_KEY),
        ("c", "/", 2, "c/0", NotAChunk.WRONG_DIMENSIONS),
        ("c", "/", 2, "c/0/1/2", NotAChunk.WRONG_DIMENSIONS),
        ("", ".", 2, "5", NotAChunk.WRONG_DIMENSIONS),
        ("c", "/", 1, "0", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c.0", NotAChunk.OTHER_KEY),
        ("c", ".", 1, "c/0", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "d/0", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "cc/0", NotAChunk.OTHER_KEY),
        ("c", "/", 2, "c/01/0", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c/+1", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c/-1", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c/ 1", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c/1_0", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c/\u0661", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c/\u00b2", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c/", NotAChunk.OTHER_KEY),
        ("c", "/", 2, "c//1", NotAChunk.OTHER_KEY),
        ("c", "/", 1, "c/" + "9" * 18, (10**18 - 1,)),
        ("c", "/", 1, "c/1" + "0" * 18, NotAChunk.OTHER_KEY),
        ("", ".", 1, "zarr.json", NotAChunk.OTHER_KEY),
        ("", "/", 1, "", NotAChunk.OTHER_KEY),
    ],
)
def test_decode(leading, separator, ndim, text, expected):
    assert ChunkKeyEncoding(leading, separator, ndim).decode(text) == expected


@given(
    st.sampled_from(["c", ""]),
    st.sampled_from("/."),
    st.integers(0, 3),
    st.text("c0123456789./+ -", max_size=9),
)
def test_only_canonical_keys_name_chunks(leading, separator, ndim, text):
    encoding = ChunkKeyEncoding(leading, separator, ndim)
    found = encoding.decode(text)
    if isinstance(found, tuple):
        assert len(found) == ndim
        assert encoding.encode(found) == text


@given(st.text(st.characters(), max_size=4))
def test_canonical_index(text):
    assert is_canonical_index(text) == (text.isascii() and text.isdecimal() and str(int(text)) == text)


@pytest.mark.parametrize("name", DOCUMENT_NAMES)
@pytest.mark.parametrize("path", ["", "a", "a/b"])
def test_document_keys(name, path):
    key = join_key(path, name)
    assert key == (f"{path}/{name}" if path else name)
    assert split_document_key(key) == (path, name)


@pytest.mark.parametrize("key", ["", "a", "a/c/0", "zarr.json/x", "a/xzarr.json", "zarr.jso", ".zmetadata"])
def test_other_keys_are_no_documents(key):
    assert split_document_key(key) is None


def test_document_names():
    assert DOCUMENT_NAMES == ("zarr.json", ".zarray", ".zgroup", ".zattrs")


@pytest.mark.parametrize(
    ("path", "parent", "ancestors"),
    [("", "", []), ("a", "", [""]), ("a/b/c", "a/b", ["a/b", "a", ""])],
)
def test_paths_above(path, parent, ancestors):
    assert parent_path(path) == parent
    assert iter_ancestors(path) == ancestors


@pytest.mark.parametrize(
    ("prefix", "path"), [("", ""), ("/", ""), ("a", "a"), ("a/", "a"), ("/a/b//", "a/b")]
)
def test_prefixes(prefix, path):
    assert normalize_prefix(prefix) == path


@pytest.mark.parametrize(
    ("encoding", "folder", "first"),
    [
        (ChunkKeyEncoding("c", "/", 2), "", ()),
        (ChunkKeyEncoding("c", "/", 2), "c", ()),
        (ChunkKeyEncoding("c", "/", 2), "c/3", (3,)),
        (ChunkKeyEncoding("c", "/", 2), "c/3/4", None),
        (ChunkKeyEncoding("c", "/", 2), "c/03", None),
        (ChunkKeyEncoding("c", "/", 2), "3", None),
        (ChunkKeyEncoding("c", "/", 0), "c", None),
        (ChunkKeyEncoding("c", ".", 2), "", ()),
        (ChunkKeyEncoding("c", ".", 2), "c", None),
        (ChunkKeyEncoding("", "/", 3), "1/2", (1, 2)),
        (ChunkKeyEncoding("", "/", 3), "1/x", None),
    ],
)
def test_what_chunks_below_a_folder_begin_with(
    encoding: ChunkKeyEncoding, folder: str, first: tuple[int, ...] | None
) -> None:
    assert encoding.first_indices(folder) == first
