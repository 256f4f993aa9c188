"""What `--metrics-port` answers during a cold load, beside what the server counted: the two have to agree.

Scraped all the while, as Prometheus does it; at the end both are printed, and a difference ends the part.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from cold import READERS
from harness import Bench, free_port, read_files
from mounts import lightlyfs_mount
from servers import served

FILES, FILE_BYTES, PER_DIRECTORY = 2_000, 100_000, 1_000
SCRAPE_EVERY_S = 0.2
SERVER = "server"
# operations of ours, and the endpoint that each asks
PAIRS = {
    "get_dataset": "dataset",
    "list_page": "partial",
    "get_sample_read_url": "readurl",
    "storage_get": "storage.get",
}
_SAMPLE = re.compile(r'lightlyfs_requests_total\{operation="(\w+)",outcome="(\w+)"\} (\S+)')
# what is under way at the end, such as a file fetched ahead, ends within a moment
_SETTLED_WITHIN_S = 10.0

# by operation and outcome
Counts = dict[tuple[str, str], float]


def run(bench: Bench) -> None:
    """Eight readers of files that are nowhere near yet."""
    port = free_port()
    words = ["--fake", str(FILES), "--fake-size", str(FILE_BYTES), "--fake-per-dir", str(PER_DIRECTORY)]
    place = bench.place("metrics")
    with served(*words) as exported, lightlyfs_mount(exported, place, f"--metrics-port={port}") as mount:
        names = [str(path.relative_to(mount.path)) for path in sorted(mount.path.rglob("*.jpg"))]
        with scraped(port) as scrapes:
            rate = read_files(bench, mount.path, names, file_bytes=FILE_BYTES, readers=READERS)
        bench.note(f"cold, {READERS} readers, scraped {len(scrapes)} times", mount.subject, rate, "files/s")
        if any(
            after.get(key, 0) < count for before, after in pairwise(scrapes) for key, count in before.items()
        ):
            raise SystemExit("a counter went back between two scrapes")
        ours, theirs = settled(port, exported)
        for (operation, outcome), count in sorted(ours.items()):
            bench.note(f"{operation} {outcome}", mount.subject, count, "requests")
            bench.note(f"{operation} {outcome}", SERVER, theirs.get((operation, outcome), 0), "requests")
        if ours != theirs:
            raise SystemExit(f"the counts differ: {sorted(ours.items() ^ theirs.items())}")


@contextmanager
def scraped(port: int) -> Iterator[list[Counts]]:
    """Scrapes until the end of the block."""
    found: list[Counts] = []
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(SCRAPE_EVERY_S):
            found.append(counted_by_mount(port))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def settled(port: int, exported: dict[str, str]) -> tuple[Counts, Counts]:
    """What both counted, once they agree or had the time to."""
    end = time.monotonic() + _SETTLED_WITHIN_S
    while True:
        ours, theirs = counted_by_mount(port), counted_by_server(exported)
        if ours == theirs or time.monotonic() > end:
            return ours, theirs
        time.sleep(SCRAPE_EVERY_S)


def counted_by_mount(port: int) -> Counts:
    """Requests as Prometheus is told them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {(operation, outcome): float(count) for operation, outcome, count in _SAMPLE.findall(text)}


def counted_by_server(exported: dict[str, str]) -> Counts:
    """Requests as the server has seen them, by the names that we have for them."""
    address = f"{exported['LIGHTLY_SERVER_LOCATION']}/__control__/stats?token={exported['LIGHTLY_TOKEN']}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        requests = json.load(answer)["requests"]
    return {
        (operation, status): float(count)
        for operation, endpoint in PAIRS.items()
        for status, count in requests.get(endpoint, {}).items()
    }
