"""Which parts of a fetch need a request of their own."""

from __future__ import annotations

import pytest

from lightlyfs.blocks import ContentId, Span
from lightlyfs.fetch.transfers import NotBrought, Transfers

CONTENT = ContentId("0" * 24, "a", 10 << 20)


def claimed(transfers: Transfers, first: int, last: int) -> list[tuple[int, int]]:
    """The runs of blocks that a claim has to fetch."""
    _, started = transfers.claim(CONTENT, Span(first, last), Span(first, last))
    return [(transfer.next, transfer.last) for transfer in started]


def test_blocks_that_are_under_way_divide_a_fetch() -> None:
    transfers = Transfers()
    transfers.announce(CONTENT, 2, 3)
    transfers.announce(CONTENT, 6, 6)
    assert claimed(transfers, 0, 8) == [(0, 1), (4, 5), (7, 8)]
    assert claimed(transfers, 0, 8) == []
    assert len(transfers) == 5


def test_a_block_that_was_brought_is_claimed_again() -> None:
    transfers = Transfers()
    transfer = transfers.announce(CONTENT, 0, 3)
    transfers.arrived(transfer, 0, b"0")
    transfers.arrived(transfer, 1, b"1")
    assert claimed(transfers, 0, 3) == [(0, 1)]


def test_who_waits_for_a_block_that_nobody_brings_is_told() -> None:
    transfers = Transfers()
    futures, (transfer,) = transfers.claim(CONTENT, Span(0, 1), Span(0, 1))
    transfers.arrived(transfer, 0, b"0")
    assert futures[0].result(0) == b"0"
    assert transfers.end(transfer, None)
    with pytest.raises(NotBrought):
        futures[1].result(0)
    assert not transfers.end(transfer, None)
    assert not transfers


def test_what_was_brought_and_what_is_before_it_is_not_to_come() -> None:
    transfers = Transfers()
    transfer = transfers.announce(CONTENT, 0, 5)
    for brought in (0, 2, 5):
        transfers.arrived(transfer, brought, b"x")
        coming = [block for block in range(7) if transfers.will_bring(CONTENT, block)]
        assert coming == list(range(brought + 1, 6))
