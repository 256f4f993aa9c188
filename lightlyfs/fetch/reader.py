"""`read(content, offset, size)`: from the cache, else from storage, with one fetch per block for all readers.

The first try at a small file goes over the network loop (`first_try`); everything else, and whatever was not
plainly right there, runs in the content pool. All readers of a block that is being fetched wait for the same
future. A block that the cache could not store still reaches its waiting readers.

Threads: any may call. No lock is held during a fetch, a wait, disk work or a callback. Every future is
resolved, even if the pool is shut down or a job dies.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from cachetools import LRUCache

from lightlyfs.api.contract import Response
from lightlyfs.blocks import (
    BLOCK_BYTES,
    SMALL_FILE_BYTES,
    VERSION_BYTES,
    ContentId,
    Span,
    block_count,
    block_length,
    block_of,
    runs,
    span_of,
    to_fetch,
)
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.cache.fetch_once import FetchOnce
from lightlyfs.errors import Cancelled, ContentChanged, NoContent, ServerFault, Unreachable
from lightlyfs.fetch.answers import Doubt, Known
from lightlyfs.fetch.fetcher import Fetcher, FirstTry, content_in
from lightlyfs.fetch.transfers import BlocksTaker, HeadTaker, NotBrought, Told, Transfer, Transfers
from lightlyfs.readahead.within_file import HEAD_BYTES, ReadAhead

log = logging.getLogger(__name__)

T = TypeVar("T")

# the length of a request that only confirms the version of an object
_CONFIRM_BYTES = 1
# a block may be evicted between its arrival and its use; in the last round it is taken past the cache
_MAX_ROUNDS = 4
_MAX_FIRST_BYTES = 8 << 20


class LeftToAnother(Exception):
    """What was to be fetched ahead is being fetched by another process."""


class Waiter(Protocol):
    """Waits for a future within the limits of the caller, raising what ended the wait."""

    def __call__(self, future: Future[T]) -> T:
        """The future's result."""
        ...


class ReaderStats(NamedTuple):
    """Counters since the mount began."""

    fetches: int
    fetched_bytes: int
    under_way: int
    failures: int


