"""How far ahead of a reader a large file is fetched."""

from __future__ import annotations

from lightlyfs.blocks import BLOCK_BYTES, Span
from lightlyfs.readahead.within_file import MAX_WINDOW_BLOCKS, ReadAhead

LARGE = 200 * BLOCK_BYTES


def read_through(blocks: list[int], size: int = LARGE) -> list[Span]:
    """What is fetched ahead of single-block reads in an order."""
    ahead = ReadAhead()
    return [span for block in blocks for span in ahead.after("k", Span(block, block), size)]


def test_a_reader_in_order_gets_every_block_once() -> None:
    spans = read_through(list(range(200)))

    assert [block for span in spans for block in range(span.first, span.last + 1)] == list(range(1, 200))


def test_requests_grow_to_a_sixteenth_of_the_window() -> None:
    """The end of a file is a run of its own, however short."""
    *lengths, _ = [span.last - span.first + 1 for span in read_through(list(range(200)))]

    assert lengths[0] == 1
    assert lengths[-1] == MAX_WINDOW_BLOCKS // 16
    assert len(lengths) < 80


def test_four_reads_in_order_open_the_whole_window_in_many_requests() -> None:
    """Each read waits for a round trip at first: doubling took seven, over one connection."""
    spans = read_through([0, 1, 2, 3])

    assert spans[-1].last > 3 + MAX_WINDOW_BLOCKS - MAX_WINDOW_BLOCKS // 16
    assert len(spans) > 16


def test_who_reads_two_blocks_costs_eight_more() -> None:
    assert read_through([0, 1])[-1].last == 1 + 8


def test_one_read_at_the_start_costs_one_block_more() -> None:
    assert read_through([0]) == [Span(1, 1)]


def test_a_jump_fetches_nothing_ahead() -> None:
    assert read_through([50]) == []
    assert read_through([0, 1, 2, 100]) == read_through([0, 1, 2])


def test_reads_a_little_out_of_order_are_one_reader() -> None:
    order = [0, 1, 2, 3, 4, 6, 5, 8, 7, 10, 9, 11, 12]

    spans = read_through(order)

    assert spans[-1].last > 20


def test_the_second_read_may_come_after_the_third() -> None:
    """The kernel sends both at once where it reads ahead itself."""
    assert read_through([0, 2, 1, 3])[-1].last > 20
    assert read_through([0, 3]) == read_through([0])


def test_a_backward_reader_gets_nothing_ahead() -> None:
    assert read_through(list(range(150, 100, -1))) == []


def test_a_small_file_is_no_matter_of_reading_ahead() -> None:
    assert read_through([0], 4 * BLOCK_BYTES) == []


def test_a_small_cache_bounds_how_far_ahead() -> None:
    ahead = ReadAhead()
    reach = 0
    for block in range(60):
        for span in ahead.after("k", Span(block, block), 100 * BLOCK_BYTES, 3):
            reach = max(reach, span.last - block)
    assert 0 < reach <= 3
    assert ahead.after("other", Span(0, 0), 100 * BLOCK_BYTES, 0) == []
