"""Directories that are chosen by several at one moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from lightlyfs.places import SpoolPlace, is_free, spools_of

DATASET = "a" * 24


def test_those_who_begin_at_one_moment_each_get_a_directory_for_what_they_owe(tmp_path: Path) -> None:
    for _ in range(20):
        begin = Barrier(8)

        def choose(_: int, begin: Barrier = begin) -> SpoolPlace:
            begin.wait()
            return SpoolPlace(tmp_path, DATASET)

        with ThreadPoolExecutor(8) as pool:
            chosen = list(pool.map(choose, range(8)))
        mine = [path for place in chosen for path in (place.path, *place.others)]
        assert len(mine) == len(set(mine))
        assert sorted(mine) == [path for path in spools_of(tmp_path, DATASET) if not is_free(path)]
        assert {path.is_dir() for path in mine} == {True}
        for place in chosen:
            place.close()
