"""Reads files whole, in order: DIRECTORY NAMES_FILE PROCESSES PASSES WAY; prints seconds and bytes.

Process i of n takes every n-th name, as the workers of a data loader do. WAY is `plain`, which is
`open(path, "rb").read()`, `lean`, bare system calls into one buffer, the least that reading costs, `cached`,
the same by `lightlyfs.open_cached`, or `decoded`, plain with the image decoded by Pillow.
"""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def read_plain(directory: str, names: list[str]) -> int:
    """Read each file as programs do; how many bytes they had."""
    total = 0
    for name in names:
        with open(f"{directory}/{name}", "rb") as file:
            total += len(file.read())
    return total


def read_lean(directory: str, names: list[str]) -> int:
    """Read each file to its end into the same memory; how many bytes they had."""
    buffer = bytearray(_CHUNK_BYTES)
    total = 0
    for name in names:
        descriptor = os.open(f"{directory}/{name}", os.O_RDONLY)
        while count := os.readv(descriptor, [buffer]):
            total += count
        os.close(descriptor)
    return total


def read_cached(directory: str, names: list[str]) -> int:
    """Read the cached file of each sample, past the mount; how many bytes they had."""
    from lightlyfs import open_cached

    buffer = bytearray(_CHUNK_BYTES)
    total = 0
    for name in names:
        with open_cached(f"{directory}/{name}") as file:
            while count := os.readv(file.fileno(), [buffer]):
                total += count
    return total


def read_decoded(directory: str, names: list[str]) -> int:
    """Read and decode each image; how many bytes the files had."""
    from PIL import Image

    total = 0
    for name in names:
        with open(f"{directory}/{name}", "rb") as file:
            data = file.read()
        Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224))
        total += len(data)
    return total


WAYS = {"plain": read_plain, "lean": read_lean, "cached": read_cached, "decoded": read_decoded}


def main(directory: str, names_file: str, processes: int, passes: int, way: str) -> None:
    """Fork, read, add up."""
    names = Path(names_file).read_text().splitlines()
    started = time.perf_counter()
    results = []
    for number in range(processes):
        receiver, sender = os.pipe()
        if os.fork() == 0:
            total = WAYS[way](directory, names[number::processes] * passes)
            os.write(sender, str(total).encode())
            os._exit(0)
        os.close(sender)
        results.append(receiver)
    total = sum(int(os.read(receiver, 32)) for receiver in results)
    print(time.perf_counter() - started, total)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
