"""The connections under the HTTP server, for what ASGI cannot do: hang up, or wait until someone does."""

import asyncio
from collections.abc import Callable
from typing import Any

from .asgi import Receive, Scope

HANG_UP = "lightly.hang_up"
"""The message that asks for the connection to be closed without an answer."""

_POLL_S = 0.05


class Connections:
    """Open connections by client address. Lives on the loop; only `close_stalls` is for any thread."""

    def __init__(self, on_connect: Callable[[], None]) -> None:
        self._open: dict[tuple[str, int], asyncio.Transport] = {}
        self._on_connect = on_connect
        self._ending = False

    def made(self, transport: Any) -> None:
        """Remember a connection."""
        self._open[self._address(transport.get_extra_info("peername"))] = transport
        self._on_connect()

    def lost(self, transport: Any) -> None:
        """Forget a connection."""
        self._open.pop(self._address(transport.get_extra_info("peername")), None)

    def abort(self, scope: Scope) -> None:
        """Close the connection of a request at once, unsent bytes and all."""
        transport = self._open.get(self._address(scope["client"]))
        if transport is not None:
            transport.abort()

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


def watched_protocol(base: type[Any], connections: Connections) -> type[Any]:
    """Return uvicorn's HTTP protocol class, reporting its connections."""

    class WatchedProtocol(base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            connections.made(transport)
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.lost(self.transport)
            super().connection_lost(exc)

    return WatchedProtocol
