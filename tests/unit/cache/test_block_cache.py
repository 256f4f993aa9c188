"""The block cache: never a wrong byte, never an error to a reader, never over its budget."""

from __future__ import annotations

import errno
import logging
import os
import random
import sqlite3
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contentkit import MIB, NOISE, recorded_bytes, sample_id

from lightlyfs.blocks import BLOCK_BYTES, ContentId, Span, block_count, block_of
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.cache.block_files import CacheConfig, CachedFile, Overflow

SMALL = ContentId(sample_id(1), "ev1", 100_000)
LARGE = ContentId(sample_id(2), "ev1", 3 * MIB + 5)


def make(directory: Path, budget: int = 1 << 30, **options: Any) -> BlockCache:
    limits = {name: options.pop(name) for name in ("min_free_bytes", "max_open_files") if name in options}
    return BlockCache(directory, CacheConfig(budget, **{"min_free_bytes": 0, **limits}), **options)


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


def test_a_file_on_the_same_disk_becomes_that_of_a_content_without_a_copy(tmp_path: Path) -> None:
    source = tmp_path / "staged"
    source.write_bytes(NOISE[: LARGE.size])
    checksums = [zlib.crc32(block_of(NOISE[: LARGE.size], block)) for block in range(4)]
    cache = make(tmp_path)

    assert cache.adopt(LARGE, source, checksums)
    assert os.path.samefile(source, file_of(tmp_path, LARGE))
    source.unlink()
    assert cache.read(LARGE, 10, 2 * MIB) == NOISE[10 : 2 * MIB + 10]
    assert cache.stats().bytes == LARGE.size


def test_a_file_that_cannot_be_linked_is_not_adopted(tmp_path: Path) -> None:
    cache = make(tmp_path)
    source = tmp_path / "staged"

    assert not cache.adopt(SMALL, source, [1])
    source.write_bytes(NOISE[: SMALL.size])
    fill(cache, SMALL)
    assert not cache.adopt(SMALL, source, [1])
    assert cache.read(SMALL, 0, SMALL.size) == NOISE[: SMALL.size]
    assert cache.stats().errors == 0


