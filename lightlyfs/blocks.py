"""Identify bytes: a sample in one version, its blocks and ranges. Pure.

The version is what storage says (ETag, else Last-Modified, and always the size), so bytes of two versions
can never share a cache key or a file handle. If storage says nothing, the first bytes are the version.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

# the etag of a sample that has no stored object: a version like any other, with no bytes
NO_OBJECT = "none"
# where storage names no version, a digest of this many first bytes is the version: a probe fetches them, and
# two compressed images differ there
VERSION_BYTES = 128 << 10
_OF_BYTES = "b"

_SAMPLE_ID = re.compile(r"[a-f0-9]{24}")


class ContentId(NamedTuple):
    """A sample in one version; `size` in bytes, `etag` as `etag_of` made it."""

    sample_id: str
    etag: str
    size: int

    @property
    def has_object(self) -> bool:
        """Whether the sample has bytes at all."""
        return self.etag != NO_OBJECT

    @property
    def is_named(self) -> bool:
        """Whether storage named the version, so that each of its answers tells which one it is of."""
        return bool(self.etag) and self.etag[:1] != _OF_BYTES

    def key(self) -> str:
        """A file name for this content: the id and 16 hex digits of the version."""
        return _key_of(self)


# every read asks for the key of what it reads, several times
@lru_cache(4_096)
def _key_of(content: ContentId) -> str:
    if not _SAMPLE_ID.fullmatch(content.sample_id):
        raise ValueError(f"not a sample id: {content.sample_id!r}")
    version = hashlib.blake2b(f"{content.size}\0{content.etag}".encode(), digest_size=8).hexdigest()
    return f"{content.sample_id}.{version}"


def etag_of(headers: Mapping[str, str]) -> str:
    """The version a storage answer names, with its lower-case headers; "" where it names none."""
    etag = headers.get("etag", "").strip()
    if etag:
        # every storage we know of changes a weak ETag whenever the bytes change
        return "e" + etag.removeprefix("W/").strip('"')
    modified = headers.get("last-modified", "").strip()
    return "m" + modified if modified else ""


def etag_of_bytes(first: bytes | bytearray) -> str:
    """Return a version for a content of which storage names none, made of its first VERSION_BYTES."""
    return _OF_BYTES + hashlib.blake2b(memoryview(first)[:VERSION_BYTES], digest_size=16).hexdigest()


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


def block_of(body: bytes, index: int) -> bytes:
    """A block of a whole content; no copy where it is the only one."""
    return body if len(body) <= BLOCK_BYTES else body[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]


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
