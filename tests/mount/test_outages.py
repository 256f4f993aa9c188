"""Storms, stalls and the end of the server: what goes on meanwhile, and that all is well afterwards."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import MountedTree, environment, mounted, need_fuse, start_mount, wait_until

from lightlyfs.testing import LocalServer, Stall, Status

pytestmark = pytest.mark.fuse

SMALL_BYTES, LARGE_BYTES = 50_000, 6_500_000
STALLED_READERS = 40
# what is promised for names and cached bytes while readers hang
AT_ONCE_S = 1.0
CALL_LIMIT_S = 60


def content(name: str, size: int = SMALL_BYTES) -> bytes:
    """The bytes of a file."""
    return random.Random(name).randbytes(size)


def timed_run(*words: str | Path) -> tuple[float, bytes]:
    """Run a program; seconds it took, and what it printed."""
    started = time.monotonic()
    done = subprocess.run([str(word) for word in words], capture_output=True, check=True, timeout=90)
    return time.monotonic() - started, done.stdout


@contextlib.contextmanager
def reader_of(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that reads a file, and does not outlive the block."""
    process = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """A mount of many cold files, and one that is read already."""
    for number in range(STALLED_READERS):
        own_server.add_sample(f"cold/{number}.bin", content(f"cold/{number}.bin"))
    own_server.add_sample("cold/large.bin", content("large", LARGE_BYTES))
    own_server.add_sample("read/before.bin", content("before"))
    with mounted(own_server, tmp_path / "tree") as subject:
        assert subject.read("read/before.bin") == content("before")
        yield subject


def test_a_storm_of_refusals_never_reaches_a_reader(own_server: LocalServer, tree: MountedTree) -> None:
    own_server.faults.add(
        Status(status=429, retry_after_s=1, probability=0.5, seconds=10), Status(status=503, seconds=10)
    )
    names = ["cold/0.bin", "cold/1.bin", "cold/large.bin"]

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        read = list(pool.map(tree.read, names))

    assert read == [content(names[0]), content(names[1]), content("large", LARGE_BYTES)]
    counts = own_server.stats.snapshot()["requests"]
    assert counts["readurl"]["429"] + counts["readurl"]["503"] >= len(names)


def test_stalled_readers_hold_up_nobody_else_and_get_their_bytes_in_the_end(
    own_server: LocalServer, tree: MountedTree
) -> None:
    names = [f"cold/{number}.bin" for number in range(STALLED_READERS)]
    own_server.faults.add(Stall(target="storage"))
    with concurrent.futures.ThreadPoolExecutor(STALLED_READERS) as pool:
        reads = [pool.submit(tree.read, name) for name in names]
        # as many transfers as the mount does at once
        wait_until(lambda: own_server.stats.snapshot()["in_flight"] >= 32, 20)

        root = tree.mountpoint
        for _ in range(3):
            assert timed_run("ls", "-l", root / "cold")[0] < AT_ONCE_S
            assert timed_run("stat", root / "cold" / "39.bin")[0] < AT_ONCE_S
            took_s, printed = timed_run("cat", root / "read" / "before.bin")
            assert printed == content("before")
            assert took_s < AT_ONCE_S
        assert not any(read.done() for read in reads)
        own_server.faults.clear()

        assert [read.result(CALL_LIMIT_S) for read in reads] == [content(name) for name in names]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["cold/0.bin", "cold/large.bin"])
def test_a_signal_ends_a_program_whose_read_hangs(
    own_server: LocalServer, tree: MountedTree, name: str, number: signal.Signals
) -> None:
    own_server.faults.add(Stall(target="storage"))
    with reader_of(tree.mountpoint / name) as reader:
        wait_until(lambda: own_server.stats.snapshot()["in_flight"] > 0, 10)

        reader.send_signal(number)

        assert reader.wait(2) == -number


def test_a_signal_ends_a_program_that_hangs_in_the_middle_of_a_file(
    own_server: LocalServer, tree: MountedTree
) -> None:
    own_server.faults.add(Stall(target="storage", at="half"))
    with reader_of(tree.mountpoint / "cold/large.bin") as reader:
        wait_until(lambda: own_server.stats.snapshot()["in_flight"] > 0, 10)

        reader.send_signal(signal.SIGINT)

        assert reader.wait(2) == -signal.SIGINT