def test_a_part_that_is_missing_is_named_and_not_read(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.write(LARGE, 1, NOISE[MIB : 2 * MIB])

    assert cache.missing(LARGE, Span(0, 3)) == [0, 2, 3]
    assert cache.read(LARGE, MIB, MIB) == NOISE[MIB : 2 * MIB]
    assert cache.read(LARGE, MIB - 1, 2) is None
    assert not cache.has(LARGE, Span(0, 1))


def test_a_content_is_here_whole_once_its_last_block_is(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for block in (1, 3, 0):
        cache.write(LARGE, block, NOISE[block * MIB : min((block + 1) * MIB, LARGE.size)])
        assert not cache.has_whole(LARGE)
    cache.write(LARGE, 2, NOISE[2 * MIB : 3 * MIB])
    assert cache.has_whole(LARGE)
    cache.close()
    assert make(tmp_path).has_whole(LARGE)


def test_contents_of_one_directory_are_kept_beside_each_other(tmp_path: Path) -> None:
    first, second = numbered(1), numbered(1 + (1 << 8))
    cache = make(tmp_path)
    fill(cache, first)
    fill(cache, second)
    assert file_of(tmp_path, first).parent == file_of(tmp_path, second).parent
    assert cache.has_whole(first)
    assert cache.has_whole(second)
    assert cache.stats().errors == 0


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
    cache = make(tmp_path, min_free_bytes=None, statvfs=lambda path: disk(1_000_000_000, free[0]))
    for number in range(3):
        fill(cache, numbered(number, 4 * MIB))
    assert cache.stats().bytes == 12 * MIB

    free[0] = 100_000_000 - 8 * MIB
    for number in range(3, 9):
        fill(cache, numbered(number, 4 * MIB))

    assert cache.stats().bytes <= 8 * MIB
    assert on_disk(tmp_path) == cache.stats().bytes


def test_the_disk_is_looked_at_now_and_then(tmp_path: Path) -> None:
    looks = []

    def statvfs(path: Path) -> os.statvfs_result:
        looks.append(path)
        return os.statvfs(path)

    cache = make(tmp_path, statvfs=statvfs)
    before = len(looks)
    for number in range(400):
        fill(cache, numbered(number))
    assert 3 <= len(looks) - before <= 8  # 40 MB are written


@pytest.mark.parametrize(("budget", "ahead"), [(100 << 20, 25 << 20), (100 << 30, 256 << 20)])
def test_what_may_be_fetched_ahead_is_a_part_of_the_budget(tmp_path: Path, budget: int, ahead: int) -> None:
    room = make(tmp_path, budget).room
    limit = room.limit
    assert limit <= budget
    assert room.ahead_bytes == min(ahead, limit // 4)
    assert room.epoch_bytes == limit * 4 // 5


def test_on_a_full_disk_nothing_is_kept_but_the_last_blocks_in_memory(tmp_path: Path) -> None:
    cache = make(tmp_path, min_free_bytes=None, statvfs=lambda path: disk(1_000_000, 10))
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
        patience_ms = 0

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


def test_own_writes_leave_verified_blocks_verified(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.write(LARGE, 0, NOISE[:MIB])
    assert cache.read(LARGE, 0, 10) == NOISE[:10]
    cache.write(LARGE, 1, NOISE[MIB : 2 * MIB])
    file = cache._open[LARGE.key()]
    assert not file.was_changed()
    assert 0 in file.proven


def test_the_first_use_is_told_once_until_it_is_looked_after(tmp_path: Path) -> None:
    cache, told = make(tmp_path), []
    cache.on_use = lambda: told.append(1)
    assert cache.read(SMALL, 0, 10) is None
    assert told == []
    fill(cache, SMALL)
    assert told == [1]
    assert cache.read(SMALL, 0, 10) == cache.read(SMALL, 0, 10) == NOISE[:10]
    assert told == [1]
    cache.keep_up()
    assert cache.read(SMALL, 0, 10) == NOISE[:10]
    assert told == [1, 1]
    cache.keep_up()
    cache.write_whole(numbered(7), NOISE[:100_000])
    assert told == [1, 1, 1]


@pytest.mark.parametrize(("number", "errors"), [(errno.EMFILE, 0), (errno.EIO, 1)])
def test_files_that_were_used_longest_ago_make_way_for_a_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, errors: int
) -> None:
    cache = make(tmp_path)
    for other in range(1, 5):
        fill(cache, numbered(other))
    opened, left = cache._files.open, [number]

    def refuse_once(*words: Any, **more: Any) -> CachedFile | None:
        if left:
            raise OSError(left.pop(), "refused")
        return opened(*words, **more)

    monkeypatch.setattr(cache._files, "open", refuse_once)
    cache.write(SMALL._replace(etag="ev2"), 0, NOISE[: SMALL.size])
    assert cache.stats().errors == errors
    assert len(cache._open) == (3 if number == errno.EMFILE else 4)
    closed = [other for other in range(1, 5) if numbered(other).key() not in cache._open]
    assert closed == ([1, 2] if number == errno.EMFILE else [])
    assert cache.read(numbered(1), 0, 10) == NOISE[:10]


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


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 10, NOISE[:10]),
        (5, MIB - 5, NOISE[5:MIB]),
        (0, MIB, NOISE[:MIB]),
        (MIB - 1, 2, None),  # in two blocks
        (MIB, 7, NOISE[MIB : MIB + 7]),
        (MIB + 3, 4, NOISE[MIB + 3 : MIB + 7]),
        (MIB + 3, 5, None),  # past the end
        (2 * MIB, 1, None),
    ],
)
def test_bytes_of_one_block_are_read_from_memory(offset: int, length: int, expected: bytes | None) -> None:
    overflow = Overflow()
    assert not overflow
    overflow.put("k", 0, NOISE[:MIB])
    overflow.put("k", 1, NOISE[MIB : MIB + 7])
    assert overflow
    assert overflow.read("k", offset, length) == expected
    assert overflow.read("other", offset, length) is None


