"""Inode numbers, the same on every mount because they are digests. Pure.

A sample's comes from its id, so it survives renames on the server; a directory's from its path, so it is
known without a query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

ROOT_INO = 1  # what FUSE calls the root of every mount


def sample_ino(sample_id: bytes) -> int:
    """Return the inode number of a sample, from the 12 bytes of its id."""
    return _digest(b"s" + sample_id)


def local_ino(key: str) -> int:
    """Return the inode number of a file that the server does not have yet, from its key."""
    return _digest(b"l" + key.encode())


def view_ino(path: str) -> int:
    """Return the inode number of what the mount itself shows at a path."""
    return _digest(b"v" + path.encode("utf-8", "surrogateescape"))


def directory_ino(path: str) -> int:
    """Return the inode number of a directory, from its path without a leading slash ("" is the root).

    Raises UnicodeEncodeError for a path that no sample can have because it is not UTF-8.
    """
    return _digest(b"d" + path.encode()) if path else ROOT_INO


def directory_inos(components: Iterable[str]) -> list[int]:
    """Return the inode numbers of the directories `a`, `a/b`, `a/b/c`, ... that lead to the last component.

    In time linear in the length of the path, however deep it is.
    """
    digest = hashlib.blake2b(b"d", digest_size=8)
    inos: list[int] = []
    for component in components:
        digest.update(f"/{component}".encode() if inos else component.encode())
        inos.append(_number(digest.digest()))
    return inos


def _digest(data: bytes) -> int:
    return _number(hashlib.blake2b(data, digest_size=8).digest())


def _number(digest: bytes) -> int:
    # 62 bits stay positive in SQLite's and the kernel's signed integers; bit 61, always set, keeps
    # clear of small numbers such as the root's
    return (int.from_bytes(digest, "big") & ((1 << 61) - 1)) | (1 << 61)
