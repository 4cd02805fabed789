"""Packs: staged, sealed, discarded, replaced."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest

from vstore.errors import (
    CorruptionError,
    InternalError,
    ObjectNotFoundError,
)
from vstore.ids import new_pack_id
from vstore.keys.objects import (
    pack_name,
    parse_pack_name,
    staging_name,
)
from vstore.storage.base import PackSink, Storage
from vstore.testing.storage_contract.making import (
    BODY,
    RACERS,
    StorageTests,
    make_object,
)


class PackTests(StorageTests):
    """A pack is whole or not there."""

    # Packs

    def test_a_pack_is_invisible_until_it_is_sealed(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        name = pack_name(sink.pack)
        sink.write(0, [BODY])
        assert storage.size(name) is None
        assert list(storage.list("packs/")) == []
        with pytest.raises(ObjectNotFoundError):
            storage.read(name, 0, 1)
        sink.seal(len(BODY))
        assert storage.read_whole(name, len(BODY)) == BODY
        assert list(storage.list("staging/")) == []

    def test_packs_are_written_in_pieces_from_anywhere(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(10, [BODY[10:20], bytearray(BODY[20:30]), memoryview(BODY)[30:100]])
        sink.write(0, [BODY[:4], b"", BODY[4:10]])
        sink.write(100, [memoryview(BODY[100:]).cast("H")])
        assert sink.read(5, 200) == BODY[5:205]
        sink.seal(len(BODY))
        assert storage.read(pack_name(sink.pack), 0, len(BODY)) == BODY

    def test_packs_take_many_small_buffers(self, storage: Storage) -> None:
        parts = [bytes([i % 251]) * (i % 7) for i in range(5000)]
        assert make_object(storage, "pack", b"".join(parts), parts=parts)

    def test_many_threads_write_one_pack(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        with ThreadPoolExecutor(RACERS) as pool:
            list(pool.map(lambda i: sink.write(i * 1000, [bytes([i]) * 1000]), range(200)))
        sink.seal(200_000)
        whole = storage.read(pack_name(sink.pack), 0, 200_000)
        assert whole == b"".join(bytes([i]) * 1000 for i in range(200))

    def test_buffers_may_be_reused_after_a_write(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        buffer = bytearray(b"before")
        sink.write(0, [buffer])
        buffer[:] = b"after!"
        assert bytes(sink.read(0, 6)) == b"before"
        sink.seal(6)
        assert bytes(storage.read(pack_name(sink.pack), 0, 6)) == b"before"

    def test_seal_cuts_what_is_longer(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        sink.seal(100)
        assert storage.read_whole(pack_name(sink.pack), 100) == BODY[:100]

    def test_a_sealed_pack_is_read_on_and_not_written(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        sink.seal(len(BODY))
        assert sink.read(3, 30) == BODY[3:33]
        with pytest.raises(InternalError):
            sink.write(0, [b"more"])
        with pytest.raises(InternalError):
            sink.seal(5)
        sink.discard()
        assert storage.read_whole(pack_name(sink.pack), len(BODY)) == BODY

    def test_sealing_more_than_was_written_is_a_bug(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        with pytest.raises(InternalError):
            sink.seal(len(BODY) + 1)
        assert storage.size(pack_name(sink.pack)) is None
        assert sink.read(0, 10) == BODY[:10]
        sink.discard()

    def test_a_discarded_pack_leaves_nothing(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        sink.discard()
        sink.discard()
        assert list(storage.list("")) == []
        with pytest.raises(InternalError):
            sink.write(0, [b"more"])
        with pytest.raises(InternalError):
            sink.seal(1)

    def test_a_forgotten_pack_leaves_nothing(self, storage: Storage) -> None:
        storage.open_pack(new_pack_id()).write(0, [BODY])
        gc.collect()
        assert list(storage.list("")) == []

    def test_staged_packs_are_held_while_they_are_written(self, storage: Storage) -> None:
        sink = storage.open_pack(new_pack_id())
        for info in storage.list("staging/"):
            assert storage.is_held(info.name)
        sink.seal(0)
        assert not storage.is_held(staging_name(sink.pack))

    # Replacing a damaged pack

    def test_a_replacement_takes_the_place_of_a_pack_when_it_is_sealed(self, storage: Storage) -> None:
        name = make_object(storage, "pack", BODY)
        pack = parse_pack_name(name)
        assert pack is not None
        view = storage.read(name, 0, len(BODY))
        sink = storage.replace_damaged_pack(pack)
        assert isinstance(sink, PackSink)
        assert sink.pack == pack
        sink.write(5, [BODY[::-1]])
        assert storage.read(name, 0, len(BODY)) == BODY
        assert [info.name for info in storage.list("packs/")] == [name]
        sink.write(0, [b"12345"])
        sink.seal(len(BODY))
        expected = b"12345" + BODY[::-1][: len(BODY) - 5]
        assert storage.read(name, 0, len(BODY)) == expected
        assert storage.read_whole(name, len(BODY)) == expected
        assert sink.read(0, 10) == expected[:10]
        assert view == BODY, "bytes read before must stay valid"
        assert [info.name for info in storage.list("")] == [name]

    def test_a_replacement_may_be_of_another_size(self, storage: Storage) -> None:
        name = make_object(storage, "pack", BODY)
        pack = parse_pack_name(name)
        assert pack is not None
        for body in (BODY * 2, BODY[:7]):
            storage.read(name, 0, 1)
            sink = storage.replace_damaged_pack(pack)
            sink.write(0, [body])
            sink.seal(len(body))
            assert storage.read(name, 0, len(body)) == body
            assert storage.size(name) == len(body)
            with pytest.raises(CorruptionError):
                storage.read(name, 0, len(body) + 1)

    def test_a_missing_pack_is_put_back(self, storage: Storage) -> None:
        pack = new_pack_id()
        sink = storage.replace_damaged_pack(pack)
        sink.write(0, [BODY])
        sink.seal(len(BODY))
        assert storage.read_whole(pack_name(pack), len(BODY)) == BODY

    def test_a_replacement_that_is_discarded_changes_nothing(self, storage: Storage) -> None:
        name = make_object(storage, "pack", BODY)
        pack = parse_pack_name(name)
        assert pack is not None
        sink = storage.replace_damaged_pack(pack)
        sink.write(0, [b"other"])
        with pytest.raises(InternalError):
            sink.seal(6)
        sink.discard()
        assert storage.read_whole(name, len(BODY)) == BODY
        assert [info.name for info in storage.list("")] == [name]
