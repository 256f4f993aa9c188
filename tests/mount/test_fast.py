"""What is asked of a fast mount: calls beside hanging readers, manners in a storm, no request made twice."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from trees import MountedTree, mounted, wait_until

from lightlyfs.testing import LocalServer, ServerOptions, Stall, Status

pytestmark = pytest.mark.fuse

STALLED_READERS = 100
CALLS = 300
P99_S = 0.1
WASTE_FILE_BYTES = 20_000

# reads files in turn, in threads, until it is killed: ROOT THREADS NAME...; a line for each thread that began
READER = """
import os, sys, threading
root, threads, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
def read(number):
    os.write(1, b"began\\n")
    for name in names[number::threads]:
        with open(f"{root}/{name}", "rb") as file:
            file.read()
running = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
failed = []
threading.excepthook = lambda args: failed.append(args.exc_value)
for thread in running: thread.start()
for thread in running: thread.join()
sys.exit(str(failed[0]) if failed else 0)
"""


@contextlib.contextmanager
def reading(root: Path, threads: int, names: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A program whose threads read these files; returns once each has begun, and kills it at the end."""
    words = [sys.executable, "-c", READER, str(root), str(threads), *names]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for _ in range(threads):
                assert process.stdout.readline() == "began\n"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def generated(count: int, size: int, per_directory: int | None = 1000) -> Iterator[LocalServer]:
    """A server of made-up samples."""
    options = ServerOptions(fake_samples=count, fake_bytes=size, fake_per_directory=per_directory)
    with LocalServer(options) as server:
        yield server


def names_of(tree: MountedTree) -> list[str]:
    """The paths of all files, in order."""
    root = tree.mountpoint
    found = [Path(place) / name for place, _, names in os.walk(root) for name in names]
    return sorted(str(path.relative_to(root)) for path in found)


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """The same names in another order."""
    return random.Random(seed).sample(names, len(names))


