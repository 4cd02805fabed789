"""What lies at a place where a repository is to be made: nothing, what an interrupted `create` left, or data.

A catalog that is gone leaves packs that a new one would take for garbage, and records of a log that a new log would run
into. Above: `creation`, which asks before it makes anything.
"""

from __future__ import annotations

from vstore.errors import FormatError, ObjectNotFoundError, RepositoryExistsError
from vstore.format.envelope import BlobKind
from vstore.format.pack import TRAILER_SIZE, decode_footer, decode_trailer
from vstore.format.snapshot import decode_snapshot
from vstore.keys.objects import LATEST, LOG_PREFIX, PACK_PREFIX
from vstore.storage.base import Storage

_LARGEST_FIRST_PACK = 4096
_MAX_FIRST_PACKS = 32
"""Each is read; so many interrupted tries are none any more."""


def require_no_data(storage: Storage) -> None:
    """Raise `RepositoryExistsError` where more lies than creates that were interrupted can have left.

    They leave packs of an empty snapshot each, of which nobody knows; a new repository's gc removes them.
    """
    if storage.size(LATEST) is not None or next(iter(storage.list(LOG_PREFIX)), None) is not None:
        raise _exists(storage)
    for count, info in enumerate(storage.list(PACK_PREFIX)):
        is_too_much = info.size > _LARGEST_FIRST_PACK or count == _MAX_FIRST_PACKS
        if is_too_much or not _is_first_pack(storage, info.name):
            raise _exists(storage)


def _is_first_pack(storage: Storage, name: str) -> bool:
    """Tell whether a small pack holds an empty snapshot without parents, and nothing else."""
    try:
        data, size = storage.read_tail(name, _LARGEST_FIRST_PACK)
        trailer = decode_trailer(data[-TRAILER_SIZE:], size)
        end = trailer.footer_offset + trailer.footer_size
        footer = decode_footer(data[trailer.footer_offset : end], trailer)
        if footer.kinds.tolist() != [BlobKind.SNAPSHOT]:
            return False
        start, length = int(footer.offsets[0]), int(footer.lengths[0])
        snapshot = decode_snapshot(data[start : start + length])
    except ObjectNotFoundError:
        return True
    except FormatError:
        return False
    return not snapshot.parents and snapshot.root is None


def _exists(storage: Storage) -> RepositoryExistsError:
    return RepositoryExistsError(
        f"{storage.url} holds what is left of a repository whose catalog is gone; a new one would take it for "
        "garbage. Restore the catalog from a backup, or have vstore.rebuild_catalog make one of the packs. For a "
        "new repository choose another place."
    )
