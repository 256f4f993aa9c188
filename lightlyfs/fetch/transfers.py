"""Tracks which blocks are being fetched and which readers wait for them, so that each is fetched once.

A transfer promises a run of blocks in ascending order; a reader waits for a block that a transfer has not
delivered yet. The tables hold ranges, not blocks: a transfer of a terabyte costs no more than one of a byte.
Takers pass the answer of a streamed GET on to those who wait.

Threads: any may call; the lock is never held during a callback.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightlyfs.blocks import BLOCK_BYTES, ContentId, Span, block_count
from lightlyfs.fetch.answers import Known

if TYPE_CHECKING:
    from lightlyfs.fetch.reader import Reader


class NotBrought(Exception):
    """A transfer ended well but without a block it had promised; asking again brings it."""


@dataclass(eq=False)
class Transfer:
    """A fetch under way: blocks `next` to `last` of a content are still to come."""

    content: ContentId
    next: int
    last: int
    whole: bool = False  # brings all blocks of the content, whatever was asked for

    def will_bring(self, block: int) -> bool:
        """Whether a block is still to come."""
        return self.next <= block <= self.last


@dataclass
class _UnderWay:
    """All that is under way of one content."""

    transfers: list[Transfer] = field(default_factory=list)
    waiting: dict[int, Future[bytes]] = field(default_factory=dict)

    def will_bring(self, block: int) -> bool:
        return any(transfer.will_bring(block) for transfer in self.transfers)


class Transfers:
    """The table of all transfers of one reader."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contents: dict[str, _UnderWay] = {}  # guarded by _lock

    def __len__(self) -> int:
        with self._lock:
            return sum(len(under_way.transfers) for under_way in self._contents.values())

    def __bool__(self) -> bool:
        return bool(self._contents)

    def will_bring(self, content: ContentId, block: int) -> bool:
        """Whether a block is under way."""
        with self._lock:
            under_way = self._contents.get(content.key())
            return under_way is not None and under_way.will_bring(block)

    def claim(
        self, content: ContentId, wanted: Span, fetch: Span
    ) -> tuple[dict[int, Future[bytes]], list[Transfer]]:
        """Return the futures of the wanted blocks, and new transfers for the parts of `fetch` without one.

        `fetch` covers `wanted`. The caller has to run the new transfers and `end` each of them.
        """
        started: list[Transfer] = []
        with self._lock:
            under_way = self._contents.setdefault(content.key(), _UnderWay())
            for block in range(fetch.first, fetch.last + 1):
                if under_way.will_bring(block):
                    continue
                if started and started[-1].last == block - 1:
                    started[-1].last = block
                else:
                    started.append(Transfer(content, block, block))
                    under_way.transfers.append(started[-1])
            blocks = range(wanted.first, wanted.last + 1)
            futures = {block: under_way.waiting.setdefault(block, Future()) for block in blocks}
        return futures, started

    def announce(self, content: ContentId, first: int, last: int) -> Transfer:
        """Register a transfer that has begun already and brings these blocks (none if last < first)."""
        transfer = Transfer(content, first, last)
        with self._lock:
            self._contents.setdefault(content.key(), _UnderWay()).transfers.append(transfer)
        return transfer

    def widen(self, transfer: Transfer, first: int, last: int) -> bool:
        """Note that a transfer delivers the whole content.

        False where another one does so already, and brings what this one was waited for.
        """
        with self._lock:
            under_way = self._contents[transfer.content.key()]
            waited = [block for block in under_way.waiting if transfer.will_bring(block)]
            for other in under_way.transfers:
                if other is not transfer and other.whole and all(map(other.will_bring, waited)):
                    return False
            transfer.next, transfer.last, transfer.whole = first, last, True
        return True

    def arrived(self, transfer: Transfer, block: int, data: bytes) -> None:
        """Take a block that a transfer delivered; its next blocks lie behind it."""
        with self._lock:
            transfer.next = max(transfer.next, block + 1)
        self.hand_over(transfer.content, block, data)

    def hand_over(self, content: ContentId, block: int, data: bytes) -> None:
        """Give a block to all readers that wait for it, also to those that wait for another transfer."""
        with self._lock:
            under_way = self._contents.get(content.key())
            future = None if under_way is None else under_way.waiting.pop(block, None)
        if future is not None:
            future.set_result(data)

    def end(self, transfer: Transfer, error: BaseException | None) -> bool:
        """End a transfer: fail the readers that wait for a block that no other transfer delivers.

        Returns whether there were any. May be called twice.
        """
        key = transfer.content.key()
        with self._lock:
            under_way = self._contents.get(key)
            if under_way is None or transfer not in under_way.transfers:
                return False
            under_way.transfers.remove(transfer)
            left = [block for block in under_way.waiting if not under_way.will_bring(block)]
            failed = [under_way.waiting.pop(block) for block in left]
            if not under_way.transfers:
                del self._contents[key]
        for future in failed:
            future.set_exception(error or NotBrought("storage sent fewer blocks than it announced"))
        return bool(failed)


# enough to find the size of any object, and usually all of a small image
PROBE_BYTES = 128 << 10


# returns the content of a sample if it was found meanwhile: by this process, or also by another one
Told = Callable[[bool], ContentId | None]


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
        told: Told,
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
