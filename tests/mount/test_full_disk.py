"""A full disk below the cache and the staged files: reads go on, the writer is told, nothing owed is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_shared_mounts import truth
from test_swept import contents, status
from test_writing import stored
from trees import MountedTree, environment, lightlyfs, need_fuse, refused, start_mount, wait_until

from lightlyfs.testing import LocalServer, Status

pytestmark = pytest.mark.fuse

DISK_BYTES = 3 << 20
# holds a cache of half of its size
LARGER_BYTES = 48 << 20
OWED = os.urandom(300_000)


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes, or a skip."""
    need_fuse("3")
    if os.getuid() != 0:
        pytest.skip("a small disk can be mounted by root only")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def on_disk(
    server: LocalServer, directory: Path, environ: dict[str, str], *options: str
) -> Iterator[MountedTree]:
    """A mount whose environment says which disks it uses."""
    (directory / "mnt").mkdir(exist_ok=True)
    subject = start_mount(server.dataset_id, directory / "mnt", environ, directory / "log", *options)
    try:
        yield subject
    finally:
        subject.end()


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """A mount whose staged files lie on a disk of 3 MiB."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        environ = environment(own_server, tmp_path / "cache") | {"XDG_STATE_HOME": str(disk)}
        with on_disk(own_server, tmp_path, environ) as subject:
            yield subject


def fill_up(disk: Path) -> Path:
    """Take all that a disk has left; the file that takes it."""
    taken = disk / "taken"
    with taken.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
        while file.write(bytes(1)):
            pass
    return taken


def blocks_bytes(disk: Path) -> int:
    """What the blocks of all caches on a disk take."""
    return sum(path.stat().st_blocks * 512 for path in disk.glob("**/blocks/*/*"))


@pytest.fixture
def server(own_server: LocalServer) -> LocalServer:
    """A server of 20 MiB, that takes no upload."""
    for number in range(40):
        own_server.add_sample(f"a/{number:02d}.jpg", os.urandom(500_000 + number))
    own_server.faults.add(Status(target="withWriteUrls", status=403))
    return own_server


def test_a_full_disk_costs_the_cache_and_no_byte(server: LocalServer, tmp_path: Path) -> None:
    """The cache and what is owed lie on it; others take the rest before a mount, and during it."""
    with small_disk(tmp_path / "disk", LARGER_BYTES) as disk:
        environ = environment(server, tmp_path / "home") | {
            "XDG_CACHE_HOME": str(disk / "cache"),
            "XDG_STATE_HOME": str(disk / "state"),
            "LIGHTLYFS_CACHE_MIN_FREE": "10%",  # what a disk of this size keeps free by default
        }

        def is_whole(tree: MountedTree) -> bool:
            return contents(tree) == truth(server) and tree.read("owed.jpg") == OWED

        with on_disk(server, tmp_path, environ, "--write-back") as tree:
            assert contents(tree) == truth(server)
            tree.write("owed.jpg", OWED)
            wait_until(lambda: "owed.jpg" in tree.run("uploads", "list").stdout, 10)
        filled = blocks_bytes(disk)
        assert filled > LARGER_BYTES // 4

        taken = fill_up(disk)
        with on_disk(server, tmp_path, environ, "--write-back") as tree:
            assert is_whole(tree)
            wait_until(lambda: blocks_bytes(disk) < filled, 5)
            assert status(tree)["cache"]["bytes"] <= filled

            taken.unlink()
            assert is_whole(tree)
            server.add_sample("a/new.jpg", os.urandom(500_000))
            tree.refresh()
            fill_up(disk)
            assert is_whole(tree)
            wait_until(lambda: blocks_bytes(disk) < filled, 5)
        with on_disk(server, tmp_path, environ, "--write-back") as tree:
            assert is_whole(tree)
            kept = blocks_bytes(disk)
    # with `-s` the numbers are there to be seen
    print(f"\n{filled:,} bytes of blocks became {kept:,}; every byte right, nothing owed lost")  # noqa: T201


def test_what_a_full_disk_costs_is_said_once_and_not_for_each_file(
    own_server: LocalServer, tmp_path: Path
) -> None:
    """Its caches, read URLs, and what the next mount has to know."""
    for number in range(150):
        own_server.add_sample(f"a/{number:03d}.jpg", os.urandom(20_000 + number))
    with small_disk(tmp_path / "disk", LARGER_BYTES) as disk:
        environ = environment(own_server, tmp_path / "home") | {
            "XDG_CACHE_HOME": str(disk / "cache"),
            "LIGHTLYFS_CACHE_MIN_FREE": "0",
        }
        with on_disk(own_server, tmp_path, environ) as tree:
            for third in range(3):
                fill_up(disk)
                for number in range(third, 150, 3):
                    tree.read(f"a/{number:03d}.jpg")
                tree.write(f"{third}.jpg", OWED)
            lines = [line for line in tree.log.read_text().splitlines() if " WARNING " in line]
    said = [line.partition(" WARNING ")[2] for line in lines]
    assert said
    assert len(said) == len(set(said))


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


def test_a_read_only_disk_is_said_and_read_around(server: LocalServer, tmp_path: Path) -> None:
    """Also where it holds what is owed: that stays, and the mount takes no writes."""
    with small_disk(tmp_path / "disk", LARGER_BYTES) as disk:
        environ, chosen = environment(server, tmp_path / "home"), f"--cache-dir={disk}"
        with on_disk(server, tmp_path, environ, "--write-back", chosen) as tree:
            assert contents(tree) == truth(server)
            tree.write("owed.jpg", OWED)
        held = {path: path.stat().st_size for path in disk.rglob("*") if path.is_file()}
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

        with on_disk(server, tmp_path, environ, chosen) as tree:
            assert contents(tree) == truth(server)
            with refused(errno.EROFS):
                tree.write("new.jpg", b"new")
            log = tree.log.read_text()
        assert "the cache is in" in log
        assert "this mount is read-only, for what is written cannot be kept" in log
        assert {path: path.stat().st_size for path in disk.rglob("*") if path.is_file()} == held

        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        with on_disk(server, tmp_path, environ, "--write-back", chosen) as tree:
            assert tree.read("owed.jpg") == OWED


def test_discarding_what_is_owed_makes_room_on_a_full_disk(own_server: LocalServer, tmp_path: Path) -> None:
    """Where the mount was killed on it, so that the next one is read-only."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        environ = environment(own_server, tmp_path / "cache") | {"XDG_STATE_HOME": str(disk)}
        with on_disk(own_server, tmp_path, environ, "--upload", "none") as tree:
            (tree.mountpoint / "large.txt").write_bytes(OWED)
            fill_up(disk)
        assert "large.txt" in tree.run("uploads", "list").stdout

        tree.run("uploads", "discard", "large.txt", "--yes")

        assert "large.txt" not in tree.run("uploads", "list").stdout
        with on_disk(own_server, tmp_path, environ, "--upload", "none") as tree:
            (tree.mountpoint / "small.txt").write_bytes(b"there is room")


def test_a_journal_that_a_full_disk_keeps_from_being_read_is_not_called_damaged(
    own_server: LocalServer, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", DISK_BYTES) as disk:
        environ = environment(own_server, tmp_path / "cache") | {"XDG_STATE_HOME": str(disk)}
        with on_disk(own_server, tmp_path, environ, "--upload", "none") as tree:
            tree.write("notes.txt", b"stays here")
        taken = fill_up(disk)
        listed = lightlyfs("uploads", "list", environ=environ, check=False)
        assert "for its disk is full; free some of it" in listed.stderr
        assert listed.stderr.startswith("lightlyfs: ")
        assert "move both away" not in listed.stderr
        taken.unlink()
        assert "notes.txt" in lightlyfs("uploads", "list", environ=environ).stdout
