"""Several processes that share one cache: each block fetched once, and no wrong byte after a kill."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import environment, in_process, wait_until

from lightlyfs.locks import SharedLocks
from lightlyfs.testing import LocalServer, ServerOptions

FILES = 200
LATENCY_S = 0.01

# reads every file once it is told to, in an order of its own, and says what it got
_READER = """
import hashlib, json, random, sys
import fsspec
order, cache = sys.argv[1:]
fs = fsspec.filesystem("lightly", cache_dir=cache)
print(len(fs.ls("shared")), flush=True)
sys.stdin.readline()
names = sorted(fs.find("shared"))
if order != "sorted":
    random.Random(int(order)).shuffle(names)
print(json.dumps({name: hashlib.sha256(fs.cat_file(name)).hexdigest() for name in names}))
"""

# reads parts of files at random until its input ends; 3: a wrong byte
_RESTLESS = """
import os, random, sys, threading
import fsspec
served, cache = sys.argv[1:]
fs = fsspec.filesystem("lightly", cache_dir=cache, cache_size="6MiB")
names = sorted(fs.find("shared"))
print("ready", flush=True)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
while not ended.is_set():
    name = random.choice(names)
    with open(os.path.join(served, name.partition("/")[2]), "rb") as file:
        data = file.read()
    start = random.randrange(len(data))
    end = random.choice([start + 1, start + 70_000, len(data)])
    if fs.cat_file(name, start, end) != data[start:end]:
        sys.exit(3)
"""


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The files that are served: small ones, and a few of several blocks."""
    root = tmp_path / "served"
    root.mkdir()
    chance = random.Random(1)
    for number in range(FILES):
        size = 2_500_000 if number % 50 == 0 else 40_000 + chance.randrange(40_000)
        (root / f"{number:04d}.jpg").write_bytes(chance.randbytes(size))
    return root


@pytest.fixture
def server(served: Path) -> Iterator[LocalServer]:
    options = ServerOptions(
        source=served, dataset_name="shared", api_latency_s=LATENCY_S, storage_latency_s=LATENCY_S
    )
    with LocalServer(options) as running:
        yield running


class Workers:
    """Processes that use one cache directory."""

    def __init__(self, server: LocalServer, tmp_path: Path) -> None:
        self.cache = str(tmp_path / "cache")
        self._environ = environment(server, tmp_path / "home")
        self.running: list[subprocess.Popen[str]] = []

    def start(self, code: str, *words: str) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [sys.executable, "-c", code, *words, self.cache],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(worker)
        return worker

    def read_all(self, *orders: str) -> list[dict[str, str]]:
        """What processes read that begin together, one for each order."""
        workers = [self.start(_READER, order) for order in orders]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline().strip() == str(FILES)
        answers = [self._tell(worker) for worker in workers]
        return [json.loads(worker.communicate(timeout=60)[0]) for worker in answers]

    def start_restless(self, served: Path) -> subprocess.Popen[str]:
        """A process that reads on and on, once it does."""
        worker = self.start(_RESTLESS, str(served))
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        return worker

    @staticmethod
    def _tell(worker: subprocess.Popen[str]) -> subprocess.Popen[str]:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
        return worker


@pytest.fixture
def workers(server: LocalServer, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(server, tmp_path)
    yield made
    for worker in made.running:
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(signal.SIGCONT)
            worker.kill()
        worker.communicate()


def digests(served: Path) -> dict[str, str]:
    return {f"shared/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in served.iterdir()}


def size_of(served: Path) -> int:
    return sum(path.stat().st_size for path in served.iterdir())


@pytest.mark.parametrize(
    "orders", [("sorted",) * 4, ("7",) * 4, ("1", "2", "3", "4")], ids=lambda o: "-".join(o)
)
def test_processes_that_read_the_same_cold_files_fetch_each_once(
    orders: tuple[str, ...], workers: Workers, server: LocalServer, served: Path
) -> None:
    for read in workers.read_all(*orders):
        assert read == digests(served)

    assert server.stats.snapshot()["bytes_sent"] <= 1.05 * size_of(served)
    # one listing, which is a page and the empty one behind it, and a look at its end for each later process:
    # on a slow machine they start seconds apart. A second listing would be two more
    assert server.stats.count("partial") <= 2 + len(orders) - 1


def test_a_process_that_is_stopped_holds_nobody_up_for_long(
    workers: Workers, server: LocalServer, served: Path
) -> None:
    stopped = workers.start(_READER, "sorted")
    assert stopped.stdout is not None
    stopped.stdout.readline()
    workers._tell(stopped)
    wait_until(lambda: server.stats.count("storage.get") > 5, 30)
    stopped.send_signal(signal.SIGSTOP)

    (read,) = workers.read_all("sorted")

    assert read == digests(served)


def test_what_a_process_fetched_that_has_ended_is_not_fetched_again(
    workers: Workers, server: LocalServer, served: Path, tmp_path: Path
) -> None:
    """Its facts are newer than the entries that this process has looked up."""
    names = sorted(path.name for path in served.iterdir())
    with in_process(server, tmp_path / "here", cache_dir=workers.cache, read_ahead="off") as tree:
        for name in names:
            tree.stat(name)
        workers.read_all("sorted")
        wait_until(lambda: not tree.parts.place.locks.has_company(), 10)
        tree.parts.catalog.hear_others()
        before = server.stats.count("storage.get"), server.stats.count("readurl")

        assert all(tree.read(name) == (served / name).read_bytes() for name in names)

        assert (server.stats.count("storage.get"), server.stats.count("readurl")) == before


# forks a child that stays, and says so
_PARENT = """
import os, sys, time
import fsspec
fs = fsspec.filesystem("lightly", cache_dir=sys.argv[1])
fs.ls("shared")
from lightlyfs.fsspec import parts as fsspec_parts
(parts,) = fsspec_parts._running._parts.values()
assert parts.place.locks.try_name("a lock of the parent")
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_a_forked_child_does_not_keep_the_locks_of_its_parent(workers: Workers, server: LocalServer) -> None:
    parent = workers.start(_PARENT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        locks = SharedLocks(next(Path(workers.cache).glob(f"*/{server.dataset_id}")))
        assert not locks.try_name("a lock of the parent")
        parent.kill()
        parent.wait()
        # the child lets go of its copies as soon as it runs, which may be after the parent's end
        deadline = time.monotonic() + 5.0
        while not locks.try_name("a lock of the parent"):
            assert time.monotonic() < deadline
    finally:
        os.kill(child, signal.SIGKILL)


def rounds_of_killing(rounds: int, workers: Workers, served: Path) -> None:
    chance = random.Random(5)
    restless = [workers.start_restless(served) for _ in range(3)]
    for _ in range(rounds):
        time.sleep(chance.uniform(0.0, 0.3))  # killed at any moment of its work
        victim = chance.randrange(3)
        assert restless[victim].poll() is None
        os.kill(restless[victim].pid, signal.SIGKILL)
        restless[victim].wait()
        restless[victim] = workers.start_restless(served)
    for worker in restless:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    (read,) = workers.read_all("sorted")
    assert read == digests(served)


def test_no_byte_is_wrong_whoever_is_killed(workers: Workers, server: LocalServer, served: Path) -> None:
    rounds_of_killing(4, workers, served)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_byte_is_wrong_after_fifty_kills(workers: Workers, server: LocalServer, served: Path) -> None:
    rounds_of_killing(50, workers, served)
