"""Uploads sealed files: create, write URLs, thumbnail, image, confirm; retried, never duplicated.

Each irreversible step is in the journal before it is taken. A create carries a random mark: after a lost
reply the sample with the mark is adopted, and another create is sent only if there is none. A 2xx response
of storage to the PUT is the confirmation.

While the server is unreachable, no file waits for its own time-outs: new uploads are owed at once, one of the
waiting uploads is the probe, and its success starts all others.

Threads: any may call. The lock guards the table of jobs; it is never held during a request or a callback.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from lightlyfs.api.client import ServerState
from lightlyfs.cores import ThreadPool
from lightlyfs.errors import (
    Cancelled,
    FileExists,
    Forbidden,
    LightlyFsError,
    Retryable,
    Unauthorized,
    Unreachable,
)
from lightlyfs.staging.local_files import LocalFile, LocalFiles, Ticket
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import GONE
from lightlyfs.staging.upload_steps import Steps

log = logging.getLogger(__name__)

# uploads that move
WORKERS = 16
# an upload that has not moved for this long waits for the retry of a request. It makes room for another one,
# so that files that the server fails for never keep the rest waiting
_STANDS_S = 3.0
# uploads in all, and those among them that failed before
MAX_WORKERS = 4 * WORKERS
_MOST_RETRIES = MAX_WORKERS - WORKERS
# a failed upload is tried again after this, twice as long each time
_FIRST_RETRY_S = 5.0
_MAX_RETRY_S = 300.0
# a person has to change a refused token or permission: retried each minute at first, then every ten
_REFUSED_RETRY_S, _REFUSED_TRIES, _REFUSED_LATER_S = 60.0, 5, 600.0
# while the server cannot be reached, one upload is tried this often
_PROBE_S = 3.0
# a server that has answered nothing for this long counts as away, even before the first upload gives up
_AWAY_AFTER_S = 10.0
# while the token is refused, its file is looked at this often
_LOOK_FOR_TOKEN_S = 0.5
# while files wait for a thread, uploads are checked for progress this often
_LOOK_FOR_ROOM_S = 0.5
# at the end uploads are checked for progress this often
_LOOK_FOR_MOVES_S = 1.0
# an upload that cannot start because the mount ends is not retried in a loop
_MIN_PAUSE_S = 0.1


class UploaderStats(NamedTuple):
    """Counters since the mount began, and what is owed now; `offline` says why nothing is tried, or ""."""

    uploaded: int
    under_way: int
    waiting: int
    failed: int
    offline: str


class UploadOutcome(Protocol):
    """Is told how uploads end, in the uploader's threads, before their tickets are done."""

    def uploaded(self, file: LocalFile, record: Record) -> None:
        """Make a success durable and delete the staged bytes; a crash before costs a second PUT of them."""

    def failed(self, file: LocalFile, error: Exception) -> None:
        """Take note of a failure."""


