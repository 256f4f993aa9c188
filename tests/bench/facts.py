"""The CPU of image facts: `python tests/bench/facts.py [IMAGE...]`, ms for each image.

Without images of your own it takes two JPEGs that it makes: 640x480 of some 158 KB, and 12 megapixels.
`pool` is what the process of a pool takes, which is what a mount does, `alone` the same computation in this
process, which keeps no memory of one image for the next, and `start` what a process takes before it can
answer. The median counts; the least is what a machine with nothing else to do comes near.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from lightlyfs.staging.facts_process import FactsPool
from lightlyfs.staging.image_facts import facts_of

SECONDS = 3.0
MIN_RUNS = 5


def main() -> None:
    """Measure and print."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    given = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="lightlyfs-bench-") as directory:
        images = given.images or [
            picture(Path(directory) / "640x480.jpg", (640, 480), 94),
            picture(Path(directory) / "12mp.jpg", (4000, 3000), 80),
        ]
        print(f"{'':24}{'KB':>8}{'runs':>8}{'median':>10}{'least':>10}  ms of CPU")
        for path in images:
            facts_of(path)
            show(path, "alone", cpu_of(lambda path=path: facts_of(path), time.process_time))  # type: ignore[misc]
            show(path, "pool", cpu_of_pool(path))
    started = [cpu_of_start() for _ in range(MIN_RUNS)]
    print(f"start: {statistics.median(started) * 1e3:.0f} ms of CPU")


def picture(path: Path, size: tuple[int, int], quality: int) -> Path:
    """A JPEG of soft colours with a sensor's noise over them, the same wherever it is made."""
    noise = random.Random(1)
    width, height = size
    few = (width // 16, height // 16)
    soft = Image.frombytes("RGB", few, noise.randbytes(few[0] * few[1] * 3))
    grain = Image.frombytes("RGB", size, noise.randbytes(width * height * 3))
    Image.blend(soft.resize(size, Image.Resampling.BICUBIC), grain, 0.12).save(path, quality=quality)
    return path


def cpu_of(work: Callable[[], object], clock: Callable[[], float]) -> list[float]:
    """The CPU seconds of some runs."""
    taken: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(taken) < MIN_RUNS or time.perf_counter() < until:
        before = clock()
        work()
        taken.append(clock() - before)
    return taken


def cpu_of_pool(path: Path) -> list[float]:
    """The same in a pool's process, by the scheduler's account of it."""
    pool = FactsPool(1)
    try:
        pool.facts_of(path)
        process = pool._all[0]._process
        assert process is not None
        account = Path(f"/proc/{process.pid}/schedstat")
        return cpu_of(lambda: pool.facts_of(path), lambda: int(account.read_text().split()[0]) / 1e9)
    finally:
        pool.close()


def cpu_of_start() -> float:
    """What a process takes that is asked nothing."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "lightlyfs.staging.image_facts"], stdin=subprocess.DEVNULL, check=True
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def show(path: Path, what: str, taken: list[float]) -> None:
    """Print a line."""
    kilobytes = path.stat().st_size / 1000
    print(
        f"{path.name[:16]:16}{what:8}{kilobytes:8.0f}{len(taken):8}"
        f"{statistics.median(taken) * 1e3:10.1f}{min(taken) * 1e3:10.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
