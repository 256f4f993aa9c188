"""Takes listings of a dataset into the store, and compares a stored one with the server; decides nothing.

The API pages by sample offset, without a cursor, a total or a stated maximum. A page may be shorter than
requested (clamped), too large to answer (413) or too slow, and the list may grow during the listing. The
safe way is to advance by the rows received and to stop on an empty page; the fast way is to request many
pages at once. `Pager` does that, several pages in parallel, and tolerates short, refused and slow pages.

`Lister` writes the rows to the store, and once more where the dataset moved meanwhile. `Verifier` compares a
listing that shows no sign of a change with the server, a few rows at a time.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future
from typing import Generic, NamedTuple, TypeVar

from lightlyfs.catalog.entries import Changes, Row
from lightlyfs.catalog.freshness import DEFAULT_PAGE_SIZE, UNLISTED, FreshnessConfig
from lightlyfs.catalog.listing_writer import ListingWriter
from lightlyfs.catalog.remote import DatasetState, Remote, is_settled
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.catalog.tables import INDEX_OF
from lightlyfs.errors import Cancelled, MalformedAnswer, RequestError, ServerFault, TimedOut, TooLarge

log = logging.getLogger(__name__)

T = TypeVar("T")

_TAKEN_DOWN = "the mount is being taken down"

# below this a page that still fails is not too large but broken
MIN_PAGE_SIZE = 20
# after this many broken answers a page is taken for what the server sends
MAX_BROKEN_PAGES = 3
# a page that comes back empty before the expected end is asked for again after these pauses, in seconds
_DOUBT_END_S = (0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5)
# a list counts as endless with this many rows past twice the expected number, or in all if none is known
_MOST_UNEXPECTED, _MOST_UNKNOWN = 1_000_000, 50_000_000
# a run of small pages covers one page of the requested size, or an eighth of it, so that progress shows
_PAGES_PER_RUN = 8


class Pager(Generic[T]):
    """Reads pages of `fetch(offset, size)`; one use for one listing.

    An empty page is the end of the list. One that comes before the end that is expected is asked for again,
    with pauses by `sleep`, until it has been empty for some seconds.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], Sequence[T]],
        *,
        executor: Executor,
        page_size: int = DEFAULT_PAGE_SIZE,
        parallel: int = 8,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fetch = fetch
        self._executor = executor
        self._parallel = parallel
        self._sleep = sleep
        self._expected = 0
        self._most = 0
        self._first: Sequence[T] = ()
        self._lock = threading.Lock()
        self._page_size = page_size  # guarded by _lock; only ever falls

    def read_all(self, expected: int, take: Callable[[Sequence[T]], None]) -> None:
        """Hand every row to `take`, a run of pages at a time, in order, in the calling thread.

        `expected` is how many rows there should be, 0 if unknown.

        A row may be handed over twice where the list moved meanwhile. Raises what the last try of a
        page raised; `take` has then seen a part.
        """
        self._expected = expected
        self._most = 2 * expected + _MOST_UNEXPECTED if expected else _MOST_UNKNOWN
        step = self._probe_step(expected, take)
        if not step:
            return
        self._read_windows(step, expected, take)

    def _probe_step(self, expected: int, take: Callable[[Sequence[T]], None]) -> int:
        """Read the first page, to learn how much the server gives at once."""
        first = self._page_at(0, self._size())
        self._first = first
        if first:
            take(first)
        if len(first) < self._size() and expected > len(first):
            # clamped, it seems; the next ones may be longer, and runs that are too short cost more
            # requests than those that take several pages
            self._shrink_to(max(len(first), self._size() // _PAGES_PER_RUN))
        return len(first)

    def _read_windows(self, start: int, expected: int, take: Callable[[Sequence[T]], None]) -> None:
        """Keep `parallel` runs under way up to the expected end, then go on until one comes back empty."""
        under_way: deque[Future[tuple[list[Sequence[T]], bool]]] = deque()
        offset = start
        known = max(start, expected)  # the known length of the list
        limit = max(start + 1, expected)
        ended = False
        try:
            while not ended:
                while len(under_way) < self._parallel and offset < limit:
                    end = offset + self._size()
                    under_way.append(self._begin_run(offset, end))
                    offset = end
                if not under_way:
                    # the list was to end here: one more run proves it, and if it does not, each further
                    # round asks for twice as much at once
                    limit = offset + max(1, offset - known)
                    continue
                try:
                    pages, ended = under_way.popleft().result()
                except CancelledError:
                    raise Cancelled(_TAKEN_DOWN, request_sent=False) from None
                for page in pages:
                    take(page)
        finally:
            for future in under_way:
                future.cancel()

    def _begin_run(self, offset: int, end: int) -> Future[tuple[list[Sequence[T]], bool]]:
        try:
            return self._executor.submit(self._read_run, offset, end)
        except RuntimeError:
            raise Cancelled(_TAKEN_DOWN, request_sent=False) from None

    def _read_run(self, offset: int, end: int) -> tuple[list[Sequence[T]], bool]:
        """Read [offset, end) in as many pages as it takes; True if the list ended in it."""
        pages: list[Sequence[T]] = []
        while offset < end:
            page = self._page_at(offset, min(self._size(), end - offset))
            if not page:
                return pages, True
            pages.append(page)
            offset += len(page)
        return pages, False

    def _page_at(self, offset: int, size: int) -> Sequence[T]:
        """Fetch one page; empty only where the list ends."""
        page = self._fetch_page(offset, size)
        for pause_s in _DOUBT_END_S:
            if page or offset >= self._expected:
                break
            self._sleep(pause_s)
            page = self._fetch_page(offset, size)
        if offset and page and page == self._first[: len(page)]:
            # a server that ignores the offset has no further page
            if offset < self._expected:
                raise ServerFault("the server answers with the first page of the list again")
            return []
        if offset > self._most:
            raise MalformedAnswer(f"the list of samples has no end: {offset:,} rows so far")
        return page

    def _fetch_page(self, offset: int, size: int) -> Sequence[T]:
        """Fetch one page, asking for half as much as often as the server finds it too large or is slow.

        One that arrives broken is asked for again.
        """
        broken = 0
        while True:
            try:
                return self._fetch(offset, size)
            except MalformedAnswer:
                broken += 1
                if broken == MAX_BROKEN_PAGES:
                    raise
            except (TooLarge, TimedOut, ServerFault) as error:
                if size <= MIN_PAGE_SIZE or (isinstance(error, RequestError) and error.status == 501):
                    raise
                size = max(MIN_PAGE_SIZE, size // 2)
                self._shrink_to(size)

    def _size(self) -> int:
        with self._lock:
            return self._page_size

    def _shrink_to(self, size: int) -> None:
        with self._lock:
            self._page_size = max(1, min(self._page_size, size))


ROUND_S = 3600.0
LISTINGS_A_ROUND = 20
# rows that are compared at each check at least: small datasets are compared whole
_MIN_ROWS = 1_000
_OFFSET = "verified_rows"


class Verifier:
    """The rounds over one stored listing; not for several threads at once."""

    def __init__(self, store: CatalogStore, remote: Remote, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._remote = remote
        self._clock = clock
        self._verified_at = clock()

    def holds(self, *, most_rows: int, listing_s: float, ttl_s: float) -> bool:
        """Compare the next rows of the round; False where the server has others."""
        listed = int(self._store.get_meta("listed") or 0)
        elapsed_s = min(self._clock() - self._verified_at, 2 * ttl_s)
        self._verified_at = self._clock()
        round_s = max(ROUND_S, LISTINGS_A_ROUND * listing_s)
        wanted = min(listed, most_rows, max(_MIN_ROWS, int(listed * elapsed_s / round_s)))
        offset = int(self._store.get_meta(_OFFSET) or 0)
        while wanted > 0:
            if offset >= listed:
                offset = 0
            rows = self._remote.page(offset, min(wanted, listed - offset))
            if not rows or not self._store.holds(self._remote.kept(rows)):
                return False
            offset += len(rows)
            wanted -= len(rows)
        self._store.set_meta({_OFFSET: str(offset)})
        return True


# how often a listing is repeated because the dataset changed meanwhile; one that lost rows is read again
# after these pauses, in seconds
_MAX_LISTINGS = 3
_LOST_ROWS_S = (0.5, 1.0, 1.5, 3.0)


class ListingProgress(NamedTuple):
    """How far the listing under way is; `expected` is 0 where unknown."""

    listed: int
    expected: int


class _Pass(NamedTuple):
    """The result of reading all pages once: rows, how many of them are not kept, the id of the last one."""

    rows: int
    left_out: int
    tail: bytes
    has_records: bool


class Lister:
    """Takes listings into one store, and compares it with the server; for one thread at a time."""

    def __init__(
        self,
        store: CatalogStore,
        remote: Remote,
        config: FreshnessConfig,
        *,
        executor: Executor,
        clock: Callable[[], float],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._remote = remote
        self._config = config
        self._executor = executor
        self._sleep = sleep
        self._verifier = Verifier(store, remote, clock=clock)
        self._writer: ListingWriter | None = None

    def has_directory(self, path: str) -> bool:
        """Return whether the listing under way has met this directory already; any thread may call."""
        writer = self._writer
        return writer is not None and writer.has_directory(path)

    # comparing

    def record(self) -> DatasetState:
        """Return the dataset's record; raises what the API raised."""
        return self._remote.dataset()

    def stands(self, record: DatasetState) -> bool:
        """Return whether the stored listing was taken under this record of the dataset."""
        return self._store.get_meta("dataset") == json.dumps(record)

    def tail_holds(self) -> bool:
        """Return whether the list still ends with the sample the last listing ended with."""
        listed = int(self._store.get_meta("listed") or 0)
        rows = self._remote.page(max(0, listed - 1), 2)
        tail = rows[-1].id.hex() if rows else ""
        return len(rows) == min(listed, 1) and tail == self._store.get_meta("tail")

    def rows_hold(self, listing_s: float) -> bool:
        """Compare the next rows with the server where a full listing takes long; return whether they hold."""
        config = self._config
        return self._verifier.holds(most_rows=config.page_size, listing_s=listing_s, ttl_s=config.ttl_s)

    # listing

    def take(
        self,
        record: DatasetState,
        *,
        stamp: Callable[[], str],
        on_progress: Callable[[ListingProgress], None],
    ) -> Changes:
        """List everything into the store, and say what differs from the last listing.

        `stamp()` gives the time to store with it. Raises what the API raised.
        """
        for attempt in itertools.count(1):
            changes, record = self._take_once(record, stamp, on_progress, last=attempt >= _MAX_LISTINGS)
            if changes is not None:
                return changes
        raise AssertionError("the attempts do not end")

    def _take_once(
        self,
        record: DatasetState,
        stamp: Callable[[], str],
        on_progress: Callable[[ListingProgress], None],
        *,
        last: bool,
    ) -> tuple[Changes | None, DatasetState]:
        """Return a listing, None where it is to be taken again, and the record after it.

        It is kept if the dataset stood still meanwhile, or as the last. Where rows came twice in the place of
        others, all pages are read again, into the same listing.
        """
        # what the record says, less what was missing before
        expected = max(0, record.samples - int(self._store.get_meta("missing") or 0))
        pauses = list(_LOST_ROWS_S)

        with self._store.listing() as writer:
            self._writer = writer
            try:
                while True:
                    read = self._read_all(record, expected, writer, on_progress)
                    after = self._remote.dataset()
                    distinct = read.left_out + writer.count()
                    # an end that comes early was looked at for some seconds; rows that came twice were not
                    lost = read.rows > distinct and distinct < expected
                    if not lost or not pauses:
                        break
                    self._sleep(pauses.pop(0))
                if lost:
                    log.warning(
                        "the list repeats samples and leaves out others: "
                        "%s of %s are shown; refresh asks again",
                        f"{distinct:,}",
                        f"{record.samples:,}",
                    )
                elif not last and not is_settled(record, after, read.rows, distinct):
                    log.info("the dataset changed while it was listed; listing again")
                    return None, after
                # the record of before: where it moved meanwhile, the next check lists again
                meta = {
                    "dataset": json.dumps(record),
                    "tail": read.tail.hex(),
                    "listed": str(read.rows),
                    "missing": str(max(0, record.samples - min(read.rows, distinct))),
                    "listed_at": stamp(),
                    INDEX_OF: "",
                    UNLISTED: "",
                }
                return writer.commit(meta), after
            finally:
                self._writer = None

    def _read_all(
        self,
        record: DatasetState,
        expected: int,
        writer: ListingWriter,
        on_progress: Callable[[ListingProgress], None],
    ) -> _Pass:
        """Read all pages into a listing."""
        read = _Pass(0, 0, b"", False)

        def take(rows: Sequence[Row]) -> None:
            nonlocal read
            kept = self._remote.kept(rows)
            writer.add(kept)
            read = _Pass(
                read.rows + len(rows),
                read.left_out + len(rows) - len(kept),
                rows[-1].id,
                read.has_records or any(row.id for row in rows),
            )
            on_progress(ListingProgress(read.rows, record.samples))

        on_progress(ListingProgress(0, record.samples))
        self._pager().read_all(expected, take)
        if read.rows and not read.has_records:
            raise MalformedAnswer("no row of the list is a record of a sample")
        return read

    def _pager(self) -> Pager[Row]:
        return Pager(
            self._remote.page,
            executor=self._executor,
            page_size=self._config.page_size,
            parallel=self._config.parallel_pages,
            sleep=self._sleep,
        )
