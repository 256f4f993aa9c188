"""A full disk under the staged files: the writer is told, nothing is corrupted, the mount lives on."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_writing import stored
from trees import MountedTree, environment, need_fuse, refused, start_mount, wait_until

from lightlyfs.localserver import LocalServer

pytestmark = pytest.mark.fuse

DISK_BYTES = 3 << 20


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """A mount whose staged files lie on a disk of 3 MiB."""
    need_fuse("3")
    if os.getuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs", disk], check=True)
    try:
        (tmp_path / "mnt").mkdir()
        environ = environment(own_server, tmp_path / "cache") | {"XDG_STATE_HOME": str(disk)}
        subject = start_mount(own_server.dataset_id, tmp_path / "mnt", environ, tmp_path / "log")
        try:
            yield subject
        finally:
            subject.end()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_the_writer_gets_enospc_and_the_rest_goes_on(own_server: LocalServer, tree: MountedTree) -> None:
    small = os.urandom(100_000)
    tree.write("before.bin", small)

    with refused(errno.ENOSPC):
        tree.write("large.bin", os.urandom(2 * DISK_BYTES))

    assert tree.xattr("large.bin", "user.lightly.upload").startswith(b"failed: a write failed: No space left")
    assert tree.read("before.bin") == small
    tree.unlink("large.bin")
    wait_until(lambda: "large.bin" not in tree.names(), 3)
    tree.write("after.bin", small)
    assert stored(own_server) == {"before.bin": small, "after.bin": small}


def test_a_failed_write_is_repeated_until_the_file_is_truncated(
    own_server: LocalServer, tree: MountedTree
) -> None:
    path = tree.mountpoint / "x.bin"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with refused(errno.ENOSPC):
        for _ in range(3):
            os.pwrite(descriptor, os.urandom(DISK_BYTES // 2), 0)
            os.pwrite(descriptor, os.urandom(DISK_BYTES // 2), DISK_BYTES // 2)
            os.pwrite(descriptor, os.urandom(DISK_BYTES), DISK_BYTES)
    for call in (lambda: os.pwrite(descriptor, b"x", 0), lambda: os.fsync(descriptor)):
        for _ in range(2):
            with refused(errno.ENOSPC):
                call()
    duplicate = os.dup(descriptor)
    with refused(errno.ENOSPC):
        os.close(duplicate)

    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, b"whole", 0)
    os.close(descriptor)

    assert stored(own_server) == {"x.bin": b"whole"}
