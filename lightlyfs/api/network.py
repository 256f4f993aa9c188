"""Notices when kept connections can no longer be trusted: after sleep, on another network, by silence.

A connection whose way is gone looks as before, and what is sent on it vanishes for a minute. So the
transports of a process share one `Network`, whose generation counts such changes: connections of an earlier
one are not used again, and a GET that waits on one goes out once more on a new connection. The changes are
noticed without a thread: by the kernel's messages, which are looked at before a request, and by silence.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

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
