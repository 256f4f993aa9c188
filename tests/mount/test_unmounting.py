"""The end of a mount that still has much to tell the kernel: no crash, whichever way it ends."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from trees import MountedTree, environment, need_fuse, start_mount

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

FILES = 400


def by_command(tree: MountedTree) -> None:
    tree.run("umount", str(tree.mountpoint))


def by_fusermount(*flags: str) -> Callable[[MountedTree], None]:
    def unmount(tree: MountedTree) -> None:
        subprocess.run(["fusermount3", "-u", *flags, str(tree.mountpoint)], check=True)

    return unmount


def by_signal(tree: MountedTree) -> None:
    tree.process.send_signal(signal.SIGTERM)


WAYS: dict[str, Callable[[MountedTree], None]] = {
    "umount": by_command,
    "fusermount3": by_fusermount(),
    "fusermount3, lazy": by_fusermount("-z"),
    "SIGTERM": by_signal,
}


@pytest.fixture
def filled(own_server: LocalServer) -> LocalServer:
    for number in range(FILES):
        own_server.add_sample(f"d/{number:03d}.jpg", None, {"metaData": {"sizeInBytes": 10}})
    return own_server


def end_with_forgets_pending(
    server: LocalServer, directory: Path, unmount: Callable[[MountedTree], None], size: int
) -> int:
    """Mount, have the kernel know all files, change them all, and unmount in the middle of telling it."""
    directory.mkdir(exist_ok=True)
    mountpoint = directory / "mnt"
    mountpoint.mkdir(exist_ok=True)
    environ = environment(server, directory / "cache")
    tree = start_mount(server.dataset_id, mountpoint, environ, directory / "mount.log", "--fuse=3")
    assert len([path.stat() for path in (mountpoint / "d").iterdir()]) == FILES
    for sample in server.samples():
        url = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{sample['id']}"
        body = {"metaData": {"sizeInBytes": size}}
        requests.put(url, params={"token": server.token}, json=body, timeout=5).raise_for_status()
    tree.refresh()
    unmount(tree)
    tree.ended = True
    return tree.process.wait(30)


@pytest.mark.parametrize("way", WAYS)
def test_a_mount_with_forgets_pending_ends_well(filled: LocalServer, tmp_path: Path, way: str) -> None:
    need_fuse("3")
    assert end_with_forgets_pending(filled, tmp_path / "tree", WAYS[way], 11) == 0


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_two_hundred_mounts_with_forgets_pending_end_well(filled: LocalServer, tmp_path: Path) -> None:
    need_fuse("3")
    codes = [
        end_with_forgets_pending(filled, tmp_path / "tree", way, 12 + number * 4 + index)
        for number in range(50)
        for index, way in enumerate(WAYS.values())
    ]
    assert codes == [0] * 200
