"""2,000 files of 100 KB in a shuffled order by 8 readers, 20 ms away, beside rclone mount.

"URLs known" is after a remount whose cache lost the contents but not the URLs.
"""

from __future__ import annotations

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

FILES, FILE_BYTES = 2_000, 100_000
READERS = 8


def run(bench: Bench) -> None:
    """Both mounts of one bucket."""
    source = bench.place("source")
    folder = source / "bucket"
    folder.mkdir()
    names = [f"{number:05}.jpg" for number in range(FILES)]
    for name in names:
        (folder / name).write_bytes(random.Random(name).randbytes(FILE_BYTES))
    random.Random(0).shuffle(names)
    with rclone_served(source, bench.place("served"), ROUND_TRIP_S) as port:
        with rclone_mount(port, "bucket", bench.place("rclone")) as mount:
            peer = note(bench, mount, "URLs not needed", names)
        place = bench.place("lightlyfs")
        with served_bucket("bucket", port, ROUND_TRIP_S) as exported:
            with lightlyfs_mount(exported, place) as mount:
                note(bench, mount, "URLs unknown", names, peer)
            lose_contents(place, bench.place("lost"))
            with lightlyfs_mount(exported, place) as mount:
                note(bench, mount, "URLs known", names, peer)


def lose_contents(place: Path, elsewhere: Path) -> None:
    """Take the blocks out of a cache, but not the URLs.

    Moved, not deleted: ext4 looks at every inode that was freed in the last minutes before it makes a file.
    """
    for number, blocks in enumerate(place.rglob("blocks*")):
        blocks.rename(elsewhere / str(number))


def note(bench: Bench, mount: Mount, what: str, names: list[str], peer: float | None = None) -> float:
    """Read all files once, and keep files/s beside what the mount used."""
    with mount.metered() as used:
        seconds = read_files(bench, mount.path, names, total_bytes=FILES * FILE_BYTES, readers=READERS)
    per_s = FILES / seconds
    more = {} if peer is None else {"ratio": per_s / peer, "against": "rclone"}
    bench.note(f"cold, shuffled, 8 readers, 20 ms, {what}", mount.subject, per_s, "files/s", **used, **more)
    return per_s