class Reader:
    """Reads contents, and reports each one that storage identifies to `on_facts(content, certain)`.

    A content that is not `certain` has to be identified again at the next open.
    """

    def __init__(
        self,
        cache: BlockCache,
        fetcher: Fetcher,
        executor: Executor,
        on_facts: Callable[[ContentId, bool], None],
        once: FetchOnce | None = None,
        first_try: FirstTry | None = None,
    ) -> None:
        """With `once` other processes may use the cache; without `first_try` all goes through the pool."""
        self._first_try = first_try
        self.cache = cache
        self._once = once or FetchOnce.alone(cache)
        self._fetcher = fetcher
        self._executor = executor
        self._on_facts = on_facts
        self.transfers = Transfers()
        self._lock = threading.Lock()
        # guarded by _lock: the samples that storage is being asked about
        self._heads: dict[str, HeadTaker] = {}
        # the first bytes of files that are read no further: too few for a block of the cache
        self._first_bytes: LRUCache[ContentId, bytes] = LRUCache(_MAX_FIRST_BYTES // HEAD_BYTES)
        # by key, contents that are in memory and on their way to the disk; the futures for those who wait
        self._being_kept: dict[str, Future[bytes] | None] = {}
        self._read_ahead = ReadAhead()
        self._fetches = self._fetched_bytes = self._failures = 0

    def stats(self) -> ReaderStats:
        """Counters since the mount began."""
        under_way = len(self.transfers)
        with self._lock:
            under_way += len(self._heads)
            return ReaderStats(self._fetches, self._fetched_bytes, under_way, self._failures)

    def identify(
        self,
        sample_id: str,
        *,
        size_hint: int | None,
        for_reading: bool,
        known: ContentId | None = None,
        told: Told = lambda _: None,
        ahead: bool = False,
        head_only: bool = False,
    ) -> Future[ContentId]:
        """Ask storage which content a sample has now; done as soon as the headers of its answer are in.

        The same GET brings the first bytes: all of a file that the hint calls small when it is about to
        be read, a probe where nothing is known of its size, and one byte where only the size or the content
        that is `known` from before is to be confirmed. `told(by_others)` returns what was found meanwhile,
        here or also by another process, and no request is sent then. With `ahead`, the request waits for
        those of readers.
        """
        with self._lock:
            head = self._heads.get(sample_id)
            if head is not None:
                head.waits |= not ahead
                return head.found
            head = self._heads[sample_id] = HeadTaker(
                self, sample_id, Known(size_hint, known), told, waits=not ahead
            )
        found = told(False)
        if found is not None:
            self.forget_head(head)
            head.found.set_result(found)
            return head.found
        if known is not None and known.has_object and self._holds_start_of(known):
            head.length = _CONFIRM_BYTES if known.is_named else VERSION_BYTES
        elif for_reading:
            head.length = HEAD_BYTES if head_only else _head_length(size_hint)
        small = head.length in (SMALL_FILE_BYTES, HEAD_BYTES) and for_reading and size_hint is not None
        if not small or not self._try_head(head):
            self._submit_head(head)
        return head.found

    def read(
        self,
        content: ContentId,
        offset: int,
        size: int,
        wait: Waiter,
    ) -> bytes:
        """Return the bytes [offset, offset + size) of a content, fewer only at its end.

        Raises ContentChanged where storage has another version, NoContent where it has none, and what the
        fetch or the wait raised.
        """
        if not content.has_object:
            raise NoContent("the sample has no image on the server")
        span = span_of(offset, size, content.size)
        if span is None:
            return b""
        length = min(size, content.size - offset)
        data = self.cache.read(content, offset, length)
        if data is not None:
            self._go_ahead(content, span)
            return data
        with self._lock:
            first = self._first_bytes.get(content)
        if first is not None and offset + length <= len(first):
            return first[offset : offset + length]
        return self._read_missing(content, offset, length, span, wait)

    def is_asked(self, sample_id: str) -> bool:
        """Whether storage is being asked about a sample, so that its first bytes are on their way."""
        return sample_id in self._heads

    def has_company(self) -> bool:
        """Whether another process uses the cache, as of a moment ago."""
        return self._once.has_company()

    def begin(self, content: ContentId, offset: int, size: int) -> None:
        """Start to fetch what is not here of some bytes; does not wait."""
        span = span_of(offset, size, content.size)
        if span is not None and content.has_object and content not in self._first_bytes:
            self.ensure(content, span)

    def ensure(self, content: ContentId, span: Span) -> None:
        """See that blocks are, or are being, fetched; does not wait."""
        for run in runs(self.cache.missing(content, span)):
            self._claim(content, run)

    def _read_missing(
        self,
        content: ContentId,
        offset: int,
        length: int,
        span: Span,
        wait: Waiter,
    ) -> bytes:
        for attempt in range(_MAX_ROUNDS):
            if attempt < _MAX_ROUNDS - 1:
                blocks = self.cache.missing(content, span)
            else:
                # the cache loses blocks as fast as they come: take them all as they come
                blocks = list(range(span.first, span.last + 1))
            futures = self._claim_all(content, blocks)
            if attempt == 0:
                # while this read waits, and in the order in which reads arrive, not in which they end
                self._go_ahead(content, span)
            try:
                got = {block: wait(futures[block]) for block in blocks}
            except NotBrought:
                continue
            data = self._assemble(content, offset, length, span, got)
            if data is not None:
                return data
        raise ServerFault("storage does not bring the blocks it announces")

    def _claim_all(self, content: ContentId, blocks: list[int]) -> dict[int, Future[bytes]]:
        futures: dict[int, Future[bytes]] = {}
        for run in runs(blocks):
            futures.update(self._claim(content, run))
        return futures

    def _claim(self, content: ContentId, run: Span, *, ahead: bool = False) -> dict[int, Future[bytes]]:
        """Return the futures of a run's blocks, after starting a fetch of those that have none yet."""
        futures, started = self.transfers.claim(content, run, to_fetch(run, content.size))
        for transfer in started:
            if not self._try_transfer(transfer, urgent=not ahead):
                self._submit_transfer(transfer)
        return futures

    def _submit_transfer(self, transfer: Transfer) -> None:
        self._submit(lambda: self._run_transfer(transfer), lambda error: self._end_transfer(transfer, error))

    def _submit_head(self, head: HeadTaker) -> None:
        self._submit(lambda: self._run_head(head), lambda error: self._end_head(head, error))

    # the first try: callbacks of the network loop must not wait

    def _try_head(self, head: HeadTaker) -> bool:
        """Ask over the network loop; False where that is not the time, or another process asks."""
        if self._first_try is None:
            return False
        if not self._first_try.may_ask(urgent=head.waits):
            return self._drop_head(head)
        release = self._once.try_blocks(head.sample_id)
        if release is None:
            return self._drop_head(head, LeftToAnother("another process fetches it"))
        size = head.known.size if self._fetcher.trusts_hints else None
        expected = head.length if size is None else min(size, head.length)
        came = partial(self._head_came, head, release)
        asked = not (self._once.has_company() and head.told(True) is not None) and self._first_try.fetch(
            head.sample_id, head.length, expected, came, urgent=head.waits
        )
        if not asked:
            release()
        return asked

    def _head_came(self, head: HeadTaker, release: Callable[[], None], answer: Response | None) -> None:
        content = None if answer is None else content_in(head.sample_id, answer)
        trusted = self._fetcher.trusts_hints
        if (
            answer is None
            or content is None
            or head.known.doubt(content, trust_hint=trusted) is not Doubt.NONE
        ):
            release()
            if answer is not None or not self._drop_head(head):
                self._submit_head(head)
            return
        take = partial(self._take_head, head, content, answer.body, release)
        if head.known.size in (None, content.size):
            take()
        else:  # the kernel is to forget a size, which may take it a while
            self._submit(take, lambda error: self._end_head(head, error))

    def _drop_head(self, head: HeadTaker, why: Exception | None = None) -> bool:
        """Give up what was asked ahead, and failed, unless a reader waits for it."""
        with self._lock:
            if head.waits:
                return False
            self._heads.pop(head.sample_id, None)
        head.found.set_exception(why or Unreachable("it was not fetched ahead"))
        return True

    def _take_head(
        self, head: HeadTaker, content: ContentId, body: bytes, release: Callable[[], None]
    ) -> None:
        """Answer with a whole content, which is in memory by then; the disk comes after it."""
        try:
            if len(body) < content.size:
                with self._lock:
                    self._first_bytes[content] = body
                self._answer_head(head, content)
            else:
                self._keep(content, body, partial(self._answer_head, head, content))
        except BaseException as error:
            log.exception("what storage sent cannot be kept")
            self._end_head(head, error)
        finally:
            release()

    def _answer_head(self, head: HeadTaker, content: ContentId) -> None:
        self.tell(content, True)
        self.forget_head(head)
        head.found.set_result(content)

    def _try_transfer(self, transfer: Transfer, *, urgent: bool) -> bool:
        """Fetch all of a small content over the network loop; False where that is not the time."""
        content = transfer.content
        whole = (transfer.next, transfer.last) == (0, block_count(content.size) - 1)
        if self._first_try is None or not whole or content.size > SMALL_FILE_BYTES:
            return False
        release = self._once.try_blocks(content.sample_id)
        if release is None and not urgent:
            self._end_transfer(transfer, None)  # a reader that waits for it asks for it again
            return True
        if release is None:
            return False
        self.cache.catch_up(content)
        came = partial(self._transfer_came, transfer, release, not urgent)
        asked = not self._holds_start_of(content) and self._first_try.fetch(
            content.sample_id, content.size, content.size, came, urgent=urgent
        )
        if not asked:
            release()
        return asked

    def _transfer_came(
        self, transfer: Transfer, release: Callable[[], None], ahead: bool, answer: Response | None
    ) -> None:
        content = transfer.content
        came = None if answer is None else content_in(content.sample_id, answer)
        if answer is None or came != content or len(answer.body) != content.size:
            release()
            if answer is None and ahead:
                self._end_transfer(transfer, None)  # a reader that waits for it asks for it again
            else:
                self._submit_transfer(transfer)
            return
        try:
            self.answered()
            self._keep(content, answer.body)
        except BaseException as error:
            log.exception("what storage sent cannot be kept")
            self._end_transfer(transfer, error)
        else:
            self._end_transfer(transfer, None)
        finally:
            release()

    def _keep(self, content: ContentId, body: bytes, tell: Callable[[], None] | None = None) -> None:
        """Keep a small content: in memory while `tell` is called, and then on the disk."""
        key = content.key()
        self._being_kept[key] = None
        try:
            self.cache.hold(content, body)
            if tell is not None:
                tell()
            self._keep_whole(content, body)
        finally:
            with self._lock:
                kept = self._being_kept.pop(key, None)
            if kept is not None:
                kept.set_result(b"")

    def _keep_whole(self, content: ContentId, body: bytes) -> None:
        if self.transfers:
            for block in range(block_count(content.size)):
                self.transfers.hand_over(content, block, block_of(body, block))
        self.cache.write_whole(content, body)
        with self._lock:
            self._fetched_bytes += len(body)

    def _assemble(
        self, content: ContentId, offset: int, length: int, span: Span, got: dict[int, bytes]
    ) -> bytes | None:
        parts = []
        for block in range(span.first, span.last + 1):
            start = block * BLOCK_BYTES
            lo, hi = max(offset, start), min(offset + length, start + BLOCK_BYTES)
            fetched = got.get(block)
            part = fetched[lo - start : hi - start] if fetched else self.cache.read(content, lo, hi - lo)
            if part is None:
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _go_ahead(self, content: ContentId, span: Span) -> None:
        if content.size <= SMALL_FILE_BYTES:
            return
        with self._lock:
            most = self.cache.room.ahead_bytes // BLOCK_BYTES
            ahead = self._read_ahead.after(content.key(), span, content.size, most)
        for run in ahead:
            self.ensure(content, run)

    def fetch(self, content: ContentId, span: Span, *, ahead: bool = False) -> list[Future[bytes]]:
        """Fetch what is missing of some blocks; futures that end with each of these, in order.

        One more ends when what came a moment ago is on the disk.
        """
        futures: dict[int, Future[bytes]] = {}
        for run in runs(self.cache.missing(content, span)):
            futures.update(self._claim(content, run, ahead=ahead))
        key = content.key()
        with self._lock:
            if key not in self._being_kept:
                return [*futures.values()]
            kept = self._being_kept[key] = self._being_kept[key] or Future()
        return [*futures.values(), kept]

    def room_ahead(self, size: int) -> int:
        """Return how many contents of this size may be fetched before they are asked for."""
        return self.cache.room.ahead_bytes // max(1, size)

    def fetch_whole(self, content: ContentId) -> Future[bytes] | None:
        """Fetch all of a small content ahead; a future that ends with it, None where it is here already."""
        if not content.has_object or self.cache.has_whole(content):
            return None
        futures = self.fetch(content, Span(0, block_count(content.size) - 1), ahead=True)
        return futures[-1] if futures else None

    def holds(self, content: ContentId) -> bool:
        """Whether the whole content is in the cache."""
        count = block_count(content.size)
        return content.has_object and (count == 0 or self.cache.has(content, Span(0, count - 1)))

    def has_start(self, content: ContentId) -> bool:
        """Whether the first block of a content is in the cache, or on its way."""
        return self._holds_start_of(content) or self.transfers.will_bring(content, 0)

    def _holds_start_of(self, content: ContentId) -> bool:
        return content.size == 0 or self.cache.has(content, Span(0, 0))

    def _submit(self, job: Callable[[], None], give_up: Callable[[BaseException], object]) -> None:
        """Run a job in the pool; `give_up` is called where the pool, being shut down, never runs it."""
        try:
            task = self._executor.submit(job)
        except RuntimeError:
            give_up(Cancelled("the mount is being taken down", request_sent=False))
            return

        def ended(task: Future[None]) -> None:
            if task.cancelled():
                give_up(Cancelled("the mount is being taken down", request_sent=False))

        task.add_done_callback(ended)

    # in the content pool

    def _run_transfer(self, transfer: Transfer) -> None:
        content = transfer.content
        try:
            with self._once.blocks(content, transfer.next, transfer.last):
                for span in self._still_missing(transfer):
                    self._fetcher.fetch_blocks(content, span, BlocksTaker(self, transfer, span))
                    if transfer.whole:
                        break
        except ContentChanged as error:
            # a reader that gets this error, and opens the file again, should see the new version
            told = partial(self._end_transfer, transfer, error)
            found = self.identify(content.sample_id, size_hint=content.size, for_reading=False, known=content)
            found.add_done_callback(lambda _: told())
        except BaseException as error:
            self._end_transfer(transfer, error)
        else:
            self._end_transfer(transfer, None)

    def _still_missing(self, transfer: Transfer) -> list[Span]:
        """What to fetch; blocks that came into the cache since they were missed are handed over."""
        content = transfer.content
        span = Span(transfer.next, transfer.last)
        missing = set(self.cache.missing(content, span))
        for block in range(span.first, span.last + 1):
            if block in missing:
                continue
            data = self.cache.read(content, block * BLOCK_BYTES, block_length(block, content.size))
            if data is None:
                missing.add(block)
            else:
                self.transfers.hand_over(content, block, data)
        return runs(sorted(missing))

    def _run_head(self, head: HeadTaker) -> None:
        try:
            with self._once.head(head.sample_id) as shared:
                content = head.told(True) if shared else None
                if content is None:
                    self._fetcher.fetch_head(head.sample_id, head.length, head, head.known, head.mistrust)
                else:
                    self.forget_head(head)
                    head.found.set_result(content)
        except BaseException as error:
            self._end_head(head, error)
            if isinstance(error, ContentChanged):
                before = head.known
                self.identify(head.sample_id, size_hint=before.hint, for_reading=False, known=before.content)
        else:
            self._end_head(head, None)

    def _end_head(self, head: HeadTaker, error: BaseException | None) -> None:
        self.forget_head(head)
        if not head.found.done():
            with self._lock:
                self._failures += 1
            head.found.set_exception(error or ServerFault("storage does not say what it has"))
        if head.transfer is not None:
            self._end_transfer(head.transfer, error)

    def forget_head(self, head: HeadTaker) -> None:
        with self._lock:
            if self._heads.get(head.sample_id) is head:
                del self._heads[head.sample_id]

    def _end_transfer(self, transfer: Transfer, error: BaseException | None) -> None:
        failed = self.transfers.end(transfer, error)
        if failed and error is not None:
            with self._lock:
                self._failures += 1

    def arrived(self, transfer: Transfer, block: int, data: bytes) -> None:
        # waiting readers get the block before it is written; for later ones it is under way until it is
        self.transfers.hand_over(transfer.content, block, data)
        self.cache.write(transfer.content, block, data)
        with self._lock:
            self._fetched_bytes += len(data)
        self.transfers.arrived(transfer, block, data)

    def answered(self) -> None:
        with self._lock:
            self._fetches += 1

    def tell(self, content: ContentId, certain: bool) -> None:
        self.answered()
        try:
            self._on_facts(content, certain)
        except Exception:
            # the callback failed; the bytes are correct all the same
            log.exception("what storage reported could not be passed on")


def _head_length(size_hint: int | None) -> int:
    return SMALL_FILE_BYTES if size_hint is not None and size_hint <= SMALL_FILE_BYTES else BLOCK_BYTES
