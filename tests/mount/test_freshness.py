"""How soon a mount shows what changed on the server, for each way to set the metadata TTL."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from trees import MountedTree, mounted, refused, soon, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

# a listing of a few samples takes a moment; the check comes with the first look after the TTL
LISTING_S = 5


@contextlib.contextmanager
def mount_of(server: LocalServer, directory: Path, ttl: str) -> Iterator[MountedTree]:
    """A mount with this metadata TTL."""
    with mounted(server, directory, "3", "--metadata-ttl", ttl) as tree:
        yield tree


@pytest.fixture
def server(own_server: LocalServer) -> LocalServer:
    """A server of two files."""
    own_server.add_sample("a/one.jpg", b"one")
    own_server.add_sample("a/two.jpg", b"two")
    return own_server


def rename(server: LocalServer, old: str, new: str) -> None:
    """Rename a sample by the API, as another client would."""
    (sample,) = [document for document in server.samples() if document["fileName"] == old]
    url = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{sample['id']}"
    answer = requests.put(url, params={"token": server.token}, json={"fileName": new}, timeout=5)
    assert answer.status_code == 200, answer.text


def quiet_api(server: LocalServer) -> int:
    """How many API requests there were since the last reset, storage apart."""
    wait_until(lambda: server.stats.snapshot()["in_flight"] == 0, 10)
    counts = server.stats.snapshot()["requests"]
    return sum(sum(codes.values()) for name, codes in counts.items() if not name.startswith("storage."))


def test_after_the_ttl_a_new_sample_shows_by_itself(server: LocalServer, tmp_path: Path) -> None:
    with mount_of(server, tmp_path / "tree", "2") as tree:
        assert tree.names("a") == ["one.jpg", "two.jpg"]

        server.add_sample("a/new.jpg", b"new")

        wait_until(lambda: tree.names("a") == ["new.jpg", "one.jpg", "two.jpg"], 2 + LISTING_S)
        assert tree.read("a/new.jpg") == b"new"


def test_after_the_ttl_a_renamed_sample_shows_by_itself(server: LocalServer, tmp_path: Path) -> None:
    with mount_of(server, tmp_path / "tree", "2") as tree:
        assert tree.read("a/one.jpg") == b"one"

        rename(server, "a/one.jpg", "b/moved.jpg")

        wait_until(lambda: tree.names() == ["a", "b"] and tree.names("a") == ["two.jpg"], 2 + LISTING_S)
        assert tree.read("b/moved.jpg") == b"one"
        with refused(errno.ENOENT):
            tree.stat("a/one.jpg")


def test_within_the_ttl_nothing_shows_before_a_refresh_and_all_after(
    server: LocalServer, tmp_path: Path
) -> None:
    with mount_of(server, tmp_path / "tree", "60") as tree:
        assert tree.read("a/one.jpg") == b"one"
        assert tree.read("a/two.jpg") == b"two"
        with refused(errno.ENOENT):
            tree.stat("a/new.jpg")
        server.stats.reset()

        server.add_sample("a/new.jpg", b"new")
        rename(server, "a/one.jpg", "a/first.jpg")
        (two,) = [one["id"] for one in server.samples() if one["fileName"] == "a/two.jpg"]
        server.replace_object(two, b"changed bytes")
        quiet_api(server)  # a request counts when it ends, which may be after its answer has come
        server.stats.reset()

        assert tree.names("a") == ["one.jpg", "two.jpg"]
        assert tree.read("a/two.jpg") == b"two"
        assert quiet_api(server) == 0

        tree.refresh()

        assert tree.names("a") == ["first.jpg", "new.jpg", "two.jpg"]
        soon(lambda: os.path.exists(tree.mountpoint / "a/new.jpg"))
        assert tree.read("a/new.jpg") == b"new"
        assert tree.read("a/first.jpg") == b"one"
        assert tree.read("a/two.jpg") == b"changed bytes"
        soon(lambda: not os.path.exists(tree.mountpoint / "a/one.jpg"))


def test_with_an_infinite_ttl_names_never_ask_the_api_after_the_start(
    server: LocalServer, tmp_path: Path
) -> None:
    with mount_of(server, tmp_path / "tree", "infinite") as tree:
        server.stats.reset()
        server.add_sample("a/new.jpg", b"new")

        for _ in range(3):
            assert tree.names("a") == ["one.jpg", "two.jpg"]
            assert tree.stat("a/one.jpg").size == 3
            with refused(errno.ENOENT):
                tree.stat("a/new.jpg")
        assert quiet_api(server) == 0

        tree.refresh()

        assert tree.names("a") == ["new.jpg", "one.jpg", "two.jpg"]


def test_with_a_ttl_of_zero_a_rename_and_a_new_sample_show_at_once(
    server: LocalServer, tmp_path: Path
) -> None:
    with mount_of(server, tmp_path / "tree", "0") as tree:
        assert tree.read("a/one.jpg") == b"one"

        rename(server, "a/one.jpg", "a/moved.jpg")

        with refused(errno.ENOENT):
            tree.stat("a/one.jpg")
        assert tree.read("a/moved.jpg") == b"one"
        assert tree.names("a") == ["moved.jpg", "two.jpg"]

        server.add_sample("a/new.jpg", b"new")
        assert tree.read("a/new.jpg") == b"new"

        server.add_sample("b/new.jpg", b"newer")
        assert tree.names() == ["a", "b"]
        assert tree.read("b/new.jpg") == b"newer"


def test_with_a_ttl_of_zero_changed_bytes_show_once_the_record_tells(
    server: LocalServer, tmp_path: Path
) -> None:
    (one,) = [document["id"] for document in server.samples() if document["fileName"] == "a/one.jpg"]
    with mount_of(server, tmp_path / "tree", "0") as tree:
        assert tree.read("a/one.jpg") == b"one"

        server.replace_object(one, b"longer than before")
        url = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{one}"
        facts = {"fileName": "a/one.jpg", "metaData": {"sizeInBytes": 18}}
        answer = requests.put(url, params={"token": server.token}, json=facts, timeout=5)
        assert answer.status_code == 200, answer.text

        assert tree.read("a/one.jpg") == b"longer than before"
        assert tree.stat("a/one.jpg").size == 18


@pytest.mark.fuse
def test_a_directory_that_is_read_again_shows_what_is_there_now(
    own_server: LocalServer, tmp_path: Path
) -> None:
    own_server.add_sample("d/first.jpg", b"1")
    with mounted(own_server, tmp_path / "tree") as tree:
        descriptor = os.open(tree.mountpoint / "d", os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert os.listdir(descriptor) == ["first.jpg"]
            own_server.add_sample("d/second.jpg", b"2")
            tree.refresh()
            # it rewinds what it has read
            assert sorted(os.listdir(descriptor)) == ["first.jpg", "second.jpg"]
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("how", ["wb", "ab", "xb"])
def test_a_file_can_be_created_at_a_name_that_others_have_freed(
    server: LocalServer, tmp_path: Path, how: str
) -> None:
    with mount_of(server, tmp_path / "tree", "60") as tree:
        one = tree.mountpoint / "a/one.jpg"
        assert one.stat().st_size == 3
        rename(server, "a/one.jpg", "a/moved.jpg")
        tree.refresh()

        with open(one, how) as file:
            file.write(b"another")

        assert one.read_bytes() == b"another"
        assert tree.read("a/moved.jpg") == b"one"
