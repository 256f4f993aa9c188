"""Ten minutes of random reads, `ls -l` and `stat` on 100,000 samples: does the memory of the mount stay flat?

The cache is so small that blocks are dropped all the time. Memory is sampled each second; the medians of the
first and the last third are compared. SOAK_S in the environment makes it shorter.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import threading
import time
from pathlib import Path

from harness import Bench, Mount
from mounts import lightlyfs_mount
from servers import served

SECONDS = float(os.environ.get("SOAK_S", "600"))
SAMPLES, FILE_BYTES, PER_DIRECTORY = 100_000, 100_000, 1_000
THREADS = 4
CACHE = "500M"
# calls of a thread between two listings of a directory
READS_PER_LISTING = 50
FIRST_THIRD, LAST_THIRD = "resident memory, first third", "resident memory, last third"
GROWTH, WORK = "growth from the first third to the last", "reads"


def run(bench: Bench) -> None:
    """One mount, for the whole time."""
    words = ["--fake", str(SAMPLES), "--fake-size", str(FILE_BYTES), "--fake-per-dir", str(PER_DIRECTORY)]
    place = bench.place("soak")
    with served(*words) as exported, lightlyfs_mount(exported, place, "--cache-size", CACHE) as mount:
        used = Usage(mount.path)
        sampled = sample(mount, used)
        cost = mount.cost()
    for minute, number in enumerate(range(0, len(sampled), 60)):
        bench.note(
            f"resident memory, minute {minute}",
            mount.subject,
            statistics.median(sampled[number : number + 60]),
            "MB",
        )
    third = len(sampled) // 3
    first, last = statistics.median(sampled[:third]), statistics.median(sampled[-third:])
    bench.note(FIRST_THIRD, mount.subject, first, "MB")
    bench.note(LAST_THIRD, mount.subject, last, "MB", peak_mb=cost.peak_mb, cpu_s=cost.cpu_s)
    bench.note(GROWTH, mount.subject, (last / first - 1) * 100, "%")
    bench.note(WORK, mount.subject, used.reads / SECONDS, "files/s")


class Usage:
    """Threads that use a mount until they are told to stop; what one of them raises is kept."""

    def __init__(self, root: Path) -> None:
        self._root = next(root.iterdir())
        self.stopped = threading.Event()
        self.reads = 0
        self.error: BaseException | None = None
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._use, args=(seed,)) for seed in range(THREADS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and tell of what went wrong."""
        self.stopped.set()
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise SystemExit(f"a program failed: {self.error}")

    def _use(self, seed: int) -> None:
        chance = random.Random(seed)
        try:
            while not self.stopped.is_set():
                self._round(chance)
        except BaseException as error:
            self.error = error

    def _round(self, chance: random.Random) -> None:
        for _ in range(READS_PER_LISTING):
            path = self._path(chance)
            data = path.read_bytes()
            if len(data) != FILE_BYTES:
                raise OSError(f"{path} has {len(data)} bytes")
            os.stat(self._path(chance))
        with self._lock:
            self.reads += READS_PER_LISTING
        listed = self._path(chance).parent
        subprocess.run(["ls", "-l", listed], stdout=subprocess.DEVNULL, check=True)

    def _path(self, chance: random.Random) -> Path:
        number = chance.randrange(SAMPLES)
        return self._root / f"{number // PER_DIRECTORY:04}" / f"img_{number:07}.jpg"


def sample(mount: Mount, used: Usage) -> list[float]:
    """Resident memory in MB, each second."""
    sampled = []
    used.start()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and used.error is None:
        time.sleep(1)
        sampled.append(resident_mb(mount.pid))
    used.stop()
    return sampled


def resident_mb(pid: int) -> float:
    """Memory of a process now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
