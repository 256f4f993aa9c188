"""Block and range arithmetic of one content. Pure.

A content of `size` bytes is cut into blocks of `BLOCK_BYTES`, the last one shorter. Blocks are the unit
of presence in the cache, of checksums and of sharing one fetch; a request may span several of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

BLOCK_BYTES = 1 << 20  # the largest read the kernel sends, so most reads touch one or two blocks
# up to here a file is fetched whole with its first read: one round trip, and it is read whole anyway
SMALL_FILE_BYTES = 4 << 20

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,16})-([0-9]{1,16})|\*)/([0-9]{1,16}|\*)", re.IGNORECASE)


class Span(NamedTuple):
    """Blocks [first, last] of a content, both included."""

    first: int
    last: int


class ContentRange(NamedTuple):
    """A parsed Content-Range: the bytes [start, end) of `total`; None where the server does not say."""

    start: int | None
    end: int | None
    total: int | None


def block_count(size: int) -> int:
    """How many blocks a content of `size` bytes has; none if it is empty."""
    return -(-size // BLOCK_BYTES)


def block_length(index: int, size: int) -> int:
    """The length of a block in bytes."""
    return min(BLOCK_BYTES, size - index * BLOCK_BYTES)


def span_of(offset: int, length: int, size: int) -> Span | None:
    """The blocks that hold [offset, offset + length) of a content, or None if that is past its end."""
    end = min(offset + length, size)
    if offset >= end:
        return None
    return Span(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES)


def byte_range(span: Span, size: int) -> tuple[int, int]:
    """The bytes [start, end) that a span covers."""
    return span.first * BLOCK_BYTES, min((span.last + 1) * BLOCK_BYTES, size)


def runs(blocks: Iterable[int]) -> list[Span]:
    """Ascending block numbers as the fewest spans."""
    spans: list[Span] = []
    for block in blocks:
        if spans and spans[-1].last == block - 1:
            spans[-1] = Span(spans[-1].first, block)
        else:
            spans.append(Span(block, block))
    return spans


def to_fetch(wanted: Span, size: int) -> Span:
    """The blocks to fetch when `wanted` are missing: all of a small file, else just those."""
    if size <= SMALL_FILE_BYTES:
        return Span(0, block_count(size) - 1)
    return wanted


def range_header(start: int, end: int) -> str:
    """The Range header's value for the bytes [start, end)."""
    return f"bytes={start}-{end - 1}"


def parse_content_range(value: str | None) -> ContentRange | None:
    """Parse a Content-Range header's value (RFC 9110, 14.4); None where there is none or it is not one."""
    match = _CONTENT_RANGE.fullmatch((value or "").strip())
    if match is None:
        return None
    start, last, total = match.groups()
    if start is None:
        return ContentRange(None, None, None if total == "*" else int(total))
    end = int(last) + 1
    return ContentRange(int(start), end, None if total == "*" else int(total)) if end > int(start) else None
