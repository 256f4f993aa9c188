"""What is tried again, how often, and how long it waits; no test sleeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightlyfs import errors
from lightlyfs.api.retry import NO_RETRIES, Retrier, RetryPolicy


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


def lasting(time: Time, seconds: float, make: Callable[[], Exception]) -> Callable[[], str]:
    """Return a function that fails until so many seconds from now have passed."""
    end_s = time.now_s + seconds

    def call() -> str:
        if time.now_s < end_s:
            raise make()
        return "ok"

    return call


def retrier(time: Time, policy: RetryPolicy | None = None, **more: object) -> Retrier:
    return Retrier(policy, clock=time.clock, sleep=time.sleep, random=lambda: 0.0, **more)  # type: ignore[arg-type]


def run(policy: RetryPolicy, fn: Callable[[], str], time: Time, **more: object) -> str:
    return retrier(time, policy).call(fn, **more)  # type: ignore[arg-type]


ALL = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.LightlyFsError) and kind is not errors.Retryable
]
PASSING = [errors.Throttled, errors.ServerFault, errors.TimedOut, errors.Unreachable, errors.ShortBody]
REFUSALS = [
    errors.BadRequest,
    errors.Unauthorized,
    errors.Forbidden,
    errors.NotFound,
    errors.Conflict,
    errors.QuotaExceeded,
    errors.Refused,
    errors.MalformedAnswer,
    errors.OddAnswer,
    errors.UnsafeUrl,
    errors.TlsFailed,
    errors.ContentChanged,
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_which_errors_are_repeated(kind: type[errors.LightlyFsError]) -> None:
    time = Time()
    fn = failing(kind("x"), None)
    if kind in PASSING or kind in REFUSALS:
        assert run(RetryPolicy(), fn, time) == "ok"
        assert time.slept
    else:
        with pytest.raises(kind):
            run(RetryPolicy(), fn, time)
        assert time.slept == []


@pytest.mark.parametrize("kind", [*PASSING, *REFUSALS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seconds", [0.01, 1, 5])
def test_what_passes_within_five_seconds_is_no_error(kind: type[errors.RequestError], seconds: float) -> None:
    time = Time()
    assert run(RetryPolicy(), lasting(time, seconds, lambda: kind("x")), time) == "ok"


@pytest.mark.parametrize("kind", PASSING, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("retry_after_s", [None, 1, 60, 1e9])
def test_what_passes_within_the_bound_of_the_call_is_no_error(
    kind: type[errors.RequestError], retry_after_s: float | None
) -> None:
    time = Time()
    fn = lasting(time, 50, lambda: kind("x", retry_after_s=retry_after_s))
    assert run(RetryPolicy(), fn, time) == "ok"
    assert time.now_s <= 157


@pytest.mark.parametrize("kind", PASSING, ids=lambda kind: kind.__name__)
def test_what_stays_is_an_error_within_the_bound_of_the_call(kind: type[errors.RequestError]) -> None:
    time = Time()
    with pytest.raises(kind) as caught:
        run(RetryPolicy(), lasting(time, 1e9, lambda: kind("x")), time)
    assert 150 < time.now_s <= 157
    assert caught.value.settled


@pytest.mark.parametrize("kind", REFUSALS, ids=lambda kind: kind.__name__)
def test_a_refusal_that_stays_is_believed_after_some_seconds(kind: type[errors.RequestError]) -> None:
    time = Time()
    with pytest.raises(kind) as caught:
        run(RetryPolicy(), lasting(time, 1e9, lambda: kind("x")), time)
    assert 105.5 <= time.now_s <= 107
    assert len(time.slept) >= 6
    assert caught.value.settled


@pytest.mark.parametrize("kind", REFUSALS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("policy", [RetryPolicy(attempts=1, budget_s=0.5, doubt_s=0.5), RetryPolicy()])
def test_a_refusal_that_is_doubted_to_the_bound_of_the_call_is_what_it_ends_with(
    kind: type[errors.RequestError], policy: RetryPolicy
) -> None:
    time = Time()
    end_s = time.now_s + policy.budget_s
    answers_after = [policy.budget_s - 0.5]

    def refused_or_cut_off() -> str:
        time.now_s = min(end_s, time.now_s + (answers_after.pop() if answers_after else 0.08))
        raise errors.TimedOut("1 ms") if time.now_s >= end_s else kind("x")

    with pytest.raises(kind):
        run(policy, refused_or_cut_off, time)


def test_a_time_out_with_time_left_is_told_as_such() -> None:
    with pytest.raises(errors.TimedOut):
        run(RetryPolicy(attempts=1), failing(errors.Unauthorized("x"), errors.TimedOut("y")), Time())


def test_a_foreign_exception_is_not_repeated() -> None:
    with pytest.raises(OSError, match="x"):
        run(RetryPolicy(), failing(OSError("x")), Time())


def test_the_wait_doubles_up_to_its_limit() -> None:
    time = Time()
    policy = RetryPolicy(first_delay_s=1.0, max_delay_s=5.0)
    assert run(policy, failing(*[errors.ServerFault("x") for _ in range(6)], None), time) == "ok"
    assert time.slept == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_the_last_error_is_raised_when_all_attempts_fail() -> None:
    failures = [errors.ServerFault(str(number)) for number in range(3)]
    with pytest.raises(errors.ServerFault, match="2"):
        run(RetryPolicy(attempts=3), failing(*failures), Time())


def test_retry_after_is_waited_for() -> None:
    time = Time()
    run(RetryPolicy(), failing(errors.Throttled("x", retry_after_s=7.0), None), time)
    assert sum(time.slept) == pytest.approx(7.0)


def test_a_short_retry_after_does_not_shorten_the_back_off() -> None:
    time = Time()
    run(RetryPolicy(first_delay_s=2.0), failing(errors.Throttled("x", retry_after_s=0.0), None), time)
    assert sum(time.slept) == 2.0


def test_a_retry_after_past_the_bound_gets_one_more_try_at_its_end() -> None:
    time = Time()
    tries: list[float] = []

    def throttled() -> str:
        tries.append(time.now_s)
        raise errors.Throttled("x", retry_after_s=61.0)

    with pytest.raises(errors.Throttled):
        run(RetryPolicy(budget_s=60), throttled, time)
    assert tries == [100.0, 157.0]


def test_time_spent_in_the_attempts_counts_against_the_budget() -> None:
    time = Time()
    tries = 0

    def slow() -> str:
        nonlocal tries
        tries += 1
        time.now_s += 40
        raise errors.TimedOut("x")

    with pytest.raises(errors.TimedOut):
        run(RetryPolicy(budget_s=60), slow, time)
    assert tries == 2


@pytest.mark.parametrize("kind", [errors.ServerFault, errors.NotFound])
def test_may_retry_narrows_what_is_repeated(kind: type[errors.RequestError]) -> None:
    with pytest.raises(kind):
        run(RetryPolicy(), failing(kind("x"), None), Time(), may_retry=lambda exc: False)


@pytest.mark.parametrize("kind", [errors.ServerFault, errors.NotFound])
def test_what_an_inner_loop_settled_is_not_repeated(kind: type[errors.RequestError]) -> None:
    time = Time()
    inner, outer = retrier(time), retrier(time)
    with pytest.raises(kind):
        outer.call(lambda: inner.call(lasting(time, 1e9, lambda: kind("x"))))
    assert time.now_s <= 157


@pytest.mark.parametrize("kind", [errors.ServerFault, errors.NotFound])
def test_without_patience_nothing_is_repeated_nor_settled(kind: type[errors.RequestError]) -> None:
    time = Time()
    with pytest.raises(kind) as caught:
        run(NO_RETRIES, failing(kind("x"), None), time)
    assert time.slept == []
    assert not caught.value.settled


def test_a_wait_ends_soon_after_it_is_cancelled() -> None:
    time = Time()
    throttled = failing(errors.Throttled("x", retry_after_s=30.0), None)
    with pytest.raises(errors.Cancelled):
        retrier(time, cancelled=lambda: time.now_s >= 102).call(throttled)
    assert time.now_s <= 102.5


class TestRefusals:
    """What is remembered of refusals."""

    def test_one_that_was_believed_is_believed_at_once(self) -> None:
        time = Time()
        subject = retrier(time)
        for expected_s in (6, 0):
            started_s = time.now_s
            with pytest.raises(errors.NotFound):
                subject.call(lasting(time, 1e9, lambda: errors.NotFound("x")), kind="get", what="a")
            assert time.now_s - started_s == pytest.approx(expected_s, abs=0.5)

    def test_not_of_another_request_or_another_class_or_after_a_success(self) -> None:
        time = Time()
        subject = retrier(time)
        with pytest.raises(errors.NotFound):
            subject.call(lasting(time, 1e9, lambda: errors.NotFound("x")), kind="get", what="a")

        assert subject.call(failing(errors.NotFound("x"), None), kind="get", what="b") == "ok"
        assert subject.call(failing(errors.Forbidden("x"), None), kind="get", what="a") == "ok"
        assert subject.call(failing(errors.NotFound("x"), None), kind="get", what="a") == "ok"

    @pytest.mark.parametrize("kind", PASSING, ids=lambda kind: kind.__name__)
    def test_what_lasted_for_one_request_costs_it_a_minute_once(
        self, kind: type[errors.RequestError]
    ) -> None:
        """The kernel asks again for a page whose read-ahead failed: both are one call of a program."""
        time = Time()
        subject = retrier(time)
        later_s = 57 if kind is errors.Throttled else 6
        for expected_s in (57, later_s, later_s):
            started_s = time.now_s
            with pytest.raises(kind):
                subject.call(lasting(time, 1e9, lambda: kind("x")), kind="storage", what="a")
            subject.call(failing(None), kind="storage", what="b")
            assert expected_s - 4 < time.now_s - started_s <= expected_s
        assert subject.call(lasting(time, 5, lambda: kind("x")), kind="storage", what="a") == "ok"
        assert subject.call(lasting(time, 50, lambda: kind("x")), kind="storage", what="a") == "ok"

    def test_not_for_long(self) -> None:
        time = Time()
        subject = retrier(time)
        with pytest.raises(errors.NotFound):
            subject.call(lasting(time, 1e9, lambda: errors.NotFound("x")), kind="get", what="a")
        time.now_s += 61
        assert subject.call(failing(errors.NotFound("x"), None), kind="get", what="a") == "ok"

    def test_a_refused_token_is_refused_for_all_until_it_is_not(self) -> None:
        time = Time()
        subject = retrier(time)
        with pytest.raises(errors.Unauthorized):
            subject.call(lasting(time, 1e9, lambda: errors.Unauthorized("x")), kind="get", what="a")
        with pytest.raises(errors.Unauthorized):
            subject.call(failing(errors.Unauthorized("x"), None), kind="list", what="b")
        assert subject.call(failing(None), kind="list", what="b") == "ok"
        assert subject.call(failing(errors.Unauthorized("x"), None), kind="list", what="b") == "ok"

    def test_new_credentials_are_doubted_anew(self) -> None:
        time = Time()
        subject = retrier(time)
        with pytest.raises(errors.Unauthorized):
            subject.call(lasting(time, 1e9, lambda: errors.Unauthorized("x")), kind="get", what="a")
        subject.forget_refusals()
        assert subject.call(failing(errors.Unauthorized("x"), None), kind="get", what="a") == "ok"

    def test_many_of_one_kind_are_doubted_for_a_moment(self) -> None:
        time = Time()
        subject = retrier(time)
        for number in range(100):
            with pytest.raises(errors.NotFound):
                subject.call(lasting(time, 1e9, lambda: errors.NotFound("x")), kind="get", what=str(number))
        assert time.now_s - 100 < 60

    def test_once_an_account_is_full_the_next_file_is_doubted_for_a_moment(self) -> None:
        time = Time()
        subject = retrier(time)

        def refuse(what: str) -> float:
            began = time.now_s
            with pytest.raises(errors.QuotaExceeded):
                subject.call(lasting(time, 1e9, lambda: errors.QuotaExceeded("x")), kind="put", what=what)
            return time.now_s - began

        assert refuse("a") >= 6
        assert 0 < refuse("b") < 1
        # one odd answer is still asked about again
        assert subject.call(failing(errors.QuotaExceeded("x"), None), kind="put", what="c") == "ok"
        # and there is room again, so that the next refusal is odd
        assert refuse("d") >= 6

    def test_a_request_that_never_left_is_refused_at_once(self) -> None:
        time = Time()
        with pytest.raises(errors.BadRequest):
            run(RetryPolicy(), failing(errors.BadRequest("x", request_sent=False), None), time)
        assert time.slept == []

    def test_a_certificate_is_doubted_although_nothing_was_sent(self) -> None:
        time = Time()
        refused = errors.TlsFailed("x", request_sent=False)
        assert run(RetryPolicy(), failing(refused, None), time) == "ok"


class TestHost:
    """What all calls know of the host."""

    def test_a_throttled_host_is_left_alone_by_all_calls(self) -> None:
        time = Time()
        subject = retrier(time)
        with pytest.raises(errors.Throttled):
            subject.call(failing(errors.Throttled("x", retry_after_s=5)), policy=NO_RETRIES)

        assert subject.call(failing(None)) == "ok"
        assert time.now_s == pytest.approx(105)
        assert subject.call(failing(None)) == "ok"
        assert time.now_s == pytest.approx(105)

    def test_what_nobody_waits_for_is_not_sent_to_a_throttled_host(self) -> None:
        time = Time()
        subject = retrier(time)
        with pytest.raises(errors.Throttled):
            subject.call(failing(errors.Throttled("x", retry_after_s=5)), policy=NO_RETRIES)
        for _ in range(20):
            time.now_s += 0.1
            with pytest.raises(errors.Throttled, match="asked for a pause"):
                subject.call(failing(), policy=NO_RETRIES)
        assert subject.call(failing(None)) == "ok"
        assert time.now_s == pytest.approx(105)

    def test_an_outage_longer_than_a_call_is_waited_for_once(self) -> None:
        time = Time()
        subject = retrier(time)
        down = lasting(time, 1e9, lambda: errors.Unreachable("x"))
        with pytest.raises(errors.Unreachable):
            subject.call(down)
        time.now_s += 10
        started_s = time.now_s
        with pytest.raises(errors.Unreachable):
            subject.call(down)
        assert time.now_s - started_s < 7

        assert subject.call(failing(None)) == "ok"
        assert subject.call(lasting(time, 50, lambda: errors.Unreachable("x"))) == "ok"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2000), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_negative_or_over_the_limit(retry: int, drawn: float) -> None:
    assert 0 <= RetryPolicy(max_delay_s=16).delay_s(retry, lambda: drawn) <= 16


def test_jitter_spreads_the_waits() -> None:
    policy = RetryPolicy(first_delay_s=1.0)
    drawn = iter((0.0, 0.25, 0.75))
    assert [policy.delay_s(0, lambda: next(drawn)) for _ in range(3)] == [1.0, 0.75, 0.25]
    assert RetryPolicy(first_delay_s=1.0, jitter=0.0).delay_s(0, lambda: 0.75) == 1.0
