"""What is tried again, how often, and how long it waits; no test sleeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightlyfs import errors
from lightlyfs.api.retry import RetryPolicy, call_with_retries


class Time:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def failing(*failures: Exception | None) -> Callable[[], str]:
    """Return a function that raises one failure per call, and answers where that is None."""
    left = list(failures)

    def call() -> str:
        failure = left.pop(0)
        if failure is not None:
            raise failure
        return "ok"

    return call


def run(policy: RetryPolicy, fn: Callable[[], str], time: Time, **more: object) -> str:
    return call_with_retries(
        policy,
        fn,
        clock=time.clock,
        sleep=time.sleep,
        random=lambda: 0.0,
        **more,  # type: ignore[arg-type]
    )


RETRIED = {
    errors.Throttled,
    errors.ServerFault,
    errors.TimedOut,
    errors.Unreachable,
    errors.ShortBody,
}
ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.LightlyFsError) and kind is not errors.Retryable
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_which_errors_are_retried(kind: type[errors.LightlyFsError]) -> None:
    time = Time()
    fn = failing(kind("x"), None)
    if kind in RETRIED:
        assert run(RetryPolicy(), fn, time) == "ok"
        assert len(time.slept) == 1
    else:
        with pytest.raises(kind):
            run(RetryPolicy(), fn, time)
        assert time.slept == []


def test_a_foreign_exception_is_not_retried() -> None:
    with pytest.raises(OSError, match="x"):
        run(RetryPolicy(), failing(OSError("x")), Time())


def test_the_wait_doubles_up_to_its_limit() -> None:
    time = Time()
    policy = RetryPolicy(attempts=7, first_delay_s=1.0, max_delay_s=5.0)
    assert run(policy, failing(*[errors.ServerFault("x")] * 6, None), time) == "ok"
    assert time.slept == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_the_last_error_is_raised_when_all_attempts_fail() -> None:
    failures = [errors.ServerFault(str(number)) for number in range(3)]
    with pytest.raises(errors.ServerFault, match="2"):
        run(RetryPolicy(attempts=3), failing(*failures), Time())


def test_retry_after_is_waited_for() -> None:
    time = Time()
    run(RetryPolicy(), failing(errors.Throttled("x", retry_after_s=7.0), None), time)
    assert time.slept == [7.0]


def test_a_short_retry_after_does_not_shorten_the_back_off() -> None:
    time = Time()
    run(RetryPolicy(first_delay_s=2.0), failing(errors.Throttled("x", retry_after_s=0.0), None), time)
    assert time.slept == [2.0]


def test_a_retry_after_past_the_budget_is_raised_at_once() -> None:
    time = Time()
    with pytest.raises(errors.Throttled):
        run(RetryPolicy(budget_s=60), failing(errors.Throttled("x", retry_after_s=61.0), None), time)
    assert time.slept == []


def test_time_spent_in_the_attempts_counts_against_the_budget() -> None:
    time = Time()

    def slow() -> str:
        time.now_s += 40
        raise errors.TimedOut("x")

    with pytest.raises(errors.TimedOut):
        run(RetryPolicy(budget_s=60), slow, time)
    assert len(time.slept) == 1


def test_may_retry_narrows_what_is_retried() -> None:
    with pytest.raises(errors.ServerFault):
        run(RetryPolicy(), failing(errors.ServerFault("x"), None), Time(), may_retry=lambda exc: False)


def test_a_wait_ends_soon_after_it_is_cancelled() -> None:
    time = Time()
    with pytest.raises(errors.Cancelled) as caught:
        run(
            RetryPolicy(),
            failing(errors.Throttled("x", retry_after_s=30.0), None),
            time,
            cancelled=lambda: time.now_s >= 102,
        )
    assert time.now_s <= 102.5
    assert isinstance(caught.value.__cause__, errors.Throttled)


def test_a_wait_that_is_not_cancelled_is_waited_in_full() -> None:
    time = Time()
    run(
        RetryPolicy(),
        failing(errors.Throttled("x", retry_after_s=1.7), None),
        time,
        cancelled=lambda: False,
    )
    assert sum(time.slept) == pytest.approx(1.7)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2000), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_negative_or_over_the_limit(retry: int, drawn: float) -> None:
    assert 0 <= RetryPolicy(max_delay_s=16).delay_s(retry, lambda: drawn) <= 16


def test_jitter_spreads_the_waits() -> None:
    policy = RetryPolicy(first_delay_s=1.0)
    drawn = iter((0.0, 0.25, 0.75))
    assert [policy.delay_s(0, lambda: next(drawn)) for _ in range(3)] == [1.0, 0.75, 0.25]
    assert RetryPolicy(first_delay_s=1.0, jitter=0.0).delay_s(0, lambda: 0.75) == 1.0
