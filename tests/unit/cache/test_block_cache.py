"""The block cache: never a wrong byte, never an error to a reader, never over its budget."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contentkit import MIB, NOISE, recorded_bytes, sample_id

from lightlyfs.blocks import BLOCK_BYTES, ContentId, Span, block_count
from lightlyfs.cache.block_cache import BlockCache, Overflow
from lightlyfs.cache.block_files import CachedFile
from lightlyfs.cache.budget import CacheConfig, default_budget

SMALL = ContentId(sample_id(1), "ev1", 100_000)
LARGE = ContentId(sample_id(2), "ev1", 3 * MIB + 5)


def make(directory: Path, budget: int = 1 << 30, **options: Any) -> BlockCache:
    limits = {name: options.pop(name) for name in ("min_free_share", "max_open_files") if name in options}
    return BlockCache(directory, CacheConfig(budget, **{"min_free_share": 0.0, **limits}), **options)


def fill(cache: BlockCache, content: ContentId) -> None:
    for block in range(block_count(content.size)):
        cache.write(content, block, NOISE[block * BLOCK_BYTES : min((block + 1) * BLOCK_BYTES, content.size)])


def file_of(directory: Path, content: ContentId) -> Path:
    return directory / "blocks" / content.key()[22:24] / content.key()


def numbered(number: int, size: int = 100_000) -> ContentId:
    return ContentId(sample_id(number), "ev1", size)


def on_disk(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("blocks/*/*"))


@pytest.mark.parametrize("range_", [(0, 10), (MIB - 1, 2), (0, 3 * MIB + 5), (3 * MIB, 5), (MIB, MIB)])
def test_what_was_written_is_read_and_survives_a_remount(tmp_path: Path, range_: tuple[int, int]) -> None:
    offset, length = range_
    cache = make(tmp_path)
    fill(cache, LARGE)
    assert cache.read(LARGE, offset, length) == NOISE[offset : offset + length]
    cache.close()

    again = make(tmp_path)

    assert again.read(LARGE, offset, length) == NOISE[offset : offset + length]
    assert again.stats().bytes == LARGE.size


def test_a_part_that_is_missing_is_named_and_not_read(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.write(LARGE, 1, NOISE[MIB : 2 * MIB])

    assert cache.missing(LARGE, Span(0, 3)) == [0, 2, 3]
    assert cache.read(LARGE, MIB, MIB) == NOISE[MIB : 2 * MIB]
    assert cache.read(LARGE, MIB - 1, 2) is None
    assert not cache.has(LARGE, Span(0, 1))


def test_another_version_shares_nothing(tmp_path: Path) -> None:
    cache = make(tmp_path)
    fill(cache, SMALL)

    assert cache.read(SMALL._replace(etag="ev2"), 0, 10) is None
    assert cache.read(SMALL._replace(size=99_999), 0, 10) is None


def corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(50)
        file.write(b"\0\0\0\0")


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def replace_by_link(path: Path) -> None:
    target = path.with_name("victim")
    target.write_bytes(b"x" * 100_000)
    path.unlink()
    path.symlink_to(target)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = [corrupt, truncate, os.unlink, replace_by_link, replace_by_directory, replace_by_pipe]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_never_read_and_hurts_nobody(tmp_path: Path, damage: Any) -> None:
    cache = make(tmp_path)
    fill(cache, SMALL)
    cache.close()
    damage(file_of(tmp_path, SMALL))

    cache = make(tmp_path)
    assert cache.read(SMALL, 0, 100_000) is None
    fill(cache, SMALL)

    # on disk again, or, where somebody put a thing that is no file there, in memory
    assert cache.read(SMALL, 0, 100_000) == NOISE[:100_000]
    assert cache.stats().bytes in (0, 100_000)
    victim = file_of(tmp_path, SMALL).with_name("victim")
    assert not victim.exists() or victim.read_bytes() == b"x" * 100_000


def test_a_file_that_is_cut_while_it_is_open_is_fetched_again(tmp_path: Path) -> None:
    cache = make(tmp_path)
    fill(cache, SMALL)
    assert cache.read(SMALL, 0, 10) is not None
    truncate(file_of(tmp_path, SMALL))

    assert cache.read(SMALL, 0, 100_000) is None
    assert cache.missing(SMALL, Span(0, 0)) == [0]
    assert cache.stats().bytes == 0


def test_a_crash_before_the_record_costs_a_fetch_and_leaves_no_file(tmp_path: Path) -> None:
    fill(make(tmp_path), SMALL)  # neither closed nor recorded: its batch was not full

    again = make(tmp_path)

    assert again.missing(SMALL, Span(0, 0)) == [0]
    assert on_disk(tmp_path) == 0
    assert again.stats().bytes == 0


@pytest.mark.parametrize("how", ["lost", "garbage", "link"])
def test_a_lost_index_costs_all_blocks_and_leaves_no_file(tmp_path: Path, how: str) -> None:
    cache = make(tmp_path)
    fill(cache, LARGE)
    cache.close()
    index = tmp_path / "blocks.db"
    index.unlink()
    if how == "garbage":
        index.write_bytes(b"garbage " * 1000)
    if how == "link":
        index.symlink_to(tmp_path / "elsewhere")

    again = make(tmp_path)

    assert again.missing(LARGE, Span(0, 0)) == [0]
    assert on_disk(tmp_path) == 0
    assert not (tmp_path / "elsewhere").exists()
    fill(again, LARGE)
    assert again.read(LARGE, 0, 10) == NOISE[:10]


def test_a_directory_of_blocks_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "blocks").symlink_to(elsewhere)

    fill(make(tmp_path), SMALL)

    assert list(elsewhere.iterdir()) == []


def test_the_budget_holds_and_the_least_used_go_first(tmp_path: Path) -> None:
    cache = make(tmp_path, budget=1_000_000)
    for number in range(9):
        fill(cache, numbered(number))
    for number in (0, 1, 2):
        assert cache.read(numbered(number), 0, 10) is not None
    fill(cache, numbered(9))
    fill(cache, numbered(10))

    assert cache.stats().bytes <= 1_000_000
    assert on_disk(tmp_path) == cache.stats().bytes
    assert cache.read(numbered(3), 0, 10) is None
    assert [number for number in (0, 1, 2, 10) if cache.read(numbered(number), 0, 10) is None] == []


def test_the_order_of_use_survives_a_remount(tmp_path: Path) -> None:
    cache = make(tmp_path, budget=1_000_000)
    for number in range(9):
        fill(cache, numbered(number))
    cache.read(numbered(0), 0, 10)
    cache.close()

    cache = make(tmp_path, budget=1_000_000)
    for number in (20, 21):
        fill(cache, numbered(number))

    assert cache.read(numbered(0), 0, 10) is not None
    assert cache.read(numbered(1), 0, 10) is None


def test_what_is_beside_the_blocks_counts_and_leaves_them_a_part(tmp_path: Path) -> None:
    beside = 400_000
    cache = make(tmp_path, budget=1_000_000, beside=lambda: beside)
    assert cache.room.limit == 600_000
    for number in range(1, 11):
        fill(cache, numbered(number))
    assert on_disk(tmp_path) <= 600_000
    beside = 5_000_000
    cache.close()

    assert make(tmp_path, budget=1_000_000, beside=lambda: beside).room.limit == 250_000


def test_a_content_over_the_budget_is_served_and_the_budget_holds(tmp_path: Path) -> None:
    cache = make(tmp_path, budget=2 * MIB)
    fill(cache, LARGE)

    assert cache.stats().bytes <= 2 * MIB
    assert not cache.room.holds(LARGE.size)


@pytest.mark.parametrize("step", [1, 3])
def test_nothing_is_counted_twice(tmp_path: Path, step: int) -> None:
    cache = make(tmp_path)
    for _ in range(3):
        fill(cache, LARGE)
    if step == 3:
        cache.drop(LARGE)
        cache.drop(LARGE)
        fill(cache, LARGE)

    assert cache.stats().bytes == LARGE.size == on_disk(tmp_path)


def test_a_reader_keeps_a_file_that_is_evicted(tmp_path: Path) -> None:
    cache = make(tmp_path)
    fill(cache, SMALL)
    file = cache._file(SMALL.key())
    assert file is not None

    cache.drop(SMALL)

    assert file.read(0, 100_000) == NOISE[:100_000]
    assert cache.read(SMALL, 0, 10) is None


def test_more_files_than_descriptors_are_kept(tmp_path: Path) -> None:
    cache = make(tmp_path, max_open_files=3)
    for number in range(10):
        fill(cache, numbered(number))

    assert len(cache._open) == 3
    assert all(cache.read(numbered(number), 5, 10) == NOISE[5:15] for number in range(10))


def disk(total: int, free: int) -> Any:
    return SimpleNamespace(f_frsize=1, f_blocks=total, f_bavail=free)


def test_the_cache_shrinks_rather_than_fill_the_disk(tmp_path: Path) -> None:
    free = [500_000_000]
    cache = make(tmp_path, min_free_share=0.1, statvfs=lambda path: disk(1_000_000_000, free[0]))
    for number in range(3):
        fill(cache, numbered(number, 4 * MIB))
    assert cache.stats().bytes == 12 * MIB

    free[0] = 100_000_000 - 8 * MIB
    for number in range(3, 9):
        fill(cache, numbered(number, 4 * MIB))

    assert cache.stats().bytes <= 8 * MIB
    assert on_disk(tmp_path) == cache.stats().bytes


def test_on_a_full_disk_nothing_is_kept_but_the_last_blocks_in_memory(tmp_path: Path) -> None:
    cache = make(tmp_path, min_free_share=0.1, statvfs=lambda path: disk(1_000_000, 10))
    fill(cache, LARGE)

    assert on_disk(tmp_path) == 0
    assert cache.read(LARGE, MIB - 5, 10) == NOISE[MIB - 5 : MIB + 5]


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), OSError(5, "Input/output error")])
def test_a_write_that_fails_is_counted_and_its_block_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: OSError
) -> None:
    cache = make(tmp_path)
    cache.write(LARGE, 0, NOISE[:MIB])

    def fail(self: CachedFile, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data[:100], offset)
        raise failure

    monkeypatch.setattr(CachedFile, "write", fail)
    cache.write(LARGE, 1, NOISE[MIB : 2 * MIB])

    assert cache.stats().errors == 1
    assert cache.stats().bytes == MIB
    assert cache.missing(LARGE, Span(0, 3)) == [2, 3]
    assert cache.read(LARGE, MIB - 10, 20) == NOISE[MIB - 10 : MIB + 10]
    cache.close()
    assert make(tmp_path).missing(LARGE, Span(0, 1)) == [1]


def test_a_read_that_fails_is_counted_and_means_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path)
    fill(cache, SMALL)

    def fail(self: CachedFile, offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(CachedFile, "read", fail)

    assert cache.read(SMALL, 0, 10) is None
    assert cache.missing(SMALL, Span(0, 0)) == [0]
    assert cache.stats().errors == 1


@pytest.mark.parametrize("method", ["add", "blocks", "remove", "note_use", "oldest", "forget"])
def test_an_index_that_fails_is_counted_and_never_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    cache = make(tmp_path, budget=500_000, max_open_files=2)

    def fail(*args: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(cache._index, method, fail)
    for number in range(10):
        fill(cache, numbered(number))
        data = cache.read(numbered(number), 0, 10)
        assert data in (None, NOISE[:10])
    truncate(next(tmp_path.glob("blocks/*/*"), tmp_path / "x")) if on_disk(tmp_path) else None
    for number in range(10):
        assert cache.read(numbered(number), 0, 100_000) in (None, NOISE[:100_000])
    cache.drop(SMALL)
    cache.close()

    if method != "forget":
        assert cache.stats().errors > 0


def test_records_that_the_disk_refused_are_written_later(tmp_path: Path) -> None:
    cache = make(tmp_path)
    index = cache._index
    real = index._db

    class Full:
        in_transaction = False

        def execute(self, *args: Any) -> Any:
            if args[0] == "BEGIN IMMEDIATE":
                raise sqlite3.OperationalError("database or disk is full")
            return real.execute(*args)

    index._db = Full()  # type: ignore[assignment]
    for number in range(100):
        fill(cache, numbered(number, 10))
    assert cache.stats().errors > 0
    index._db = real
    cache.close()

    assert make(tmp_path).stats().bytes == 1000


def test_a_warm_read_asks_neither_the_index_nor_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path)
    fill(cache, LARGE)
    monkeypatch.setattr(cache, "_index", None)
    monkeypatch.setattr(cache, "_files", None)

    for _ in range(3):
        assert cache.read(LARGE, MIB - 1, 2) == NOISE[MIB - 1 : MIB + 1]
        assert cache.missing(LARGE, Span(0, 3)) == []


def test_any_mix_of_writes_reads_and_drops_keeps_count_and_bytes(tmp_path: Path) -> None:
    chance = random.Random(3)
    cache = make(tmp_path, budget=6 * MIB)
    contents = [numbered(n, size) for n, size in enumerate((10, MIB, MIB + 1, 2 * MIB, 100_000))]
    for _ in range(300):
        content = chance.choice(contents)
        block = chance.randrange(block_count(content.size))
        start, end = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, content.size)
        action = chance.random()
        if action < 0.4:
            cache.write(content, block, NOISE[start:end])
        elif action < 0.9:
            assert cache.read(content, start, end - start) in (None, NOISE[start:end])
        elif action < 0.95:
            cache.drop(content)
        else:
            cache.close()
            cache = make(tmp_path, budget=6 * MIB)
        assert 0 <= cache.stats().bytes <= 6 * MIB
        assert cache.stats().bytes == recorded_bytes(cache)


def test_the_default_budget_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    for total, free, budget in [
        (1000, 500, 20),
        (100, 30, 15),
        (100, 12, 2),
        (100, 5, 0),
        (10_000, 1_010, 10),
    ]:
        monkeypatch.setattr(os, "statvfs", lambda path, t=total, f=free: disk(t * gib, f * gib))
        assert default_budget(Path("/")) == budget * gib


def test_the_overflow_is_bounded_and_forgets_the_oldest() -> None:
    overflow = Overflow(limit_bytes=10)
    for block in range(5):
        overflow.put("k", block, b"1234")

    assert [block for block in range(5) if ("k", block) in overflow] == [3, 4]
    overflow.discard("k", 3)
    assert overflow.get("k", 3) is None
    assert overflow.get("k", 4) == b"1234"


def test_what_others_write_over_a_block_that_was_read_before_is_never_given_to_a_reader(
    tmp_path: Path,
) -> None:
    cache = make(tmp_path)
    fill(cache, LARGE)
    assert cache.read(LARGE, 0, 10) == NOISE[:10]

    with file_of(tmp_path, LARGE).open("r+b") as file:
        file.write(b"damage")

    assert cache.read(LARGE, 0, 10) is None
    assert cache.read(LARGE, MIB, 10) == NOISE[MIB : MIB + 10]
    fill(cache, LARGE)
    assert cache.read(LARGE, 0, 10) == NOISE[:10]


def test_another_process_that_adds_to_a_file_costs_a_comparison(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.write(LARGE, 0, NOISE[:MIB])
    assert cache.read(LARGE, 0, 10) == NOISE[:10]

    with file_of(tmp_path, LARGE).open("r+b") as file:
        file.seek(MIB)
        file.write(NOISE[MIB : 2 * MIB])

    assert cache.read(LARGE, 0, 10) == NOISE[:10]
