"""What survives a restart: ids always, everything else with a state folder."""

import os
from pathlib import Path

import pytest
import requests
from serverkit import Api

from lightlyfs.testing import LocalServer, LocalServerError, ServerOptions


def test_ids_survive_without_state(folder: Path) -> None:
    with LocalServer(ServerOptions(source=folder)) as server:
        api = Api(server)
        created = api.create("up/new.jpg")
        requests.put(api.write_url(created), data=b"1", timeout=5)
        before = {row["fileName"]: row["id"] for row in server.samples()}
        dataset_id = server.dataset_id
    with LocalServer(ServerOptions(source=folder)) as server:
        assert {row["fileName"]: row["id"] for row in server.samples()} == before
        assert server.dataset_id == dataset_id


def test_state_keeps_samples_tags_tokens_and_urls(folder: Path, tmp_path: Path) -> None:
    options = ServerOptions(source=folder, state=tmp_path / "state")
    with LocalServer(options) as server:
        api = Api(server)
        hostile = server.add_sample("../x\ud800", b"bytes", {"customMetaData": {"a": 1}})
        server.add_tag("mine", [hostile])
        rows, tags = server.samples(), api.json(f"{api.dataset}/tags")
        secrets = (server.token, server.public_token, server.dataset_id)
        url = api.read_url(hostile)
        etag = requests.get(url, timeout=5).headers["etag"]
        port = int(server.url.rpartition(":")[2])
    (folder / "added.jpg").write_bytes(b"added while down")
    with LocalServer(ServerOptions(source=folder, state=tmp_path / "state", port=port)) as server:
        api = Api(server)
        assert server.samples()[:-1] == rows
        assert server.samples()[-1]["fileName"] == "added.jpg"
        assert api.json(f"{api.dataset}/tags") == tags
        assert (server.token, server.public_token, server.dataset_id) == secrets
        answer = requests.get(url, timeout=5)
        assert (answer.content, answer.headers["etag"]) == (b"bytes", etag)


def test_the_state_file_is_private(folder: Path, tmp_path: Path) -> None:
    with LocalServer(ServerOptions(source=folder, state=tmp_path / "state")):
        modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "state").iterdir()}
    assert modes == {0}, "it holds the token"


def test_state_is_kept_out_of_the_samples(folder: Path) -> None:
    with pytest.raises(LocalServerError, match="would be served"):
        LocalServer(ServerOptions(source=folder, state=folder / "state"))
    with LocalServer(ServerOptions(source=folder, state=folder / ".lightly" / "server")) as server:
        assert len(server.samples()) == 5


def test_state_of_another_dataset_is_refused(folder: Path, tmp_path: Path) -> None:
    LocalServer(ServerOptions(source=folder, state=tmp_path / "s")).stop()
    with pytest.raises(LocalServerError, match="holds dataset"):
        LocalServer(ServerOptions(source=folder, state=tmp_path / "s", dataset_id="a" * 24))


def test_a_generated_dataset_with_state_keeps_its_changes(tmp_path: Path) -> None:
    options = ServerOptions(fake_samples=5, fake_bytes=10, state=tmp_path / "s")
    with LocalServer(options) as server:
        added = server.add_sample("more.jpg", b"kept")
        rows = server.samples()
    with LocalServer(options) as server:
        assert server.samples() == rows
        assert server.object_bytes(added) == b"kept"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ServerOptions(), "name a folder"),
        (ServerOptions(source="x", fake_samples=1), "not both"),
        (ServerOptions(source="/nonexistent/folder"), "/nonexistent/folder is not a folder"),
        (ServerOptions(fake_samples=1, dataset_id="X"), "24 digits"),
        (ServerOptions(fake_samples=1, dataset_name="a.b"), "dataset name"),
        (ServerOptions(source="s3://"), "names no bucket"),
        (ServerOptions(fake_samples=1, state=Path("/proc/none")), "cannot keep state"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options: ServerOptions, words: str) -> None:
    with pytest.raises(LocalServerError, match=words) as caught:
        LocalServer(options)
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root, as which tests may run, reads everything
    monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path) != tmp_path)
    with pytest.raises(LocalServerError, match=f"^{tmp_path} cannot be read by this user$"):
        LocalServer(ServerOptions(source=tmp_path))
