"""200 new JPEGs of 158 KB (640 x 480) by 8 writers, over a round trip of 20 ms, beside rclone mount.

Two times each: until the last `close` returned, and until the server has every byte. rclone runs once without
its cache, where a close waits for the upload, and once with its cache and no delay, where it does not. Our
mounts also send a record, a thumbnail and the facts of each image; other files show what those cost. One
server of little cost (`put_server.py`) is the other end of all.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from facts import picture
from harness import ROUND_TRIP_S, Bench, Mount
from mounts import lightlyfs_mount, rclone_mount
from servers import front_served
from writing import DRAIN_LIMIT_S

FILES, WRITERS, DIFFERENT = 200, 8, 20
CLOSED, DRAINED = "8 writers until the last close", "8 writers until the server has all"
UNCACHED = ("--vfs-cache-mode", "off")
BEHIND = ("--vfs-cache-mode", "writes", "--vfs-write-back", "0s", "--transfers", "32")


def run(bench: Bench) -> None:
    """Images and other files, closes that wait and closes that do not, ours and rclone's."""
    kinds = {"images": make_images(bench), "other files": make_others(bench)}
    for kind, files in kinds.items():
        for subject, options in (("lightlyfs", ()), ("lightlyfs --write-back", ("--write-back",))):
            with served(bench) as (address, exported):
                opened = lightlyfs_mount(
                    exported, bench.place("mount"), "--upload", "all", *options, subject=subject
                )
                copy(bench, opened, kind, files, address)
        for subject, words in (("rclone mount", UNCACHED), ("rclone mount behind", BEHIND)):
            with served(bench) as (address, _):
                port = int(address.rpartition(":")[2])
                opened = rclone_mount(port, bench.place("mount"), writable=True, words=words, subject=subject)
                copy(bench, opened, kind, files, address)


@contextlib.contextmanager
def served(bench: Bench) -> Iterator[tuple[str, dict[str, str]]]:
    """A server for both: its address, and the environment of ours."""
    place, empty = bench.place("server"), bench.place("empty")
    with front_served(place, "put_server.py", [ROUND_TRIP_S], empty) as (_, exported):
        yield exported["LIGHTLY_SERVER_LOCATION"], exported


def make_images(bench: Bench) -> list[Path]:
    """JPEGs of noise, some of them alike."""
    place = bench.place("images")
    first = [picture(place / f"first{n}.jpg", (640, 480), 94) for n in range(DIFFERENT)]
    return [Path(shutil.copy(first[n % DIFFERENT], place / f"0{n:05}.jpg")) for n in range(FILES)]


def make_others(bench: Bench) -> list[Path]:
    """Files of the same size that are no images."""
    place = bench.place("others")
    paths = [place / f"0{n:05}.bin" for n in range(FILES)]
    for number, path in enumerate(paths):
        path.write_bytes(random.Random(number).randbytes(158_000))
    return paths


def copy(
    bench: Bench,
    opened: contextlib.AbstractContextManager[Mount],
    kind: str,
    files: list[Path],
    address: str,
) -> None:
    """Both times, in seconds."""
    total = sum(path.stat().st_size for path in files)
    with opened as mount, mount.metered(len(files)) as used, ThreadPoolExecutor(WRITERS) as writers:
        started = time.perf_counter()
        list(writers.map(lambda path: shutil.copyfile(path, mount.path / path.name), files))
        closed_s = time.perf_counter() - started
        while (came := requests.get(f"{address}/bench/stats", timeout=60).json()["bytes"]) < total:
            if time.perf_counter() - started > DRAIN_LIMIT_S:
                raise SystemExit(f"{mount.subject}: {came} of {total} bytes came")
            time.sleep(0.02)
        drained_s = time.perf_counter() - started
    bench.note(f"{kind}: {CLOSED}", mount.subject, closed_s, "s")
    bench.note(f"{kind}: {DRAINED}", mount.subject, drained_s, "s", **used)
