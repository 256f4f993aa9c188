"""Fetches files into the cache on request, in the order in which they are named.

A `Plan` lists the files and what is cached of them. A `Warming` fetches the rest with a bounded number of
workers, in pieces, so that all workers can fetch parts of one large file. A file counts as warm once all its
blocks are recorded as present, in the version that storage reported.

Threads: one thread makes a plan, and starts and watches a warming, which has worker threads of its own. The
fetches run in the content pool, where readers never wait for more than `jobs` of them.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import NamedTuple, TypeVar

from lightlyfs.blocks import SMALL_FILE_BYTES, ContentId, Span, block_count
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry
from lightlyfs.errors import Cancelled, LightlyFsError, NoContent
from lightlyfs.fetch.reader import Reader
from lightlyfs.fetch.transfers import NotBrought
from lightlyfs.fs.namespace import Namespace
from lightlyfs.fs.patience import Patience
from lightlyfs.fs.samples import known_content
from lightlyfs.tree import above

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_S = 0.2
# samples of a directory that are looked up at once
_PAGE = 1_000
# a piece of a large file: the usual unit of reading ahead, and no bigger than a small file
_PIECE_BLOCKS = 4
# a waiting reader gets a block before the cache has it; and a response may lack a block that it promised
_MAX_ROUNDS = 4


class Plan(NamedTuple):
    """The files to warm, and how much of them is cached; files of unknown size count no bytes."""

    files: int = 0
    bytes: int = 0
    cached_files: int = 0
    cached_bytes: int = 0
    budget_bytes: int = 0


class WarmingProgress(NamedTuple):
    """The progress of a warming: files and bytes that are in the cache now, and those it fetched."""

    files: int
    bytes: int
    fetched_files: int
    fetched_bytes: int
    failed: int
    ended: bool


class Failure(NamedTuple):
    """A file that is not in the cache, and why."""

    path: str
    reason: str


class WarmingParts(NamedTuple):
    """What a warming works with.

    `ask(entry)` asks which content a sample has; `closing()` says that the mount is being taken down.
    """

    namespace: Namespace
    reader: Reader
    cache: BlockCache
    ask: Callable[[SampleEntry], Future[ContentId]]
    patience: Patience
    closing: Callable[[], bool]


Found = tuple[str, SampleEntry | LightlyFsError]


class Warming:
    """Fetches files of one mount into the cache; `start` once, `stop` at any time."""

    def __init__(
        self,
        parts: WarmingParts,
        names: Iterable[str],
        jobs: int,
        only: frozenset[bytes] | None = None,
        *,
        pin_bytes: int | None = None,
    ) -> None:
        """`names` are files and directories, as paths within the mount; `only` these sample ids are meant.

        With `pin_bytes` each file is pinned before it is fetched, so that others do not displace it, up to so
        many bytes in all.
        """
        self._parts = parts
        self._only = only
        self._pin_bytes = pin_bytes
        self._names = list(dict.fromkeys(names))
        self._stopped = threading.Event()
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        self._next = threading.Lock()  # held by the one worker that looks up files
        self._files = self._found()
        self._changed = threading.Condition()
        # guarded by _changed
        self._pieces: deque[tuple[_File, Span]] = deque()
        self._opening = 0  # files that may yet turn out to have pieces
        self._running = 0
        self._failures: deque[Failure] = deque()
        self._failed: set[str] = set()
        self._counts = WarmingProgress(0, 0, 0, 0, 0, False)

    def plan(self) -> Plan:
        """Look up everything; fetches nothing."""
        files = total = cached_files = cached_bytes = 0
        for size, content in self.each():
            files += 1
            total += size
            if content is not None:
                cached_files += 1
                cached_bytes += size
        return Plan(files, total, cached_files, cached_bytes, self._parts.cache.room.limit)

    def each(self) -> Iterator[tuple[int, ContentId | None]]:
        """Look up every file that is meant: its size, and its content where the cache has all of it."""
        for _, entry in self._found():
            self._check()
            if isinstance(entry, SampleEntry):
                yield entry.published_size or 0, self._cached(entry)

    def start(self) -> None:
        """Begin to fetch."""
        self._running = len(self._workers)
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        """Begin no further fetch; those under way end in the cache."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> WarmingProgress:
        """Wait at most this long for the end, and return the progress."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0, seconds)
            return self._counts._replace(ended=self._running == 0)

    def take_failures(self) -> list[Failure]:
        """Return the failures that were not taken yet."""
        with self._changed:
            taken = list(self._failures)
            self._failures.clear()
        return taken

    def displaced(self) -> Iterator[Failure]:
        """Once it has ended: the files that others displaced from the cache since they were fetched."""
        for path, entry in self._found():
            self._check()
            if isinstance(entry, SampleEntry) and path not in self._failed and self._cached(entry) is None:
                yield Failure(path, "it was displaced again: the cache is too small for all")

    # what is meant

    def _found(self) -> Iterator[Found]:
        for path, entry in self._named():
            if isinstance(entry, LightlyFsError) or self._only is None or entry.id in self._only:
                yield path, entry

    def _named(self) -> Iterator[Found]:
        # until then a directory would seem to have fewer files
        self._parts.namespace.catalog.wait_until_listed(self._parts.patience.turn())
        whole: set[str] = set()
        for name in self._names:
            if not whole.isdisjoint((*above(name), "")):
                continue
            try:
                node = self._parts.namespace.lookup(name, self._parts.patience.turn())
            except LightlyFsError as error:
                yield name, error
                continue
            if isinstance(node, DirectoryEntry):
                whole.add(name)
                yield from self._parts.namespace.samples_below(name, _PAGE)
            elif isinstance(node, SampleEntry):
                yield name, node

    def _cached(self, entry: SampleEntry) -> ContentId | None:
        """The content of a sample that is in the cache whole, and still the one storage has."""
        entry = self._parts.namespace.catalog.with_facts(entry)
        content = known_content(entry)
        if content is None or not entry.verified or not content.has_object:
            return None
        return content if self._parts.cache.has_whole(content) else None

    # the workers

    def _work(self) -> None:
        try:
            while (job := self._take()) is not None:
                self._run(*job)
        except Cancelled:
            pass
        except Exception:
            log.exception("the files to warm cannot be looked up")
            self._fail(
                _File(self._names[0], NoContent()), "not everything could be looked up; the log says why"
            )
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _take(self) -> tuple[_File, Span | None] | None:
        """A piece of a large file, else the next file; None once there is nothing left to do."""
        while True:
            self._check()
            with self._changed:
                if self._pieces:
                    return self._pieces.popleft()
                self._opening += 1
            found = None
            try:
                with self._next:
                    found = next(self._files, None)
                if found is not None:
                    return _File(*found), None
            finally:
                if found is None:
                    with self._changed:
                        self._opening -= 1
            with self._changed:
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._pieces or not self._opening, _POLL_S)
                if not self._pieces and not self._opening:
                    return None

    def _run(self, file: _File, piece: Span | None) -> None:
        try:
            if piece is not None:
                self._fetch_piece(file, piece)
            else:
                self._begin(file)
        except Cancelled:
            raise
        except LightlyFsError as error:
            self._fail(file, str(error))
        finally:
            if piece is None:
                with self._changed:
                    self._opening -= 1
                    self._changed.notify_all()

    def _begin(self, file: _File) -> None:
        """Find out what a file is, and fetch it or cut it into pieces."""
        if isinstance(file.entry, LightlyFsError):
            raise file.entry
        cached = self._cached(file.entry)
        if cached is not None and self._pin_bytes is None:
            self._count(cached.size, fetched=False)
            return
        file.content = content = self._identify(file.entry)
        if not content.has_object:
            raise NoContent("the sample has no image on the server")
        if self._pin_bytes is not None:
            self._pin(content)
            if self._parts.cache.has_whole(content):
                self._count(content.size, fetched=False)
                return
        count = block_count(content.size)
        step = count if content.size <= SMALL_FILE_BYTES else _PIECE_BLOCKS
        pieces = [Span(first, min(first + step, count) - 1) for first in range(0, count, step or 1)]
        if len(pieces) <= 1:
            file.pieces_left = 1
            self._fetch_piece(file, pieces[0] if pieces else None)
            return
        with self._changed:
            file.pieces_left = len(pieces)
            self._pieces.extend((file, piece) for piece in pieces)
            self._changed.notify_all()

    def _identify(self, entry: SampleEntry) -> ContentId:
        entry = self._parts.namespace.catalog.with_facts(entry)
        content = known_content(entry)
        if content is not None and entry.verified and content.has_object:
            return content
        return self._result(self._parts.ask(entry))

    def _pin(self, content: ContentId) -> None:
        assert self._pin_bytes is not None
        with self._changed:
            if content.size > self._pin_bytes:
                raise LightlyFsError("no room in the cache for more pinned files; see --cache-size")
            self._pin_bytes -= content.size
        try:
            self._parts.cache.set_pinned([content.key()], pinned=True)
        except sqlite3.Error as error:
            raise LightlyFsError(f"it cannot be pinned: {error}") from error

    def _fetch_piece(self, file: _File, piece: Span | None) -> None:
        content = file.content
        assert content is not None
        if piece is not None:
            self._bring(content, piece)
        with self._changed:
            file.pieces_left -= 1
            last = file.pieces_left == 0 and not file.failed
        if not last:
            return
        if self._parts.cache.has_whole(content):
            self._count(content.size, fetched=True)
        else:
            self._fail(file, "the cache could not keep it")

    def _bring(self, content: ContentId, piece: Span) -> None:
        """Fetch a piece until it is in the cache, unless that cannot keep it."""
        for _ in range(_MAX_ROUNDS):
            futures = deque(self._parts.reader.fetch(content, piece))
            if not futures:
                return
            try:
                while futures:
                    self._result(futures.popleft())  # let go of at once, for it holds the bytes
            except NotBrought:
                continue

    def _result(self, future: Future[T]) -> T:
        while True:
            self._check()
            try:
                return future.result(_POLL_S)
            except FutureTimeout:
                if future.done():
                    return future.result()

    def _check(self) -> None:
        if self._stopped.is_set() or self._parts.closing():
            raise Cancelled("the warming was stopped")

    def _count(self, size: int, *, fetched: bool) -> None:
        with self._changed:
            now = self._counts
            self._counts = now._replace(
                files=now.files + 1,
                bytes=now.bytes + size,
                fetched_files=now.fetched_files + fetched,
                fetched_bytes=now.fetched_bytes + fetched * size,
            )

    def _fail(self, file: _File, reason: str) -> None:
        with self._changed:
            file.failed = True
            if file.path not in self._failed:
                self._failed.add(file.path)
                self._failures.append(Failure(file.path, reason))
                self._counts = self._counts._replace(failed=self._counts.failed + 1)


class _File:
    """A file being warmed; the counts are guarded by the warming's lock."""

    def __init__(self, path: str, entry: SampleEntry | LightlyFsError) -> None:
        self.path = path
        self.entry = entry
        self.content: ContentId | None = None
        self.pieces_left = 0
        self.failed = False