def test_the_overflow_counts_a_block_that_is_put_again_once() -> None:
    overflow = Overflow(limit_bytes=10)
    for _ in range(3):
        overflow.put("k", 0, b"123456")
    overflow.put("k", 1, b"1234")
    assert [block for block in range(2) if ("k", block) in overflow] == [0, 1]
    overflow.discard("k", 0)
    overflow.discard("k", 0)
    overflow.put("k", 2, b"123456")
    assert [block for block in range(3) if ("k", block) in overflow] == [1, 2]


@pytest.mark.parametrize("size", [10, MIB, 3 * MIB + 5])
def test_a_held_content_is_read_before_the_disk_has_it_and_leaves_memory_once_it_has(
    tmp_path: Path, size: int
) -> None:
    content = numbered(1, size)
    cache = make(tmp_path)
    cache.hold(content, NOISE[:size])
    assert cache.read(content, 0, size) == NOISE[:size]
    assert cache.missing(content, Span(0, block_count(size) - 1)) == []
    assert on_disk(tmp_path) == 0
    cache.write_whole(content, NOISE[:size])
    assert not cache._overflow
    assert cache.has_whole(content)
    assert cache.read(content, 0, size) == NOISE[:size]
    assert cache.stats().bytes == size == on_disk(tmp_path)
    cache.close()
    again = make(tmp_path)
    assert again.has_whole(content)
    assert again.read(content, 0, size) == NOISE[:size]


def test_a_whole_content_that_is_partly_here_is_completed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.write(LARGE, 1, NOISE[MIB : 2 * MIB])
    cache.write_whole(LARGE, NOISE[: LARGE.size])
    assert cache.has_whole(LARGE)
    assert cache.stats().bytes == LARGE.size
    cache.write_whole(numbered(5, 0), b"")
    assert cache.stats().errors == 0


def test_whole_contents_keep_to_the_budget(tmp_path: Path) -> None:
    cache = make(tmp_path, budget=1_000_000)
    for number in range(1, 21):
        cache.write_whole(numbered(number), NOISE[:100_000])
    assert cache.stats().bytes <= 1_000_000
    assert on_disk(tmp_path) == cache.stats().bytes
    assert cache.read(numbered(20), 0, 10) == NOISE[:10]
    cache.write_whole(numbered(30, 2 * MIB), NOISE[: 2 * MIB])  # more than the budget: in memory alone
    assert cache.read(numbered(30, 2 * MIB), MIB - 1, 2) == NOISE[MIB - 1 : MIB + 1]
    assert on_disk(tmp_path) <= 1_000_000


def test_hits_misses_and_evictions_are_counted(tmp_path: Path) -> None:
    cache = make(tmp_path, budget=1_000_000)
    assert cache.read(SMALL, 0, 10) is None
    fill(cache, SMALL)
    assert cache.read(SMALL, 0, 10)
    assert cache.read(SMALL, 5, 10)
    stats = cache.stats()
    assert (stats.bytes, stats.budget_bytes) == (SMALL.size, 1_000_000)
    assert (stats.hits, stats.misses, stats.errors, stats.evicted) == (2, 1, 0, 0)
    for number in range(2, 12):
        fill(cache, numbered(number))
    assert cache.stats().evicted == 2


def test_a_file_is_proven_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = make(tmp_path)
    assert cache.proven_file(LARGE) is None
    fill(cache, LARGE)
    cache.close()
    cache = make(tmp_path)
    file = cache.proven_file(LARGE)
    assert file is not None
    assert file.proven == {0, 1, 2, 3}
    assert file.read(0, LARGE.size) == NOISE[: LARGE.size]
    with file_of(tmp_path, LARGE).open("r+b") as other:
        other.seek(LARGE.size - 1)
        other.write(b"\0" if NOISE[LARGE.size - 1] else b"\1")
    assert cache.proven_file(LARGE) is None
    assert cache.missing(LARGE, Span(0, 3)) == [3]
    assert cache.stats().errors == 1


