"""The clock side of one send: when it has idled, lasted too long or was given up.

Holds no thread and no timer: whoever waits for the network asks `check` at least once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightlyfs import errors
from lightlyfs.api.contract import Request
from lightlyfs.api.redaction import shown_url

# How long a wait for the network may last before `check` is asked again.
SLICE_S = 0.25


class Watch:
    """Watches one send; used by the thread that sends.

    `sent` is set by the transport once the first byte of the request may have left.
    """

    __slots__ = (
        "_cancelled",
        "_clock",
        "_closed",
        "_last_byte_s",
        "_limits",
        "_method",
        "_started_s",
        "_url",
        "sent",
    )

    def __init__(self, request: Request, clock: Callable[[], float], closed: threading.Event) -> None:
        # Not the request itself: a kept connection would hold its body and observer.
        self._method = request.method
        self._url = request.url
        self._limits = request.timeouts
        self._cancelled = request.cancelled
        self._clock = clock
        self._closed = closed
        self._started_s = self._last_byte_s = clock()
        self.sent = False

    def progress(self) -> None:
        """Note that a byte went either way."""
        self._last_byte_s = self._clock()

    def end(self) -> None:
        """Let go of the caller's callable; the send is over."""
        self._cancelled = None

    def check(self) -> None:
        """Raise `errors.Cancelled` or `errors.TimedOut` when this send should end."""
        failure = self.failure()
        if failure is not None:
            raise failure

    def failure(self) -> errors.RequestError | None:
        """Return why this send should end, None while it may go on."""
        if self._closed.is_set():
            return errors.Cancelled("the transport was closed", request_sent=self.sent)
        if self._cancelled is not None and self._cancelled():
            return errors.Cancelled(f"given up: {self.where()}", request_sent=self.sent)
        now = self._clock()
        limits = self._limits
        if now - self._started_s > limits.total_s:
            return errors.TimedOut(
                f"no complete answer within {limits.total_s:g} s: {self.where()}", request_sent=self.sent
            )
        if now - self._last_byte_s > limits.idle_s:
            return errors.TimedOut(f"no byte for {limits.idle_s:g} s: {self.where()}", request_sent=self.sent)
        return None

    def where(self) -> str:
        """Return the request as an error may show it."""
        return f"{self._method} {shown_url(self._url)}"


class Slots:
    """Bounds the requests under way; waiting for a slot honours the watch of the waiting send.

    Any number of threads. `active` and `waiting` may be read at any time.
    """

    def __init__(self, count: int) -> None:
        self._free = threading.BoundedSemaphore(count)
        self._counts = threading.Lock()
        # Guarded by _counts.
        self.active = 0
        self.waiting = 0

    @contextmanager
    def taken(self, watch: Watch) -> Iterator[None]:
        """Hold one slot; raises what `watch.check` raises while none is free."""
        if not self._free.acquire(blocking=False):
            self._wait(watch)
        with self._counts:
            self.active += 1
        try:
            yield
        finally:
            with self._counts:
                self.active -= 1
            self._free.release()

    def _wait(self, watch: Watch) -> None:
        with self._counts:
            self.waiting += 1
        try:
            while not self._free.acquire(timeout=SLICE_S):
                watch.check()
        finally:
            with self._counts:
                self.waiting -= 1
        watch.progress()
