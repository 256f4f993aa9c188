"""A read-only mount whose kernel opens files without telling it: what it says, and what it may not hide."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from trees import MountedTree, mounted, mounted_by_path, reads_by_path, soon, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

IMAGES = {f"{number:03}.jpg": random.Random(number).randbytes(100_000) for number in range(40)}


@pytest.fixture
def server(own_server: LocalServer) -> LocalServer:
    """A server of IMAGES."""
    for name, data in IMAGES.items():
        own_server.add_sample(name, data)
    return own_server


@pytest.fixture
def tree(server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """A mount of IMAGES, all of which were read, that trusts its names for long."""
    with mounted_by_path(server, tmp_path / "tree", "--metadata-ttl", "infinite") as made:
        yield made


def status(tree: MountedTree) -> dict[str, object]:
    """What `lightlyfs status` says."""
    return dict(json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout))


def replace(server: LocalServer, name: str, data: bytes, *, told: bool) -> None:
    """Other bytes for a sample; `told` also moves its record, as an overwrite by another client does."""
    (document,) = [one for one in server.samples() if one["fileName"] == name]
    server.replace_object(document["id"], data)
    if told:
        url = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{document['id']}"
        body = {"metaData": {"sizeInBytes": len(data)}}
        answer = requests.put(url, params={"token": server.token}, json=body, timeout=5)
        assert answer.status_code == 200, answer.text


def test_an_open_is_not_told_and_a_second_epoch_asks_nobody(server: LocalServer, tree: MountedTree) -> None:
    for name, data in IMAGES.items():
        assert tree.read(name) == data
    server.stats.reset()

    with open(tree.mountpoint / "000.jpg", "rb") as file:
        assert status(tree)["open_files"] == 0
        assert file.read() == IMAGES["000.jpg"]
    for name, data in IMAGES.items():
        assert tree.read(name) == data
    assert server.stats.total() == 0


def test_a_mount_that_writes_is_told_of_opens(server: LocalServer, tmp_path: Path) -> None:
    with mounted(server, tmp_path / "tree") as tree:
        for name, data in IMAGES.items():
            assert tree.read(name) == data
        with open(tree.mountpoint / "000.jpg", "rb"):
            assert status(tree)["open_files"] == 1


def test_a_handle_from_before_stays_good(server: LocalServer, tmp_path: Path) -> None:
    """The kernel stops telling in the middle of a mount, when the last size is known."""
    server.add_sample("large.bin", random.Random("large").randbytes(9_000_000))
    with mounted(server, tmp_path / "tree", "3", "--read-only") as tree:
        descriptor = os.open(tree.mountpoint / "large.bin", os.O_RDONLY)
        assert os.pread(descriptor, 10, 0) == random.Random("large").randbytes(9_000_000)[:10]
        wait_until(lambda: reads_by_path(tree), 20)

        assert os.pread(descriptor, 10_000_000, 0) == random.Random("large").randbytes(9_000_000)
        os.close(descriptor)


def test_after_a_remount_opens_are_not_told_from_the_first_one(server: LocalServer, tmp_path: Path) -> None:
    directory = tmp_path / "tree"
    with mounted_by_path(server, directory):
        pass
    with mounted(server, directory, "3", "--read-only") as tree:
        wait_until(lambda: status(tree)["catalogue"]["unverified"] == 0, 5)  # type: ignore[index]
        with open(tree.mountpoint / "001.jpg", "rb") as file:
            assert file.read() == IMAGES["001.jpg"]
        wait_until(lambda: bool(status(tree)["reads_by_path"]) or not tree.read("000.jpg"), 5)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("size", [100_000, 150_000, 50_000])
def test_a_changed_sample_shows_on_refresh(
    server: LocalServer, tree: MountedTree, told: bool, size: int
) -> None:
    """Also where neither its time nor its size tells of the change."""
    assert tree.read("007.jpg") == IMAGES["007.jpg"]
    changed = random.Random("changed").randbytes(size)

    replace(server, "007.jpg", changed, told=told)
    tree.refresh()

    soon(lambda: tree.stat("007.jpg").size == size)
    soon(lambda: tree.read("007.jpg") == changed)


def test_an_open_file_never_gives_bytes_of_no_version(server: LocalServer, tree: MountedTree) -> None:
    """Whatever a reader holds open while its file changes, a block is of one version or fails."""
    changed = random.Random("changed").randbytes(100_000)
    with open(tree.mountpoint / "009.jpg", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4096, 0) == IMAGES["009.jpg"][:4096]
        replace(server, "009.jpg", changed, told=True)
        tree.refresh()
        for offset in range(0, 100_000, 4096):
            try:
                got = os.pread(file.fileno(), 4096, offset)
            except OSError:
                continue
            assert got in (IMAGES["009.jpg"][offset : offset + 4096], changed[offset : offset + 4096])


def test_a_new_sample_has_its_true_size_at_once(server: LocalServer, tree: MountedTree) -> None:
    """Its open could not correct it, so it is shown only once storage has said it."""
    data = random.Random("new").randbytes(300_000)
    server.add_sample("new.jpg", data, {"metaData": {"sizeInBytes": 100_000}})
    tree.refresh()

    assert tree.stat("new.jpg").size == 300_000
    assert tree.read("new.jpg") == data


def test_a_file_that_left_the_dataset_is_gone(server: LocalServer, tree: MountedTree) -> None:
    (document,) = [one for one in server.samples() if one["fileName"] == "011.jpg"]
    url = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{document['id']}"
    answer = requests.put(url, params={"token": server.token}, json={"fileName": "moved.jpg"}, timeout=5)
    assert answer.status_code == 200, answer.text
    tree.refresh()

    soon(lambda: "011.jpg" not in tree.names() and not (tree.mountpoint / "011.jpg").exists())
    assert tree.read("moved.jpg") == IMAGES["011.jpg"]
