"""Files of 100 KB that were read before: from the page cache, and from the block cache after a remount.

The remount is how the page cache of a mount is dropped. The local disk is measured just before each mount,
from its page cache. Readers do `open(path, "rb").read()`, and once the least that reading can cost. Rates
are medians of three.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from cold import FEW_FILES, FILE_BYTES, FILES, READERS, make_files, names_in_order
from harness import LOCAL, Bench, Mount, middle_of, read_files
from mounts import lightlyfs_mount, rclone_mount
from servers import BUCKET, rclone_served, served_bucket

# a pass over files in memory is over too soon to be measured
PASSES = 5
PAGES, BLOCKS = "page cache", "block cache, page cache dropped"
LEAN_PAGES = "page cache, bare system calls"
READ_WRITE, READ_ONLY = "lightlyfs", "lightlyfs ro"
Opener = Callable[[], contextlib.AbstractContextManager[Mount]]


def title(where: str, readers: int) -> str:
    """What a row is called."""
    return f"{where}, {readers} reader{'s' if readers > 1 else ''}"


def run(bench: Bench) -> None:
    """The local disk and each mount in turn; nothing is far away, for nothing is fetched."""
    source = make_files(bench, FILES)
    with rclone_served(source, bench.place("served")) as port, served_bucket(port) as exported:
        place = bench.place("lightlyfs")

        def read_only() -> contextlib.AbstractContextManager[Mount]:
            return lightlyfs_mount(exported, place, "--read-only", subject=READ_ONLY)

        def read_write() -> contextlib.AbstractContextManager[Mount]:
            return lightlyfs_mount(exported, place, subject=READ_WRITE)

        rclone_place = bench.place("rclone")
        fill(bench, read_write, FILES)
        fill(bench, lambda: rclone_mount(port, rclone_place), FEW_FILES)
        for opener in (read_only, read_write):
            from_blocks(bench, opener, FILES)
            from_pages(bench, opener, source / BUCKET, FILES)
        from_blocks(bench, lambda: rclone_mount(port, rclone_place), FEW_FILES, times=1)
        from_pages(bench, lambda: rclone_mount(port, rclone_place), None, FEW_FILES)


def fill(bench: Bench, opener: Opener, count: int) -> None:
    """Read everything once."""
    with opener() as mount:
        read_files(bench, mount.path, names_in_order(count), file_bytes=FILE_BYTES, readers=READERS)


def from_blocks(bench: Bench, opener: Opener, count: int, times: int = 3) -> None:
    """The first pass of a mount, each of another mount."""
    names = names_in_order(count)
    for readers in (1, READERS):
        found = []
        for _ in range(times):
            with opener() as mount, mount.metered(count) as used:
                per_s = read_files(bench, mount.path, names, file_bytes=FILE_BYTES, readers=readers)
            found.append((per_s, used))
        per_s, used = sorted(found, key=lambda pair: pair[0])[times // 2]
        bench.note(title(BLOCKS, readers), mount.subject, per_s, "files/s", **used)


def from_pages(bench: Bench, opener: Opener, local: Path | None, count: int) -> None:
    """Later passes of a mount, and of the local disk."""
    names = names_in_order(count)

    def rate(directory: Path, readers: int, way: str) -> float:
        return middle_of(
            lambda: read_files(
                bench, directory, names, file_bytes=FILE_BYTES, readers=readers, passes=PASSES, way=way
            )
        )

    with opener() as mount:
        read_files(bench, mount.path, names, file_bytes=FILE_BYTES)
        for readers, way in ((1, "plain"), (READERS, "plain"), (1, "lean")):
            what = title(PAGES if way == "plain" else LEAN_PAGES, readers)
            if local is not None:
                bench.note(what, f"{LOCAL}, beside {mount.subject}", rate(local, readers, way), "files/s")
            with mount.metered(count * PASSES * 3) as used:
                per_s = rate(mount.path, readers, way)
            bench.note(what, mount.subject, per_s, "files/s", **used)