def read_all(tree: MountedTree, names: Sequence[str], size: int, threads: int = 4) -> None:
    """Read files whole, several at once, each thread the next one of the list."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        assert {len(data) for data in pool.map(tree.read, names)} == {size}


def settled(server: LocalServer) -> None:
    """Wait until nothing is under way, and nothing follows what was."""
    seen: list[tuple[int, int]] = []

    def quiet() -> bool:
        snapshot = server.stats.snapshot()
        seen.append((server.stats.total(), snapshot["in_flight"]))
        return len(seen) >= 10 and len(set(seen[-10:])) == 1 and seen[-1][1] == 0

    wait_until(quiet, 20)


def ninety_ninth(calls: Sequence[Callable[[], object]]) -> float:
    """Seconds within which 99 of 100 calls answered."""
    took = []
    for call in calls:
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return sorted(took)[len(took) * 99 // 100]


def test_a_hundred_hanging_readers_slow_nobody_else(tmp_path: Path) -> None:
    with generated(6 * CALLS, 20_000, per_directory=6) as server:
        with mounted(server, tmp_path) as tree:
            names = names_of(tree)
            kept, unknown, cold = names[:CALLS], names[CALLS : 2 * CALLS], names[-STALLED_READERS:]
            read_all(tree, kept, 20_000)
        # another mount: the kernel knows nothing yet, so that each call below comes to the mount
        with mounted(server, tmp_path) as tree:
            root = tree.mountpoint
            server.faults.add(Stall(target="storage"))
            with reading(root, STALLED_READERS, cold) as readers:
                wait_until(lambda: server.stats.snapshot()["in_flight"] >= 32, 20)
                directories = sorted({root / Path(name).parent for name in names})[-CALLS // 2 :]

                found = {
                    "ls": ninety_ninth([lambda path=path: os.listdir(path) for path in directories]),
                    "stat": ninety_ninth([lambda name=name: os.stat(root / name) for name in unknown]),
                    "read": ninety_ninth([lambda name=name: tree.read(name) for name in kept]),
                }

                assert readers.poll() is None, "the readers did not hang"
                assert {what: took for what, took in found.items() if took >= P99_S} == {}


def rate_of(server: LocalServer, seconds: float) -> float:
    """Requests a second that end in the next seconds."""
    before = server.stats.total()
    time.sleep(seconds)
    return (server.stats.total() - before) / seconds


@pytest.mark.parametrize("storm_s", [5, pytest.param(30, marks=pytest.mark.long)])
def test_a_storm_of_refusals_is_met_with_fewer_requests_and_no_error(tmp_path: Path, storm_s: int) -> None:
    with generated(30_000, 10_000) as server, mounted(server, tmp_path) as tree:
        names = shuffled(names_of(tree), 1)
        with reading(tree.mountpoint, 16, names) as readers:
            rate_of(server, 0.5)
            calm = rate_of(server, 2)
            server.faults.add(
                Status(status=429, retry_after_s=1, probability=0.5, seconds=storm_s),
                Status(status=503, seconds=storm_s),
            )
            began = time.monotonic()
            time.sleep(2)
            storm = rate_of(server, began + storm_s - 0.2 - time.monotonic())
            wait_until(lambda: not server.faults.armed(), storm_s)

            # a request that was refused last waits for up to 8 s
            wait_until(lambda: rate_of(server, 0.5) > calm / 2, 10)

            assert storm < calm / 4
            counts = server.stats.snapshot()["requests"].values()
            assert sum(one.get("429", 0) for one in counts) > 0
            assert sum(one.get("503", 0) for one in counts) > 0
            assert readers.poll() is None, readers.communicate()


@pytest.mark.parametrize("ttl", ["60", "infinite"])
@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["read-write", "read-only"])
def test_a_second_epoch_asks_for_no_url_and_no_bytes(
    tmp_path: Path, ttl: str, options: tuple[str, ...]
) -> None:
    with generated(300, 30_000, per_directory=100) as server:
        with mounted(server, tmp_path, "3", "--metadata-ttl", ttl, *options) as tree:
            names = names_of(tree)
            read_all(tree, shuffled(names, 1), 30_000)
            settled(server)
            server.stats.reset()

            assert names_of(tree) == names
            read_all(tree, shuffled(names, 2), 30_000)

            settled(server)
            check_nothing_was_fetched(server)
            assert ttl != "infinite" or server.stats.total() == 0
        server.stats.reset()
        with mounted(server, tmp_path, "3", "--metadata-ttl", ttl, *options) as tree:
            read_all(tree, shuffled(names, 3), 30_000)

            settled(server)
            check_nothing_was_fetched(server)


def check_nothing_was_fetched(server: LocalServer) -> None:
    """No read URL was asked for, and nothing of storage."""
    counts = server.stats.snapshot()
    assert counts["storage_paths"] == {}
    assert "readurl" not in counts["requests"]


@pytest.mark.parametrize("first_bytes", [4 << 10, 64 << 10])
@pytest.mark.parametrize("options", [(), ("--read-only",)], ids=["read-write", "read-only"])
def test_a_look_at_the_beginning_of_a_large_file_fetches_little_of_it(
    tmp_path: Path, first_bytes: int, options: tuple[str, ...]
) -> None:
    size, most = 256 << 20, 4 << 20
    with generated(20, size) as server, mounted(server, tmp_path, "3", *options) as tree:
        names = names_of(tree)
        server.stats.reset()

        for name in names:
            assert len(tree.read(name, 0, first_bytes)) == first_bytes

        settled(server)
        assert server.stats.snapshot()["bytes_sent"] < most * len(names)


@contextlib.contextmanager
def one_directory(tmp_path: Path, *words: str) -> Iterator[tuple[LocalServer, MountedTree]]:
    """2,000 files in one directory of a server that is not quite at once there."""
    options = ServerOptions(
        fake_samples=2_000,
        fake_bytes=WASTE_FILE_BYTES,
        fake_per_directory=None,
        api_latency_s=0.005,
        storage_latency_s=0.005,
    )
    with LocalServer(options) as server, mounted(server, tmp_path, "3", *words) as tree:
        yield server, tree


def wasted(server: LocalServer, files_read: int) -> float:
    """The share of the files' bytes that were fetched and never read."""
    settled(server)
    fetched = sum(server.stats.snapshot()["storage_paths"].values())
    assert fetched >= files_read
    return 1 - files_read / fetched


def test_a_shuffled_epoch_that_ends_early_fetched_little_that_it_did_not_read(tmp_path: Path) -> None:
    """But for what is fetched for the epoch itself, which has a bound of its own (`test_epoch_fetcher`)."""
    with one_directory(tmp_path, "--read-ahead=files") as (server, tree):
        names = shuffled(names_of(tree), 5)[:800]

        read_all(tree, names, WASTE_FILE_BYTES, threads=8)

        assert wasted(server, len(names)) < 0.10


def test_an_epoch_in_order_that_ends_early_fetched_little_that_it_did_not_read(tmp_path: Path) -> None:
    with one_directory(tmp_path) as (server, tree):
        names = names_of(tree)[:1_500]

        read_all(tree, names, WASTE_FILE_BYTES, threads=1)

        assert wasted(server, len(names)) < 0.03
