"""When a send has waited for long enough, and when kept connections can no longer be trusted.

A connection whose way is gone looks as before, and what is sent on it vanishes for a minute: after sleep, on
another network. So the transports of a process share one `Network`, whose generation counts such changes:
connections of an earlier one are not used again, and a GET that waits on one goes out once more on a new
connection. The changes are noticed without a thread: by the kernel's messages, which are looked at before a
request, and by silence.

A `Watch` has the time limits of one send: whether it has idled or lasted too long, or was given up. It holds
no thread and no timer: the code that waits for the network calls `check` at least once a second.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lightlyfs import errors
from lightlyfs.api.redaction import shown_url

if TYPE_CHECKING:
    from lightlyfs.api.contract import Request

log = logging.getLogger(__name__)

# a kept connection that is silent for this long is doubted: half of what a first file may take after a change
SILENCE_S = 2.0
# or for this many times as long as the host's slowest recent answer took
_SILENCE_FACTOR = 3.0
_REMEMBERED_ANSWERS = 16
_MAX_HOSTS = 64
# a connection is replaced after this long, so that a changed address of a host takes effect
LIFETIME_S = 600
# how long sent data may stay unacknowledged, and how a silent peer is asked whether it is there
USER_TIMEOUT_MS = 10_000
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S = 10, 3
# after a sleep worth noticing, a clock that counts sleep is ahead by at least this much
_SLEPT_S = 3.0
# looking costs three microseconds
_CLOCK_EVERY_S = 0.01

# linux/netlink.h, linux/rtnetlink.h
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400  # addresses and routes, IPv4 and IPv6
_NEW_ADDRESS, _DELETED_ADDRESS, _NEW_ROUTE, _DELETED_ROUTE = 20, 21, 24, 25
_HEADER = struct.Struct("=IHHII")
_GLOBAL_SCOPE = 0


class Network:
    """The way from this process to the network, as its transports see it; any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._answers_s: dict[str, deque[float]] = {}
        self._ahead_s = _sleep_clock() - clock()
        self.generation = 0
        self._messages = _open_messages()  # a descriptor, or -1
        self._looked_at = float("-inf")

    def __del__(self) -> None:
        if self._messages >= 0:
            os.close(self._messages)

    def look(self) -> int:
        """Notice a change that the kernel knows of; the generation that counts now."""
        now = self._clock()
        if now - self._looked_at < _CLOCK_EVERY_S:
            return self.generation
        self._looked_at = now
        ahead_s = _sleep_clock() - now
        if ahead_s - self._ahead_s > _SLEPT_S:
            with self._lock:
                self._ahead_s = ahead_s
            self.drop(self.generation, "this machine slept")
        elif self._messages >= 0 and self._has_changed():
            self.drop(self.generation, "an address or the default route changed")
        return self.generation

    def drop(self, generation: int, why: str) -> None:
        """Trust no connection of a generation any more; several that find one fault drop it once."""
        with self._lock:
            if generation != self.generation:
                return
            self.generation += 1
        log.info("reconnecting: %s", why)

    def note_answer(self, host: str, seconds: float) -> None:
        """Note that a request was answered, and how long that took."""
        with self._lock:
            if host not in self._answers_s and len(self._answers_s) >= _MAX_HOSTS:
                self._answers_s.clear()
            self._answers_s.setdefault(host, deque(maxlen=_REMEMBERED_ANSWERS)).append(seconds)

    def silence_s(self, host: str) -> float:
        """Return how long a connection to a host may be silent before it is doubted."""
        with self._lock:
            slowest = max(self._answers_s.get(host, ()), default=0.0)
        return max(SILENCE_S, _SILENCE_FACTOR * slowest)

    def _has_changed(self) -> bool:
        changed = False
        while True:
            try:
                changed |= _tells_a_change(os.read(self._messages, 65_536))
            except BlockingIOError:
                return changed
            except OSError:
                return True  # more came than the kernel kept


def guard(descriptor: int) -> None:
    """Set a new connection up so that the kernel notices a peer that is gone."""
    sock = socket.socket(fileno=descriptor)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
            ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
            ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
        ):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:
        pass  # no TCP, as a Unix socket to a proxy
    finally:
        sock.detach()


def _sleep_clock() -> float:
    """Return a clock that goes on while the machine sleeps, where the system has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _open_messages() -> int:
    """Return a descriptor of the kernel's messages on addresses and routes; -1 where it has none for us."""
    if not hasattr(socket, "AF_NETLINK"):
        return -1
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        sock.bind((0, _GROUPS))
    except OSError:
        return -1
    return sock.detach()


def _tells_a_change(messages: bytes) -> bool:
    """Return whether messages are of an address that others reach, or of a default route.

    Those of containers that come and go beside us are not: their links have addresses of the link alone.
    """
    offset = 0
    while offset + _HEADER.size <= len(messages):
        length, kind, *_ = _HEADER.unpack_from(messages, offset)
        body = messages[offset + _HEADER.size : offset + length]
        if kind in (_NEW_ADDRESS, _DELETED_ADDRESS) and len(body) > 3 and body[3] == _GLOBAL_SCOPE:
            return True  # struct ifaddrmsg: family, prefix length, flags, scope
        if kind in (_NEW_ROUTE, _DELETED_ROUTE) and len(body) > 1 and body[1] <= 1:
            return True  # struct rtmsg: family, destination length; a VPN takes two halves
        offset += max((length + 3) & ~3, _HEADER.size)
    return False


# the limits of one send

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
