"""Keeps the catalogue current: the first listing, cheap checks after the TTL, re-listing in the background.

`freshness` decides when to ask the API; `listing` asks, and writes the answers to the store. This module runs
them. At most one check or listing runs at a time across all processes that share the store; other callers get
the old answers meanwhile. No lock of this package is held during a request to the API.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from lightlyfs.api.client import ServerState
from lightlyfs.catalog.entries import Changes
from lightlyfs.catalog.freshness import Freshness
from lightlyfs.catalog.listing import Lister, ListingProgress
from lightlyfs.catalog.remote import DatasetState
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.catalog.tables import INDEX_OF
from lightlyfs.errors import Cancelled, Forbidden, LightlyFsError, NotFound, Unauthorized

log = logging.getLogger(__name__)

T = TypeVar("T")

_FAILED = "the catalogue could not be refreshed: %s"

# while another process lists, the time limits of waiting callers are restarted this often
_WAITING_EVERY_S = 1.0


class Refresher:
    """Runs the checks and listings of one store, as `freshness` decides; any thread may call."""

    def __init__(
        self,
        store: CatalogStore,
        lister: Lister,
        freshness: Freshness,
        server: ServerState,
        *,
        executor: Executor,
        on_changes: Callable[[Changes], None],
        turn: Callable[[Callable[[], None]], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        """`turn(on_wait)` is held during each check and listing: it keeps other processes from theirs."""
        self._store = store
        self._lister = lister
        self._server = server
        self._executor = executor
        self._on_changes = on_changes
        self._turn = turn
        self._waited_at = -math.inf
        self._closed = False
        self._work_lock = threading.Lock()  # held by the one check or listing under way
        self._state = threading.Condition()
        store.on_lost = self.start_over
        # guarded by _state
        self._check_queued = False
        self._next_check: Future[None] | None = None
        self._freshness = freshness
        self._complete = freshness.is_listed
        self._progress = ListingProgress(0, 0)
        self._error: LightlyFsError | None = None

    # what others see

    @property
    def complete(self) -> bool:
        """Whether the store holds a complete listing, new or from an earlier mount."""
        return self._complete

    @property
    def error(self) -> LightlyFsError | None:
        """What the last check or listing failed with, or fails with now; None where all is well."""
        return self._error or self._server.outage()

    @property
    def stopped(self) -> bool:
        """Whether the API refuses us (401, 403, 404), so that only the store answers for some minutes."""
        return self._freshness.stopped

    @property
    def progress(self) -> ListingProgress:
        """How far the listing under way is."""
        return self._progress

    def age_s(self) -> float | None:
        """Return seconds since the catalogue was last known to be true, over mounts; None if never."""
        return self._freshness.age_s()

    def listing_has_directory(self, path: str) -> bool:
        """Return whether the listing under way has met this directory already."""
        return self._lister.has_directory(path)

    # asking for freshness

    def touch(self) -> None:
        """Queue a check if the TTL is over; costs a comparison otherwise and never waits."""
        if self._freshness.is_due():
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

    def wait_for_check(self, seconds: float) -> bool:
        """Wait at most that long for the check or listing that is queued or under way; True if it ended."""
        with self._state:
            return self._state.wait_for(lambda: not self._check_queued, seconds)

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
            self._freshness.distrust()
        self.touch()

    def close(self) -> None:
        """Treat failures from now on as effects of the shutdown."""
        self._closed = True

    def start_over(self) -> None:
        """Start again after the store lost its rows: nothing is complete until a new listing is."""
        with self._state:
            self._freshness.start_over()
            self._complete = False
        self._queue_check()

    def resume(self) -> None:
        """Check with the next access, because the API may accept requests again."""
        with self._state:
            self._freshness.resume()
        self.touch()

    def changed_elsewhere(self) -> None:
        """Notify those that keep parts of the catalogue in memory: another process changed it."""
        self._hear()
        self._on_changes(Changes(0, 0, 0, None))

    def list_now(self) -> Changes:
        """List everything in this thread; raises what the API raised."""
        changes: list[Changes] = []
        with self._at_work():
            self._guarded(lambda: changes.append(self._list(self._lister.record())))
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
        if self._freshness.stopped and self._server.has_new_token():
            self.resume()
        with self._state:
            if self._check_queued or not self._freshness.may_ask():
                return
            self._check_queued = True
        if not self._submit(self._check_in_background):
            self._end_background_check()

    def _submit(self, job: Callable[[], None]) -> bool:
        """Return whether the pool takes the job; it takes none once it is shut down."""
        try:
            self._executor.submit(job)
        except RuntimeError:
            return False
        return True

    def _check_in_background(self) -> None:
        try:
            with self._at_work():
                self._hear()
                if not self._freshness.was_checked_elsewhere():  # by another process, recently
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
        now = self._freshness.clock()
        if now - self._waited_at >= _WAITING_EVERY_S:
            self._waited_at = now
            self._note_progress(ListingProgress(*self._progress))

    def _hear(self) -> None:
        """See what other processes did."""
        with self._state:
            self._freshness.hear()
            self._complete = self._complete or self._freshness.is_listed
            self._state.notify_all()

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
            self._freshness.note_success()

    def _note_failure(self, error: LightlyFsError, *, stop: bool) -> None:
        with self._state:
            self._error = error
            self._freshness.note_failure(stop=stop)

    def _check(self) -> None:
        record = self._lister.record()
        self._hear()
        if self._is_true(record):
            self._note_checked()
        else:
            self._list(record)

    def _is_true(self, record: DatasetState) -> bool:
        """Return whether the stored listing is that of the dataset, as far as a few requests can tell."""
        if not self._complete or not self._lister.stands(record) or self._freshness.needs_listing():
            return False
        if self._store.get_meta(INDEX_OF):
            # one worker of a thousand takes the word of the record, unless an answer did not fit
            return True
        if not self._lister.tail_holds():
            return False
        stands = self._freshness.rows_stand()
        return self._lister.rows_hold(self._freshness.listing_s) if stands is None else stands

    def _list(self, record: DatasetState) -> Changes:
        started = self._freshness.clock()
        changes = self._lister.take(
            record, stamp=self._freshness.stamp_listing, on_progress=self._note_progress
        )
        with self._state:
            self._freshness.note_listed(started)
            self._complete = True
            self._state.notify_all()
        self._note_checked()
        if changes:
            self._on_changes(changes)
        return changes

    def _note_progress(self, progress: ListingProgress) -> None:
        with self._state:
            self._progress = progress
            self._state.notify_all()

    def _note_checked(self) -> None:
        with self._state:
            meta = self._freshness.note_checked()
        self._store.set_meta(meta)
