"""docs/object-stores.md names every option of vstore's, with its default; its examples of credentials work."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from obstore.store import AzureStore, GCSStore, S3Store

from tests import servers
from tests.xml_server import BUCKET, xml_server
from vstore.errors import BucketNotFoundError
from vstore.keys.objects import LOG_PREFIX, REPO
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.options import OWN_SETTINGS, RequestOptions
from vstore.testing.own_storage import Place, main

TEXT = (Path(__file__).resolve().parents[2] / "docs/object-stores.md").read_text()


def test_options_and_defaults_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", TEXT, re.MULTILINE)
    stated = {name: value for name, value in rows if name in OWN_SETTINGS}
    defaults = {each.name: each.default for each in fields(RequestOptions) if each.name in OWN_SETTINGS}
    assert stated.pop("storage_class") == "the bucket's"
    assert defaults.pop("storage_class") is None
    assert stated == {
        name: f"{value:g}" if type(value) is float else str(value) for name, value in defaults.items()
    }


def providers() -> dict[str, Any]:
    names: dict[str, Any] = {"AZURE_KEY": servers.AZURE_KEY}
    for example in re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        exec(example, names)
    return names


def test_the_credentials_of_the_examples_are_sent() -> None:
    options = {"allow_http": True}
    with xml_server() as server:
        s3 = S3Store(
            BUCKET,
            endpoint=server.url,
            client_options=options,
            credential_provider=providers()["s3_credentials"],
        )
        ObjectStorage(s3).create(REPO, b"")
        assert server.requests[0].headers["x-amz-security-token"] == "of the session"
        assert "Credential=id/" in server.requests[0].headers["authorization"]
    with xml_server(google=True) as server:
        google = GCSStore(
            BUCKET,
            config={"base_url": server.url},
            client_options=options,
            credential_provider=providers()["google_credentials"],
        )
        ObjectStorage(google).create(REPO, b"")
        assert server.requests[0].headers["authorization"] == "Bearer an OAuth access token"


@pytest.mark.server
def test_azure_takes_the_key_of_the_example() -> None:
    with servers.azurite() as url:

        def storage(container: str) -> ObjectStorage:
            store = AzureStore(
                container,
                endpoint=url,
                account_name=servers.AZURE_ACCOUNT,
                client_options={"allow_http": True},
                credential_provider=providers()["azure_credentials"],
            )
            return ObjectStorage(store)

        storage(servers.CONTAINER).create(REPO, b"")
        assert storage(servers.CONTAINER).size(REPO) == 0
        with pytest.raises(BucketNotFoundError, match="there is no container 'nothing'"):
            storage("nothing").size(REPO)


def test_the_contract_is_run_by_a_command(tmp_path: Path) -> None:
    # Settings of the folder that it is started in would stop it.
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option")
    command = [sys.executable, "-m", "vstore.testing.storage_contract"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )

    done = run("memory://a/b")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\n\d\d\d passed in", done.stdout)
    assert "python -m vstore.testing.storage_contract s3://bucket/folder " in TEXT


def test_the_contract_leaves_nothing_in_a_local_folder(tmp_path: Path) -> None:
    with Place(str(tmp_path), {}).storage() as storage:
        storage.create(REPO, b"")
        storage.create(f"{LOG_PREFIX}{0:020}", b"")
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())


def test_the_contract_is_not_begun_where_it_can_only_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.set_s3_environment(monkeypatch)
    with xml_server(conditions="ignored") as server:
        assert main([f"s3://{BUCKET}/x", f"endpoint={server.url}", "region=r", "max_requests=8"]) == 1
        assert "UnsafeStorageError" in capsys.readouterr().err
        assert server.objects == {}
    assert main(["https://127.0.0.1:9/x"]) == 1
    assert "can only be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["memory://a/b", "region"])
