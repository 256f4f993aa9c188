"""Files of 100 KB that were read before: from the page cache, and from the block cache after a remount.

The remount is how the page cache of a mount is dropped. The local disk is measured in turns with each mount,
from its page cache. Readers do bare system calls there, to compare mounts and not Python; once they use its
`open()`, which asks any FUSE mount whether the file is a terminal. Linux keeps pages of FUSE in pieces of
4 KiB, where a disk's come in large ones: tmpfs, which has the small ones too, shows what they cost. The best
of a few rates counts.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

from cold import FEW_FILES, FILE_BYTES, FILES, READERS
from harness import LOCAL, SMALL_PAGES, Bench, Mount, in_memory, read_files
from mounts import lightlyfs_mount, rclone_mount
from servers import BUCKET, rclone_served, served_bucket

# a pass over files in memory is over too soon to be measured
PASSES = 5
ROUNDS = 4
PAGES, BLOCKS = "page cache", "block cache, page cache dropped"
OPENED_PAGES = "page cache, Python's open()"
OPEN_CACHED = "open_cached"
READ_WRITE, READ_ONLY = "lightlyfs", "lightlyfs ro"
Opener = Callable[[], contextlib.AbstractContextManager[Mount]]


def title(where: str, readers: int) -> str:
    """What a row is called."""
    return f"{where}, {readers} reader{'s' if readers > 1 else ''}"


def make_files(bench: Bench, count: int) -> Path:
    """A folder with one bucket in it."""
    source = bench.place("source")
    (source / BUCKET).mkdir()
    for number, name in enumerate(names_in_order(count)):
        (source / BUCKET / name).write_bytes(random.Random(number).randbytes(FILE_BYTES))
    return source


def names_in_order(count: int) -> list[str]:
    """The first names."""
    return [f"{number:05}.jpg" for number in range(count)]


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
        past_the_mount(bench, read_write)
        note_small_pages(bench, source / BUCKET)
        from_blocks(bench, lambda: rclone_mount(port, rclone_place), FEW_FILES, times=1)
        from_pages(bench, lambda: rclone_mount(port, rclone_place), None, FEW_FILES)
    bench.keep_best()


def note_small_pages(bench: Bench, folder: Path) -> None:
    """The same files from memory in pieces of 4 KiB."""
    with in_memory(folder) as copied:
        for _ in range(ROUNDS):
            per_s = read_pages(bench, copied, names_in_order(FILES), 1, "lean")
            bench.note(title(PAGES, 1), SMALL_PAGES, per_s, "files/s")


def fill(bench: Bench, opener: Opener, count: int) -> None:
    """Read everything once."""
    with opener() as mount:
        read_files(bench, mount.path, names_in_order(count), file_bytes=FILE_BYTES, readers=READERS)


def from_blocks(bench: Bench, opener: Opener, count: int, times: int = ROUNDS) -> None:
    """The first pass of a mount, each of another mount."""
    names = names_in_order(count)
    for readers in [1, READERS] * times:
        with opener() as mount, mount.metered(count) as used:
            per_s = read_files(bench, mount.path, names, file_bytes=FILE_BYTES, readers=readers, way="lean")
        bench.note(title(BLOCKS, readers), mount.subject, per_s, "files/s", **used)


def from_pages(bench: Bench, opener: Opener, local: Path | None, count: int) -> None:
    """Later passes of a mount, and of the local disk."""
    names = names_in_order(count)
    with opener() as mount:
        read_files(bench, mount.path, names, file_bytes=FILE_BYTES)
        for readers, way in ((1, "lean"), (READERS, "lean"), (1, "plain")):
            what = title(PAGES if way == "lean" else OPENED_PAGES, readers)
            for _ in range(ROUNDS):
                if local is not None:
                    per_s = read_pages(bench, local, names, readers, way)
                    bench.note(what, f"{LOCAL}, beside {mount.subject}", per_s, "files/s")
                with mount.metered(count * PASSES) as used:
                    per_s = read_pages(bench, mount.path, names, readers, way)
                bench.note(what, mount.subject, per_s, "files/s", **used)


def past_the_mount(bench: Bench, opener: Opener) -> None:
    """The cached files themselves, which `lightlyfs.open_cached` gives; passes as from the page cache."""
    names = names_in_order(FILES)
    for readers in (1, READERS):
        with opener() as mount, mount.metered(FILES * PASSES) as used:
            per_s = read_files(
                bench,
                mount.path,
                names,
                file_bytes=FILE_BYTES,
                readers=readers,
                passes=PASSES,
                way="cached",
                environ=mount.environ(),
            )
        bench.note(title(OPEN_CACHED, readers), mount.subject, per_s, "files/s", **used)


def read_pages(bench: Bench, directory: Path, names: list[str], readers: int, way: str) -> float:
    """Files a second, over several passes."""
    return read_files(bench, directory, names, file_bytes=FILE_BYTES, readers=readers, passes=PASSES, way=way)
