"""The dataset that the tests of a tree share, and the subjects that show it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

SUBJECTS = [
    "in-process",
    pytest.param("fuse3", marks=pytest.mark.fuse),
    pytest.param("fuse2", marks=pytest.mark.fuse),
]
# and, of those who only read: a mount whose kernel opens files without telling it
READING_SUBJECTS = [*SUBJECTS, pytest.param("by-path", marks=pytest.mark.fuse)]


def content(seed: str, size: int) -> bytes:
    """Bytes that no other seed has."""
    return random.Random(seed).randbytes(size)


FILES = {
    "a.jpg": content("a", 100_000),
    "empty.png": b"",
    "one.bin": b"x",
    "big.bin": content("big", 9_500_000),
    "cars/green/frame0.png": content("f0", 3_000_000),
    "cars/green/frame1.png": content("f1", 1 << 20),
    "cars/red/é ü 汉字 %20.jpg": content("f2", 5_000),
    "cars/x.jpg": content("x", 77),
}


def fill(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files by name into a folder, which is returned."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root
