"""What the tree of a mount is made of: the inode numbers of what is in it, and tables of what is where. Pure.

Inode numbers are the same on every mount because they are digests: a sample's comes from its id, so it
survives renames on the server; a directory's from its path, so it is known without a query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

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


class PathTable(Generic[T]):
    """Values by path, in each directory, and the directories that exist because of them; its user guards it.

    Single reads by path are atomic, so that they need no guard.
    """

    def __init__(self) -> None:
        self.by_path: dict[str, T] = {}
        self._within: dict[str, dict[str, T]] = {}
        # of each directory: how many values are below it, the time of the newest, the directories in it
        self._count: dict[str, int] = {}
        self._newest: dict[str, int] = {}
        self._children: dict[str, set[str]] = {}

    def put(self, path: str, value: T, time: int = 0) -> None:
        """Put a value at a path, in place of one that is there."""
        is_new = path not in self.by_path
        directory, _, name = path.rpartition("/")
        self.by_path[path] = self._within.setdefault(directory, {})[name] = value
        for directory in above(path):
            if directory not in self._count:
                parent, _, name = directory.rpartition("/")
                self._children.setdefault(parent, set()).add(name)
            self._count[directory] = self._count.get(directory, 0) + is_new
            self._newest[directory] = max(self._newest.get(directory, 0), time)

    def remove(self, path: str) -> bool:
        """Remove what is at a path; return whether something was."""
        if self.by_path.pop(path, None) is None:
            return False
        _remove_from(self._within, *path.rpartition("/")[::2])
        for directory in above(path):
            self._count[directory] -= 1
            if not self._count[directory]:
                del self._count[directory], self._newest[directory]
                parent, _, name = directory.rpartition("/")
                self._children[parent].discard(name)
                if not self._children[parent]:
                    del self._children[parent]
        return True

    def within(self, directory: str) -> list[T]:
        """Return the values directly in a directory."""
        return list(self._within.get(directory, {}).values())

    def has_directory(self, path: str) -> bool:
        """Return whether a value is below a path."""
        return path in self._count

    def directories_within(self, directory: str) -> set[str]:
        """Return the names of the directories directly in a directory."""
        return set(self._children.get(directory, ()))

    def newest(self, directory: str) -> int:
        """Return the time of the newest value below a directory since it has any; 0 where it has none."""
        return self._newest.get(directory, 0)


def _remove_from(table: dict[str, dict[str, T]], directory: str, name: str) -> None:
    del table[directory][name]
    if not table[directory]:
        del table[directory]


def above(path: str) -> Iterator[str]:
    """Yield the directories above a path, the nearest first, without the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
