"""One file of 500 MB from its first to its last byte: cold, from the page cache and from the block cache.

Both mounts read from one S3 server, with and without a round trip of 20 ms. "Block cache" is after a
remount, for that drops the page cache.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from harness import (
    ROUND_TRIP_S,
    Bench,
    Mount,
    lightlyfs_mount,
    rclone_mount,
    rclone_served,
    read_files,
    served_bucket,
)

FILE_BYTES = 500_000_000
NAME = "video.mp4"
MB = 1_000_000


def run(bench: Bench) -> None:
    """The local disk, then each mount."""
    source = bench.place("source")
    folder = source / "bucket"
    folder.mkdir()
    with (folder / NAME).open("wb") as file:
        for number in range(FILE_BYTES // MB):
            file.write(random.Random(number).randbytes(MB))
    drop_pages(folder / NAME)
    bench.note("500 MB, cold", "local disk", read(bench, folder), "MB/s")
    local = read(bench, folder)
    bench.note("500 MB, page cache", "local disk", local, "MB/s")
    ours: dict[str, float] = {}
    for delay_s in (0.0, ROUND_TRIP_S):
        what = f"500 MB, cold{', 20 ms' if delay_s else ''}"
        with rclone_served(source, bench.place("served"), delay_s) as port:
            place = bench.place("lightlyfs")
            with served_bucket("bucket", port, delay_s) as exported:
                with lightlyfs_mount(exported, place) as mount:
                    ours[what] = note(bench, mount, what)
                    note(bench, mount, "500 MB, page cache", (local, "local disk"))
                with lightlyfs_mount(exported, place) as mount:
                    note(bench, mount, "500 MB, block cache", (local, "local disk"))
            place = bench.place("rclone")
            with rclone_mount(port, "bucket", place) as mount:
                note(bench, mount, what, (ours[what], "lightlyfs"))
                note(bench, mount, "500 MB, page cache", (local, "local disk"))
            with rclone_mount(port, "bucket", place) as mount:
                note(bench, mount, "500 MB, block cache", (local, "local disk"))


def note(bench: Bench, mount: Mount, what: str, against: tuple[float, str] | None = None) -> float:
    """Read, and keep MB/s beside what the mount used."""
    with mount.metered() as used:
        per_s = read(bench, mount.path)
    more = {} if against is None else {"ratio": per_s / against[0], "against": against[1]}
    bench.note(what, mount.subject, per_s, "MB/s", **used, **more)
    return per_s


def read(bench: Bench, directory: Path) -> float:
    """MB/s of one reader."""
    seconds = read_files(bench, directory, [NAME], total_bytes=FILE_BYTES)
    return FILE_BYTES / MB / seconds


def drop_pages(path: Path) -> None:
    """Make the kernel forget a file on the local disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
