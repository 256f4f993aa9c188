"""Staged bytes: copies on disks that take a part of a write, and locks that end with their process."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import environment, wait_until

from lightlyfs.places import SpoolPlace, is_free, spools_of
from lightlyfs.staging.spool import Spool
from lightlyfs.testing import LocalServer, ServerOptions

KEY = "a" * 32
PIECE_BYTES = 7
CONTENT = random.Random(3).randbytes(20_011)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "files")


@pytest.fixture
def no_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which two files cannot have blocks in common."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    # several rounds of reading, too
    monkeypatch.setattr("lightlyfs.staging.spool._COPY_BYTES", 6_000)


def write_pieces(monkeypatch: pytest.MonkeyPatch, *, room: int | None = None) -> None:
    """Let each write take a few bytes only; with `room` the disk is full after so many in all."""
    real, taken = os.pwrite, 0

    def pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        nonlocal taken
        if room is not None and taken >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, data[:PIECE_BYTES], offset)
        taken += count
        return count

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 6_000, 6_001, len(CONTENT)])
def test_a_copy_has_all_bytes_where_each_write_takes_a_part(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, no_sharing: None, size: int
) -> None:
    source = spool.create(KEY, 0)
    source.write_at(0, CONTENT[:size])
    write_pieces(monkeypatch)

    copied = spool.copy(source, KEY, 1)

    assert (copied.size(), copied.read_at(0, size + 1)) == (size, CONTENT[:size])
    assert spool.path(KEY, 1).read_bytes() == spool.path(KEY, 0).read_bytes()
    source.close()
    copied.close()


def test_a_write_has_all_bytes_where_the_disk_takes_a_part_of_each(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = spool.create(KEY, 0)
    write_pieces(monkeypatch)

    assert staged.write_at(3, CONTENT) == len(CONTENT)

    assert staged.read_at(0, len(CONTENT) + 3) == b"\0\0\0" + CONTENT
    staged.close()


def test_a_copy_that_the_disk_has_no_room_for_leaves_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, no_sharing: None
) -> None:
    source = spool.create(KEY, 0)
    source.write_at(0, CONTENT)
    write_pieces(monkeypatch, room=10_000)

    with pytest.raises(OSError, match="No space left") as caught:
        spool.copy(source, KEY, 1)

    assert caught.value.errno == errno.ENOSPC
    assert spool.generations() == [(KEY, 0)]
    assert source.read_at(0, len(CONTENT)) == CONTENT
    source.close()


def test_a_copy_takes_the_place_of_what_an_earlier_failure_left(spool: Spool, no_sharing: None) -> None:
    source = spool.create(KEY, 0)
    source.write_at(0, b"whole")
    spool.path(KEY, 1).write_bytes(b"left, and longer than the whole")

    copied = spool.copy(source, KEY, 1)

    assert copied.read_at(0, 100) == b"whole"
    source.close()
    copied.close()


# opens a dataset for writing, forks a child that stays, and says so
_PARENT = """
import os, sys, time
import fsspec
fs = fsspec.filesystem("lightly", cache_dir=sys.argv[1])
fs.pipe_file("owned/first.jpg", b"first")
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    folder = tmp_path / "own"
    folder.mkdir()
    with LocalServer(ServerOptions(source=folder, dataset_name="owned")) as running:
        yield running


def test_a_forked_child_does_not_keep_the_spool_of_a_parent_that_was_killed(
    server: LocalServer, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(cache)],
        env=environment(server, tmp_path / "home"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = 0
    try:
        child = int(parent.stdout.readline())
        (host,) = [path for path in cache.iterdir() if path.is_dir()]
        (spool,) = spools_of(host, server.dataset_id)
        assert not is_free(spool)

        parent.kill()
        parent.wait()

        os.kill(child, 0)  # it is there
        wait_until(lambda: is_free(spool), 5)  # the child may have just begun
        place = SpoolPlace(host, server.dataset_id)
        assert place.path == spool
        place.close()
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.communicate()
