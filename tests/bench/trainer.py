"""An epoch of a training loop: DIRECTORY NAMES_FILE SEED WORKERS BATCH IMAGES_PER_S WAY [announce].

Workers read the files of batches whole, in shuffled order, two batches ahead each, as those of a data loader
do; WAY is that of `readers`. The accelerator takes the batches in order and is busy for BATCH / IMAGES_PER_S
seconds with each. With `announce` the order is given to `lightlyfs.ahead` first. Prints the share of the time
for which the accelerator was busy, and the bytes read.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from pathlib import Path

from readers import WAYS

_AHEAD = 2


class Worker:
    """A process that reads every n-th batch, and is told by pipe when one was taken."""

    def __init__(self, directory: str, batches: list[list[str]], way: str) -> None:
        self._done, done = os.pipe()
        taken, self._taken = os.pipe()
        if os.fork() == 0:
            for number, batch in enumerate(batches):
                if number >= _AHEAD:
                    os.read(taken, 1)
                os.write(done, WAYS[way](directory, batch).to_bytes(8, "little"))
            os._exit(0)
        os.close(done)
        os.close(taken)

    def take(self) -> int:
        """Wait for its next batch; the bytes of it."""
        return int.from_bytes(os.read(self._done, 8), "little")

    def go_on(self) -> None:
        """Let it read another one."""
        try:
            os.write(self._taken, b".")
        except BrokenPipeError:
            pass  # it has read its last


def epoch(
    directory: str, names: list[str], workers: int, batch: int, per_s: float, way: str
) -> tuple[float, int]:
    """The share of the time for which the accelerator was busy, and the bytes read."""
    batches = [names[start : start + batch] for start in range(0, len(names), batch)]
    started = time.perf_counter()
    readers = [Worker(directory, batches[number::workers], way) for number in range(workers)]
    busy_s, total = 0.0, 0
    for number, names_of_batch in enumerate(batches):
        total += readers[number % workers].take()
        begun = time.perf_counter()
        readers[number % workers].go_on()
        time.sleep(begun + len(names_of_batch) / per_s - time.perf_counter())
        busy_s += len(names_of_batch) / per_s
    return busy_s / (time.perf_counter() - started), total


def order_of(names: list[str], seed: int) -> list[str]:
    """The order in which an epoch takes files."""
    return random.Random(seed).sample(names, len(names))


def main(directory: str, names_file: str, seed: int, *words: str) -> None:
    """One epoch, in an order of its own."""
    names = order_of(Path(names_file).read_text().splitlines(), seed)
    workers, batch, per_s, way, *rest = words
    with announced(directory, names) if rest else contextlib.nullcontext():
        print(*epoch(directory, names, int(workers), int(batch), float(per_s), way))


def announced(directory: str, names: list[str]) -> contextlib.AbstractContextManager[object]:
    """The order, told to the mount."""
    import lightlyfs

    return lightlyfs.ahead(f"{directory}/{name}" for name in names)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
