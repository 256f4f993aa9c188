"""What a mount has changed is what the next one shows, whatever options that one has."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_damaged_files import kill
from trees import MountedTree, mounted, wait_until

from lightlyfs.testing import LocalServer, Status

pytestmark = pytest.mark.fuse


@pytest.fixture(autouse=True)
def _samples(own_server: LocalServer) -> None:
    for name in ("a/1.jpg", "a/2.jpg"):
        own_server.add_sample(name, name.encode())


def names(tree: MountedTree) -> list[str]:
    """All that is below a mount, as its first request."""
    return sorted(str(path.relative_to(tree.mountpoint)) for path in tree.mountpoint.rglob("*.jpg"))


def change(tree: MountedTree) -> None:
    (tree.mountpoint / "new.jpg").write_bytes(b"new")
    (tree.mountpoint / "a/1.jpg").rename(tree.mountpoint / "a/first.jpg")


CHANGED = ["a/2.jpg", "a/first.jpg", "new.jpg"]


@pytest.mark.parametrize("killed", [False, True], ids=["unmounted", "killed"])
@pytest.mark.parametrize("ttl", ["60", "infinite"])
@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["read-write", "read-only"])
def test_the_next_mount_shows_what_one_changed(
    own_server: LocalServer, tmp_path: Path, options: tuple[str, ...], ttl: str, killed: bool
) -> None:
    with mounted(own_server, tmp_path) as tree:
        change(tree)
        assert names(tree) == CHANGED
        if killed:
            kill(tree)
    with mounted(own_server, tmp_path, "3", f"--metadata-ttl={ttl}", *options) as tree:
        assert names(tree) == CHANGED
        assert (tree.mountpoint / "new.jpg").read_bytes() == b"new"
        assert (tree.mountpoint / "a/first.jpg").read_bytes() == b"a/1.jpg"


def test_one_listing_is_enough(own_server: LocalServer, tmp_path: Path) -> None:
    with mounted(own_server, tmp_path) as tree:
        change(tree)
    with mounted(own_server, tmp_path, "3", "--read-only") as tree:
        assert names(tree) == CHANGED
    own_server.stats.reset()
    with mounted(own_server, tmp_path, "3", "--read-only") as tree:
        assert names(tree) == CHANGED
    # its check of the end of the list
    assert own_server.stats.count("partial") <= 1


def test_a_server_that_cannot_list_keeps_no_mount_from_its_start(
    own_server: LocalServer, tmp_path: Path
) -> None:
    with mounted(own_server, tmp_path) as tree:
        change(tree)
    own_server.faults.add(Status(status=503, target="partial"))
    with mounted(own_server, tmp_path, "3", "--read-only") as tree:
        assert names(tree) == ["a/1.jpg", "a/2.jpg"]
        own_server.faults.clear()
        tree.run("refresh", str(tree.mountpoint))
        wait_until(lambda: names(tree) == CHANGED, 10)
