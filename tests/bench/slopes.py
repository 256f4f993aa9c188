"""What more samples cost: listing, disk, memory, remount, index; for `lightlyfs help scale`.

At each of SLOPES samples (in the environment, "100000 1000000" where it says nothing), in directories of
1,000, with a server near by. What a sample costs more is the difference of two sizes, by that of the others.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

from harness import MB, Bench, Mount
from mounts import lightlyfs_mount
from scale import FILE_BYTES
from servers import served
from soak import resident_mb

SIZES = [int(text) for text in os.environ.get("SLOPES", "100000 1000000").split()]
LISTED, FOUND = "mount and list", "find through all"
EXPORTED, IMPORTED = "index export", "import, mount, first file"
REMOUNTED = "remount, no network"


def run(bench: Bench) -> None:
    """Each size on its own, the smallest first."""
    for samples in sorted(SIZES):
        measure(bench, samples)


def title(samples: int, what: str) -> str:
    """What a figure is called at a size."""
    return f"{samples:,} files: {what}"


def measure(bench: Bench, samples: int) -> None:
    """One dataset, online, then offline."""

    def note(what: str, value: float, unit: str) -> None:
        bench.note(title(samples, what), "lightlyfs", value, unit)

    place = bench.place("slopes")
    words = ["--fake", str(samples), "--fake-size", str(FILE_BYTES)]
    with served(*words) as exported:
        with lightlyfs_mount(exported, place) as mount:
            note(LISTED, mount.started_s, "s")
            note("memory after the listing", resident_mb(mount.pid), "MB")
            note("catalogue on disk", disk_mb(place / "cache"), "MB")
            note(FOUND, find_s(mount), "s")
            note("memory after find", resident_mb(mount.pid), "MB")
            started = time.perf_counter()
            temporary_mb = most_temporary_mb(mount)
            note("a second listing, nothing new", time.perf_counter() - started, "s")
            note("its temporary files at most", temporary_mb, "MB")
            note("peak memory", mount.cost().peak_mb, "MB")
        index = place / "names.index"
        note(
            EXPORTED,
            index_s(exported, "export", exported["LIGHTLY_DATASET_ID"], index, place / "cache"),
            "s",
        )
        note("index file", index.stat().st_size / MB, "MB")
        worker = bench.place("worker")
        import_s = index_s(exported, "import", index, worker / "cache")
        note("index import", import_s, "s")
        started = time.perf_counter()
        with lightlyfs_mount(exported, worker, "--metadata-ttl", "infinite") as mount:
            first = mount.path / next(mount.path.iterdir()) / "0000" / "img_0000000.jpg"
            first.read_bytes()
            note(IMPORTED, import_s + time.perf_counter() - started, "s")
    with lightlyfs_mount(exported, place) as mount:
        note(REMOUNTED, mount.started_s, "s")
        note("memory after a remount", resident_mb(mount.pid), "MB")


def find_s(mount: Mount) -> float:
    """Seconds that a program takes to look at every name."""
    started = time.perf_counter()
    subprocess.run(["find", mount.path, "-size", "-1"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def most_temporary_mb(mount: Mount) -> float:
    """The most that files without a name take, in MB, while everything is listed again."""
    environ = {**os.environ, **mount.environ()}
    command = [sys.executable, "-m", "lightlyfs", "refresh", str(mount.path)]
    most = 0
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, nameless_bytes(mount.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit("the second listing failed")
    return most / MB


def nameless_bytes(pid: int) -> int:
    """What open files of a process take on disk whose names are gone, as those of temporary tables are."""
    total = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = descriptor.stat()
        except OSError:
            continue
        total += 512 * found.st_blocks if stat.S_ISREG(found.st_mode) and not found.st_nlink else 0
    return total


def index_s(exported: dict[str, str], *words: str | Path) -> float:
    """Seconds of a whole `lightlyfs index` command; the last word is the cache directory."""
    *arguments, cache = words
    command = [sys.executable, "-m", "lightlyfs", "index", *arguments, "--cache-dir", cache]
    started = time.perf_counter()
    subprocess.run(
        [str(word) for word in command], env={**os.environ, **exported}, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


def disk_mb(directory: Path) -> float:
    """What the files of a directory take on disk."""
    return sum(512 * path.stat().st_blocks for path in directory.rglob("*")) / MB
