"""Directories in which only the first bytes of files are read."""

from __future__ import annotations

from lightlyfs.readahead.within_file import HEAD_BYTES, HeadReaders

SIZE = 1_500_000


def test_after_a_few_heads_the_next_file_is_expected_to_be_one() -> None:
    heads = HeadReaders()
    for number in range(3):
        assert not heads.expects_head("d/next.jpg", SIZE)
        heads.closed(f"d/{number}.jpg", 16_384, SIZE)
    assert heads.expects_head("d/next.jpg", SIZE)
    assert not heads.expects_head("other/next.jpg", SIZE)
    assert not heads.expects_head("d/small.jpg", 2 * HEAD_BYTES)
    assert not heads.expects_head("d/unknown.jpg", None)


def test_one_file_that_is_read_further_ends_that() -> None:
    heads = HeadReaders()
    for number in range(10):
        heads.closed(f"d/{number}.jpg", HEAD_BYTES, SIZE)
    heads.closed("d/10.jpg", HEAD_BYTES + 1, SIZE)
    assert not heads.expects_head("d/next.jpg", SIZE)


def test_small_files_and_those_that_nobody_read_say_nothing() -> None:
    heads = HeadReaders()
    for number in range(10):
        heads.closed(f"d/{number}.jpg", 100, 1000)
        heads.closed(f"d/{number}.jpg", 0, SIZE)
    assert not heads.expects_head("d/next.jpg", SIZE)
