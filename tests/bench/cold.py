"""Files of 100 KB that are nowhere near yet, over a round trip of 20 ms: one reader in order, 8 in any order.

All read the same bucket; ours, and the downloads, ask the API for a URL first. Peers that take a round trip
a file are given fewer files: the rate is the same.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from harness import ROUND_TRIP_S, Bench, Mount, read_files, run_script
from mounts import fsspec_mount, lightlyfs_mount, other_peers, rclone_mount
from servers import BUCKET, Far, rclone_served, served_bucket

FILES, FILE_BYTES = 2_000, 100_000
FEW_FILES, VERY_FEW_FILES = 400, 200
READERS = 8
ROUNDS = 2
THREADS = 32
IN_ORDER = "cold, in order, 1 reader"
SHUFFLED = "cold, shuffled, 8 readers"
URLS_KNOWN = f"{SHUFFLED}, URLs known"
DOWNLOAD = "all downloaded first, 32 threads"
CLIENTS = ("requests", "urllib3")
# a mount, and the directory that holds its cache, which is new each time
Opener = Callable[[Path], contextlib.AbstractContextManager[Mount]]


def run(bench: Bench) -> None:
    """Ours, downloads, then the others."""
    source = make_files(bench, FILES)
    far = Far(ROUND_TRIP_S)
    with rclone_served(source, bench.place("served"), far) as port, served_bucket(port, far) as exported:

        def ours(place: Path) -> contextlib.AbstractContextManager[Mount]:
            return lightlyfs_mount(exported, place)

        for _ in range(ROUNDS):
            in_order(bench, ours, FILES)
            for client in CLIENTS:
                download(bench, exported, client)
            in_order(bench, lambda place: rclone_mount(port, place), VERY_FEW_FILES)
            shuffled(bench, ours, FILES)
            shuffled_again(bench, ours)
            shuffled(bench, lambda place: rclone_mount(port, place), FILES)
        for peer in other_peers():
            in_order(bench, lambda place, peer=peer: peer(port, place), VERY_FEW_FILES)
            if peer is not fsspec_mount:  # it has one thread
                shuffled(bench, lambda place, peer=peer: peer(port, place), FEW_FILES)
    bench.keep_best()


def make_files(bench: Bench, count: int) -> Path:
    """A folder with one bucket in it."""
    source = bench.place("source")
    (source / BUCKET).mkdir()
    for number in range(count):
        (source / BUCKET / name_of(number)).write_bytes(random.Random(number).randbytes(FILE_BYTES))
    return source


def name_of(number: int) -> str:
    """The name of a file."""
    return f"{number:05}.jpg"


def names_in_order(count: int) -> list[str]:
    """The first names."""
    return [name_of(number) for number in range(count)]


def names_shuffled(count: int) -> list[str]:
    """The first names, in an order that is the same for all."""
    names = names_in_order(count)
    random.Random(7).shuffle(names)
    return names


def in_order(bench: Bench, opener: Opener, count: int) -> None:
    """One reader goes through the directory."""
    with opener(bench.place("cold")) as mount:
        measure(bench, mount, IN_ORDER, names_in_order(count), 1)


def shuffled(bench: Bench, opener: Opener, count: int) -> None:
    """Eight readers take files as they come."""
    with opener(bench.place("cold")) as mount:
        measure(bench, mount, SHUFFLED, names_shuffled(count), READERS)


def shuffled_again(bench: Bench, opener: Opener) -> None:
    """The same in the place that the last mount left, which forgets the contents but not the URLs."""
    place = bench.directory / "cold"
    for path in [*place.rglob("blocks.db*"), *place.rglob("blocks")]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    with opener(place) as mount:
        measure(bench, mount, URLS_KNOWN, names_shuffled(FILES), READERS)


def measure(bench: Bench, mount: Mount, what: str, names: list[str], readers: int) -> None:
    """Files a second, and what the mount used for each."""
    with mount.metered(len(names)) as used:
        per_s = read_files(bench, mount.path, names, file_bytes=FILE_BYTES, readers=readers)
    bench.note(what, mount.subject, per_s, "files/s", **used)


def download(bench: Bench, exported: dict[str, str], client: str) -> None:
    """Everything, before anybody reads."""
    place = bench.place("downloaded")
    seconds, total = run_script("download.py", place, THREADS, client, environ=exported)
    if total != FILES * FILE_BYTES:
        raise SystemExit(f"downloaded {total} bytes, not {FILES * FILE_BYTES}")
    bench.note(DOWNLOAD, client, FILES / seconds, "files/s")