def test_a_partly_cached_content_is_not_proven(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for block in (0, 1, 2):
        cache.write(LARGE, block, NOISE[block * MIB : (block + 1) * MIB])
    assert cache.proven_file(LARGE) is None


def test_a_content_that_is_let_go_of_is_here_still_and_closed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    fill(cache, SMALL)
    cache.let_go(SMALL)
    assert not cache._open
    cache.let_go(SMALL)
    assert cache.read(SMALL, 0, 10) == NOISE[:10]


def test_a_content_that_is_let_go_of_was_used_just_now(tmp_path: Path) -> None:
    cache = make(tmp_path)
    fill(cache, SMALL)
    fill(cache, LARGE)
    cache.read(SMALL, 0, 10)
    cache.let_go(SMALL)
    assert cache._index.oldest(()) == [LARGE.key(), SMALL.key()]


def test_bytes_partly_in_the_file_and_partly_in_memory_are_put_together(tmp_path: Path) -> None:
    cache = make(tmp_path)
    for block in (0, 2):
        cache.write(LARGE, block, NOISE[block * MIB : (block + 1) * MIB])
    cache._overflow.put(LARGE.key(), 1, NOISE[MIB : 2 * MIB])
    assert cache.read(LARGE, MIB - 3, MIB + 6) == NOISE[MIB - 3 : 2 * MIB + 3]
    assert cache.read(LARGE, MIB + 5, MIB) == NOISE[MIB + 5 : 2 * MIB + 5]
    assert cache.read(LARGE, 5, 2 * MIB) == NOISE[5 : 2 * MIB + 5]
    assert cache.read(LARGE, 0, 3 * MIB) == NOISE[: 3 * MIB]
    assert cache.read(LARGE, 2 * MIB - 1, MIB + 2) is None
    assert cache.missing(LARGE, Span(0, 3)) == [3]
    assert not cache.has_whole(LARGE)


def test_a_cache_that_a_cleaner_deleted_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("lightlyfs.cache.block_cache.time.monotonic", lambda: now[0])
    cache = make(tmp_path)
    fill(cache, SMALL)
    for path in [file_of(tmp_path, SMALL), *tmp_path.glob("blocks.db*")]:
        path.unlink()
    now[0] += 0.2
    cache.write(numbered(7), 0, NOISE[:100_000])  # looked a moment ago
    assert not (tmp_path / "blocks.db").exists()
    now[0] += 0.1
    cache.write(numbered(8), 0, NOISE[:100_000])
    assert cache.has_whole(numbered(8))
    assert cache.missing(SMALL, Span(0, 0)) == [0]
    assert cache.stats().bytes == 100_000
    cache.close()
    assert make(tmp_path).has_whole(numbered(8))


def test_on_a_full_disk_whose_index_fails_too_files_go_by_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [1 << 40]
    cache = make(tmp_path, statvfs=lambda _: disk(1 << 40, free[0]))
    for number in (3, 1, 2):
        fill(cache, numbered(number))
        os.utime(file_of(tmp_path, numbered(number)), (number, number))
    cache._index.write()

    def fail(*args: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    def no_space(self: CachedFile, offset: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(cache._index, "oldest", fail)
    monkeypatch.setattr(CachedFile, "write", no_space)
    deleted: list[str] = []
    delete = cache._files.delete

    def gone(key: str) -> None:
        delete(key)
        deleted.append(key)
        free[0] = 9 * MIB if len(deleted) == 2 else MIB

    monkeypatch.setattr(cache._files, "delete", gone)
    free[0] = MIB
    cache.write(numbered(9), 0, NOISE[:100_000])
    assert cache.read(numbered(9), 0, 100_000) == NOISE[:100_000]
    assert numbered(3).key() not in deleted


def test_blocks_in_memory_take_at_most_32_mib() -> None:
    overflow, block = Overflow(), NOISE[:MIB]
    for number in range(33):
        overflow.put("k", number, block)
    assert [number for number in range(33) if ("k", number) in overflow] == list(range(1, 33))


@pytest.mark.parametrize("digits", ["0" * 24, "f" * 24, "0" * 22 + "40", "0" * 20 + "ffc0", "ab" * 12])
def test_a_content_of_any_id_is_kept(tmp_path: Path, digits: str) -> None:
    content = ContentId(digits, "ev1", 100)
    cache = make(tmp_path)
    cache.write_whole(content, NOISE[:100])
    cache.close()
    cache = make(tmp_path)
    assert cache.read(content, 0, 100) == NOISE[:100]
    assert cache.stats().errors == 0
    cache.drop(content)
    assert on_disk(tmp_path) == 0


def test_a_failure_names_the_cache_it_is_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process may have several, and SQLite says no path."""
    cache = make(tmp_path)
    cache._index.close()
    fill(cache, SMALL)
    assert f"the cache in {tmp_path} failed and is bypassed: " in caplog.text


def test_a_full_disk_is_said_once_with_what_to_do_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    cache = make(tmp_path)
    cache._failures._clock = lambda: now[0]

    def no_space(self: CachedFile, offset: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CachedFile, "write", no_space)
        for number in range(20):
            fill(cache, numbered(number))
    began = [record.getMessage() for record in caplog.records]
    assert len(began) == 1
    assert began[0].startswith(f"the cache in {tmp_path} failed and is bypassed: ")
    assert "--cache-dir" in began[0]

    fill(cache, numbered(30))  # a full disk takes this and that
    now[0] += 100
    for number in range(40, 45):
        fill(cache, numbered(number))
    over = [record.getMessage() for record in caplog.records][1:]
    assert over == [f"the cache in {tmp_path} works again; it had failed 20 times"]


def closed_after(tmp_path: Path, *contents: ContentId) -> BlockCache:
    """A cache that keeps one file open, and has verified all of these."""
    cache = make(tmp_path, max_open_files=1)
    for content in contents:
        cache.write_whole(content, NOISE[: content.size])
    return cache


def test_a_closed_file_is_read_again_without_a_query_or_a_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = closed_after(tmp_path, SMALL, numbered(2), numbered(3))

    def refuse(*_: object) -> Any:
        raise AssertionError("not to be asked")

    monkeypatch.setattr(cache._index, "blocks", refuse)
    monkeypatch.setattr(zlib, "crc32", refuse)
    for _ in range(2):
        assert cache.has_whole(SMALL)
        assert cache.read(SMALL, 0, SMALL.size) == NOISE[: SMALL.size]
        assert cache.read(numbered(2), 0, 10) == NOISE[:10]
    assert cache.stats().misses == 0


@pytest.mark.parametrize("how", ["written to", "replaced", "deleted"])
def test_a_closed_file_that_another_changed_is_verified_again(tmp_path: Path, how: str) -> None:
    cache = closed_after(tmp_path, SMALL, numbered(2))
    path = file_of(tmp_path, SMALL)
    if how == "written to":
        with path.open("r+b") as file:
            file.write(b"wrong")
    else:
        path.unlink()
        if how == "replaced":
            path.write_bytes(b"wrong" + NOISE[5 : SMALL.size])
    assert cache.read(SMALL, 0, SMALL.size) is None
    cache.write_whole(SMALL, NOISE[: SMALL.size])
    assert cache.read(SMALL, 0, SMALL.size) == NOISE[: SMALL.size]


def test_a_closed_file_of_which_a_part_is_here_or_that_was_dropped_is_not_taken_for_whole(
    tmp_path: Path,
) -> None:
    cache = closed_after(tmp_path, SMALL)
    cache.write(LARGE, 1, NOISE[MIB : 2 * MIB])
    cache.write_whole(numbered(3), NOISE[:100_000])
    assert not cache.has_whole(LARGE)
    assert cache.read(LARGE, 0, 10) is None
    assert cache.read(LARGE, MIB, 10) == NOISE[MIB : MIB + 10]
    assert cache.has_whole(SMALL)
    cache.drop(SMALL)
    assert not cache.has_whole(SMALL)
    assert cache.read(SMALL, 0, 10) is None


def test_few_closed_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightlyfs.cache.block_cache._CLOSED_FILES", 2)
    cache = closed_after(tmp_path, *map(numbered, range(1, 6)))
    remembered = [number for number in range(1, 6) if cache._closed_files.count(numbered(number).key())]
    assert remembered == [3, 4]
    for number in range(1, 6):
        assert cache.read(numbered(number), 0, 100_000) == NOISE[:100_000]
