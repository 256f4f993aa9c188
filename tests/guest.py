"""Programs that use `lightly://` in a process of their own; `python guest.py NAME ...`.

Each prints one JSON object. They run apart from the tests, for what they do to their process (forks, limits,
threads) must not be done to the test's, and the server of a test is a database in its process.
"""

from __future__ import annotations

import errno
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec

DATASET = os.environ.get("GUEST_DATASET", "cars")
# a child that takes longer is hung: reading a cached file takes milliseconds
HUNG_S = 20.0


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Readers:
    """Threads that open, read and list, in a `with` block; `errors` are what they met."""

    def __init__(self, fs: Any, paths: list[str], count: int) -> None:
        self._fs, self._paths = fs, paths
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(count)]
        self.errors: list[str] = []
        self.reads = 0

    def _run(self, seed: int) -> None:
        chosen = random.Random(seed)
        while not self._stop.is_set():
            path = chosen.choice(self._paths)
            try:
                with self._fs.open(path) as file:
                    assert len(file.read()) == self._fs.info(path)["size"]
                self._fs.ls(DATASET)
                self.reads += 1
            except Exception as error:
                self.errors.append(repr(error))
                return

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _await(children: list[int], deadline: float) -> tuple[int, int]:
    """How many of some children hung, and how many failed."""
    hung = failed = 0
    for child in children:
        while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                hung += 1
                os.kill(child, signal.SIGKILL)
                found = os.waitpid(child, 0)
                break
            time.sleep(0.002)
        else:
            failed += found[1] != 0
    return hung, failed


def forks(count: int, at_once: int = 8, threads: int = 4) -> dict[str, Any]:
    """Fork children while threads read; each child reads, too."""
    fs = fsspec.filesystem("lightly")
    paths = fs.find(DATASET, maxdepth=1)
    for path in paths:
        fs.cat_file(path)
    hung = failed = 0
    before = 0
    started = time.monotonic()
    with Readers(fs, paths, threads) as readers:
        for turn in range(0, count, at_once):
            children = []
            for number in range(turn, min(turn + at_once, count)):
                child = os.fork()
                if child == 0:
                    try:
                        assert len(fs.cat_file(paths[number % len(paths)])) > 0
                        assert fs.find(DATASET, maxdepth=1) == paths
                    except BaseException:
                        import traceback

                        traceback.print_exc()
                        os._exit(1)
                    os._exit(0)
                children.append(child)
            one = _await(children, time.monotonic() + HUNG_S)
            hung, failed = hung + one[0], failed + one[1]
            before = before or descriptors()
    return {
        "hung": hung,
        "failed": failed,
        "errors": readers.errors,
        "reads": readers.reads,
        "more_descriptors": descriptors() - before,
        "seconds": time.monotonic() - started,
    }


def tls_forks(url: str, authority: str, count: int, at_once: int = 4) -> dict[str, Any]:
    """Fork children while threads make TLS connections; each child makes one, too."""
    from lightlyfs.api.contract import Request, TransportConfig
    from lightlyfs.api.curl import CurlTransport

    def get(times: int) -> None:
        transport = CurlTransport(TransportConfig(ca_bundle=authority))
        for _ in range(times):
            transport.send(Request("GET", url))
        transport.close()

    stop = threading.Event()
    errors: list[str] = []

    def work() -> None:
        while not stop.is_set():
            try:
                get(3)
            except Exception as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    hung = failed = 0
    for _ in range(0, count, at_once):
        children = []
        for _ in range(at_once):
            child = os.fork()
            if child == 0:
                try:
                    get(1)
                except BaseException:
                    os._exit(1)
                os._exit(0)
            children.append(child)
        one = _await(children, time.monotonic() + HUNG_S)
        hung, failed = hung + one[0], failed + one[1]
    stop.set()
    for thread in threads:
        thread.join()
    return {"hung": hung, "failed": failed, "errors": errors}


