"""Counts of what the server did, for tests and benchmarks."""

import threading
from collections import Counter
from typing import Any

PATHS_MAX = 100_000
"""Anyone may ask for any path; what is counted of them must not grow with that."""


class Stats:
    """Request counts by endpoint and status, bytes, the most requests in flight, storage reads by path.

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
        """Count a request that is over; status 0 means that no answer was sent."""
        with self._lock:
            self._in_flight -= 1
            self._requests[name, status] += 1
            self._bytes_sent += sent

    def reset(self) -> None:
        """Start counting anew; requests in flight stay counted."""
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
