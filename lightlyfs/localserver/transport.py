"""The connections under the HTTP server, for what ASGI cannot do: hang up, and wait for clients or not."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .asgi import Receive, Scope
from .options import ConnectionLimits

HANG_UP = "lightly.hang_up"
"""The message that asks for the connection to be closed without an answer."""

_POLL_S = 0.05
_LOOK_S = 1.0
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class Connections:
    """Open connections by client address. Lives on the loop; only `close_stalls` is for any thread.

    One look a second at all of them ends those that take too long; a request costs a time stamp.
    """

    def __init__(self, on_connect: Callable[[], None], limits: ConnectionLimits) -> None:
        self._open: dict[tuple[str, int], Client] = {}
        self._on_connect = on_connect
        self._limits = limits
        self._ending = False
        self._watch: asyncio.TimerHandle | None = None

    def made(self, client: "Client") -> bool:
        """Remember a connection; False for one too many, which was told so."""
        if len(self._open) >= self._limits.connections:
            client.transport.write(_FULL)
            client.transport.close()
            return False
        self._open[self._address(client.transport.get_extra_info("peername"))] = client
        self._on_connect()
        if self._watch is None:
            self._look()
        return True

    def lost(self, client: "Client") -> None:
        """Forget a connection."""
        address = self._address(client.transport.get_extra_info("peername"))
        if self._open.get(address) is client:
            del self._open[address]

    def abort(self, scope: Scope) -> None:
        """Close the connection of a request at once, unsent bytes and all."""
        client = self._open.get(self._address(scope["client"]))
        if client is not None:
            client.transport.abort()

    def _look(self) -> None:
        for client in list(self._open.values()):
            if client.is_too_slow(self._limits):
                client.transport.abort()
        every_s = min(_LOOK_S, self._limits.headers_s / 4, self._limits.body_s / 4)
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(every_s, self._look) if self._open else None

    def close_stalls(self) -> None:
        """Let all waiters return, now and later: the server is ending."""
        self._ending = True

    async def wait_for_end(self, receive: Receive, at_most_s: float) -> None:
        """Return once the client is gone, the server ends, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + at_most_s
        gone = asyncio.ensure_future(self._disconnected(receive))
        try:
            while not gone.done() and not self._ending and loop.time() < deadline:
                await asyncio.wait([gone], timeout=_POLL_S)
        finally:
            gone.cancel()

    async def _disconnected(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    @staticmethod
    def _address(peer: Any) -> tuple[str, int]:
        return (str(peer[0]), int(peer[1])) if peer else ("", 0)


class Client:
    """What is known of one connection's pace; uvicorn's protocol class is the other half of it."""

    transport: Any
    cycle: Any
    flow: Any

    def begin(self) -> None:
        """Start the clock: the headers of a first request are due."""
        self._headers_since: float | None = time.monotonic()
        self._moved = self._unsent_since = time.monotonic()
        self._unsent = 0

    def is_at_rest(self) -> bool:
        """Say whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def note_bytes(self) -> None:
        """Note that bytes came, and whether they are a request by now."""
        self._moved = time.monotonic()
        if not self.is_at_rest():
            self._headers_since = None
        elif self._headers_since is None:
            self._headers_since = self._moved

    def is_too_slow(self, limits: ConnectionLimits) -> bool:
        """Say whether a client keeps the server waiting for headers, for a body, or with its answer."""
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


def watched_protocol(base: type[Any], connections: Connections) -> type[Any]:
    """Return uvicorn's HTTP protocol class, reporting its connections."""

    class WatchedProtocol(Client, base):  # type: ignore[misc]
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
