"""The connections under the HTTP server, for what ASGI cannot do: limit them, and abort one."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .asgi import Scope
from .serve_options import ConnectionLimits

_CHECK_S = 1.0
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class ClientConnections:
    """Open connections by client address. Lives on the loop.

    A check of all connections once a second closes those that take too long; a request costs a time stamp.
    """

    def __init__(self, limits: ConnectionLimits, on_connect: Callable[[], None] | None = None) -> None:
        self._open: dict[tuple[str, int], ClientConnection] = {}
        self._on_connect = on_connect
        self._limits = limits
        self._watch: asyncio.TimerHandle | None = None

    def made(self, client: "ClientConnection") -> bool:
        """Register a connection; return False after a 503 if there are too many."""
        if len(self._open) >= self._limits.connections:
            client.transport.write(_TOO_MANY)
            client.transport.close()
            return False
        self._open[self._address(client.transport.get_extra_info("peername"))] = client
        if self._on_connect is not None:
            self._on_connect()
        if self._watch is None:
            self._check()
        return True

    def lost(self, client: "ClientConnection") -> None:
        """Unregister a connection."""
        address = self._address(client.transport.get_extra_info("peername"))
        if self._open.get(address) is client:
            del self._open[address]

    def abort(self, scope: Scope) -> None:
        """Close the connection of a request immediately and discard unsent bytes."""
        client = self._open.get(self._address(scope["client"]))
        if client is not None:
            client.transport.abort()

    def _check(self) -> None:
        for client in list(self._open.values()):
            if client.is_too_slow(self._limits):
                client.transport.abort()
        every_s = min(_CHECK_S, self._limits.headers_s / 4, self._limits.body_s / 4)
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(every_s, self._check) if self._open else None

    @staticmethod
    def _address(peer: Any) -> tuple[str, int]:
        return (str(peer[0]), int(peer[1])) if peer else ("", 0)


class ClientConnection:
    """The pace of one connection; a mixin of the protocol class of uvicorn."""

    transport: Any
    cycle: Any
    flow: Any

    def begin(self) -> None:
        """Start the timer for the headers of the first request."""
        self._headers_since: float | None = time.monotonic()
        self._moved = self._unsent_since = time.monotonic()
        self._unsent = 0

    def is_at_rest(self) -> bool:
        """Return whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def note_bytes(self) -> None:
        """Record that bytes arrived, and whether they complete the headers of a request."""
        self._moved = time.monotonic()
        if not self.is_at_rest():
            self._headers_since = None
        elif self._headers_since is None:
            self._headers_since = self._moved

    def is_too_slow(self, limits: ConnectionLimits) -> bool:
        """Return whether the client exceeds a limit for headers, for a body, or for reading a response."""
        now = time.monotonic()
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent or not unsent:
            self._unsent_since = now
        self._unsent = unsent
        if now - self._unsent_since > limits.body_s:
            return True
        if self.is_at_rest():
            return self._headers_since is not None and now - self._headers_since > limits.headers_s
        owed = self.cycle.more_body and not self.flow.read_paused
        return owed and now - self._moved > limits.body_s


def watched_protocol(base: type[Any], connections: ClientConnections) -> type[Any]:
    """Return a subclass of a uvicorn HTTP protocol class that registers its connections."""

    class WatchedProtocol(ClientConnection, base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.begin()
            self._refused = not connections.made(self)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.lost(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                super().data_received(data)
                self.note_bytes()

    return WatchedProtocol
