"""Decides how far to read ahead inside one large file. Pure policy; `in_order` decides on the next files."""

from __future__ import annotations

from typing import NamedTuple

from cachetools import LRUCache

from lightlyfs.blocks import SMALL_FILE_BYTES, Span, block_count

# one block first, so that a sniffer of a large file costs one; then so many that each round trip brings more
# than the one before. 64 MiB keep sixteen requests of 4 MiB under way, for a connection brings 30 to 100 MB/s
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
        """The blocks worth having once `span` was read, at most so many ahead of it, by request.

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
        slack = _REORDERED_BLOCKS if stream.window >= _REORDERED_BLOCKS else 0
        if not stream.expected - max(1, slack) <= span.first <= stream.expected + slack:
            return _Stream(span.last + 1, 0, span.last + 1)
        window = stream.window
        if span.last >= stream.expected:
            wider = max(_SECOND_WINDOW, window * _GROWTH) if window else 1
            window = min(MAX_WINDOW_BLOCKS, wider)
        expected = max(stream.expected, span.last + 1)
        return _Stream(expected, window, max(stream.ahead, expected))
