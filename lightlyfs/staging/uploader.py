"""Bringing sealed files to the server: create, write URLs, thumbnail, image, confirm; retried, never doubled.

Each step that cannot be taken back is in the journal before it is taken. A create carries a random mark;
after a lost reply the sample that bears it is adopted, and only where none does is another create sent. A PUT
that storage answered with 2xx is the confirmation.

Threads: any may call. The lock guards the table of jobs; it is never held during a request or a callback.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from lightlyfs.errors import Cancelled, LightlyFsError, Retryable
from lightlyfs.staging.journal import Journal, Record, State
from lightlyfs.staging.steps import Steps

log = logging.getLogger(__name__)

WORKERS = 16
# a failed upload is tried again after this, twice as long each time
_FIRST_RETRY_S = 5.0
_MAX_RETRY_S = 300.0
_LOOK_FOR_RETRIES_S = 1.0


class Ticket:
    """One upload to wait for; `result` is done after its first try, well or not."""

    def __init__(self) -> None:
        self.result: Future[Record] = Future()
        self.moved = 0  # counts steps and pieces sent, so that a waiter sees that it goes on


class UploaderStats(NamedTuple):
    """Counters since the mount began, and what is owed now."""

    uploaded: int
    under_way: int
    waiting: int
    failed: int


@dataclass
class _Job:
    record: Record
    ticket: Ticket
    running: bool = False
    tries: int = 0
    retry_at: float = 0.0
    # a later generation of the same file, sealed while this one is on its way
    following: tuple[Record, Ticket] | None = field(default=None)


class Uploader:
    """Uploads what is submitted, one generation of a file at a time, several files at once.

    `on_done(record)` is told of each success before its ticket is; it is to make that durable, and the spool
    file is its to delete. A crash before that costs a second PUT of the same bytes.
    `on_note(record)` is told of every other change of a record, before the journal is: whoever keeps a record
    of the file and writes that down meanwhile must not take the change back.
    """

    def __init__(
        self,
        steps: Steps,
        journal: Journal,
        *,
        clock: Callable[[], float],
        closing: threading.Event,
        on_done: Callable[[Record], None],
        on_note: Callable[[Record], None],
    ) -> None:
        self._steps = steps
        self._journal = journal
        self._clock = clock
        self._closing = closing
        self._on_done = on_done
        self._on_note = on_note
        self._pool = ThreadPoolExecutor(WORKERS, "lightlyfs-upload")
        self._state = threading.Condition()
        # guarded by _state
        self._jobs: dict[str, _Job] = {}
        self._uploaded = 0
        self._retrier = threading.Thread(target=self._retry_loop, name="lightlyfs-retry", daemon=True)

    def start(self) -> None:
        """Start the thread that tries again."""
        self._retrier.start()

    def close(self) -> None:
        """Stop; what is not uploaded stays in the journal."""
        with self._state:
            self._state.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> UploaderStats:
        """Counters since the mount began, and what is owed now."""
        with self._state:
            running = sum(job.running for job in self._jobs.values())
            failed = sum(job.record.state is State.FAILED for job in self._jobs.values())
            return UploaderStats(self._uploaded, running, len(self._jobs) - running - failed, failed)

    def owed(self) -> list[Record]:
        """What the server has not got yet."""
        with self._state:
            return [job.following[0] if job.following else job.record for job in self._jobs.values()]

    def submit(self, record: Record) -> Ticket:
        """Upload a sealed generation, which the journal holds already, behind earlier ones of the file."""
        ticket = Ticket()
        with self._state:
            job = self._jobs.get(record.key)
            if job is None:
                job = self._jobs[record.key] = _Job(record, ticket)
                self._start_locked(job)
            elif job.running:
                if job.following is not None:
                    # the generation between is never sent: who waits for it waits for this one
                    ticket = job.following[1]
                job.following = (record, ticket)
            else:
                job.record, job.ticket = _onto(job.record, record), ticket
                self._start_locked(job)
        return ticket

    def withdraw(self, key: str) -> bool:
        """Take a file back, so that it is not tried again; False, and no change, where it is on its way."""
        with self._state:
            job = self._jobs.get(key)
            if job is not None and job.running:
                return False
            self._jobs.pop(key, None)
            self._state.notify_all()
            return True

    def retry_all(self) -> int:
        """Try everything that waits or failed now; how many that are."""
        with self._state:
            idle = [job for job in self._jobs.values() if not job.running]
            for job in idle:
                job.tries = 0
                self._start_locked(job)
        return len(idle)

    def wait_idle(self, seconds: float) -> int:
        """Wait at most that long until nothing is under way; how many files are still under way."""
        with self._state:
            self._state.wait_for(lambda: not self._running_locked(), seconds)
            return self._running_locked()

    def _running_locked(self) -> int:
        return sum(job.running for job in self._jobs.values())

    def _start_locked(self, job: _Job) -> None:
        job.running = True
        try:
            self._pool.submit(self._run, job)
        except RuntimeError:  # the pool is shut down: the mount ends, the journal keeps it
            job.running = False

    def _run(self, job: _Job) -> None:
        try:
            record = self._steps.upload(job.record, job.ticket, lambda changed: self._note(job, changed))
            self._on_done(record)
        except Exception as error:
            self._failed(job, error)
            return
        with self._state:
            self._uploaded += 1
            following, job.following = job.following, None
            if following is None:
                del self._jobs[record.key]
            else:
                later, ticket = following
                done, job.record, job.ticket, job.tries = job.ticket, _onto(record, later), ticket, 0
                self._start_locked(job)
            self._state.notify_all()
        _settle(job.ticket if following is None else done, record)

    def _note(self, job: _Job, changed: Record) -> None:
        """A step was, or is about to be, taken.

        Only a create that is about to be sent must be known for sure: every other step can be taken again.
        """
        self._on_note(changed)
        self._journal.note(changed, durable=changed.create_sent and changed.sample_id is None)
        with self._state:
            job.record = changed

    def _failed(self, job: _Job, error: Exception) -> None:
        if not isinstance(error, LightlyFsError | OSError):
            log.error("an upload failed", exc_info=error)
        again = _may_pass(error)
        state = State.PENDING if again else State.FAILED
        text = "" if isinstance(error, Cancelled) else str(error)
        try:
            self._note(job, job.record.changed(state=state, error=text))
        except Exception as second:
            # it stays owed as the journal has it, and whoever waits must not wait for ever
            log.warning("the journal could not note a failed upload: %s", second)
        with self._state:
            job.running = False
            job.tries += 1
            delay = min(_MAX_RETRY_S, _FIRST_RETRY_S * 2 ** (job.tries - 1))
            job.retry_at = self._clock() + delay if again else float("inf")
            ticket = job.ticket
            if job.following is not None:
                later, job.ticket = job.following
                job.record, job.following = _onto(job.record, later), None
                self._start_locked(job)
            self._state.notify_all()
        _settle(ticket, error)

    def _retry_loop(self) -> None:
        while not self._closing.wait(_LOOK_FOR_RETRIES_S):
            with self._state:
                now = self._clock()
                for job in self._jobs.values():
                    if not job.running and job.retry_at <= now:
                        self._start_locked(job)


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help without anybody's doing; the disk may have room again."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return isinstance(error, Retryable | Cancelled)


def _settle(ticket: Ticket, outcome: Record | Exception) -> None:
    """Tell who waits; that a first try failed is not taken back by a later one."""
    if ticket.result.done():
        return
    if isinstance(outcome, Exception):
        ticket.result.set_exception(outcome)
    else:
        ticket.result.set_result(outcome)


def _onto(earlier: Record, later: Record) -> Record:
    """A later generation, with what the server knows of the file since."""
    return later.changed(
        sample_id=earlier.sample_id or later.sample_id,
        mark=earlier.mark or later.mark,
        create_sent=earlier.create_sent or later.create_sent,
        replaces=later.replaces or earlier.state is State.UPLOADED,
        thumbnail_done=False,
    )
