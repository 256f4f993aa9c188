"""The end of a mount that still has much to tell the kernel: no crash, whichever way it ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from trees import MountedTree, environment, mounted, need_fuse, start_mount, wait_until

from lightlyfs.testing import Latency, LocalServer, Status

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


@pytest.mark.parametrize("way", ["SIGTERM", "fusermount3, lazy"])
def test_a_mount_whose_uploads_fail_at_once_ends_soon(
    own_server: LocalServer, tmp_path: Path, way: str
) -> None:
    """An upload that is sent again and again, and refused each time, makes no progress."""
    own_server.faults.add(Status(target="storage.put", status=500))
    with mounted(own_server, tmp_path / "tree", "3", "--write-back") as tree:
        tree.write("new.jpg", b"new")
        wait_until(lambda: own_server.stats.count("storage.put") > 1, 20)

        WAYS[way](tree)

        tree.ended = True
        assert tree.process.wait(30) == 0


def test_a_mount_ends_although_programs_go_on_writing(own_server: LocalServer, tmp_path: Path) -> None:
    own_server.faults.add(Latency(target="storage.put", delay_s=0.5))
    with (
        ThreadPoolExecutor(1) as pool,
        mounted(own_server, tmp_path / "tree", "3", "--write-back") as tree,
    ):
        directory = os.open(tree.mountpoint, os.O_RDONLY)  # nothing is written beside the mount

        def write_on() -> None:
            flags = os.O_CREAT | os.O_WRONLY
            with suppress(OSError):
                for number in itertools.count():
                    with open(os.open(f"{number:05d}.jpg", flags, dir_fd=directory), "wb") as file:
                        file.write(b"new")

        writing = pool.submit(write_on)
        wait_until(lambda: own_server.stats.count("storage.put") > 1, 20)

        by_signal(tree)

        tree.ended = True
        assert tree.process.wait(60) == 0
        writing.result(10)
        os.close(directory)


def test_umount_waits_for_no_file_that_is_closed_meanwhile_and_says_what_is_owed_in_the_end(
    own_server: LocalServer, tmp_path: Path
) -> None:
    own_server.faults.add(Latency(target="storage.put", delay_s=0.5))
    with (
        ThreadPoolExecutor(1) as pool,
        mounted(own_server, tmp_path / "tree", "3", "--write-back") as tree,
    ):
        tree.mkdir("d")  # gone with the mount, so that nothing is written beside it

        def write_on() -> None:
            with suppress(FileNotFoundError):
                for number in itertools.count():
                    time.sleep(0.05)  # slower than uploads
                    (tree.mountpoint / "d" / f"{number:05d}.jpg").write_bytes(b"new")

        writing = pool.submit(write_on)
        wait_until(lambda: own_server.stats.count("storage.put") > 1, 20)

        for _ in range(20):
            done = tree.run("umount", str(tree.mountpoint), check=False)
            if "a program still uses it" not in done.stderr:
                break

        tree.ended = True
        assert tree.process.wait(60) == 0
        writing.result(10)
        owed = tree.run("uploads", "list").stdout.splitlines()
        assert done.returncode == bool(owed)
        assert ("not on the server yet" in done.stderr) == bool(owed)


def test_umount_names_what_the_server_refuses(own_server: LocalServer, tmp_path: Path) -> None:
    own_server.faults.add(Status(target="storage.put", status=500))
    with mounted(own_server, tmp_path / "tree", "3", "--write-back") as tree:
        tree.write("new.jpg", b"new")
        wait_until(lambda: own_server.stats.count("storage.put") > 1, 20)

        done = tree.run("umount", str(tree.mountpoint), check=False)

        tree.ended = True
        assert done.returncode == 1
        assert "  new.jpg: pending" in done.stderr
        assert "1 file is not on the server yet" in done.stderr
