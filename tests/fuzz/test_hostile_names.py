"""Names that try to lead elsewhere: keys of a Zarr store, locations of virtual chunks, names in listings."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vstore
from tests.fuzz.forging import forge, group, page
from tests.fuzz.uses import FAR, build, outside, packs_in
from tests.repositories import GROUP, array_document, contents, quick_folder, write
from vstore.blobs.cache import CACHE
from vstore.blobs.virtual import VirtualRange, VirtualReader, file_path
from vstore.errors import (
    CorruptionError,
    InvalidInputError,
    VirtualChunkError,
    VirtualChunkUnauthorizedError,
    VStoreError,
)
from vstore.format.node import NodeTag
from vstore.format.page import Entry
from vstore.format.refs import pack_message
from vstore.keys.objects import check_object_name, parse_pack_name, parse_staging_name
from vstore.storage.base import ObjectInfo
from vstore.storage.local import LocalStorage

PACK = "ab" * 16

# --- keys ------------------------------------------------------------------------------------------------------

KEYS = [
    "../../x",
    "..",
    ".",
    "/etc/passwd",
    "//x",
    "a//b",
    "a/../b",
    "a/",
    "x" * 100_000,
    "a/" * 5000 + "x",
    "packs/ab/" + PACK,
    "log/00000000000000000000",
    "catalog.sqlite",
    "C:\\x",
    "new\nline\t\x1b[31m",
    "~/x",
    "\N{RIGHT-TO-LEFT OVERRIDE}cod.exe",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("catalog", ["sqlite", "log"])
def test_keys_are_names_and_never_paths(key: str, catalog: str) -> None:
    with quick_folder() as work:
        folder = work / "repository"
        repository = vstore.Repository.create(folder, catalog=catalog)
        before = outside(folder)
        session = repository.writable_session("main")
        write(session, {"zarr.json": GROUP, key: b"value"})
        session.commit("odd keys")
        assert contents(repository.readonly_session("main"))[key] == b"value"
        repository.garbage_collect(FAR)
        assert outside(folder) == before
        own = {"log", "latest", "repo", "packs", "staging", "probe"}
        own |= {f"catalog.sqlite{suffix}" for suffix in ("", "-wal", "-shm")}
        assert {path.name for path in folder.iterdir()} <= own
        repository.close()


@pytest.mark.parametrize("key", ["a\0b", "\0", "a/\udcff"])
def test_keys_that_can_not_be_kept_are_refused(key: str, tmp_path: Path) -> None:
    session = vstore.Repository.create(tmp_path / "r").writable_session("main")
    with pytest.raises(InvalidInputError):
        write(session, {key: b"value"})


@pytest.mark.parametrize("key", [b"n\xff", b"nothing", b"v\0\xff\xfe", b"n\0a\0\0\xc0\x80", b"x", b""])
def test_keys_in_a_tree_that_are_not_text(key: bytes, tmp_path: Path) -> None:
    repository = vstore.Repository.create(tmp_path / "r")
    entries: list[tuple[bytes, Any]] = [
        group("", GROUP),
        (key, Entry(key, NodeTag.VALUE, pack_message((b"value",)))),
    ]
    forge(repository, lambda batch: page(batch, 0, sorted(entries)))
    CACHE.clear()
    with contextlib.suppress(CorruptionError):
        assert contents(repository.readonly_session("main")).keys() <= {"zarr.json"}
    assert not repository.fsck().is_clean


# --- locations of virtual chunks -------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for folder in ("allowed", "allowed-evil", "secret"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(b"0123456789")
    return tmp_path


def escapes(data: Path) -> dict[str, str]:
    root = data.as_uri()
    return {
        "dots": f"{root}/allowed/../secret/file",
        "more dots": f"{root}/allowed/./../allowed/../secret/file",
        "encoded dots": f"{root}/allowed/%2e%2e/secret/file",
        "encoded slash": f"{root}/allowed%2F..%2Fsecret%2Ffile",
        "a longer name": f"{root}-evil/file".replace(f"{data.name}-evil", f"{data.name}/allowed-evil"),
        "two slashes": f"file:////{str(data).lstrip('/')}/secret/file",
        "scheme case": f"FILE://{data}/secret/file",
        "user info": f"file://allowed@evil{data}/secret/file",
        "another host": f"file://evil{data}/allowed/file",
        "another scheme": "https://allowed@evil/file",
        "s3": "s3://allowed/../secret/file",
        "a query": f"{root}/secret/file?{root}/allowed/",
        "a fragment": f"{root}/secret/file#/allowed/",
        "an allowed query": f"{root}/allowed/file?x",
        "an allowed empty query": f"{root}/allowed/file?",
        "backslashes": f"{root}/allowed\\..\\secret\\file",
        "a zero": f"{root}/allowed/file%00",
        "no URL": "/etc/passwd",
        "a bad host": "file://[/allowed/file",
        "a host that is another when normalised": "file://\N{FULLWIDTH SOLIDUS}/allowed/file",
        "nothing": "",
        "relative": "file:allowed/file",
        "too long": f"{root}/allowed/" + "x" * 5000,
        "the folder": f"{root}/allowed/",
        "a name that is too long": f"{root}/allowed/" + "x" * 3000,
        "new lines": f"{root}/all\nowed/../secret/file",
    }


@pytest.mark.parametrize("name", escapes(Path("/x")))
def test_locations_that_climb_out_of_what_was_authorised(data: Path, name: str) -> None:
    reader = VirtualReader([f"{data.as_uri()}/allowed/"])
    assert reader.read(VirtualRange(f"{data.as_uri()}/allowed/file", 2, 3, None)) == b"234"
    with pytest.raises((VirtualChunkError, InvalidInputError)) as caught:
        reader.read(VirtualRange(escapes(data)[name], 2, 3, None))
    if "secret" in escapes(data)[name] and name in (
        "dots",
        "more dots",
        "encoded dots",
        "scheme case",
        "two slashes",
    ):
        assert isinstance(caught.value, VirtualChunkUnauthorizedError)


@pytest.mark.parametrize(
    "prefix", ["file:///allowed", "", "/", "s3://bucket/", "file://host/a/", "file:///a/?x/"]
)
def test_prefixes_that_say_nothing(prefix: str) -> None:
    with pytest.raises(InvalidInputError):
        VirtualReader([prefix])


def test_links_in_an_authorised_folder_are_its_owners(data: Path) -> None:
    """A repository makes no links there; who authorised the folder has them lead where they lead."""
    (data / "allowed" / "link").symlink_to(data / "secret")
    reader = VirtualReader([f"{data.as_uri()}/allowed/"])
    assert reader.read(VirtualRange(f"{data.as_uri()}/allowed/link/file", 0, 2, None)) == b"01"
    with pytest.raises(VirtualChunkUnauthorizedError):
        reader.read(VirtualRange(f"{data.as_uri()}/allowed/link/../../secret/file", 0, 2, None))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_read(data: Path, kind: str) -> None:
    path = data / "allowed" / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(VirtualChunkError):
        VirtualReader([f"{data.as_uri()}/allowed/"]).read(VirtualRange(path.as_uri(), 0, 2, None))


@pytest.mark.parametrize(("offset", "length"), [(0, 2**62), (2**62, 1), (2**62 - 1, 2**62 - 1), (11, 0)])
def test_ranges_beyond_the_file(data: Path, offset: int, length: int) -> None:
    reader = VirtualReader([f"{data.as_uri()}/allowed/"])
    with pytest.raises(VirtualChunkError):
        reader.read(VirtualRange(f"{data.as_uri()}/allowed/file", offset, length, None))


@given(
    st.text(max_size=60)
    | st.text("file:/.%2eF@#?\\x\n", max_size=40).map(lambda text: f"file:///allowed/{text}")
)
def test_any_location(location: str) -> None:
    try:
        path = file_path(location)
    except VStoreError:
        return
    assert path.startswith("/")
    assert ".." not in path.split("/")


# --- listings --------------------------------------------------------------------------------------------------

HOSTILE_NAMES = [
    "../packs/ab/" + PACK,
    "packs/../../" + PACK,
    "packs/ab/../ab/" + PACK,
    "/packs/ab/" + PACK,
    "/etc/passwd",
    "packs/ab/" + PACK + "/",
    "packs/ab/" + PACK.upper(),
    "packs/AB/" + PACK,
    "packs/cd/" + PACK,
    "packs/ab/" + PACK + "\n",
    "packs/ab/" + PACK + "\0",
    "packs/ab/" + "\N{FULLWIDTH LATIN SMALL LETTER A}b" * 16,
    "packs/ab/" + "\N{ARABIC-INDIC DIGIT ONE}" * 32,
    "packs/ab/" + PACK[:-1],
    "other/packs/ab/" + PACK,
    "packs//ab/" + PACK,
    "log/" + "\N{ARABIC-INDIC DIGIT ONE}" * 20,
    "log/" + "9" * 21,
    "staging/../" + PACK,
    "",
    ".",
    "catalog.sqlite",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_vstore_does_not_write(name: str, tmp_path: Path) -> None:
    assert parse_pack_name(name) is None
    assert parse_staging_name(name) is None
    with pytest.raises(InvalidInputError):
        check_object_name(name)
    storage = LocalStorage(tmp_path)
    for act in (
        lambda: storage.delete([name]),
        lambda: storage.create(name, b""),
        lambda: storage.write(name, b""),
        lambda: storage.read(name, 0, 1),
        lambda: storage.read_whole(name, 1),
        lambda: storage.size(name),
        lambda: storage.is_held(name),
    ):
        with pytest.raises(InvalidInputError):
            act()
    assert list(tmp_path.iterdir()) == []


class LyingStorage(LocalStorage):
    """A storage whose listing and sizes are made up; what it is asked to delete is noted."""

    def __init__(self, root: Path, names: Sequence[str], size: int, modified_us: int) -> None:
        super().__init__(root)
        self._names, self._size, self._modified_us = names, size, modified_us
        self.deleted: list[str] = []

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for name in self._names:
            yield ObjectInfo(name, self._size, self._modified_us)
        yield from super().list(prefix)

    def size(self, name: str) -> int | None:
        found = super().size(name)
        return None if found is None else self._size

    def delete(self, names: Sequence[str]) -> None:
        self.deleted += names
        super().delete(names)


@pytest.mark.parametrize("size", [-1, 0, 2**63, 2**64])
@pytest.mark.parametrize("modified_us", [-(2**63), 0, 2**63])
def test_a_listing_that_lies(size: int, modified_us: int) -> None:
    with quick_folder() as work:
        build(work / "repository", "log")
        packs = packs_in(work / "repository")
        before = outside(work / "repository")
        names = [*HOSTILE_NAMES, "packs/ef/" + "ef" * 16, "packs/ef/" + "ef" * 16]
        storage = LyingStorage(work / "repository", names, size, modified_us)
        repository = vstore.Repository.open(storage)
        for act in (
            lambda: repository.garbage_collect(FAR),
            lambda: repository.compact(),
            lambda: repository.fsck(data=True),
            lambda: repository.storage_stats(),
        ):
            with contextlib.suppress(VStoreError):
                act()
        assert outside(work / "repository") == before
        for name in storage.deleted:
            check_object_name(name)
        repository.close()
        # Nothing that is needed was deleted on the word of that listing.
        again = vstore.Repository.open(work / "repository")
        assert again.fsck(data=True).is_clean
        assert packs_in(work / "repository") <= packs | packs_in(work / "repository")
        again.close()


def test_a_listing_of_very_many_names_is_a_stream() -> None:
    """What is no name of vstore's is dropped as it comes."""
    with quick_folder() as work:
        build(work / "repository", "log")

        class Endless(Sequence[str]):
            def __len__(self) -> int:
                return 50_000

            def __getitem__(self, index: Any) -> Any:
                if index >= len(self):
                    raise IndexError
                return f"packs/ab/{index}"

        storage = LyingStorage(work / "repository", Endless(), 1, 0)
        repository = vstore.Repository.open(storage)
        tracemalloc.start()
        repository.garbage_collect(FAR, dry_run=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * 2**20
        repository.close()


def test_names_of_arrays_with_odd_characters_are_listed_as_they_are(tmp_path: Path) -> None:
    repository = vstore.Repository.create(tmp_path / "r")
    session = repository.writable_session("main")
    write(session, {"zarr.json": GROUP, "a\x1b[2J/zarr.json": array_document((3,)), "a\x1b[2J/c/1": b"1"})
    session.commit("odd")
    assert "a\x1b[2J/c/1" in contents(repository.readonly_session("main"))
    assert "\x1b[2J" not in str(repository.ancestry_graph())
