"""How the files of a dataset are shared out among workers; pure, and the same on every machine.

paths = fs.find("my-dataset", on_error="raise")
for part in by_directory(paths, most=256):
    ...  # one task
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby, pairwise


def by_directory(paths: Iterable[str], *, most: int = 256) -> list[list[str]]:
    """Each directory's files as partitions of at most `most`, in order.

    A partition never spans directories, so that one reader goes through it in order and the next files are
    fetched before it asks. The parts of a large directory differ by one file at most.
    """
    if most < 1:
        raise ValueError(f"a partition holds at least one file, not {most}")
    found = []
    in_order = sorted(set(paths), key=lambda path: (_directory(path), path))
    for _, group in groupby(in_order, key=_directory):
        found += _evenly(list(group), most)
    return found


def by_tag(members: Mapping[str, Iterable[str]], *, most: int = 256) -> list[list[str]]:
    """What each tag holds as partitions of at most `most` files, tags in the order given.

    A file that several tags hold is in the first of them alone, so that nothing counts twice.
    """
    seen: set[str] = set()
    found = []
    for paths in members.values():
        mine = set(paths) - seen
        seen |= mine
        found += by_directory(mine, most=most)
    return found


def _directory(path: str) -> str:
    return path.rpartition("/")[0]


def _evenly(paths: list[str], most: int) -> list[list[str]]:
    count = -(-len(paths) // most)
    bounds = [len(paths) * number // count for number in range(count + 1)]
    return [paths[start:end] for start, end in pairwise(bounds)]
