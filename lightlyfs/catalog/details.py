"""Whole samples, asked for one at a time and kept for the TTL: what the listing is too short to hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Generic, TypeVar

from cachetools import TTLCache

from lightlyfs.errors import Cancelled

T = TypeVar("T")

MAX_DETAILS = 10_000
# with a TTL of zero the several attributes of one `getfattr -d` still come of one request
_MIN_TTL_S = 1.0


class Details(Generic[T]):
    """What `request(sample_id)` gives, by id; ten threads that miss one cause one request."""

    def __init__(
        self, request: Callable[[str], T], executor: Executor, *, ttl_s: float, clock: Callable[[], float]
    ) -> None:
        self._request = request
        self._executor = executor
        self._lock = threading.RLock()  # a future that is done already calls back at once
        # guarded by _lock
        self._samples: TTLCache[str, Future[T]] = TTLCache(MAX_DETAILS, max(ttl_s, _MIN_TTL_S), timer=clock)

    def get(self, sample_id: str) -> Future[T]:
        """The sample, now or soon; the future raises what the API raised."""
        with self._lock:
            future = self._kept_locked(sample_id)
            if future is None:
                future = self._samples[sample_id] = self._ask(sample_id)
                future.add_done_callback(lambda done: self._forget_failure(sample_id, done))
        return future

    def forget(self, sample_id: str) -> None:
        """Ask again for one sample."""
        with self._lock:
            self._drop_locked(sample_id)

    def forget_all(self) -> None:
        """Ask again for whatever is asked for next."""
        with self._lock:
            self._samples.clear()

    def _ask(self, sample_id: str) -> Future[T]:
        try:
            return self._executor.submit(self._request, sample_id)
        except RuntimeError:
            refused: Future[T] = Future()
            refused.set_exception(Cancelled("the mount is being taken down", request_sent=False))
            return refused

    def _kept_locked(self, sample_id: str) -> Future[T] | None:
        try:
            # not `get`, which looks at the clock twice and fails where the time ends in between
            return self._samples[sample_id]
        except KeyError:
            return None

    def _forget_failure(self, sample_id: str, done: Future[T]) -> None:
        if done.cancelled() or done.exception() is not None:
            with self._lock:
                if self._kept_locked(sample_id) is done:
                    self._drop_locked(sample_id)

    def _drop_locked(self, sample_id: str) -> None:
        with suppress(KeyError):  # its time may be over
            del self._samples[sample_id]
