"""docs/format.md names the same numbers as the code, and its worked examples are the golden files."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sqlite3
from enum import IntEnum
from pathlib import Path

import pytest

import vstore.format
from vstore.catalog import state
from vstore.format import columns, envelope, manifest, node, record
from vstore.format.envelope import Section

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "format.md").read_text()
ENUMS = [
    envelope.BlobKind,
    envelope.Compression,
    columns.ColumnCode,
    manifest.ChunkKind,
    node.NodeTag,
    record.RefKind,
    record.OperationKind,
    record.PackMark,
    state.Space,
]
FORMAT_MODULES = [
    importlib.import_module(f"vstore.format.{found.name}")
    for found in pkgutil.iter_modules(vstore.format.__path__)
]


def section(heading: str) -> str:
    """Return the text between a heading and the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading!r}"
    return found[1]


@pytest.mark.parametrize("enum", ENUMS)
def test_numbers_of_enums(enum):
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", section(enum.__name__), re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(item.value, item.name) for item in enum]


def test_every_persisted_enum_is_described():
    found = {
        value
        for module in FORMAT_MODULES
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, IntEnum)
        and value.__module__.startswith("vstore.format")
    }
    assert found <= set(ENUMS)


def constants() -> dict[str, int]:
    rows = re.findall(r"^\| `([a-z_.]+\.[A-Z_]+)` \| ([\d,]+) \|", TEXT, re.MULTILINE)
    found = {name: int(value.replace(",", "")) for name, value in rows}
    assert len(found) == len(rows) > 30, "a constant is listed twice"
    return found


@pytest.mark.parametrize(("name", "value"), constants().items())
def test_constants(name, value):
    module, _, constant = name.rpartition(".")
    assert getattr(importlib.import_module(f"vstore.{module}"), constant) == value


def test_every_constant_of_the_formats_is_listed():
    found = {
        f"{module.__name__.removeprefix('vstore.')}.{name}"
        for module in FORMAT_MODULES
        for name, line in re.findall(
            r"^([A-Z][A-Z_]*) = (.*)$", Path(module.__file__).read_text(), re.MULTILINE
        )
        if isinstance(getattr(module, name), int)
    }
    assert len(found) > 20
    assert found - set(constants()) == set()


def test_magic_numbers():
    in_code = {
        value.decode()
        for module in FORMAT_MODULES
        for value in vars(module).values()
        if isinstance(value, bytes) and re.fullmatch(rb"VS[A-Z]+", value)
    }
    assert set(re.findall(r'"(VS[A-Z]+)"', TEXT)) == in_code


def test_sizes_in_the_text():
    assert f"No section is larger than {envelope.MAX_SECTION_BYTES >> 20} MiB when decoded" in TEXT
    assert f"more than {envelope._MAX_ZSTD_RATIO:,} times its own size" in TEXT
    assert "each of more than 64 KiB is followed by its checksum table" in TEXT
    assert envelope.encode_envelope(envelope.BlobKind.PAGE, 1, (Section(b""),) * 2)[4 + 2 * 9 :] == b""


def test_tables_of_the_sqlite_catalog():
    from sqlite_utils import Database
    from vstore.migrations.catalog import MIGRATIONS

    connection = sqlite3.connect(":memory:")
    try:
        MIGRATIONS.apply(Database(connection))
        names = [
            row[0]
            for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not row[0].startswith("_")
        ]
        made = {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    finally:
        connection.close()
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", section("SQLite catalog"), re.MULTILINE)
    assert {name: found.split(", ") for name, found in rows} == made
    assert f"`PRAGMA user_version` {version}" in section("SQLite catalog")


def worked_examples() -> dict[str, str]:
    return dict(re.findall(r"^```hex ([\w.-]+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("name", ["manifest-one.bin", "pack-tiny.bin"])
def test_worked_examples_are_the_golden_files(name):
    data = b""
    for line in worked_examples()[name].splitlines():
        position, hexes = line[:4], line[6:53]
        assert int(position, 16) == len(data)
        data += bytes.fromhex(hexes)
    golden = (ROOT / "tests" / "format" / "golden" / "v1" / name).read_bytes()
    assert data == golden
    assert f"`tests/format/golden/v1/{name}`, {len(golden)} bytes" in TEXT


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
