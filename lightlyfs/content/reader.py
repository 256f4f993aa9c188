"""`read(content, offset, size)`: from the cache, else from storage, one fetch per block however many ask.

Fetches run in the content pool and end in the cache; whoever needs a block that is under way waits for
the same future. A block that the cache could not keep still reaches those who wait for it.

Threads: any may call. The lock guards the table of fetches under way; it is never held during a fetch, a
wait, disk work or a callback.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import NamedTuple, Protocol, TypeVar

from lightlyfs.content.cache import BlockCache
from lightlyfs.content.fetcher import Fetcher
from lightlyfs.content.identity import ContentId
from lightlyfs.content.prefetch import ReadAhead
from lightlyfs.content.ranges import BLOCK_BYTES, SMALL_FILE_BYTES, Span, runs, span_of, to_fetch
from lightlyfs.errors import ContentChanged, NoContent

T = TypeVar("T")

# enough to find the size of any object, and usually all of a small image
PROBE_BYTES = 128 << 10
# a block may be evicted between its arrival and its use; after this many rounds it is read past the cache
_MAX_ROUNDS = 3


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
    """Reads contents; `on_facts(content)` hears of every content storage identifies."""

    def __init__(
        self,
        cache: BlockCache,
        fetcher: Fetcher,
        executor: Executor,
        on_facts: Callable[[ContentId], None],
    ) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._executor = executor
        self._on_facts = on_facts
        self._lock = threading.Lock()
        # guarded by _lock
        self._blocks: dict[tuple[str, int], Future[bytes]] = {}
        self._heads: dict[str, Future[ContentId]] = {}
        self._read_ahead = ReadAhead()
        self._fetches = self._fetched_bytes = self._failures = 0

    def stats(self) -> ReaderStats:
        """Counters since the mount began."""
        with self._lock:
            under_way = len(self._blocks) + len(self._heads)
            return ReaderStats(self._fetches, self._fetched_bytes, under_way, self._failures)

    def identify(self, sample_id: str, *, size_hint: int | None, for_reading: bool) -> Future[ContentId]:
        """Ask storage which content a sample has now; done as soon as the headers of its answer are in.

        The same GET brings the first bytes: all of a file that the hint calls small when it is about to
        be read, a probe otherwise.
        """
        with self._lock:
            future = self._heads.get(sample_id)
            if future is not None:
                return future
            future = self._heads[sample_id] = Future()
        length = _head_length(size_hint) if for_reading else PROBE_BYTES
        self._executor.submit(self._run_head, sample_id, length, future)
        return future

    def read(self, content: ContentId, offset: int, size: int, wait: Waiter) -> bytes:
        """The bytes [offset, offset + size) of a content, short only where it ends.

        Raises ContentChanged where storage has another version, NoContent where it has none, and what
        the fetch or the wait raised.
        """
        if not content.has_object:
            raise NoContent("the sample has no image on the server")
        span = span_of(offset, size, content.size)
        if span is None:
            return b""
        length = min(size, content.size - offset)
        data = self._cache.read(content, offset, length)
        if data is None:
            data = self._read_missing(content, offset, length, span, wait)
        self._go_ahead(content, span)
        return data

    def ensure(self, content: ContentId, span: Span) -> None:
        """See that blocks are, or are being, fetched; does not wait."""
        for run in runs(self._cache.missing(content, span)):
            self._claim(content, run)

    def _read_missing(self, content: ContentId, offset: int, length: int, span: Span, wait: Waiter) -> bytes:
        for _ in range(_MAX_ROUNDS):
            blocks = self._cache.missing(content, span)
            got = self._fetch_blocks(content, blocks, wait)
            data = self._assemble(content, offset, length, span, got)
            if data is not None:
                return data
        # the cache loses blocks as fast as they come: take them all from the network
        got = self._fetch_blocks(content, list(range(span.first, span.last + 1)), wait)
        data = self._assemble(content, offset, length, span, got)
        assert data is not None
        return data

    def _fetch_blocks(self, content: ContentId, blocks: list[int], wait: Waiter) -> dict[int, bytes]:
        futures: dict[int, Future[bytes]] = {}
        for run in runs(blocks):
            futures.update(self._claim(content, run))
        return {block: wait(futures[block]) for block in blocks}

    def _claim(self, content: ContentId, run: Span) -> dict[int, Future[bytes]]:
        """The futures of a run's blocks, after starting the fetch of those that nobody fetches yet."""
        wanted = to_fetch(run, content.size)
        key = content.key()
        free = []
        futures = {}
        with self._lock:
            for block in range(wanted.first, wanted.last + 1):
                future = self._blocks.get((key, block))
                if future is None:
                    future = self._blocks[key, block] = Future()
                    free.append(block)
                futures[block] = future
        for span in runs(free):
            self._executor.submit(self._run_blocks, content, span)
        return futures

    def _assemble(
        self, content: ContentId, offset: int, length: int, span: Span, got: dict[int, bytes]
    ) -> bytes | None:
        parts = []
        for block in range(span.first, span.last + 1):
            start = block * BLOCK_BYTES
            lo, hi = max(offset, start), min(offset + length, start + BLOCK_BYTES)
            fetched = got.get(block)
            part = fetched[lo - start : hi - start] if fetched else self._cache.read(content, lo, hi - lo)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def _go_ahead(self, content: ContentId, span: Span) -> None:
        if content.size <= SMALL_FILE_BYTES:
            return
        with self._lock:
            ahead = self._read_ahead.after(content.key(), span, content.size)
        if ahead is not None:
            self.ensure(content, ahead)

    # in the content pool

    def _run_blocks(self, content: ContentId, span: Span) -> None:
        taker = _Taker(self, content)
        try:
            self._fetcher.fetch_blocks(content, span, taker)
        except ContentChanged as error:
            self._settle(content, span, error)
            self.identify(content.sample_id, size_hint=content.size, for_reading=False)
        except BaseException as error:
            self._settle(content, span, error)
        else:
            self._settle(content, span, ContentChanged("storage sent fewer blocks than it announced"))

    def _run_head(self, sample_id: str, length: int, future: Future[ContentId]) -> None:
        taker = _Taker(self, None, future)
        try:
            self._fetcher.fetch_head(sample_id, length, taker)
        except BaseException as error:
            self._failures += 1
            self._settle_head(sample_id)
            if not future.done():
                future.set_exception(error)
            elif taker.content is not None:
                self._settle(taker.content, taker.announced, error)
        else:
            self._settle_head(sample_id)
            assert taker.content is not None
            self._settle(taker.content, taker.announced, ContentChanged("storage broke off"))

    def _settle_head(self, sample_id: str) -> None:
        with self._lock:
            self._heads.pop(sample_id, None)

    def _settle(self, content: ContentId, span: Span, error: BaseException) -> None:
        """Fail whatever blocks of a span did not arrive."""
        key = content.key()
        with self._lock:
            left = [self._blocks.pop((key, b), None) for b in range(span.first, span.last + 1)]
            failed = [future for future in left if future is not None]
            self._failures += bool(failed)
        for future in failed:
            future.set_exception(error)

    def _announce(self, content: ContentId, span: Span) -> None:
        """Blocks of a content just identified are under way: let readers wait for them."""
        key = content.key()
        with self._lock:
            self._fetches += 1
            for block in range(span.first, span.last + 1):
                self._blocks.setdefault((key, block), Future())

    def _arrived(self, content: ContentId, block: int, data: bytes) -> None:
        self._cache.write(content, block, data)
        with self._lock:
            self._fetched_bytes += len(data)
            future = self._blocks.pop((content.key(), block), None)
        if future is not None:
            future.set_result(data)


class _Taker:
    """The reader's side of one fetch: `BlockTaker` for a content known before or found on the way."""

    def __init__(
        self, reader: Reader, content: ContentId | None, found: Future[ContentId] | None = None
    ) -> None:
        self._reader = reader
        self._found = found
        self.content = content
        self.announced = Span(0, -1)

    def identified(self, content: ContentId, first: int, last: int) -> None:
        self.content = content
        if self._found is None:
            self._reader._announce(content, Span(0, -1))
            return
        self.announced = Span(first, last)
        self._reader._announce(content, self.announced)
        self._reader._on_facts(content)
        self._found.set_result(content)

    def block(self, index: int, data: bytes) -> None:
        assert self.content is not None
        self._reader._arrived(self.content, index, data)


def _head_length(size_hint: int | None) -> int:
    return SMALL_FILE_BYTES if size_hint is not None and size_hint <= SMALL_FILE_BYTES else BLOCK_BYTES
