"""Keeps the catalogue current: the first listing, cheap checks after the TTL, re-listing in the background.

Decides when to ask the API, and applies the answers to the store. At most one check or listing runs at a
time across all processes that share the store; other callers get the old answers meanwhile. No lock of this
package is held during a request to the API.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, TypeVar

from lightlyfs.catalog.entries import Row
from lightlyfs.catalog.listing import Pager, Verifier
from lightlyfs.catalog.listing_writer import Changes, ListingWriter
from lightlyfs.catalog.remote import DatasetState, Remote, is_settled
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.catalog.tables import INDEX_OF
from lightlyfs.catalog.timing import FreshnessConfig, Timing
from lightlyfs.errors import Cancelled, Forbidden, LightlyFsError, NotFound, Unauthorized

log = logging.getLogger(__name__)

T = TypeVar("T")

_FAILED = "the catalogue could not be refreshed: %s"

# a listing is taken again when the dataset moved meanwhile, up to so often; one that lost rows is taken again
# after these pauses, in seconds
_MAX_LISTINGS = 3
_LOST_ROWS_S = (0.5, 1.0, 1.5, 3.0)
# after a failed check the API is left alone this long, or the TTL where that is shorter, but never less
_RETRY_AFTER_S = 5.0
_MIN_RETRY_AFTER_S = 1.0
# after a refusal (401, 403, 404): each minute at first, later each ten
_REFUSED_RETRY_S, _REFUSED_TRIES, _REFUSED_LATER_S = 60.0, 5, 600.0
# with a TTL of zero a full listing runs now and then, taking at most a twentieth of the time
_LISTINGS_SHARE = 20
# while another process lists, the time limits of waiting callers are restarted this often
_WAITING_EVERY_S = 1.0


class ListingProgress(NamedTuple):
    """How far the listing under way is; `expected` is 0 where unknown."""

    listed: int
    expected: int


class _Listed(NamedTuple):
    """What a listing came to: None for the changes where it is to be taken again, and the record after it."""

    changes: Changes | None
    after: DatasetState
    lost_rows: bool


class Refresher:
    """Decides and does every refresh of one store; any thread may call."""

    def __init__(
        self,
        store: CatalogStore,
        remote: Remote,
        config: FreshnessConfig,
        *,
        executor: Executor,
        page_executor: Executor,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        on_changes: Callable[[Changes], None],
        sleep: Callable[[float], None] = time.sleep,
        outage: Callable[[], LightlyFsError | None] = lambda: None,
        turn: Callable[[Callable[[], None]], AbstractContextManager[None]] = lambda _: nullcontext(),
        has_new_token: Callable[[], bool] = lambda: False,
    ) -> None:
        """`outage()` is what requests fail with now. `turn(on_wait)` is held during each check and listing:
        it keeps other processes from theirs. `has_new_token` is asked with each access once the API refused
        us.
        """
        self._store = store
        self._remote = remote
        self._config = config
        self._executor = executor
        self._page_executor = page_executor
        self._clock = clock
        self._waited_at = -math.inf
        self._closed = False
        self._on_changes = on_changes
        self._sleep = sleep
        self._outage = outage
        self._turn = turn
        self._verifier = Verifier(store, remote, clock=clock)
        self._has_new_token = has_new_token
        self._work_lock = threading.Lock()  # held by the one check or listing under way
        self._state = threading.Condition()
        store.on_lost = self.start_over
        # guarded by _state
        self._check_queued = False
        self._next_check: Future[None] | None = None
        self._timing = Timing(store, trusted=math.isinf(config.ttl_s), clock=clock, wall_clock=wall_clock)
        self._complete = self._timing.is_listed
        self._retry_at = -math.inf
        self._progress = ListingProgress(0, 0)
        self._error: LightlyFsError | None = None
        self._stopped = False
        self._refusals = 0
        self._writer: ListingWriter | None = None

    # what others see

    @property
    def complete(self) -> bool:
        """Whether the store holds a complete listing, new or from an earlier mount."""
        return self._complete

    @property
    def error(self) -> LightlyFsError | None:
        """What the last check or listing failed with, or fails with now; None where all is well."""
        return self._error or self._outage()

    @property
    def stopped(self) -> bool:
        """Whether the API refuses us (401, 403, 404), so that only the store answers for some minutes."""
        return self._stopped

    @property
    def progress(self) -> ListingProgress:
        """How far the listing under way is."""
        return self._progress

    def age_s(self) -> float | None:
        """Seconds since the catalogue was last known to be true, over mounts; None if never."""
        return self._timing.age_s()

    def listing_has_directory(self, path: str) -> bool:
        """Whether the listing under way has met this directory already."""
        writer = self._writer
        return writer is not None and writer.has_directory(path)

    # asking for freshness

    def touch(self) -> None:
        """Queue a check if the TTL is over; costs a comparison otherwise and never waits."""
        if self._clock() - self._timing.checked_at >= self._config.ttl_s:
            self._queue_check()

    def start_listing(self) -> None:
        """Queue the first listing."""
        self._queue_check()

    @property
    def active(self) -> bool:
        """Whether a check or listing is queued or under way."""
        return self._check_queued

    def wait_for_progress(self, seconds: float) -> bool:
        """Wait at most that long for the listing to move or end; True if it did."""
        with self._state:
            seen = self._progress
            return self._state.wait_for(
                lambda: self._complete or not self._check_queued or self._progress is not seen, seconds
            )

    def check_soon(self) -> Future[None]:
        """Queue a check that begins after this call, and a listing if the check finds a change.

        Calls before the check begins share its future, which ends with the error that the API raised.
        """
        with self._state:
            if self._next_check is not None:
                return self._next_check
            check = self._next_check = Future()

        def run() -> None:
            with self._at_work():
                with self._state:
                    self._next_check = None
                self._guarded(self._check)

        self.run_into(check, run)
        return check

    def expect_changes(self) -> None:
        """Make a full listing due with the next access, because an answer contradicts the catalogue."""
        with self._state:
            self._timing.hear()
            self._timing.full_at = self._timing.checked_at = -math.inf
        self.touch()

    def close(self) -> None:
        """Treat failures from now on as effects of the shutdown."""
        self._closed = True

    def start_over(self) -> None:
        """Start again after the store lost its rows: nothing is complete until a new listing is."""
        with self._state:
            self._timing.hear()
            self._complete = False
            self._timing.full_at = self._timing.checked_at = self._retry_at = -math.inf
        self._queue_check()

    def resume(self) -> None:
        """Check with the next access, because the API may accept requests again."""
        with self._state:
            self._stopped = False
            self._retry_at = self._timing.checked_at = -math.inf
        self.touch()

    def changed_elsewhere(self) -> None:
        """Notify those that keep parts of the catalogue in memory: another process changed it."""
        self._hear()
        self._on_changes(Changes(0, 0, 0, None))

    def list_now(self) -> Changes:
        """List everything in this thread; raises what the API raised."""
        changes: list[Changes] = []
        with self._at_work():
            self._guarded(lambda: changes.append(self._list(self._remote.dataset())))
        return changes[0]

    def run_into(self, answer: Future[T], request: Callable[[], T]) -> None:
        """Run a request in the metadata pool, so that its callers can wait with a deadline of their own."""

        def run() -> None:
            try:
                result = request()
            except BaseException as error:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        if not self._submit(run):
            answer.set_exception(Cancelled("the mount is being taken down", request_sent=False))

    # the work

    def _queue_check(self) -> None:
        if self._stopped and self._has_new_token():
            self.resume()
        with self._state:
            if self._check_queued or self._clock() < self._retry_at:
                return
            self._check_queued = True
        if not self._submit(self._check_in_background):
            self._end_background_check()

    def _submit(self, job: Callable[[], None]) -> bool:
        """Whether the pool takes the job; it takes none once it is shut down."""
        try:
            self._executor.submit(job)
        except RuntimeError:
            return False
        return True

    def _check_in_background(self) -> None:
        try:
            with self._at_work():
                if not self._is_checked_elsewhere():
                    self._guarded(self._check)
        except LightlyFsError as error:
            # a check that is cut short at the end is no news
            cut_short = self._closed or isinstance(error, Cancelled)
            log.log(logging.DEBUG if cut_short else logging.WARNING, _FAILED, error)
        except Exception:
            log.exception("the catalogue could not be refreshed")
        finally:
            self._end_background_check()

    def _end_background_check(self) -> None:
        with self._state:
            self._check_queued = False
            self._state.notify_all()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._work_lock, self._turn(self._note_waiting):
            yield

    def _note_waiting(self) -> None:
        """Record that another process is listing, so that callers waiting for the listing do not give up."""
        if self._clock() - self._waited_at >= _WAITING_EVERY_S:
            self._waited_at = self._clock()
            self._note_progress(*self._progress)

    def _hear(self) -> None:
        """See what other processes did."""
        with self._state:
            self._timing.hear()
            self._complete = self._complete or self._timing.is_listed
            self._state.notify_all()

    def _is_checked_elsewhere(self) -> bool:
        """Whether another process checked recently, so that this one need not."""
        self._hear()
        full_due = math.isinf(self._timing.full_at)
        return not full_due and self._clock() - self._timing.checked_at < self._config.ttl_s

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (Unauthorized, Forbidden, NotFound) as error:
            self._note_failure(error, stop=self._complete)
            raise
        except LightlyFsError as error:
            self._note_failure(error, stop=False)
            raise
        except sqlite3.Error as error:
            failure = LightlyFsError(f"the catalogue on disk cannot be used: {error}")
            self._note_failure(failure, stop=False)
            raise failure from error
        except Exception as error:
            self._note_failure(LightlyFsError(f"a fault of lightlyfs: {error!r}"), stop=False)
            raise
        with self._state:
            self._error = None
            self._stopped = False
            self._refusals = 0

    def _note_failure(self, error: LightlyFsError, *, stop: bool) -> None:
        with self._state:
            self._error = error
            self._stopped = stop
            pause_s = max(_MIN_RETRY_AFTER_S, min(_RETRY_AFTER_S, self._config.ttl_s))
            if stop:
                self._refusals += 1
                pause_s = _REFUSED_RETRY_S if self._refusals <= _REFUSED_TRIES else _REFUSED_LATER_S
            self._retry_at = self._clock() + pause_s

    def _check(self) -> None:
        record = self._remote.dataset()
        self._hear()
        if not self._complete or self._changed(record) or math.isinf(self._timing.full_at):
            is_true = False
        elif self._store.get_meta(INDEX_OF):
            is_true = (
                True  # one worker of a thousand takes the word of the record, unless an answer did not fit
            )
        else:
            is_true = self._tail_holds() and self._rows_hold()
        if not is_true:
            self._list(record)
        else:
            self._note_checked()

    def _changed(self, record: DatasetState) -> bool:
        return self._store.get_meta("dataset") != json.dumps(record)

    def _tail_holds(self) -> bool:
        """Whether the list still ends with the sample the last listing ended with."""
        listed = int(self._store.get_meta("listed") or 0)
        rows = self._remote.page(max(0, listed - 1), 2)
        tail = rows[-1].id.hex() if rows else ""
        return len(rows) == min(listed, 1) and tail == self._store.get_meta("tail")

    def _rows_hold(self) -> bool:
        """Whether the rows hold whose turn it is to be compared."""
        listing_s, ttl_s = self._timing.listing_s, self._config.ttl_s
        listed_ago_s = self._clock() - self._timing.full_at
        if not ttl_s:
            return listed_ago_s < _LISTINGS_SHARE * listing_s
        if listed_ago_s < ttl_s:
            return True  # by another process
        return self._verifier.holds(most_rows=self._config.page_size, listing_s=listing_s, ttl_s=ttl_s)

    def _list(self, record: DatasetState) -> Changes:
        started = self._clock()
        pauses = list(_LOST_ROWS_S)
        for attempt in itertools.count(1):
            listed = self._list_once(record, last=attempt >= _MAX_LISTINGS, believes_loss=not pauses)
            if listed.changes is not None:
                break
            record = listed.after
            if listed.lost_rows and pauses:
                self._sleep(pauses.pop(0))
        changes = listed.changes
        with self._state:
            self._timing.listing_s = self._clock() - started
            self._timing.full_at = self._clock()
            self._complete = True
            self._state.notify_all()
        self._note_checked()
        assert changes is not None
        if changes:
            self._on_changes(changes)
        return changes

    def _list_once(self, record: DatasetState, *, last: bool, believes_loss: bool) -> _Listed:
        """One pass over all pages; kept if the dataset stood still meanwhile, or as the last try.

        A listing with fewer samples than the record has is kept only where that is to be believed.
        """
        tail = b""
        rows_listed = left_out = 0
        expected = self._expected_rows(record)

        with self._store.listing() as writer:
            self._writer = writer

            def take(rows: Sequence[Row]) -> None:
                nonlocal tail, rows_listed, left_out
                kept = self._remote.kept(rows)
                writer.add(kept)
                tail = rows[-1].id
                rows_listed += len(rows)
                left_out += len(rows) - len(kept)
                self._note_progress(rows_listed, record.samples)

            self._note_progress(0, record.samples)
            pager = Pager(
                self._remote.page,
                executor=self._page_executor,
                page_size=self._config.page_size,
                parallel=self._config.parallel_pages,
                sleep=self._sleep,
            )
            try:
                pager.read_all(expected, take)
                after = self._remote.dataset()
                distinct = left_out + writer.count()
                # an end that comes early was looked at for some seconds; rows that came twice were not
                lost = rows_listed > distinct and distinct < expected
                keeps = last and (believes_loss or not lost)
                if not keeps and not is_settled(record, after, rows_listed, distinct):
                    log.info("the dataset changed while it was listed; listing again")
                    return _Listed(None, after, lost)
                # the record of before: where it moved meanwhile, the next check lists again
                meta = self._meta(record, tail.hex(), rows_listed)
                return _Listed(writer.commit(meta), after, lost)
            finally:
                self._writer = None

    def _meta(self, record: DatasetState, tail: str, listed: int) -> dict[str, str]:
        return {
            "dataset": json.dumps(record),
            "tail": tail,
            "listed": str(listed),
            "missing": str(max(0, record.samples - listed)),
            "listed_at": self._timing.note_listing(),
            INDEX_OF: "",
        }

    def _expected_rows(self, record: DatasetState) -> int:
        """How many samples a listing should have: what the record says, less what was missing before."""
        return max(0, record.samples - int(self._store.get_meta("missing") or 0))

    def _note_progress(self, listed: int, expected: int) -> None:
        with self._state:
            self._progress = ListingProgress(listed, expected)
            self._state.notify_all()

    def _note_checked(self) -> None:
        with self._state:
            meta = self._timing.note_checked()
        self._store.set_meta(meta)
