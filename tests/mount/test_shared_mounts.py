"""Two mounts of one dataset: one cache, one listing, and what one finds changed the other shows."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from trees import MountedTree, environment, need_fuse, reads_by_path, start_mount, wait_until

from lightlyfs import mountpoints
from lightlyfs.testing import Latency, LocalServer

pytestmark = pytest.mark.fuse

# what others find is heard of twice a second
HEARD_S = 5
KINDS = {"writable": (), "read-only": ("--read-only",)}


@pytest.fixture
def server(own_server: LocalServer) -> LocalServer:
    """A server of thirty files."""
    for number in range(30):
        own_server.add_sample(f"a/{number:02d}.jpg", os.urandom(50_000))
    return own_server


@contextlib.contextmanager
def two_mounts(server: LocalServer, directory: Path, *options: str) -> Iterator[list[MountedTree]]:
    """Two mounts of one user; neither asks the API by itself once it has listed."""
    need_fuse("3")
    environ = environment(server, directory / "cache")
    trees: list[MountedTree] = []
    try:
        for name in ("one", "two"):
            mountpoint = directory / name
            mountpoint.mkdir()
            log = directory / f"{name}.log"
            trees.append(
                start_mount(server.dataset_id, mountpoint, environ, log, "--metadata-ttl=infinite", *options)
            )
        yield trees
    finally:
        for tree in trees:
            if tree.process.poll() is None:
                tree.end()
            elif mountpoints.mount_at(tree.mountpoint) is not None:
                mountpoints.unmount(tree.mountpoint, lazy=True)


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def trees(request: pytest.FixtureRequest, server: LocalServer, tmp_path: Path) -> Iterator[list[MountedTree]]:
    """Two mounts, of each kind."""
    with two_mounts(server, tmp_path, *request.param) as made:
        yield made


def read_only(tree: MountedTree) -> bool:
    return bool(json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)["read_only"])


def contents(tree: MountedTree) -> dict[str, bytes]:
    return {name: tree.read(f"a/{name}") for name in tree.names("a")}


def truth(server: LocalServer) -> dict[str, bytes | None]:
    return {one["fileName"][2:]: server.object_bytes(one["id"]) for one in server.samples()}


def test_both_list_once_and_fetch_once(trees: list[MountedTree], server: LocalServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(contents, trees))

    assert found == [truth(server)] * 2
    assert server.stats.count("storage.get") == 30
    assert server.stats.count("partial") == 2  # a page, and that nothing comes behind it


def test_a_sample_that_one_lists_is_shown_by_both(trees: list[MountedTree], server: LocalServer) -> None:
    assert len(trees[1].names("a")) == 30
    server.add_sample("a/new.jpg", b"new")
    trees[0].refresh()
    asked = server.stats.count("partial")

    wait_until(lambda: "new.jpg" in trees[1].names("a"), HEARD_S)
    assert trees[1].read("a/new.jpg") == b"new"
    assert server.stats.count("partial") == asked


def test_an_object_that_one_finds_replaced_is_read_anew_by_both(
    trees: list[MountedTree], server: LocalServer
) -> None:
    for tree in trees:
        contents(tree)
    if read_only(trees[0]):
        for tree in trees:
            wait_until(partial(reads_by_path, tree), 20)
    (sample,) = [one for one in server.samples() if one["fileName"] == "a/07.jpg"]
    server.replace_object(sample["id"], b"another version")

    trees[0].refresh()

    assert trees[0].read("a/07.jpg") == b"another version"
    wait_until(lambda: trees[1].read("a/07.jpg") == b"another version", HEARD_S)
    assert contents(trees[1]) == truth(server)


def test_one_goes_on_where_the_other_is_killed(server: LocalServer, tmp_path: Path) -> None:
    with two_mounts(server, tmp_path) as trees:
        trees[0].read("a/00.jpg")
        trees[0].process.kill()
        trees[0].process.wait()

        assert contents(trees[1]) == truth(server)


def test_the_image_that_storage_has_is_shown_by_both_where_both_replace_it_at_once(
    server: LocalServer, tmp_path: Path
) -> None:
    """The one that is first in storage ends last, and knows its own version; the sizes do not tell."""
    (sample,) = [one for one in server.samples() if one["fileName"] == "a/00.jpg"]
    first, second = b"1" * 1_000, b"2" * 1_000
    with two_mounts(server, tmp_path, "--allow-overwrite") as trees, ThreadPoolExecutor(1) as pool:
        server.faults.add(Latency(target="update", delay_s=3, count=1))
        writing = pool.submit(trees[0].write, "a/00.jpg", first)
        wait_until(lambda: server.object_bytes(sample["id"]) == first, 10)
        trees[1].write("a/00.jpg", second)
        assert not writing.done()
        writing.result()

        for tree in trees:
            wait_until(lambda tree=tree: tree.read("a/00.jpg") == second, HEARD_S)
