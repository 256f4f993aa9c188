"""How far to read ahead inside one large file. Pure policy; the next files are `sequence`'s business."""

from __future__ import annotations

from cachetools import LRUCache

from lightlyfs.content.ranges import SMALL_FILE_BYTES, Span, block_count

# one block first, so that a sniffer of a large file costs one; doubled with each read that goes on
MAX_WINDOW_BLOCKS = 16
# files whose readers' positions are remembered
_MAX_STREAMS = 1_000


class ReadAhead:
    """Per content, how far ahead of its reader to fetch; used under the caller's lock."""

    def __init__(self) -> None:
        # key of the content: (block the next read should start in, blocks to be ahead)
        self._streams: LRUCache[str, tuple[int, int]] = LRUCache(_MAX_STREAMS)

    def after(self, key: str, span: Span, size: int) -> Span | None:
        """The blocks worth having once `span` was read, or None.

        Nothing for small files, which come whole, and nothing after a jump.
        """
        if size <= SMALL_FILE_BYTES:
            return None
        expected, window = self._streams.get(key, (0, 0))
        in_order = span.first in (expected, expected - 1)
        if not in_order:
            window = 0
        elif span.last >= expected:
            window = min(MAX_WINDOW_BLOCKS, max(1, window * 2))
        self._streams[key] = (span.last + 1, window)
        last = min(span.last + window, block_count(size) - 1)
        return Span(span.last + 1, last) if window and last > span.last else None
