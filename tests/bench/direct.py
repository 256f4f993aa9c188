"""`lightlyfs.open_cached` beside a plain open of the same cached files of 100 KB, one reader and 8.

"Block cache" is after a remount, for that drops the mount's pages; the cached files themselves stay in
memory, as those of an epoch that fits do.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys

from harness import HERE, Bench, Mount, lightlyfs_mount, read_files, served

FILES, FILE_BYTES = 2_000, 100_000
PASSES = 5


def run(bench: Bench) -> None:
    """The local disk, then the mount both ways."""
    source = bench.place("source")
    names = [f"{number:05}.jpg" for number in range(FILES)]
    for name in names:
        (source / name).write_bytes(random.Random(name).randbytes(FILE_BYTES))
    place = bench.place("lightlyfs")
    with served(source) as exported:
        with lightlyfs_mount(exported, place) as mount:
            read_files(bench, mount.path, names, total_bytes=FILES * FILE_BYTES, readers=8)
        for readers in (1, 8):
            local = (
                FILES
                * PASSES
                / read_files(
                    bench, source, names, total_bytes=FILES * FILE_BYTES, readers=readers, passes=PASSES
                )
            )
            bench.note(title("local disk", readers), "local disk", local, "files/s")
            for how in ("open, block cache", "open, page cache", "open_cached"):
                with lightlyfs_mount(exported, place) as mount:
                    if how == "open, page cache":
                        read_files(bench, mount.path, names, total_bytes=FILES * FILE_BYTES)
                    note(bench, mount, how, names, readers, local)


def note(bench: Bench, mount: Mount, how: str, names: list[str], readers: int, local: float) -> None:
    """Read, and keep files/s beside what the mount used."""
    passes = 1 if how == "open, block cache" else PASSES
    total = FILES * FILE_BYTES
    with mount.metered() as used:
        if how == "open_cached":
            seconds = read_directly(bench, mount, names, readers, passes)
        else:
            seconds = read_files(bench, mount.path, names, total_bytes=total, readers=readers, passes=passes)
    per_s = FILES * passes / seconds
    bench.note(
        title(how, readers),
        mount.subject,
        per_s,
        "files/s",
        ratio=per_s / local,
        against="local disk",
        **used,
    )


def read_directly(bench: Bench, mount: Mount, names: list[str], readers: int, passes: int) -> float:
    """Seconds in which forked readers read these files by `open_cached`."""
    listed = bench.directory / "names"
    listed.write_text("\n".join(names))
    words = [sys.executable, HERE / "readers.py", mount.path, listed, str(readers), str(passes), "direct"]
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(mount.path.parent / "run")}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=True, env=environ
    )
    seconds, total = done.stdout.split()
    if int(total) != FILES * FILE_BYTES * passes:
        raise SystemExit(f"read {total} bytes")
    return float(seconds)


def title(how: str, readers: int) -> str:
    """What a row is called."""
    return f"100 KB files, {how}, {readers} reader{'s' if readers > 1 else ''}"
