"""Tracks the directories that exist because a file is in them or below. Pure."""

from __future__ import annotations

from collections.abc import Iterator


class Occupied:
    """Counts the files below each directory, and knows the newest of them; its user guards it."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._newest: dict[str, int] = {}
        self._children: dict[str, set[str]] = {}

    def __contains__(self, directory: str) -> bool:
        return directory in self._count

    def add(self, path: str, time: int = 0) -> None:
        """Note that a file is at a path now."""
        for directory in _above(path):
            if directory not in self._count:
                parent, _, name = directory.rpartition("/")
                self._children.setdefault(parent, set()).add(name)
            self._count[directory] = self._count.get(directory, 0) + 1
            self._newest[directory] = max(self._newest.get(directory, 0), time)

    def remove(self, path: str) -> None:
        """Note that a file is no longer there."""
        for directory in _above(path):
            self._count[directory] -= 1
            if not self._count[directory]:
                del self._count[directory], self._newest[directory]
                parent, _, name = directory.rpartition("/")
                self._children[parent].discard(name)
                if not self._children[parent]:
                    del self._children[parent]

    def newest(self, directory: str) -> int:
        """Return the time of the newest file below a directory since it has any; 0 where it has none."""
        return self._newest.get(directory, 0)

    def within(self, directory: str) -> set[str]:
        """Return the names of the directories directly in a directory."""
        return set(self._children.get(directory, ()))


def _above(path: str) -> Iterator[str]:
    """Yield the directories above a path, without the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
