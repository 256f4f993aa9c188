"""Files of 100 KB: cold, from the page cache, from the block cache; beside the local disk and rclone mount.

Both mounts read from one S3 server, over a round trip of 20 ms; ours asks the API over another one. "Block
cache" is after a remount, for that drops the page cache.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
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
# what takes a round trip a file takes long: so many files are enough to see how long
FEW_FILES = 400
READERS = 8
# a pass over files in memory is over too soon to be measured
WARM_PASSES = 5
Against = tuple[float, str]
Opener = Callable[[], contextlib.AbstractContextManager[Mount]]


def run(bench: Bench) -> None:
    """The local disk, then each mount, cold and warm."""
    source = bench.place("source")
    folder = source / "bucket"
    folder.mkdir()
    for number in range(FILES):
        (folder / name_of(number)).write_bytes(random.Random(number).randbytes(FILE_BYTES))
    local: dict[int, Against] = {}
    for readers in (1, READERS):
        per_s = read(bench, folder, FILES, readers, WARM_PASSES)
        bench.note(title("page cache", readers), "local disk", per_s, "files/s")
        local[readers] = (per_s, "local disk")
    with rclone_served(source, bench.place("served"), ROUND_TRIP_S) as port:
        cold = measure_lightlyfs(bench, port, local)
        measure_rclone(bench, port, local, cold)


def measure_lightlyfs(bench: Bench, port: int, local: dict[int, Against]) -> dict[int, Against]:
    """All reads of ours; the cold ones, as what to compare others with."""
    place = bench.place("lightlyfs")
    with served_bucket("bucket", port, ROUND_TRIP_S) as exported:

        def opener() -> contextlib.AbstractContextManager[Mount]:
            return lightlyfs_mount(exported, place)

        cold = measure_cold(bench, place, opener, {})
        measure_warm(bench, opener, local, FILES)

        def read_only() -> contextlib.AbstractContextManager[Mount]:
            return lightlyfs_mount(exported, place, "--read-only", subject="lightlyfs ro")

        measure_warm(bench, read_only, local, FILES)
    return {readers: (per_s, "lightlyfs") for readers, per_s in cold.items()}


def measure_rclone(bench: Bench, port: int, local: dict[int, Against], cold: dict[int, Against]) -> None:
    """The same of rclone."""
    place = bench.place("rclone")

    def opener() -> contextlib.AbstractContextManager[Mount]:
        return rclone_mount(port, "bucket", place)

    measure_cold(bench, place, opener, cold)
    measure_warm(bench, opener, local, FEW_FILES)


def measure_cold(bench: Bench, place: Path, opener: Opener, against: dict[int, Against]) -> dict[int, float]:
    """Files that are nowhere yet; files/s by number of readers."""
    found = {}
    for readers, files in ((1, FEW_FILES), (READERS, FILES)):
        shutil.rmtree(place / "cache", ignore_errors=True)
        with opener() as mount:
            what = title("cold, 20 ms", readers)
            found[readers] = note(bench, mount, what, files, readers, against.get(readers))
    return found


def measure_warm(bench: Bench, opener: Opener, local: dict[int, Against], files: int) -> None:
    """Files that were read before, by an earlier mount and by this one."""
    for readers in (1, READERS):
        with opener() as mount:
            note(bench, mount, title("block cache", readers), files, readers, local[readers])
            what = title("page cache", readers)
            note(bench, mount, what, files, readers, local[readers], WARM_PASSES)


def title(where: str, readers: int) -> str:
    """What a row is called."""
    return f"100 KB files in order, {where}, {readers} reader{'s' if readers > 1 else ''}"


def name_of(number: int) -> str:
    """The name of a file."""
    return f"{number:05}.jpg"


def note(
    bench: Bench,
    mount: Mount,
    what: str,
    files: int,
    readers: int,
    against: Against | None,
    passes: int = 1,
) -> float:
    """Read, and keep files/s beside what the mount used."""
    with mount.metered() as used:
        per_s = read(bench, mount.path, files, readers, passes)
    more = {} if against is None else {"ratio": per_s / against[0], "against": against[1]}
    bench.note(what, mount.subject, per_s, "files/s", **used, **more)
    return per_s


def read(bench: Bench, directory: Path, files: int, readers: int, passes: int) -> float:
    """Files a second."""
    names = [name_of(number) for number in range(files)]
    total = files * FILE_BYTES
    return (
        files
        * passes
        / read_files(bench, directory, names, total_bytes=total, readers=readers, passes=passes)
    )
