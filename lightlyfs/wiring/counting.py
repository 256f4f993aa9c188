"""Counting requests, to the API and to storage, and how long they take: for `status` and for metrics."""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from typing import NamedTuple

from lightlyfs.api.contract import Request, Response, Transport
from lightlyfs.errors import RequestError

_STORAGE = "storage_"
# from a cached answer near by to a call that has run out of patience
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Latencies(NamedTuple):
    """How long requests of one operation took: how many at most as long as each of LATENCY_BUCKETS_S, and
    the sum in seconds.
    """

    buckets: tuple[int, ...]
    sum_s: float


class RequestCounter:
    """Counts requests by operation and outcome, and how long they took; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock
        self._outcomes: dict[tuple[str, str], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._sums_s: dict[str, float] = {}

    def __call__(self, method: str, operation: str, seconds: float, outcome: str) -> None:
        bucket = bisect.bisect_left(LATENCY_BUCKETS_S, seconds)
        with self._lock:
            key = (operation, outcome)
            self._outcomes[key] = self._outcomes.get(key, 0) + 1
            self._buckets.setdefault(operation, [0] * (len(LATENCY_BUCKETS_S) + 1))[bucket] += 1
            self._sums_s[operation] = self._sums_s.get(operation, 0.0) + seconds

    def counts(self) -> dict[str, int]:
        """Requests so far by operation, those to storage left out."""
        found: dict[str, int] = {}
        for (operation, _), count in self.outcomes().items():
            if not operation.startswith(_STORAGE):
                found[operation] = found.get(operation, 0) + count
        return dict(sorted(found.items()))

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Requests so far by operation and outcome: a status, or the name of the error."""
        with self._lock:
            return dict(self._outcomes)

    def latencies(self) -> dict[str, Latencies]:
        """How long the requests of each operation took."""
        with self._lock:
            return {
                operation: Latencies(tuple(itertools.accumulate(buckets)), self._sums_s[operation])
                for operation, buckets in self._buckets.items()
            }


class CountedTransport:
    """A transport to storage whose requests are counted."""

    def __init__(self, transport: Transport, counter: RequestCounter) -> None:
        self._transport = transport
        self._counter = counter

    def send(self, request: Request) -> Response:
        """As the transport's own."""
        started = time.monotonic()
        outcome = "failed"
        try:
            answer = self._transport.send(request)
            outcome = str(answer.status)
        except RequestError as error:
            outcome = type(error).__name__
            raise
        else:
            return answer
        finally:
            operation = _STORAGE + request.method.lower()
            self._counter(request.method, operation, time.monotonic() - started, outcome)

    def close(self) -> None:
        """As the transport's own."""
        self._transport.close()
