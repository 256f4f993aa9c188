"""When a failed request is tried again, and how long to wait before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lightlyfs import errors

T = TypeVar("T")

# A cancelled wait is noticed this soon.
_NAP_S = 0.5


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently: `attempts` in all, within `budget_s` from the first one's start.

    The wait before retry n (from 0) is drawn from `[cap * (1 - jitter), cap]` with
    `cap = min(max_delay_s, first_delay_s * 2**n)`; full jitter, so that many clients of a server
    that comes back do not come back at one moment.
    """

    attempts: int = 5
    first_delay_s: float = 0.2
    max_delay_s: float = 16.0
    budget_s: float = 60.0  # as long as any call on the mount may take
    jitter: float = 1.0

    def delay_s(self, retry: int, random: Callable[[], float]) -> float:
        """Return the wait before retry number `retry`, from 0."""
        cap = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(retry, 60))
        return cap * (1.0 - self.jitter * random())


NO_RETRIES = RetryPolicy(attempts=1)


def call_with_retries(
    policy: RetryPolicy,
    fn: Callable[[], T],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    random: Callable[[], float],
    cancelled: Callable[[], bool] | None = None,
    may_retry: Callable[[errors.Retryable], bool] | None = None,
) -> T:
    """Call `fn` until it succeeds, and return what it returned.

    Only `errors.Retryable` is retried, and of those only what `may_retry` allows. A Retry-After is
    waited for in full; when it, or the back-off, would end after the budget, the error is raised at
    once. Raises the last error, or `errors.Cancelled` when `cancelled` says so during a wait.
    """
    started_s = clock()
    retry = 0
    while True:
        try:
            return fn()
        except errors.Retryable as exc:
            retry += 1
            if retry >= policy.attempts or (may_retry is not None and not may_retry(exc)):
                raise
            delay_s = max(policy.delay_s(retry - 1, random), exc.retry_after_s or 0.0)
            if clock() - started_s + delay_s > policy.budget_s:
                raise
            _wait(delay_s, sleep, cancelled, exc)


def _wait(
    delay_s: float,
    sleep: Callable[[float], None],
    cancelled: Callable[[], bool] | None,
    cause: errors.Retryable,
) -> None:
    if cancelled is None:
        sleep(delay_s)
        return
    while not cancelled():
        if delay_s <= 0:
            return
        sleep(min(delay_s, _NAP_S))
        delay_s -= _NAP_S
    raise errors.Cancelled("given up while waiting to try again", request_sent=cause.request_sent) from cause
