"""Take the answer of a streamed GET for a reader: the blocks of a transfer, or what a sample is.

Called in the thread that fetches, by `Fetcher`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from lightlyfs.blocks import BLOCK_BYTES, ContentId, Span, block_count
from lightlyfs.fetch.answers import Known
from lightlyfs.fetch.transfers import Transfer

if TYPE_CHECKING:
    from lightlyfs.fetch.reader import Reader

# enough to find the size of any object, and usually all of a small image
PROBE_BYTES = 128 << 10


class BlocksTaker:
    """Takes the answer to a fetch of blocks of a known content."""

    def __init__(self, reader: Reader, transfer: Transfer, asked: Span) -> None:
        self._reader = reader
        self._transfer = transfer
        self._asked = asked

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        """Return which of the arriving blocks are wanted."""
        reader = self._reader
        reader.answered()
        if first >= self._asked.first and last <= self._asked.last:
            return Span(first, last)
        # the range was ignored: all comes, and is worth having unless it would displace itself
        if not reader.cache.room.holds(content.size):
            return self._asked
        return Span(first, last) if reader.transfers.widen(self._transfer, first, last) else None

    def block(self, index: int, data: bytes) -> None:
        """Pass a block on to its readers."""
        self._reader.arrived(self._transfer, index, data)


class HeadTaker:
    """Takes the answer to the question what a sample is, and the bytes that come along."""

    def __init__(
        self,
        reader: Reader,
        sample_id: str,
        known: Known,
        told: Callable[[], ContentId | None],
        *,
        waits: bool,
    ) -> None:
        """`waits` says whether a reader waits for it, and is changed under the reader's lock."""
        self._reader = reader
        self.sample_id = sample_id
        self.found: Future[ContentId] = Future()
        self.length = PROBE_BYTES
        self.known = known
        self.told = told
        self.waits = waits
        self.doubtful = False
        self.transfer: Transfer | None = None

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        """Return which of the arriving blocks are wanted, after the caller that asked got its answer."""
        reader = self._reader
        wanted = self._wanted(content, first, last)
        if wanted is not None:
            self.transfer = reader.transfers.announce(content, wanted.first, wanted.last)
            if last + 1 == block_count(content.size) == wanted.last + 1 and not reader.transfers.widen(
                self.transfer, wanted.first, wanted.last
            ):
                wanted = None
        reader.tell(content, not self.doubtful)
        # from here on a new request is sent, because the object may have changed by then
        reader.forget_head(self)
        self.found.set_result(content)
        return wanted

    def mistrust(self) -> None:
        """Note that what is about to be identified is doubtful, so that it is asked for again."""
        self.doubtful = True

    def block(self, index: int, data: bytes) -> None:
        """Pass a block on to its readers."""
        assert self.transfer is not None
        self._reader.arrived(self.transfer, index, data)

    def _wanted(self, content: ContentId, first: int, last: int) -> Span | None:
        if last < first or not content.has_object:
            return Span(first, last)
        cache = self._reader.cache
        if cache.has(content, Span(first, last)):
            return None
        asked = max(0, -(-self.length // BLOCK_BYTES) - 1)
        return Span(first, last if cache.room.holds(content.size) else min(last, asked))
