"""Inode numbers, the same on every mount because they are digests. Pure.

A sample's comes from its id, so it survives renames on the server; a directory's from its path, so it is
known without a query.
"""

from __future__ import annotations

import hashlib

ROOT_INO = 1  # what FUSE calls the root of every mount


def sample_ino(sample_id: bytes) -> int:
    """The inode number of a sample, from the 12 bytes of its id."""
    return _digest(b"s" + sample_id)


def directory_ino(path: str) -> int:
    """The inode number of a directory, from its path without a leading slash ("" is the root).

    Raises UnicodeEncodeError for a path that no sample can have because it is not UTF-8.
    """
    return _digest(b"d" + path.encode()) if path else ROOT_INO


def _digest(data: bytes) -> int:
    # 62 bits stay positive in SQLite's and the kernel's signed integers; bit 61, always set, keeps
    # clear of small numbers such as the root's
    value = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
    return (value & ((1 << 61) - 1)) | (1 << 61)
