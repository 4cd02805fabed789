"""The storage itself."""

from __future__ import annotations

import pickle

from vstore.ids import new_pack_id
from vstore.keys.objects import (
    REPO,
)
from vstore.storage.base import PackSink, Storage
from vstore.testing.storage_contract.making import (
    BODY,
    StorageTests,
    make_object,
)


class LifetimeTests(StorageTests):
    """Its members, closing it, and pickling it."""

    # Attributes

    def test_it_has_every_member_of_the_protocol(self, storage: Storage) -> None:
        assert isinstance(storage, Storage)
        assert storage.url
        assert isinstance(storage.is_local, bool)
        assert storage.pack_policy.target_bytes > 0
        assert isinstance(storage.open_pack(new_pack_id()), PackSink)

    # The storage itself

    def test_a_closed_storage_may_be_used_again(self, storage: Storage) -> None:
        name = make_object(storage, "pack", BODY)
        view = storage.read(name, 0, len(BODY))
        storage.close()
        storage.close()
        assert view == BODY
        assert storage.read(name, 0, len(BODY)) == BODY
        assert make_object(storage, "pack", b"more")

    def test_a_pickle_reaches_the_same_place(self, storage: Storage) -> None:
        name = make_object(storage, "pack", BODY)
        other = pickle.loads(pickle.dumps(storage))
        assert other.url == storage.url
        assert other.read(name, 0, len(BODY)) == BODY
        other.create(REPO, b"other")
        assert storage.read_whole(REPO, 5) == b"other"
        assert pickle.dumps(storage) == pickle.dumps(storage)
        again = pickle.loads(pickle.dumps(other))
        assert again.read_whole(REPO, 5) == b"other"
