"""What becomes of the answers of storage: which blocks are wanted, and who is told what it has.

Both kinds of taker live as long as one fetch and are called by the thread that makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from lightlyfs.content.cache import BlockCache
from lightlyfs.content.doubt import Known
from lightlyfs.content.identity import ContentId
from lightlyfs.content.ranges import BLOCK_BYTES, Span, block_count
from lightlyfs.content.room import Room
from lightlyfs.content.transfers import Transfer, Transfers


class Takes(NamedTuple):
    """Where answers go: blocks to `arrived`, a question's answer to `tell`, any other one to `answered`.

    `tell(content, certain)` says whether the answer may count until something speaks against it.

    `forget(head)` says that a question is answered, so that the next one asks anew.
    """

    transfers: Transfers
    room: Room
    arrived: Callable[[Transfer, int, bytes], None]
    answered: Callable[[], None]
    tell: Callable[[ContentId, bool], None]
    forget: Callable[[HeadTaker], None]


class BlocksTaker:
    """Takes the answer to a fetch of blocks of a known content."""

    def __init__(self, takes: Takes, transfer: Transfer, asked: Span) -> None:
        self._takes = takes
        self._transfer = transfer
        self._asked = asked

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        """Which of the blocks that come are wanted."""
        self._takes.answered()
        if first >= self._asked.first and last <= self._asked.last:
            return Span(first, last)
        # the range was ignored: all comes, and is worth having unless it would displace itself
        if not self._takes.room.holds(content.size):
            return self._asked
        return Span(first, last) if self._takes.transfers.widen(self._transfer, first, last) else None

    def block(self, index: int, data: bytes) -> None:
        """A block came."""
        self._takes.arrived(self._transfer, index, data)


class HeadTaker:
    """Takes the answer to the question what a sample is, and the bytes that come along."""

    def __init__(
        self,
        takes: Takes,
        cache: BlockCache,
        sample_id: str,
        found: Future[ContentId],
        length: int,
        known: Known,
        told: Callable[[], ContentId | None],
    ) -> None:
        self._takes = takes
        self._cache = cache
        self.sample_id = sample_id
        self.found = found
        self.length = length
        self.known = known
        self.told = told
        self.doubtful = False
        self.transfer: Transfer | None = None

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        """Which of the blocks that come are wanted; whoever asked has the answer by then."""
        wanted = self._wanted(content, first, last)
        if wanted is not None:
            self.transfer = self._takes.transfers.announce(content, wanted.first, wanted.last)
            if last + 1 == block_count(content.size) == wanted.last + 1 and not self._widened(wanted):
                wanted = None
        self._takes.tell(content, not self.doubtful)
        # from here on storage is asked anew: what it has by then may be something else
        self._takes.forget(self)
        self.found.set_result(content)
        return wanted

    def mistrust(self) -> None:
        """Note that what is about to be identified is doubtful, so that it is asked for again."""
        self.doubtful = True

    def block(self, index: int, data: bytes) -> None:
        """A block came."""
        assert self.transfer is not None
        self._takes.arrived(self.transfer, index, data)

    def _widened(self, wanted: Span) -> bool:
        assert self.transfer is not None
        return self._takes.transfers.widen(self.transfer, wanted.first, wanted.last)

    def _wanted(self, content: ContentId, first: int, last: int) -> Span | None:
        if last < first or not content.has_object:
            return Span(first, last)
        if self._cache.has(content, Span(first, last)):
            return None
        asked = max(0, -(-self.length // BLOCK_BYTES) - 1)
        return Span(first, last if self._takes.room.holds(content.size) else min(last, asked))