class _Work:
    """What a worker of a loader does: open its share, read it."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def __call__(self, paths: list[str]) -> int:
        total = 0
        for path in paths:
            with self.fs.open(path) as file:
                total += len(file.read())
        return total


def epochs(method: str, count: int, workers: int = 4) -> dict[str, Any]:
    """Read the dataset by loader workers, made anew for each epoch, while the parent reads, too."""
    fs = fsspec.filesystem("lightly")
    paths = fs.find(DATASET, maxdepth=1)
    whole = _Work(fs)(paths)
    context = multiprocessing.get_context(method)
    wrong = 0
    seconds = []
    with Readers(fs, paths, 2) as readers:
        for _ in range(count):
            started = time.monotonic()
            with context.Pool(workers) as pool:
                shares = [paths[first::workers] for first in range(workers)]
                got = pool.map_async(_Work(fs), shares, chunksize=1).get(timeout=60)
            wrong += sum(got) != whole
            seconds.append(time.monotonic() - started)
    return {"wrong": wrong, "errors": readers.errors, "slowest_s": max(seconds)}


def opens(count: int) -> dict[str, Any]:
    """Open and read without a close, in one thread; the collector ends the files wherever it runs."""
    fs = fsspec.filesystem("lightly")
    path = f"{DATASET}/a.bin"
    fs.open(path).read(10)
    gc.collect()
    fs.info(path)
    before = descriptors()
    started = time.monotonic()
    for _ in range(count):
        assert len(fs.open(path).read(10)) == 10
    seconds = time.monotonic() - started
    gc.collect()
    fs.info(path)
    return {"more_descriptors": descriptors() - before, "seconds": seconds}


def inherited() -> dict[str, Any]:
    """A child reads and writes files that its parent opened before the fork."""
    fs = fsspec.filesystem("lightly", upload="all")
    reader, writer = os.pipe()
    source, target = fs.open(f"{DATASET}/a.bin"), fs.open(f"{DATASET}/new.bin", "wb")
    target.write(b"new")
    child = os.fork()
    if child == 0:
        found: dict[str, Any] = {"read": len(source.read())}
        try:
            target.write(b"child")
        except OSError as error:
            found["write"] = errno.errorcode[error.errno or 0]
        source.close()
        target.close()
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.waitpid(child, 0)
    found = json.loads(os.read(reader, 1_000))
    found["parent"] = len(source.read())
    target.write(b"end")
    target.close()
    return found | {"uploaded": fs.info(f"{DATASET}/new.bin")["size"]}


def imports() -> dict[str, Any]:
    """What is imported once a file was read."""
    fs = fsspec.filesystem("lightly")
    fs.cat_file(f"{DATASET}/a.bin")
    return {"modules": sorted({name.partition(".")[0] for name in sys.modules})}


def _belongings() -> dict[str, Any]:
    """What of a process belongs to the program, not to its libraries."""
    umask = os.umask(0)
    os.umask(umask)
    handlers = {}
    for number in signal.valid_signals():
        handlers[int(number)] = repr(signal.getsignal(number))
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "umask": umask,
        "handlers": handlers,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "directory": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "excepthook": repr(sys.excepthook),
        "log": repr([logging.getLogger().level, logging.getLogger().handlers]),
        "environ": dict(os.environ),
    }


def manners() -> dict[str, Any]:
    """Read many files from many threads, write one; what changed in the process, and what is kept open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before, opened = _belongings(), descriptors()
    fs = fsspec.filesystem("lightly", upload="all")
    paths = fs.find(f"{DATASET}/many")
    with ThreadPoolExecutor(48) as pool:
        for _ in range(2):
            assert len(list(pool.map(fs.cat_file, paths))) == len(paths)
    fs.pipe(f"{DATASET}/written-{os.getpid()}.txt", b"written")
    after = _belongings()
    return {
        "files": len(paths),
        "changed": [name for name in before if before[name] != after[name]],
        "kept_open": descriptors() - opened,
        "highest": max(map(int, os.listdir("/proc/self/fd"))),
    }


def main() -> None:
    program: Callable[..., dict[str, Any]] = globals()[sys.argv[1]]
    arguments = [int(word) if word.isdigit() else word for word in sys.argv[2:]]
    print(json.dumps(program(*arguments)))


if __name__ == "__main__":
    main()
