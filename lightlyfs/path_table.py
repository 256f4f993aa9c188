"""A table of what is at which path, which also knows its directories. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


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
        for above in _above(path):
            if above not in self._count:
                parent, _, name = above.rpartition("/")
                self._children.setdefault(parent, set()).add(name)
            self._count[above] = self._count.get(above, 0) + is_new
            self._newest[above] = max(self._newest.get(above, 0), time)

    def remove(self, path: str) -> bool:
        """Remove what is at a path; return whether something was."""
        if self.by_path.pop(path, None) is None:
            return False
        _remove_from(self._within, *path.rpartition("/")[::2])
        for above in _above(path):
            self._count[above] -= 1
            if not self._count[above]:
                del self._count[above], self._newest[above]
                parent, _, name = above.rpartition("/")
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


def _above(path: str) -> Iterator[str]:
    """Yield the directories above a path, without the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
