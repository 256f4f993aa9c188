"""Reads pieces of one file at random places: FILE PIECES PIECE_BYTES SEED; prints seconds and bytes."""

from __future__ import annotations

import os
import random
import sys
import time


def main(path: str, pieces: int, piece_bytes: int, seed: int) -> None:
    """Each place is a multiple of the piece, and none comes twice."""
    descriptor = os.open(path, os.O_RDONLY)
    places = random.Random(seed).sample(range(os.fstat(descriptor).st_size // piece_bytes), pieces)
    started = time.perf_counter()
    total = 0
    for place in places:
        missing = piece_bytes
        while missing and (data := os.pread(descriptor, missing, (place + 1) * piece_bytes - missing)):
            missing -= len(data)
            total += len(data)
    print(time.perf_counter() - started, total)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