class Served:
    """`lightlyfs serve` of a folder, that can be killed and started again as the same server."""

    def __init__(self, folder: Path, state: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.folder = folder
        words = ["serve", str(folder), "--port", str(port), "--token", "secret", "--state", str(state)]
        self._command = [sys.executable, "-m", "lightlyfs", *words]
        self.start()

    def start(self) -> None:
        """Serve; returns once it is ready."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().strip() for _ in range(4)]
        exported = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.url = exported["LIGHTLY_SERVER_LOCATION"]
        self.token = exported["LIGHTLY_TOKEN"]
        self.public_token = exported["LIGHTLY_PUBLIC_TOKEN"]
        self.dataset_id = exported["LIGHTLY_DATASET_ID"]

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server of its own process, with a few files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("before.jpg", "during.jpg", "after.jpg", "never.jpg"):
        (folder / name).write_bytes(content(name))
    server = Served(folder, tmp_path / "state")
    yield server
    server.kill()


@pytest.fixture
def mount(served: Served, tmp_path: Path) -> Iterator[MountedTree]:
    """A mount of it whose names are asked for again each second; one file is read."""
    need_fuse("3")
    (tmp_path / "mnt").mkdir()
    environ = environment(served, tmp_path / "cache")  # type: ignore[arg-type]
    tree = start_mount(
        served.dataset_id, tmp_path / "mnt", environ, tmp_path / "log", "--fuse=3", "--metadata-ttl=1"
    )
    assert tree.read("before.jpg") == content("before.jpg")
    yield tree
    tree.end()


def noticed(tree: MountedTree) -> bool:
    """Whether a mount that is looked at knows that the API does not answer."""
    tree.names()
    status = json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)
    return status["catalogue"]["error"] is not None


def check_goes_on(tree: MountedTree) -> None:
    """Names, attributes and cached bytes, at once."""
    root = tree.mountpoint
    took_s, printed = timed_run("ls", root)
    assert printed.split() == [b"after.jpg", b"before.jpg", b"during.jpg", b"never.jpg"]
    assert took_s < AT_ONCE_S
    assert timed_run("stat", root / "after.jpg")[0] < AT_ONCE_S
    assert timed_run("cat", root / "before.jpg")[1] == content("before.jpg")


def check_recovered(served: Served, tree: MountedTree) -> None:
    """All works: files not read before, and names that came while the server was away."""
    assert tree.read("after.jpg") == content("after.jpg")
    wait_until(lambda: "new.jpg" in tree.names(), 20)
    assert tree.read("new.jpg") == content("new.jpg")


def test_a_killed_server_is_sat_out(served: Served, mount: MountedTree) -> None:
    served.kill()
    wait_until(lambda: noticed(mount), 30)

    check_goes_on(mount)
    with reader_of(mount.mountpoint / "during.jpg") as reader:
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(2)
        (served.folder / "new.jpg").write_bytes(content("new.jpg"))
        served.start()
        assert reader.communicate(timeout=30) == (content("during.jpg"), b"")

    check_recovered(served, mount)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_server_that_is_away_for_two_minutes_costs_an_error_and_no_remount(
    served: Served, mount: MountedTree
) -> None:
    served.kill()
    killed = time.monotonic()
    wait_until(lambda: noticed(mount), 30)

    check_goes_on(mount)
    started = time.monotonic()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared below
        mount.read("never.jpg")
    assert time.monotonic() - started < CALL_LIMIT_S + 1
    assert caught.value.errno in (errno.EIO, errno.ETIMEDOUT)
    while time.monotonic() - killed < 120:
        check_goes_on(mount)
        time.sleep(5)
    (served.folder / "new.jpg").write_bytes(content("new.jpg"))
    served.start()

    check_recovered(served, mount)
    assert mount.read("never.jpg") == content("never.jpg")
    assert os.path.ismount(mount.mountpoint)
