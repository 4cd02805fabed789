"""The names of objects in storage, relative to the repository's location.

    repo                        identity of a repository with the log catalog
    latest                      hint to the newest log record
    log/<20 digits>             log records
    catalog.sqlite              the SQLite catalog (local directories only; never opened through storage)
    packs/<2 hex>/<32 hex>      packs, fanned out by the first byte of their id
    staging/<32 hex>            packs being written on a local disk
    probe/<32 hex>              scratch objects of the conditional-write probe

Names that come from a listing are checked here before anything is done with them.
"""

from __future__ import annotations

import re
from functools import lru_cache

from vstore.errors import InvalidInputError
from vstore.ids import PackId

REPO = "repo"
LATEST = "latest"
LOG_PREFIX = "log/"
PACK_PREFIX = "packs/"
STAGING_PREFIX = "staging/"
PROBE_PREFIX = "probe/"
SQLITE_FILE = "catalog.sqlite"

LAST_SEQUENCE = 10**20 - 1

_NAME = re.compile(
    r"repo|latest|log/[0-9]{20}|packs/([0-9a-f]{2})/\1[0-9a-f]{30}|staging/[0-9a-f]{32}|probe/[0-9a-f]{32}"
)
_FOLDER = re.compile(r"log|packs(?:/[0-9a-f]{2})?|staging|probe")
_STAGED = re.compile(r"staging/[0-9a-f]{32}")
_PACK = re.compile(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{30})")


def log_name(sequence: int) -> str:
    if not 0 <= sequence <= LAST_SEQUENCE:
        raise InvalidInputError(f"log sequence {sequence} is out of range")
    return f"{LOG_PREFIX}{sequence:020d}"


@lru_cache(maxsize=4096)
def pack_name(pack: PackId) -> str:
    text = pack.hex()
    return f"{PACK_PREFIX}{text[:2]}/{text}"


def staging_name(pack: PackId) -> str:
    return f"{STAGING_PREFIX}{pack.hex()}"


def probe_name(nonce: bytes) -> str:
    return f"{PROBE_PREFIX}{nonce.hex()}"


def parse_pack_name(name: str) -> PackId | None:
    """Return the id in a pack's name, or None if `name` is not a pack's."""
    match = _PACK.fullmatch(name)
    return PackId(bytes.fromhex(match[2])) if match else None


def parse_staging_name(name: str) -> PackId | None:
    """Return the id in a staged pack's name, or None if `name` is not one."""
    return PackId(bytes.fromhex(name[len(STAGING_PREFIX) :])) if _STAGED.fullmatch(name) else None


def is_object_folder(name: str) -> bool:
    """Tell whether vstore puts objects, or folders with objects, into the folder `name`."""
    return _FOLDER.fullmatch(name) is not None


def check_object_name(name: str) -> str:
    """Return `name` if it is one that vstore writes; refuse all others, such as ones that climb out of a prefix."""
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError(f"{name!r} is not the name of a vstore object")
    return name
