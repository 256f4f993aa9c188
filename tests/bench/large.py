"""One file of 500 MB, in order and at random places: cold, from the block cache, from the page cache.

And cold files of 64 MiB where a connection brings 30 MB/s, for what counts there is how soon many are used.
Cold, beside a single GET through the same proxy: once where only the machine bounds it, and once where each
connection brings 85 MB/s, which is what S3 tells its users to count with. "Block cache" is after a remount.
tmpfs shows what memory in pieces of 4 KiB costs, which is how Linux keeps the pages of FUSE. The best
of a few rates counts.
"""

from __future__ import annotations

import contextlib
import json
import random
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import (
    LOCAL,
    MB,
    ROUND_TRIP_S,
    SMALL_PAGES,
    Bench,
    Mount,
    in_memory,
    read_files,
    run_script,
)
from mounts import RCLONE_CACHED, lightlyfs_mount, rclone_mount
from servers import BUCKET, Far, rclone_served, served_bucket

FILE_BYTES = 500_000_000
NAME = "video.mp4"
PIECE_BYTES = 128 << 10
COLD_PIECES, WARM_PIECES = 100, 2_000
# a pass from memory is over too soon to be measured
WARM_PASSES = 5
ROUNDS = 3
CONNECTION = 85 * MB
COLD, COLD_BOUNDED = "in order, cold, 20 ms", "in order, cold, 20 ms, 85 MB/s a connection"
BLOCKS, PAGES = "in order, block cache", "in order, page cache"
JUMPS_COLD, JUMPS_WARM = "random 128 KiB, cold, 20 ms", "random 128 KiB, page cache"
STREAM = "single GET"
SHORT_BYTES, SHORT_FILES, SLOW_CONNECTION = 64 << 20, 3, 30 * MB
SHORT = "64 MiB in order, cold, 20 ms, 30 MB/s a connection"
RCLONE_STREAMS = ("--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "4M")
Opener = Callable[[Path], contextlib.AbstractContextManager[Mount]]


def run(bench: Bench) -> None:
    """Both distances."""
    source = bench.place("source")
    (source / BUCKET).mkdir()
    path = source / BUCKET / NAME
    with path.open("wb") as file:
        for number in range(FILE_BYTES // MB):
            file.write(random.Random(number).randbytes(MB))
    # to have it in the page cache, for the store that serves it too
    in_order(bench, path.parent)
    with in_memory(path.parent) as copied:
        for _ in range(ROUNDS):
            bench.note(PAGES, SMALL_PAGES, in_order(bench, copied, WARM_PASSES), "MB/s")
    for title, far in ((COLD_BOUNDED, Far(ROUND_TRIP_S, CONNECTION)), (COLD, Far(ROUND_TRIP_S))):
        with rclone_served(source, bench.place("served"), far) as port:
            with served_bucket(port, far) as exported:
                note_stream(bench, exported, title)
                measure(bench, title, path, lambda place, e=exported: lightlyfs_mount(e, place))
            measure(bench, title, path, lambda place, port=port: rclone_mount(port, place))
    short(bench)
    bench.keep_best()


def short(bench: Bench) -> None:
    """Files of 64 MiB, each cold; rclone also with sixteen streams."""
    source = bench.place("source")
    (source / BUCKET).mkdir()
    names = [f"short{number}.mp4" for number in range(SHORT_FILES)]
    for name in names:
        (source / BUCKET / name).write_bytes(random.Random(name).randbytes(SHORT_BYTES))
    with rclone_served(source, bench.place("served"), Far(ROUND_TRIP_S, SLOW_CONNECTION)) as port:
        with served_bucket(port, Far(ROUND_TRIP_S)) as exported:
            note_stream(bench, exported, SHORT)
            each(bench, lightlyfs_mount(exported, bench.place("mount")), names)
        each(bench, rclone_mount(port, bench.place("mount")), names)
        words = (*RCLONE_CACHED, *RCLONE_STREAMS)
        subject = "rclone mount, 16 streams"
        each(bench, rclone_mount(port, bench.place("mount"), words=words, subject=subject), names)


def each(bench: Bench, opened: contextlib.AbstractContextManager[Mount], names: list[str]) -> None:
    """MB/s of one reader of each file."""
    with opened as mount:
        for name in names:
            per_s = read_files(bench, mount.path, [name], file_bytes=SHORT_BYTES, passes=1, way="lean")
            bench.note(SHORT, mount.subject, per_s * SHORT_BYTES / MB, "MB/s")


def measure(bench: Bench, title: str, local: Path, opener: Opener) -> None:
    """Cold, and at the longer of the two distances all else."""
    place = bench.place("mount")
    with opener(place) as mount:
        note(bench, mount, title, lambda: in_order(bench, mount.path), "MB/s")
        if title == COLD:
            warm(bench, mount, local)
    if title != COLD:
        return
    for _ in range(ROUNDS):
        with opener(place) as mount:
            note(bench, mount, BLOCKS, lambda: in_order(bench, mount.path), "MB/s")
    with opener(bench.place("mount")) as mount:
        note(bench, mount, JUMPS_COLD, lambda: jump(mount.path / NAME, COLD_PIECES, 2), "reads/s")


def warm(bench: Bench, mount: Mount, local: Path) -> None:
    """From the page cache, in turns with the local disk."""
    beside = f"{LOCAL}, beside {mount.subject}"
    for _ in range(ROUNDS):
        bench.note(PAGES, beside, in_order(bench, local.parent, WARM_PASSES), "MB/s")
        note(bench, mount, PAGES, lambda: in_order(bench, mount.path, WARM_PASSES), "MB/s")
        bench.note(JUMPS_WARM, beside, jump(local, WARM_PIECES, 1), "reads/s")
        note(bench, mount, JUMPS_WARM, lambda: jump(mount.path / NAME, WARM_PIECES, 1), "reads/s")


def note(bench: Bench, mount: Mount, what: str, rate: Callable[[], float], unit: str) -> None:
    """A rate, and what the mount used."""
    with mount.metered() as used:
        per_s = rate()
    bench.note(what, mount.subject, per_s, unit, **used)


def in_order(bench: Bench, directory: Path, passes: int = 1) -> float:
    """MB/s of one reader."""
    per_s = read_files(bench, directory, [NAME], file_bytes=FILE_BYTES, passes=passes, way="lean")
    return per_s * FILE_BYTES / MB


def jump(path: Path, pieces: int, seed: int) -> float:
    """Reads a second of one reader."""
    seconds, total = run_script("jumper.py", path, pieces, PIECE_BYTES, seed)
    if total != pieces * PIECE_BYTES:
        raise SystemExit(f"{path}: read {total} bytes, not {pieces * PIECE_BYTES}")
    return pieces / seconds


def note_stream(bench: Bench, exported: dict[str, str], title: str) -> None:
    """A single GET of the read URL."""
    samples = f"{exported['LIGHTLY_SERVER_LOCATION']}/v1/datasets/{exported['LIGHTLY_DATASET_ID']}/samples"
    token = f"token={exported['LIGHTLY_TOKEN']}"
    sample_id = fetched(f"{samples}?{token}")[0]["id"]
    seconds, total = run_script("stream.py", fetched(f"{samples}/{sample_id}/readurl?type=full&{token}"))
    bench.note(title, STREAM, total / MB / seconds, "MB/s")


def fetched(url: str) -> Any:
    """The document at an address."""
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)
