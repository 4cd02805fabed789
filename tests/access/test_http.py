"""A repository served over plain HTTP: read like any other, never written to, and servers with bad habits."""

from __future__ import annotations

import contextlib
import pickle
import re
import shutil
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from obstore.store import HTTPStore

import vstore
from tests import servers
from tests.access.web import FOLDER, PAGE, Answer, Site, serving
from tests.repositories import commit, quick_folder
from vstore.blobs.cache import CACHE
from vstore.storage.local import LocalStorage

SECRET = "s3cr3t"
NO_RETRIES = {"retry_config": {"max_retries": 0}}
SHARDED = np.arange(400.0 * 400).reshape(400, 400)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A folder with a repository of some history."""
    with quick_folder() as root:
        # A server may run as another user.
        root.chmod(0o755)
        make(root / FOLDER)
        yield root


def make(place: Path) -> None:
    with vstore.Repository.create(place, catalog="log") as repository:
        with repository.transaction("main", message="arrays") as store:
            group = zarr.create_group(store, attributes={"made": "by hand"})
            group.create_array("plain", data=np.arange(1000), chunks=(500,), compressors=None)
            group.create_array("below/sharded", data=SHARDED, chunks=(50, 50), shards=(200, 200))
        repository.create_tag("v1", repository.lookup_branch("main"))
        dataset = xarray.Dataset({"t": (("x", "y"), np.arange(12.0).reshape(3, 4))}, {"x": [10, 20, 30]})
        with repository.transaction("main", message="dataset") as store:
            dataset.to_zarr(store, group="set", consolidated=False, zarr_format=3)


@pytest.fixture
def site(template: Path) -> Iterator[Site]:
    CACHE.clear()
    with serving(template) as site:
        yield site


@pytest.fixture
def own_site(template: Path) -> Iterator[Site]:
    """A site whose repository the test may change."""
    with quick_folder() as root:
        shutil.copytree(template / FOLDER, root / FOLDER)
        CACHE.clear()
        with serving(root) as site:
            yield site


def read(repository: vstore.Repository) -> float:
    CACHE.clear()
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    plain, sharded = group["plain"], group["below/sharded"]
    assert isinstance(plain, zarr.Array)
    assert isinstance(sharded, zarr.Array)
    np.testing.assert_array_equal(sharded[60:63, 250], SHARDED[60:63, 250])
    return float(np.sum(plain[:]))


# --- what works ------------------------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("spelling", ["url", "url with a slash", "store", "store with a prefix"])
def test_nginx_serves_a_repository(template: Path, spelling: str) -> None:
    with servers.nginx(template) as url:
        allow = {"allow_http": True}
        place: Any = {
            "url": f"{url}/{FOLDER}",
            "url with a slash": f"{url}/{FOLDER}/",
            "store": HTTPStore.from_url(f"{url}/{FOLDER}", client_options=allow),  # type: ignore[arg-type]
            "store with a prefix": HTTPStore.from_url(f"{url}/{FOLDER}/", client_options=allow),  # type: ignore[arg-type]
        }[spelling]
        with vstore.Repository.open(place) as repository, vstore.open(template / FOLDER) as local:
            assert repository.id == local.id
            assert repository.list_branches() == {"main"}
            assert repository.list_tags() == {"v1"}
            history = list(repository.ancestry(branch="main"))
            assert history == list(local.ancestry(branch="main"))
            assert not repository.diff(from_tag="v1", to_branch="main").is_empty()
            assert read(repository) == sum(range(1000))
            before = repository.readonly_session("main", as_of=history[1].written_at)
            assert before.snapshot_id == history[1].id
            group = zarr.open_group(repository.readonly_session("main").store, mode="r")
            assert sorted(name for name, _ in group.members(max_depth=None)) == [
                "below",
                "below/sharded",
                "plain",
                "set",
                "set/t",
                "set/x",
            ]
            store = repository.readonly_session("main").store
            with xarray.open_zarr(store, group="set", consolidated=False) as dataset:
                assert dataset.t.sel(x=20).sum() == 22
            report = repository.fsck(data=True)
            assert report.is_clean
            assert report == local.fsck(data=True)
            assert repository.storage_stats().native_bytes == local.storage_stats().native_bytes


@pytest.mark.server
def test_new_commits_are_seen_over_nginx() -> None:
    with quick_folder() as root:
        root.chmod(0o755)
        with (
            vstore.Repository.create(root / FOLDER, catalog="log") as writer,
            servers.nginx(root) as url,
            vstore.open(f"{url}/{FOLDER}") as reader,
        ):
            for number in range(12):
                made = commit(writer, {"key": bytes([number]) * 1000})
                assert reader.lookup_branch("main") == made
                session = reader.readonly_session("main")
                assert session.tree.read("key") == bytes([number]) * 1000


@pytest.mark.server
def test_the_documented_settings_of_nginx(template: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "http.md").read_text()
    found = re.search(r"```nginx\n.*?\n\n(.*?)\n}\n```", page, re.DOTALL)
    assert found is not None
    assert found[1].count("location") == 3
    with servers.nginx(template, found[1]) as url, vstore.open(f"{url}/{FOLDER}") as repository:
        assert read(repository) == sum(range(1000))
        policies = {}
        for name in ("latest", "log/00000000000000000000", "log/00000000000000000099", "repo"):
            call = urllib.request.Request(f"{url}/{FOLDER}/{name}", headers={"Accept-Encoding": "gzip"})
            try:
                with urllib.request.urlopen(call, timeout=30) as answer:
                    assert answer.headers["Content-Encoding"] is None
                    policies[name] = answer.headers["Cache-Control"]
            except urllib.error.HTTPError as error:
                policies[name] = f"{error.code}: {error.headers['Cache-Control']}"
                error.close()
    assert policies == {
        "latest": "no-cache",
        "log/00000000000000000000": "public, max-age=31536000, immutable",
        "log/00000000000000000099": "404: None",
        "repo": None,
    }


def test_reading_asks_for_nothing_but_files(site: Site) -> None:
    with vstore.open(site.place) as repository:
        assert read(repository) == sum(range(1000))
        assert list(repository.ops_log())
        assert pickle.loads(pickle.dumps(repository)).lookup_branch("main") == repository.lookup_branch(
            "main"
        )
    assert {each.method for each in site.seen} <= {"GET", "HEAD"}
    assert not [name for name in site.names() if not name.startswith(("latest", "log/", "packs/"))]
    # A small part of a shard is read as a part.
    spans = [tuple(map(int, each.range[6:].split("-"))) for each in site.seen if each.range is not None]
    assert spans
    assert max(stop - start for start, stop in spans) < 200 * 200 * 8


WRITES: dict[str, Callable[[vstore.Repository], object]] = {
    "writable_session": lambda r: r.writable_session("main"),
    "transaction": lambda r: r.transaction("main", message="no").__enter__(),
    "create_branch": lambda r: r.create_branch("new", "0" * 64),
    "create_tag": lambda r: r.create_tag("new", "0" * 64),
    "delete_branch": lambda r: r.delete_branch("new"),
    "delete_tag": lambda r: r.delete_tag("v1"),
    "reset_branch": lambda r: r.reset_branch("main", "0" * 64),
    "merge": lambda r: r.merge("v1", into="main"),
    "merge_session": lambda r: r.merge_session("v1", into="main"),
    "cherry_pick": lambda r: r.cherry_pick("v1", branch="main"),
    "revert": lambda r: r.revert("v1", branch="main"),
    "protect_branch": lambda r: r.protect_branch("main"),
    "unprotect_branch": lambda r: r.unprotect_branch("main"),
    "undo": lambda r: r.undo(),
    "restore": lambda r: r.restore(0),
    "save_config": lambda r: r.save_config(),
    "set_metadata": lambda r: r.set_metadata({}),
    "update_metadata": lambda r: r.update_metadata({}),
    "set_status": lambda r: r.set_status("read_only"),
    "garbage_collect": lambda r: r.garbage_collect(),
    "compact": lambda r: r.compact(),
    "expire_snapshots": lambda r: r.expire_snapshots(older_than=datetime.now(UTC)),
    "rewrite_manifests": lambda r: r.rewrite_manifests("no", branch="main"),
    "abandon_session": lambda r: r.abandon_session("0" * 32),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_writing_call_is_refused_before_any_work(site: Site, name: str) -> None:
    with vstore.open(site.place) as repository:
        site.seen.clear()
        with pytest.raises(vstore.ReadOnlyError, match="HTTP servers have no safe way to write"):
            WRITES[name](repository)
    assert site.seen == []


def test_leases_and_new_repositories_are_refused(site: Site) -> None:
    with vstore.open(site.place) as repository, pytest.raises(vstore.ReadOnlyError, match="HTTP servers"):
        repository.readonly_session("main", lease=timedelta(hours=1))
    site.seen.clear()
    with pytest.raises(vstore.ReadOnlyError, match="HTTP servers"):
        vstore.Repository.create(f"{site.url}/new")
    assert site.seen == []
    assert vstore.Repository.exists(site.place)
    assert not vstore.Repository.exists(f"{site.url}/new")


def test_a_log_without_its_hint_is_found_through_the_numbers(own_site: Site) -> None:
    (own_site.root / FOLDER / "latest").unlink()
    with vstore.open(own_site.place) as repository:
        assert read(repository) == sum(range(1000))


# --- secrets and other places ----------------------------------------------------------------------------------


def test_a_query_goes_along_and_shows_nowhere(site: Site) -> None:
    site.required_query = f"token={SECRET}"
    with vstore.open(f"{site.place}?token={SECRET}") as repository:
        assert read(repository) == sum(range(1000))
        shown = [repr(repository), str(repository.handle.storage), repr(repository.handle.catalog)]
        shown.append(repr(repository.readonly_session("main").store))
        site.required_query = "token=another"
        with pytest.raises(vstore.AccessDeniedError) as refused:
            repository.lookup_branch("main")
        shown += traceback.format_exception(refused.value)
    assert {each.query for each in site.seen} == {f"token={SECRET}"}
    assert SECRET not in "".join(shown)


def test_a_password_in_a_header_goes_along_and_shows_nowhere(site: Site) -> None:
    options = {"client_options": {"default_headers": {"authorization": f"Basic {SECRET}"}}}
    with vstore.open(site.place, storage_options=options) as repository:
        assert read(repository) == sum(range(1000))
        assert SECRET not in repr(repository) + repr(repository.readonly_session("main").store)
    assert {each.authorization for each in site.seen} == {f"Basic {SECRET}"}


def test_a_password_in_the_url_is_refused_as_it_would_not_be_sent(site: Site) -> None:
    with pytest.raises(vstore.InvalidInputError, match="default_headers") as refused:
        vstore.open(site.place.replace("//", f"//user:{SECRET}@"))
    assert SECRET not in "".join(traceback.format_exception(refused.value))
    assert site.seen == []


def test_redirects_are_followed(site: Site) -> None:
    with serving(site.root) as other:
        other.moved_to = site.url
        with vstore.open(other.place) as repository:
            assert read(repository) == sum(range(1000))


def test_a_server_that_is_down_is_named(site: Site) -> None:
    store = HTTPStore.from_url(
        f"http://user:{SECRET}@127.0.0.1:9/x",
        client_options={"allow_http": True},  # type: ignore[arg-type]
        retry_config={"max_retries": 0},
    )
    with pytest.raises(vstore.StorageError, match=r"127\.0\.0\.1:9/x: nothing listens") as found:
        vstore.open(store)
    assert SECRET not in "".join(traceback.format_exception(found.value))


def test_an_sqlite_catalog_is_recognized_by_one_request(site: Site) -> None:
    vstore.Repository.create(site.root / "other", catalog="sqlite").close()
    with pytest.raises(vstore.UnsafeStorageError, match=r'convert_catalog\("log"\)'):
        vstore.open(f"{site.url}/other")
    assert [each.path for each in site.seen if each.path.endswith("catalog.sqlite")] == [
        "/other/catalog.sqlite"
    ]
    site.seen.clear()
    with pytest.raises(vstore.RepositoryNotFoundError):
        vstore.open(f"{site.url}/nothing")
    assert len([each for each in site.seen if each.path.endswith("catalog.sqlite")]) == 1
    site.seen.clear()
    vstore.open(site.place).close()
    assert not [each for each in site.seen if each.path.endswith("catalog.sqlite")]


# --- servers with bad habits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_absent_files_may_be_answered_as_forbidden(own_site: Site, status: int) -> None:
    own_site.absent = lambda path: Answer(status, b"not yours")
    with vstore.open(own_site.root / FOLDER) as writer, vstore.open(own_site.place) as reader:
        assert read(reader) == sum(range(1000))
        for number in range(3):
            assert reader.lookup_branch("main") == writer.lookup_branch("main")
            commit(writer, {"key": bytes([number])})
        assert reader.lookup_branch("main") == writer.lookup_branch("main")
        # Without the hint the numbers are searched.
        (own_site.root / FOLDER / "latest").unlink()
        with vstore.open(own_site.place) as another:
            assert another.lookup_branch("main") == writer.lookup_branch("main")


def test_lost_access_is_not_taken_for_the_end_of_the_log(own_site: Site) -> None:
    own_site.required_query = f"token={SECRET}"
    with vstore.open(f"{own_site.place}?token={SECRET}") as reader:
        reader.lookup_branch("main")
        own_site.required_query = "token=renewed"
        with pytest.raises(vstore.AccessDeniedError):
            reader.lookup_branch("main")
    with pytest.raises(vstore.AccessDeniedError, match="check the location"):
        vstore.open(own_site.place)


class Forbidding(LocalStorage):
    """A storage that can be written to, and refuses what is absent."""

    def read_whole(self, name: str, limit: int) -> bytes:
        try:
            return super().read_whole(name, limit)
        except vstore.ObjectNotFoundError as error:
            raise vstore.AccessDeniedError(str(error)) from error


def test_who_can_write_never_takes_a_refusal_for_absence(template: Path) -> None:
    with pytest.raises(vstore.AccessDeniedError, match="log/"):
        vstore.open(Forbidding(template / FOLDER))


def test_a_place_that_may_be_empty_or_forbidden_is_said_to_be_either(site: Site) -> None:
    site.absent = lambda path: Answer(403, b"not yours")
    with pytest.raises(vstore.AccessDeniedError, match="check the location"):
        vstore.open(f"{site.url}/nothing")


@pytest.mark.parametrize("place", [FOLDER, "nothing"])
@pytest.mark.parametrize("habit", ["page", "login"])
def test_a_page_instead_of_404_is_told_from_damage(site: Site, habit: str, place: str) -> None:
    def login(path: str) -> Answer:
        return Answer(200, PAGE) if path == "/login" else Answer(302, b"", {"Location": "/login"})

    site.absent = login if habit == "login" else lambda path: Answer(200, PAGE)
    with pytest.raises(vstore.StorageError, match="answers 404 for absent files"):
        # The hint is there, and is enough to open by.
        vstore.open(f"{site.url}/{place}").readonly_session("main")
    assert len(site.seen) < 10


def test_damage_is_still_damage(own_site: Site) -> None:
    log = sorted((own_site.root / FOLDER / "log").iterdir())
    log[-1].write_bytes(log[-1].read_bytes()[:-1] + b"\0")
    (own_site.root / FOLDER / "latest").write_bytes(log[-2].read_bytes())
    with pytest.raises(vstore.CorruptionError, match=r"log/.*is damaged"):
        vstore.open(own_site.place).readonly_session("main")


def test_a_server_without_ranges_is_named(site: Site) -> None:
    site.has_ranges = False
    with pytest.raises(vstore.StorageError, match="header Range is honoured"):
        read(vstore.open(site.place))


@pytest.mark.parametrize("name", ["fsck", "storage_stats"])
def test_a_server_without_ranges_is_no_damage(site: Site, name: str) -> None:
    site.has_ranges = False
    with vstore.open(site.place) as repository:
        CACHE.clear()
        with pytest.raises(vstore.UnsafeStorageError, match="header Range is honoured"):
            getattr(repository, name)()


@pytest.mark.parametrize("status", [403, 405, 501])
@pytest.mark.parametrize("name", ["garbage_collect", "compact"])
def test_dry_runs_are_sent_to_where_the_files_are(site: Site, name: str, status: int) -> None:
    site.unknown_methods = status
    with (
        vstore.open(site.place) as repository,
        pytest.raises(
            vstore.StorageError, match=r"lists no files, as web servers do not.*where the files are"
        ),
    ):
        getattr(repository, name)(dry_run=True)


def test_a_server_that_compresses_is_named(site: Site) -> None:
    site.compresses = True
    with pytest.raises(vstore.StorageError, match="compressed by gzip"):
        vstore.open(site.place)


def test_cut_answers_are_an_error_of_the_storage(site: Site) -> None:
    with vstore.open(site.place, storage_options=NO_RETRIES) as repository:
        site.cuts = True
        with pytest.raises(vstore.StorageError, match="network"):
            repository.lookup_branch("main")
        with pytest.raises(vstore.StorageError):
            vstore.open(site.place, storage_options=NO_RETRIES)


def test_a_cut_chunk_is_never_fill_value(site: Site) -> None:
    with vstore.open(site.place, storage_options=NO_RETRIES) as repository:
        CACHE.clear()
        array = zarr.open_array(repository.readonly_session("main").store, path="plain", mode="r")
        site.cuts = True
        with pytest.raises(vstore.StorageError):
            array[:]
        site.cuts = False
        with contextlib.suppress(vstore.StorageError):
            # What was under way may still be cut, for all who wait for it.
            array[:]
        assert array[:].sum() == sum(range(1000))


# --- caches ----------------------------------------------------------------------------------------------------


def test_a_stale_hint_only_costs_requests(own_site: Site) -> None:
    own_site.cache = {}
    own_site.is_cached = lambda path: path.endswith("latest")
    with vstore.open(own_site.place) as reader, vstore.open(own_site.root / FOLDER) as writer:
        for number in range(40):
            made = commit(writer, {"key": bytes([number])})
        own_site.seen.clear()
        assert reader.lookup_branch("main") == made
        assert len(own_site.seen) < 30
        with vstore.open(own_site.place) as another:
            assert another.lookup_branch("main") == made


def test_a_stale_hint_from_before_the_tombstones_only_costs_requests(own_site: Site) -> None:
    own_site.cache = {}
    own_site.is_cached = lambda path: path.endswith("latest")
    vstore.open(own_site.place).close()
    with vstore.open(own_site.root / FOLDER) as writer:
        for number in range(6):
            made = commit(writer, {"key": bytes([number])})
        writer.handle.catalog.write_tombstones(keep=2)  # type: ignore[attr-defined]
    with vstore.open(own_site.place) as reader:
        assert reader.lookup_branch("main") == made


def test_cached_absences_show_an_older_state_and_never_go_back(own_site: Site) -> None:
    own_site.cache = {}
    own_site.is_cached = lambda path: "/log/" in path
    with vstore.open(own_site.place) as reader, vstore.open(own_site.root / FOLDER) as writer:
        before = reader.lookup_branch("main")
        commit(writer, {"key": b"1"})
        # The cache still says that there is no next number.
        assert reader.lookup_branch("main") == before
        own_site.cache.clear()
        second = commit(writer, {"key": b"2"})
        assert reader.lookup_branch("main") == second
        # Another edge of the network, which is behind: what was seen stays seen.
        absent = Answer(404, b"")
        for path in sorted((own_site.root / FOLDER / "log").iterdir())[-2:]:
            for wanted in ("", "bytes=0-"):
                own_site.cache[f"/{FOLDER}/log/{path.name}", wanted] = absent
        assert reader.lookup_branch("main") == second


def test_a_copy_of_a_reader_does_not_go_back_either(own_site: Site) -> None:
    own_site.cache = {}
    own_site.is_cached = lambda path: "/log/" in path
    with vstore.open(own_site.root / FOLDER) as writer:
        made = commit(writer, {"key": b"1"})
        with vstore.open(own_site.place) as reader:
            assert reader.lookup_branch("main") == made
            sent = pickle.dumps(reader)
    own_site.cache.clear()
    own_site.cache.update(
        {
            (f"/{FOLDER}/log/{path.name}", ""): Answer(404, b"")
            for path in sorted((own_site.root / FOLDER / "log").iterdir())[-1:]
        }
    )
    with pickle.loads(sent) as copy:
        assert copy.lookup_branch("main") == made


def test_readers_in_many_threads_beside_a_writer(own_site: Site) -> None:
    ids: list[str] = []
    stop = threading.Event()
    errors: list[BaseException] = []

    def follow(reader: vstore.Repository) -> None:
        last = 0
        try:
            while not stop.is_set():
                found = reader.lookup_branch("main")
                known = list(ids)
                if found in known:
                    assert known.index(found) >= last
                    last = known.index(found)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    with vstore.open(own_site.place) as reader, vstore.open(own_site.root / FOLDER) as writer:
        threads = [threading.Thread(target=follow, args=(reader,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        ids.extend(commit(writer, {"key": bytes([number])}) for number in range(15))
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
