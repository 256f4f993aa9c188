"""Bounds the waits of one call on the mount: a deadline, the caller's signals, the end of the mount."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from lightlyfs.errors import Cancelled, DeadlineExceeded, Interrupted, TooManyWaiting
from lightlyfs.staging.local_files import Ticket

T = TypeVar("T")

# the longest any call may take; programs and their users give up around then
CALL_LIMIT_S = 60.0
# how soon a Ctrl-C is noticed by a call that waits
_POLL_S = 0.1


class Patience:
    """The waiting rules of one mount; a `Turn` of it serves one call."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        interrupted: Callable[[], bool],
        closing: threading.Event,
    ) -> None:
        self.clock = clock
        self.interrupted = interrupted
        self.closing = closing

    def turn(self) -> Turn:
        """Return the waiting rules for a call that begins now; used by the calling thread alone."""
        return Turn(self)


class Turn:
    """Waits for one call; every wait raises Interrupted, Cancelled or DeadlineExceeded when it must end."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.restart()

    def check(self) -> None:
        """Raise what ends the wait, if something does."""
        if self._patience.closing.is_set():
            raise Cancelled("the mount is being taken down")
        if self._patience.interrupted():
            raise Interrupted("the caller was interrupted")
        if self._patience.clock() >= self._deadline:
            raise DeadlineExceeded(f"no answer within {CALL_LIMIT_S:.0f} s")

    def sleep(self, seconds: float) -> None:
        """Wait that long, unless the wait must end."""
        self._patience.closing.wait(seconds)
        self.check()

    def restart(self) -> None:
        """Restart the time limit, because the work made progress."""
        self._deadline = self._patience.clock() + CALL_LIMIT_S

    def result(self, future: Future[T], moved: Callable[[], int] | None = None) -> T:
        """Return the result of a future or raise its error; a change of `moved` restarts the time limit."""
        seen = moved() if moved else 0
        while not future.done():
            if moved is not None and moved() != seen:
                seen = moved()
                self.restart()
            try:
                return future.result(timeout=_POLL_S)
            except FutureTimeout:
                # an error of the future itself is raised by the last line
                if not future.done():
                    self.check()
        return future.result()

    def piece(self, future: Future[T]) -> T:
        """Return the result of one of several futures, as `result`; the time limit starts again with it."""
        found = self.result(future)
        self.restart()
        return found


# waiting for uploads, by a bounded number of calls

# calls that wait for uploads hold a thread of libfuse each, and metadata must not run out of them
MAX_WAITING = 64


class UploadWaits:
    """The calls that wait for uploads; any thread may call."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._free = threading.BoundedSemaphore(MAX_WAITING)

    def wait(self, ticket: Ticket) -> None:
        """Wait until an upload is done; raises why it is not."""
        if ticket.result.done():
            ticket.result.result()
            return
        if not self._free.acquire(blocking=False):
            raise TooManyWaiting("too many files wait for the server; this one stays pending")
        try:
            self._patience.turn().result(ticket.result, moved=lambda: ticket.moved)
        finally:
            self._free.release()
