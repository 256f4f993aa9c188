"""Decides how much of one file to read: far ahead in a large one, or only the head of each file. Pure policy.

`in_order` decides on the next files.
"""

from __future__ import annotations

from typing import NamedTuple

from cachetools import LRUCache

from lightlyfs.blocks import SMALL_FILE_BYTES, Span, block_count

# one block first, so that a program that only sniffs a large file costs one; then more with each round trip.
# 64 MiB keep sixteen requests of 4 MiB under way, as one connection brings 30 to 100 MB/s
MAX_WINDOW_BLOCKS = 64
_SECOND_WINDOW, _GROWTH = 8, 4
_REQUESTS_IN_WINDOW = 16
# reads of one reader reach us a little out of order: the kernel sends several at once
_REORDERED_BLOCKS = 4
# files whose readers' positions are remembered
_MAX_STREAMS = 1_000


class _Stream(NamedTuple):
    """A reader's way through a content, in blocks."""

    expected: int = 0  # where its next read should start
    window: int = 0  # how far ahead of it to be
    ahead: int = 0  # the first block that was not asked for yet


class ReadAhead:
    """Per content, how far ahead of its reader to fetch; used under the caller's lock."""

    def __init__(self) -> None:
        self._streams: LRUCache[str, _Stream] = LRUCache(_MAX_STREAMS)

    def after(self, key: str, span: Span, size: int, most_blocks: int = MAX_WINDOW_BLOCKS) -> list[Span]:
        """The blocks to fetch once `span` was read, at most `most_blocks` ahead, by request.

        None for small files, which come whole, and none after a jump. Once the window is wide each request
        is for a sixteenth of it.
        """
        if size <= SMALL_FILE_BYTES:
            return []
        stream = self._moved(self._streams.get(key) or _Stream(), span)
        step = max(1, min(stream.window, most_blocks) // _REQUESTS_IN_WINDOW)
        end = min(stream.expected + min(stream.window, most_blocks), block_count(size))
        runs = (end - stream.ahead) // step
        if end == block_count(size) and end > stream.ahead:
            runs += 1  # the end of the file is a run, however short
        first, stop = stream.ahead, min(stream.ahead + runs * step, end)
        self._streams[key] = stream._replace(ahead=max(first, stop))
        return [Span(start, min(start + step, stop) - 1) for start in range(first, stop, step)]

    @staticmethod
    def _moved(stream: _Stream, span: Span) -> _Stream:
        """The stream after a read: further on, or at its beginning again after a jump."""
        slack = _REORDERED_BLOCKS if stream.window >= _REORDERED_BLOCKS else min(stream.window, 1)
        if not stream.expected - max(1, slack) <= span.first <= stream.expected + slack:
            return _Stream(span.last + 1, 0, span.last + 1)
        window = stream.window
        if span.last >= stream.expected:
            wider = max(_SECOND_WINDOW, window * _GROWTH) if window else 1
            window = min(MAX_WINDOW_BLOCKS, wider)
        expected = max(stream.expected, span.last + 1)
        return _Stream(expected, window, max(stream.ahead, expected))


# what is fetched of a file there, and what a reader of a head reads at most
HEAD_BYTES = 128 << 10
# files of which only the head was read, in a row, before that is expected of the next
_ENOUGH = 3
# files below this size are fetched whole: that is one request either way
_WORTH_IT_BYTES = 4 * HEAD_BYTES
_MAX_DIRECTORIES = 1_000


class HeadReaders:
    """Counts how files are read, by directory."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}  # the latest last; a look needs no lock

    def closed(self, path: str, read_to: int, size: int) -> None:
        """A file was closed of which the bytes up to `read_to` were read."""
        if size < _WORTH_IT_BYTES or not read_to:
            return
        directory = path.rpartition("/")[0]
        count = self._heads.pop(directory, 0)
        self._heads[directory] = count + 1 if read_to <= HEAD_BYTES else 0
        if len(self._heads) > _MAX_DIRECTORIES:
            del self._heads[next(iter(self._heads))]

    def expects_head(self, path: str, size: int | None) -> bool:
        """Whether no more than the head of a file is likely to be read."""
        if size is None or size < _WORTH_IT_BYTES or not self._heads:
            return False
        return self._heads.get(path.rpartition("/")[0], 0) >= _ENOUGH
