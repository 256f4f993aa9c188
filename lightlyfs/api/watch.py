"""The time limits of one send: whether it has idled or lasted too long, or was given up.

Holds no thread and no timer: the code that waits for the network calls `check` at least once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from lightlyfs import errors
from lightlyfs.api.contract import Request
from lightlyfs.api.network import SILENCE_S, Network
from lightlyfs.api.redaction import shown_url

# How long a wait for the network may last before `check` is asked again.
SLICE_S = 0.25
# libcurl calls back with every few bytes; checking this often is enough
_LOOK_EVERY_S = 0.05


class Silent(errors.TimedOut):
    """No answer yet on a connection that may be dead: a GET goes out again on another one."""


class Watch:
    """Watches one send; used by the thread that sends.

    `sent` is set by the transport once the first byte of the request may have left.
    """

    __slots__ = (
        "_answered",
        "_cancelled",
        "_clock",
        "_closed",
        "_generation",
        "_host",
        "_is_slow",
        "_kept",
        "_last_byte_s",
        "_limits",
        "_look_at_s",
        "_may_repeat",
        "_method",
        "_network",
        "_sent_s",
        "_started_s",
        "_url",
        "sent",
    )

    def __init__(
        self, request: Request, clock: Callable[[], float], closed: threading.Event, network: Network
    ) -> None:
        # Not the request itself: a kept connection would hold its body and observer.
        self._method = request.method
        self._url = request.url
        self._limits = request.timeouts
        self._cancelled = request.cancelled
        self._clock = clock
        self._closed = closed
        self._started_s = self._last_byte_s = self._sent_s = clock()
        self._look_at_s = 0.0
        self._network = network
        self._host = urlsplit(request.url).netloc
        self._is_slow = request.slow
        self._may_repeat = request.method in ("GET", "HEAD") and request.body is None and not request.slow
        self._generation = network.look()
        self._kept = self._answered = False
        self.sent = False

    @property
    def generation(self) -> int:
        """The generation of connections that this send may use."""
        return self._generation

    def on_connection(self, *, kept: bool) -> None:
        """Note that the request goes out now, on a new connection or one that was used before."""
        self._kept, self._answered = kept, False
        self._sent_s = self._clock()

    def answered(self) -> None:
        """Note that the answer has begun."""
        if not self._answered:
            self._answered = True
            if self._is_slow:
                return  # it says nothing of how fast others are
            self._network.note_answer(self._host, self._clock() - self._sent_s)

    def go_on(self) -> None:
        """Note that the request goes out once more, after `Silent`: the connections so far are doubted."""
        self._network.drop(self._generation, f"{self._host} was silent on a kept connection")
        self._generation = self._network.generation
        self._may_repeat = False
        self.progress()

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

    def failure_now_and_then(self) -> errors.RequestError | None:
        """Return what `failure` does, or None if it was checked less than 50 ms ago."""
        now = self._clock()
        if now < self._look_at_s:
            return None
        self._look_at_s = now + _LOOK_EVERY_S
        return self.failure()

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
        if self._may_repeat and now - self._last_byte_s > SILENCE_S:
            return self._doubt(now - self._last_byte_s)
        return None

    def _doubt(self, silent_s: float) -> errors.RequestError | None:
        """Return why a connection that is silent should be given up, None where it may just be slow."""
        if silent_s <= self._network.silence_s(self._host):
            return None
        outdated = self._network.look() != self._generation
        if not outdated and (self._answered or not self._kept):
            return None
        text = f"no byte for {silent_s:.1f} s on a connection that may be dead: {self.where()}"
        return (errors.TimedOut if self._answered else Silent)(text, request_sent=self.sent)

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
