"""How much the cache may keep: by its budget, by the disk, and what goes when that is too much."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightlyfs.cache.block_files import CacheConfig, Room, bytes_beside, default_budget
from lightlyfs.cache.block_index import BlockIndex
from lightlyfs.locks import SharedLocks

MIB = 1 << 20


class Bench:
    """A room over an index that is real, and contents and a disk that are not."""

    def __init__(
        self,
        directory: Path,
        budget: int = 1000,
        *,
        min_free_bytes: int | None = 0,
        free: int = 1 << 40,
        total: int = 1 << 40,
        frame: int = 1,
        beside: Callable[[], int] = lambda: 0,
    ) -> None:
        self.free, self.total, self.frame = free, total, frame
        self.index = BlockIndex(directory / "blocks.db")
        self.removed: list[str] = []
        self.stuck: set[str] = set()  # contents that cannot be deleted
        self.errors: list[Exception] = []
        self.looks = 0
        self.room = Room(
            directory,
            CacheConfig(budget, min_free_bytes),
            self.index,
            SharedLocks.unshared(),
            self.remove,
            statvfs=self.statvfs,
            beside=beside,
            on_error=self.errors.append,
        )

    def statvfs(self, _path: Path) -> Any:
        self.looks += 1
        if self.free < 0:
            raise OSError(5, "Input/output error")
        return SimpleNamespace(f_frsize=self.frame, f_blocks=self.total, f_bavail=self.free)

    def remove(self, key: str) -> bool:
        if key in self.stuck:
            return False
        self.removed.append(key)
        self.index.remove(key)
        return True

    def add(self, *keys: str, length: int = 100) -> None:
        for key in keys:
            self.index.add(key, 0, 1, length)


@pytest.mark.parametrize("frame", [1, 4096])
def test_the_disk_keeps_a_share_of_itself(tmp_path: Path, frame: int) -> None:
    """A tenth of 10,000 stays free; what is kept already counts as free for us."""
    bench = Bench(tmp_path, 1 << 40, min_free_bytes=None, free=1_500, total=10_000, frame=frame)
    assert bench.room.limit == 500 * frame
    bench.add("a", length=300 * frame)
    bench.room.look()
    assert bench.room.limit == 800 * frame
    bench.free = 600
    bench.room.look()
    assert bench.room.limit == 0
    bench.free = 20_000
    bench.room.look()
    assert bench.room.limit == 19_300 * frame


@pytest.mark.parametrize(
    ("total", "free", "limit"),
    [(40, 30, 26), (40, 4, 0), (100, 12, 7), (1000, 30, 25), (10_000, 30, 25), (10_000, 5, 0)],
)
def test_of_a_large_disk_5_gib_stay_free(tmp_path: Path, total: int, free: int, limit: int) -> None:
    """A disk of 10 TiB with 30 GiB free is full by its share, and has room for a cache."""
    gib, frame = 1 << 30, 4096
    bench = Bench(
        tmp_path,
        1 << 50,
        min_free_bytes=None,
        free=free * gib // frame,
        total=total * gib // frame,
        frame=frame,
    )
    assert bench.room.limit == limit * gib


def test_what_stays_free_can_be_chosen(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1 << 40, min_free_bytes=200, free=1_500, total=10_000)
    assert bench.room.limit == 1_300


def test_a_disk_that_cannot_be_looked_at_changes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.free = -1
    bench.room.look()
    assert bench.room.limit == 1000
    assert len(bench.errors) == 1


def test_what_is_beside_takes_at_most_three_quarters_of_the_budget(tmp_path: Path) -> None:
    beside = [300]
    bench = Bench(tmp_path, beside=lambda: beside[0])
    assert bench.room.limit == 700
    beside[0] = 760
    bench.room.look()
    assert bench.room.limit == 250


def test_the_disk_is_looked_at_every_8_mib(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 100 * MIB)
    looks = bench.looks
    for _ in range(8):
        assert bench.room.may_grow(MIB)
    assert bench.looks == looks
    assert bench.room.may_grow(1)
    assert bench.looks == looks + 1
    for _ in range(8):
        bench.room.may_grow(MIB)
    assert bench.looks == looks + 1
    bench.room.may_grow(MIB)
    assert bench.looks == looks + 2


def test_a_block_larger_than_the_limit_is_not_written(tmp_path: Path) -> None:
    room = Bench(tmp_path).room
    assert room.may_grow(1000)
    assert not room.may_grow(1001)


def test_a_content_is_kept_whole_up_to_half_of_the_limit(tmp_path: Path) -> None:
    room = Bench(tmp_path).room
    assert room.holds(500)
    assert not room.holds(501)
    assert (room.ahead_bytes, room.epoch_bytes) == (250, 800)


@pytest.mark.parametrize("frame", [1, 4096])
def test_a_disk_without_8_mib_is_full(tmp_path: Path, frame: int) -> None:
    bench = Bench(tmp_path, frame=frame)
    bench.free = 8 * MIB // frame
    assert not bench.room.is_disk_full()
    bench.free -= 1
    assert bench.room.is_disk_full()


def test_nothing_goes_while_all_fits(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.add(*"abcdefghij")
    bench.room.make("", [])
    assert not bench.room.is_over
    assert bench.removed == []


def test_the_least_recently_used_go_until_a_tenth_is_free(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.add(*"abcdefghijk")
    bench.index.note_use(["b", "a"])
    assert bench.room.is_over
    bench.room.make("", [])
    assert bench.removed == ["c", "d"]
    assert bench.index.bytes == 900
    assert bench.room.evicted == 2
    bench.add("l", "m")
    bench.room.make("", [])
    assert bench.removed == ["c", "d", "e", "f"]
    assert bench.room.evicted == 4


def test_what_is_in_use_goes_last_and_what_is_written_at_the_very_last(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 250)
    bench.add(*"abcde")
    bench.room.make("a", ["a", "b", "c"])
    assert bench.removed == ["d", "e", "b"]
    assert bench.index.bytes == 200
    bench.index.remove("c")
    bench.add("a", length=300)
    bench.room.make("a", ["a"])
    assert bench.removed[3:] == ["a"]


def test_a_content_that_cannot_be_deleted_stays_and_others_go(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.stuck = {"a", "c"}
    bench.add(*"abcdefghijk")
    bench.room.make("", [])
    assert bench.removed == ["b", "d"]
    assert bench.room.evicted == 2


def test_pinned_contents_stay_whatever_the_budget(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 200)
    bench.add(*"abcde")
    bench.index.set_pinned(["a", "b", "c"], pinned=True)
    assert bench.index.pinned() == {"a", "b", "c"}
    bench.room.make("c", ["b", "c", "e"])
    assert bench.removed == ["d", "e"]
    assert bench.room.is_over
    bench.index.set_pinned(["a"], pinned=False)
    bench.room.make("c", ["b", "c"])
    assert bench.removed == ["d", "e", "a"]


def test_one_thread_at_a_time_makes_room(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.add(*"abcdefghijk")
    inner: list[int] = []

    def remove(key: str) -> bool:
        bench.room.make("", [])  # as another thread does meanwhile
        inner.append(len(bench.removed))
        return bench.remove(key)

    bench.room._remove = remove
    bench.room.make("", [])
    assert inner == [0, 1]
    bench.room._remove = bench.remove
    bench.add(*"lm")
    bench.room.make("", [])  # and the next one may
    assert len(bench.removed) == 4


def test_the_files_beside_the_blocks_are_counted_by_the_disk_they_take(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"x" * 10_000)
    (tmp_path / "b.log").write_bytes(b"x" * 5_000)
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "c").write_bytes(b"x" * 20_000)
    (tmp_path / "link").symlink_to(tmp_path / "a.db")
    taken = sum(os.stat(tmp_path / name).st_blocks * 512 for name in ("a.db", "b.log"))
    assert bytes_beside(tmp_path) == taken > 0
    assert bytes_beside(tmp_path / "missing") == 0


@pytest.mark.parametrize(
    ("total", "free", "budget"), [(1000, 500, 20), (100, 30, 15), (100, 12, 6), (100, 0, 0)]
)
def test_the_default_budget_is_counted_in_bytes_whatever_the_disk_counts_in(
    monkeypatch: pytest.MonkeyPatch, total: int, free: int, budget: int
) -> None:
    gib, frame = 1 << 30, 4096
    found = SimpleNamespace(f_frsize=frame, f_blocks=total * gib // frame, f_bavail=free * gib // frame)
    monkeypatch.setattr(os, "statvfs", lambda _path: found)
    assert default_budget(Path("/")) == budget * gib
