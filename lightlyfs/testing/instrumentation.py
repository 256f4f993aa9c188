"""Instrumentation of a server for tests: request counts, faults, and endpoints that control both.

The control endpoints are for tests that start the server as another process. They are not counted, and faults
do not hit them.
"""

import threading
from collections import Counter
from typing import Any
from urllib.parse import unquote

import msgspec

from lightlyfs.server.asgi import (
    ApiCall,
    App,
    ClientConnections,
    Message,
    Receive,
    Reply,
    ReportedSend,
    Route,
    Scope,
    Send,
    json_reply,
    malformed,
)

from .faults import HANG_UP, Faults, HungUp

PATHS_MAX = 100_000
"""The limit of counted paths, because clients may request any path."""


class Stats:
    """Request counts by endpoint and status, bytes sent, peak requests in flight, storage requests by path.

    Any thread may read; only the server's loop writes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._paths: Counter[str] = Counter()
        self._bytes_sent = 0
        self._connections = 0
        self._in_flight = 0
        self._in_flight_max = 0

    def connected(self) -> None:
        """Count a new connection."""
        with self._lock:
            self._connections += 1

    def begin(self, path: str | None) -> None:
        """Count a request that starts; `path` is given for storage requests."""
        with self._lock:
            self._in_flight += 1
            self._in_flight_max = max(self._in_flight_max, self._in_flight)
            if path is not None and (path in self._paths or len(self._paths) < PATHS_MAX):
                self._paths[path] += 1

    def end(self, name: str, status: int, sent: int) -> None:
        """Count a request that ended; status 0 means that no response was sent."""
        with self._lock:
            self._in_flight -= 1
            self._requests[name, status] += 1
            self._bytes_sent += sent

    def reset(self) -> None:
        """Set all counts to zero, except for requests in flight."""
        with self._lock:
            self._requests.clear()
            self._paths.clear()
            self._bytes_sent = self._connections = 0
            self._in_flight_max = self._in_flight

    def count(self, name: str, status: int | None = None) -> int:
        """Return how many requests of an endpoint ended, with any status or a given one."""
        with self._lock:
            return sum(
                n for (one, code), n in self._requests.items() if one == name and status in (None, code)
            )

    def total(self) -> int:
        """Return how many requests ended."""
        with self._lock:
            return sum(self._requests.values())

    def snapshot(self) -> dict[str, Any]:
        """Return all counts as plain values."""
        with self._lock:
            requests: dict[str, dict[str, int]] = {}
            for (name, status), number in self._requests.items():
                requests.setdefault(name, {})[str(status)] = number
            return {
                "requests": requests,
                "storage_paths": dict(self._paths),
                "bytes_sent": self._bytes_sent,
                "connections": self._connections,
                "in_flight": self._in_flight,
                "in_flight_max": self._in_flight_max,
            }


class Instruments:
    """Counts and faults around each endpoint of one server. Runs on the server's loop."""

    def __init__(self, faults: Faults, stats: Stats) -> None:
        self._faults = faults
        self._stats = stats

    def wrap(self, area: str, name: str, app: App, connections: ClientConnections) -> App:
        """Return `app` with counts and with the faults that are armed."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            def report(status: int, sent: int) -> None:
                self._stats.end(name, status, sent)

            async def send_or_hang_up(message: Message) -> None:
                if message["type"] == HANG_UP:
                    reported.finish()
                    connections.abort(scope)
                else:
                    await reported(message)

            reported = ReportedSend(send, report)
            self._stats.begin(storage_key(scope) if area == "storage" else None)
            try:
                await self._faults.wrap_request(area, name, app)(scope, receive, send_or_hang_up)
            except HungUp:
                await send_or_hang_up({"type": HANG_UP})
            finally:
                reported.finish()

        return counted

    def routes(self) -> list[Route]:
        """Return the control endpoints."""
        return [
            ("POST", "/__control__/faults", self._add_faults),
            ("GET", "/__control__/stats", self._read_stats),
            ("POST", "/__control__/reset", self._reset),
        ]

    async def _add_faults(self, call: ApiCall) -> Reply:
        """POST a list of faults to arm; the response has the number of armed faults."""
        try:
            self._faults.add_plain(await call.json())
        except msgspec.ValidationError as error:
            raise malformed(str(error)) from error
        return json_reply({"armed": len(self._faults.armed())})

    async def _read_stats(self, call: ApiCall) -> Reply:
        """GET all counts."""
        return json_reply(self._stats.snapshot())

    async def _reset(self, call: ApiCall) -> Reply:
        """POST: disarm all faults and start all counts at zero."""
        self._faults.clear()
        self._stats.reset()
        return json_reply({})


def storage_key(scope: Scope) -> str:
    """Return the object key of a storage request."""
    return unquote(scope["path_params"]["key"], errors="surrogateescape")
