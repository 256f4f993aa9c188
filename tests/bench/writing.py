"""500 new files of 100 KB by `cp`, one after the other, over a round trip of 20 ms.

A plain mount has them on the server when `cp` ends. Where a mount writes behind, its time is that until the
bucket has every byte. The bucket is a folder here, so that anyone can look.
"""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections.abc import Iterator
from pathlib import Path

from harness import LOCAL, ROUND_TRIP_S, Bench, Mount, timed
from mounts import lightlyfs_mount, other_peers, rclone_mount, s3fs_mount
from PIL import Image
from servers import BUCKET, Far, rclone_served, served_bucket

FILES, FEW_FILES = 500, 100
# a grey picture of noise of this size is a JPEG of about 100 KB
SIDE_PIXELS, QUALITY = 340, 86
DIFFERENT = 20
CLOSED, DRAINED = "cp until it ends", "cp until the bucket has all"
DRAIN_LIMIT_S = 120.0
FAR = Far(ROUND_TRIP_S)


def run(bench: Bench) -> None:
    """Ours both ways, then those of others."""
    pictures = make_pictures(bench)
    local = bench.place("copied")
    seconds = timed("cp", *pictures, local)
    bench.note(CLOSED, LOCAL, FILES / seconds, "files/s")
    for subject, options, count in (
        ("lightlyfs", (), FEW_FILES),
        ("lightlyfs --write-back", ("--write-back",), FILES),
    ):
        with bucket(bench) as (folder, port), served_bucket(port, FAR) as exported:
            opened = lightlyfs_mount(exported, bench.place("mount"), *options, subject=subject)
            copy(bench, opened, pictures[:count], folder)
    with bucket(bench) as (folder, port):
        copy(bench, rclone_mount(port, bench.place("mount"), writable=True), pictures, folder)
    if s3fs_mount in other_peers():
        with bucket(bench) as (folder, port):
            opened = s3fs_mount(port, bench.place("mount"), writable=True)
            copy(bench, opened, pictures[:FEW_FILES], folder)


@contextlib.contextmanager
def bucket(bench: Bench) -> Iterator[tuple[Path, int]]:
    """An empty bucket: its folder, and the port of its server."""
    source = bench.place("source")
    (source / BUCKET).mkdir()
    with rclone_served(source, bench.place("served"), FAR) as port:
        yield source / BUCKET, port


def make_pictures(bench: Bench) -> list[Path]:
    """JPEGs, for a mount looks into what it uploads."""
    place = bench.place("pictures")
    size = (SIDE_PIXELS, SIDE_PIXELS)
    encoded = []
    for number in range(DIFFERENT):
        pixels = random.Random(number).randbytes(SIDE_PIXELS * SIDE_PIXELS)
        file = io.BytesIO()
        Image.frombytes("L", size, pixels).save(file, "JPEG", quality=QUALITY)
        encoded.append(file.getvalue())
    paths = [place / f"{number:05}.jpg" for number in range(FILES)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded[number % DIFFERENT])
    return paths


def copy(
    bench: Bench, opened: contextlib.AbstractContextManager[Mount], pictures: list[Path], folder: Path
) -> None:
    """Both times, as files a second."""
    total = sum(path.stat().st_size for path in pictures)
    with opened as mount, mount.metered(len(pictures)) as used:
        started = time.perf_counter()
        timed("cp", *pictures, mount.path)
        closed_s = time.perf_counter() - started
        while bytes_in(folder) < total:
            if time.perf_counter() - started > DRAIN_LIMIT_S:
                raise SystemExit(f"{mount.subject}: {bytes_in(folder)} of {total} bytes came")
            time.sleep(0.05)
        drained_s = time.perf_counter() - started
    bench.note(CLOSED, mount.subject, len(pictures) / closed_s, "files/s")
    bench.note(DRAINED, mount.subject, len(pictures) / drained_s, "files/s", **used)


def bytes_in(folder: Path) -> int:
    """Bytes of the pictures in a bucket's folder, at whatever depth; thumbnails do not count."""
    return sum(path.stat().st_size for path in folder.rglob("0*.jpg") if ".lightly" not in path.parts)