class _Try:
    """How far one try of an upload is; it counts where no earlier one was, or failures would be progress."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._moved = 0

    @property
    def moved(self) -> int:
        """Steps and pieces of this try."""
        return self._moved

    @moved.setter
    def moved(self, moved: int) -> None:
        self._moved = moved
        self._ticket.moved = max(self._ticket.moved, moved)


class _Job:
    def __init__(self, file: LocalFile, generation: int, ticket: Ticket, number: int) -> None:
        self.file = file
        self.generation = generation
        self.ticket = ticket
        self.number = number  # of the submission of this generation
        self.running = False
        self.failed = False
        self.tries = 0
        self.retry_at = 0.0
        # how far it was when it was looked at, and since when
        self.seen_moved, self.seen_at = 0, 0.0
        # everything was to be tried again while this was on its way, perhaps with the token of before
        self.again = False
        # a later generation of the same file, sealed while this one is on its way
        self.following: tuple[int, Ticket, int] | None = None


class Uploader:
    """Uploads what is submitted, one generation of a file at a time, several files at once."""

    def __init__(
        self,
        steps: Steps,
        files: LocalFiles,
        outcome: UploadOutcome,
        server: ServerState,
        *,
        clock: Callable[[], float],
        closing: threading.Event,
    ) -> None:
        self._steps = steps
        self._files = files
        self._clock = clock
        self._closing = closing
        self._outcome = outcome
        self._server = server
        self._pool = ThreadPool(MAX_WORKERS, "lightlyfs-upload")
        self._state = threading.RLock()
        self._is_idle = threading.Condition(self._state)  # perhaps; what `wait_idle` waits for
        self._is_due = threading.Condition(self._state)  # perhaps; what the thread that tries again waits for
        # guarded by _state
        self._jobs: dict[str, _Job] = {}
        # of those that run: the ones in a thread; the new ones that wait for one; the ones that failed before
        self._working: set[_Job] = set()
        self._new: deque[_Job] = deque()
        self._again: deque[_Job] = deque()
        self._uploaded = 0
        self._offline = ""
        self._refused = False
        self._probe_at = 0.0
        self._submitted = 0
        self._moved = 0  # of tickets that are done, and those that began
        self._seen_moved, self._seen_at = -1, 0.0
        self._retrier = threading.Thread(target=self._retry_loop, name="lightlyfs-retry", daemon=True)

    def start(self) -> None:
        """Start the thread that tries again."""
        self._pool.start()
        self._retrier.start()

    def close(self) -> None:
        """Stop; what is not uploaded stays in the journal."""
        with self._state:
            self._notify_locked()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> UploaderStats:
        """Return counters since the mount began, and what is owed now."""
        with self._state:
            running = sum(job.running for job in self._jobs.values())
            failed = sum(job.failed and not job.running for job in self._jobs.values())
            waiting = len(self._jobs) - running - failed
            return UploaderStats(self._uploaded, running, waiting, failed, self._offline)

    def submit(self, file: LocalFile, *, delay_s: float = 0.0) -> Ticket:
        """Upload a file's present generation, which is sealed, behind earlier ones of it.

        With a delay it begins later, unless it is withdrawn before. While the server cannot be reached the
        ticket fails at once; the file is owed.
        """
        ticket, generation = Ticket(), file.record.generation
        with self._state:
            self._moved += 1
            self._submitted += 1
            number = self._submitted
            job = self._jobs.get(file.record.key)
            if job is not None and job.running:
                if job.following is not None:
                    # the generation between is never sent: its waiting callers wait for this one
                    ticket = job.following[1]
                job.following = (generation, ticket, number)
                return ticket
            if job is None:
                job = self._jobs[file.record.key] = _Job(file, generation, ticket, number)
            job.file, job.generation, job.ticket, job.number = file, generation, ticket, number
            job.failed = False
            if not self._offline and self._server.outage_s() >= _AWAY_AFTER_S:
                self._offline_locked("the server does not answer")
            offline = self._offline
            if offline:
                job.retry_at = self._probe_at
            elif delay_s:
                job.retry_at = self._clock() + delay_s
            else:
                self._start_locked(job)
            if not job.running:
                self._notify_locked()
        if offline:
            self._files.update(file, generation, state=State.PENDING, error=offline)
            _settle(ticket, Unreachable(offline))
        return ticket

    def hasten(self, file: LocalFile) -> None:
        """Begin an upload that was submitted with a delay."""
        with self._state:
            job = self._jobs.get(file.record.key)
            if job is not None and not job.running and not self._offline:
                self._start_locked(job)

    def withdraw(self, key: str) -> bool:
        """Take a file back, so that it is not tried again; False, and no change, where it is on its way."""
        with self._state:
            job = self._jobs.get(key)
            if job is not None and job.running:
                return False
            self._jobs.pop(key, None)
            self._notify_locked()
            return True

    def is_running(self, key: str) -> bool:
        """Return whether the upload of a file is under way, or about to be."""
        with self._state:
            job = self._jobs.get(key)
            return job is not None and job.running

    def retry_all(self) -> int:
        """Try everything that waits or failed now; returns how many files that are."""
        with self._state:
            self._offline, self._refused = "", False
            idle = [job for job in self._jobs.values() if not job.running]
            for job in self._jobs.values():
                job.again = job.running
            for job in idle:
                job.tries = 0
                self._start_locked(job)
        return len(idle)

    def submitted(self) -> int:
        """Return how many generations were submitted so far, for `wait_idle`."""
        with self._state:
            return self._submitted

    def wait_idle(self, seconds: float, last: int | None = None) -> tuple[int, int]:
        """Wait at most that long until nothing is under way, of what was submitted up to `last`.

        Returns how many files still are (none while the server cannot be reached), and a number that moves
        while they do.
        """
        with self._state:
            self._is_idle.wait_for(lambda: not self._running_locked(last), seconds)
            jobs = [job for job in self._jobs.values() if last is None or job.number <= last]
            left, moved = self._running_locked(last), sum(job.ticket.moved for job in jobs)
            if last is not None:
                return left, moved - left
            moved += self._moved
            if moved != self._seen_moved:
                self._seen_moved, self._seen_at = moved, self._clock()
            return left, moved

    def drain(self, stalled_s: float) -> None:
        """Wait until nothing is under way of what was submitted by now, or does not move for that long.

        What is submitted meanwhile is not waited for: programs may go on writing without end. Callers of
        `wait_idle` may have seen before that nothing moves.
        """
        self.wait_idle(0)
        with self._state:
            last, seen = self._submitted, (-1, 0)
            while left := self._running_locked(last):
                moved = sum(job.ticket.moved for job in self._jobs.values() if job.number <= last)
                if seen not in ((-1, 0), (left, moved)):
                    self._seen_at = self._clock()
                seen = left, moved
                if self._clock() - self._seen_at >= stalled_s:
                    return
                self._is_idle.wait(_LOOK_FOR_MOVES_S)

    def _running_locked(self, last: int | None = None) -> int:
        """Return how many files are under way, up to the submission `last`."""
        if self._offline or self._server.outage_s() >= _AWAY_AFTER_S:
            return 0
        due = self._clock() + _PROBE_S  # one that was submitted with a delay
        return sum(
            job.running or (not job.tries and not job.failed and job.retry_at <= due)
            for job in self._jobs.values()
            if last is None or job.number <= last
        )

    def _notify_locked(self) -> None:
        self._is_idle.notify_all()
        self._is_due.notify_all()

    def _start_locked(self, job: _Job) -> None:
        job.running, job.failed = True, False
        (self._again if job.tries else self._new).append(job)
        self._fill_locked()
        if len(self._new) + len(self._again) == 1:
            self._is_due.notify_all()

    def _fill_locked(self) -> None:
        """Start the uploads that wait for a thread, new files first."""
        while (waiting := self._new or self._again) and self._has_room_locked():
            job = waiting.popleft()
            job.seen_moved, job.seen_at = job.ticket.moved, self._clock()
            self._working.add(job)
            try:
                self._pool.submit(self._run, job)
            except RuntimeError:  # the pool is shut down: the mount ends, the journal keeps it
                self._working.discard(job)
                job.running = False

    def _has_room_locked(self) -> bool:
        if len(self._working) < WORKERS:
            return True
        # a server that answers nothing gets no further requests
        if len(self._working) >= MAX_WORKERS or self._server.outage_s() >= _STANDS_S:
            return False
        now, moving = self._clock(), 0
        for job in self._working:
            if job.ticket.moved != job.seen_moved:
                job.seen_moved, job.seen_at = job.ticket.moved, now
            moving += now - job.seen_at < _STANDS_S
        return moving < WORKERS

    def _run(self, job: _Job) -> None:
        file, generation = job.file, job.generation

        def note(*, durable: bool = False, **changes: object) -> None:
            self._files.update(file, generation, durable=durable, **changes)

        try:
            uploaded = self._steps.upload(self._files.owed(file, generation), _Try(job.ticket), note)
            self._outcome.uploaded(file, uploaded)
        except Exception as error:
            self._failed(job, error)
            return
        with self._state:
            self._uploaded += 1
            self._moved += job.ticket.moved + 1
            self._working.discard(job)
            if job.tries:
                self._is_due.notify_all()
            waiter = job.ticket
            if job.following is None:
                del self._jobs[file.record.key]
            else:
                (job.generation, job.ticket, job.number), job.following = job.following, None
                job.tries = 0
                self._start_locked(job)
            self._online_locked()
            self._fill_locked()
            self._is_idle.notify_all()
        _settle(waiter, uploaded)

    def _failed(self, job: _Job, error: Exception) -> None:
        if not isinstance(error, LightlyFsError | OSError):
            log.error("the upload of %s failed", job.file.path, exc_info=error)
        again = is_worth_retrying(error)
        # a name that is taken is not owed: the file stays local until a person says otherwise
        state = State.LOCAL if isinstance(error, FileExists) else State.PENDING if again else State.FAILED
        text = "" if isinstance(error, Cancelled) else _reason(error)
        try:
            self._files.update(job.file, job.generation, state=state, error=text)
        except Exception as second:
            # it stays owed as the journal has it, and a caller that waits must not wait without end
            log.warning("%s: the journal could not note a failed upload: %s", job.file.path, second)
        with self._state:
            self._working.discard(job)
            job.running = False
            job.tries += 1
            job.failed = not again
            if job.again:
                job.tries = 0
            delay_s = 0.0 if job.again else _delay_s(error, job.tries)
            job.again = False
            job.retry_at = self._clock() + delay_s if again else float("inf")
            ticket = job.ticket
            if isinstance(error, Unreachable):
                self._offline_locked(text)
                job.retry_at = self._probe_at
            else:
                self._refused |= isinstance(error, Unauthorized | Forbidden)
                if not isinstance(error, Cancelled):
                    self._online_locked()
            if job.following is not None:
                (job.generation, job.ticket, job.number), job.following = job.following, None
                self._start_locked(job)
            elif state is State.LOCAL:
                self._jobs.pop(job.file.record.key, None)
            self._fill_locked()
            self._notify_locked()
        self._outcome.failed(job.file, error)
        _settle(ticket, error)

    def _offline_locked(self, reason: str) -> None:
        if not self._offline:
            log.warning("the server cannot be reached; files are kept and uploaded later: %s", reason)
        self._offline = reason
        self._probe_at = self._clock() + _PROBE_S

    def _online_locked(self) -> None:
        """Start what waited for the server, because it answered."""
        if not self._offline:
            return
        self._offline = ""
        log.info("the server can be reached again")
        for job in self._jobs.values():
            if not job.running and not job.failed:
                self._start_locked(job)

    def _retry_loop(self) -> None:
        while not self._closing.is_set():
            if self._refused and self._server.has_new_token():
                self.retry_all()
            with self._state:
                now = self._clock()
                due = [job for job in self._jobs.values() if not job.running and job.retry_at <= now]
                if self._offline:
                    due = [] if self._is_busy_locked() or now < self._probe_at else due[:1]
                room = self._room_for_retries_locked()
                for job in due:
                    if not job.tries or room > 0:
                        room -= bool(job.tries)
                        self._start_locked(job)
                self._fill_locked()
                if not self._closing.is_set():
                    self._is_due.wait(self._pause_locked(now))

    def _pause_locked(self, now: float) -> float | None:
        """Return how long nothing has to be tried again, unless a job changes; None where nothing waits."""
        if self._refused and self._jobs:
            return _LOOK_FOR_TOKEN_S
        if self._new or self._again:
            return _LOOK_FOR_ROOM_S
        may_retry = self._room_for_retries_locked() > 0
        idle = [
            job.retry_at
            for job in self._jobs.values()
            if not job.running and not job.failed and (may_retry or not job.tries)
        ]
        if not idle or (self._offline and self._is_busy_locked()):
            return None
        due = max(self._probe_at, min(idle)) if self._offline else min(idle)
        return max(_MIN_PAUSE_S, due - now)

    def _room_for_retries_locked(self) -> int:
        return _MOST_RETRIES - sum(job.running and job.tries > 0 for job in self._jobs.values())

    def _is_busy_locked(self) -> bool:
        return any(job.running for job in self._jobs.values())


def is_worth_retrying(error: Exception) -> bool:
    """Return whether trying again may help; the disk may have room again, the token be renewed."""
    if isinstance(error, FileExists):
        return False
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return isinstance(error, Retryable | Cancelled | Unauthorized | Forbidden)


def _delay_s(error: Exception, tries: int) -> float:
    if isinstance(error, Unauthorized | Forbidden):
        return _REFUSED_RETRY_S if tries <= _REFUSED_TRIES else _REFUSED_LATER_S
    return float(min(_MAX_RETRY_S, _FIRST_RETRY_S * 2 ** (tries - 1)))


def _reason(error: Exception) -> str:
    if isinstance(error, Unauthorized | Forbidden):
        return f"{error}; then run: lightlyfs refresh MOUNTPOINT"
    return GONE if isinstance(error, FileNotFoundError) else str(error)


def _settle(ticket: Ticket, outcome: Record | Exception) -> None:
    """End the wait for an upload; that a first try failed is not taken back by a later one."""
    if ticket.result.done():
        return
    if isinstance(outcome, Exception):
        ticket.result.set_exception(outcome)
    else:
        ticket.result.set_result(outcome)
