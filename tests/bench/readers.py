"""Reads files whole, in order: DIRECTORY NAMES_FILE PROCESSES PASSES [direct]; prints seconds and bytes.

Process i of n takes every n-th name, as the workers of a data loader do.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def read_all(directory: str, names: list[str], open_file: Callable[[str], int]) -> int:
    """Read each file to its end; how many bytes they had."""
    buffer = bytearray(_CHUNK_BYTES)
    total = 0
    for name in names:
        descriptor = open_file(f"{directory}/{name}")
        while count := os.readv(descriptor, [buffer]):
            total += count
        os.close(descriptor)
    return total


def open_plainly(path: str) -> int:
    """The descriptor of a file."""
    return os.open(path, os.O_RDONLY)


def open_directly(path: str) -> int:
    """That of the cached file of a sample."""
    from lightlyfs.cached import open_cached

    with open_cached(path) as file:
        return os.dup(file.fileno())


def main(directory: str, names_file: str, processes: int, passes: int, how: str = "") -> None:
    """Fork, read, add up."""
    open_file = open_directly if how else open_plainly
    names = Path(names_file).read_text().splitlines()
    started = time.perf_counter()
    results = []
    for number in range(processes):
        receiver, sender = os.pipe()
        if os.fork() == 0:
            total = read_all(directory, names[number::processes] * passes, open_file)
            os.write(sender, str(total).encode())
            os._exit(0)
        os.close(sender)
        results.append(receiver)
    total = sum(int(os.read(receiver, 32)) for receiver in results)
    print(time.perf_counter() - started, total)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
