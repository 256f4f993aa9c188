"""Paging: every sample exactly once or more, whatever the server does to the pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from contentkit import Clock
from hypothesis import given
from hypothesis import strategies as st

from lightlyfs.catalog.listing import Pager, Verifier
from lightlyfs.errors import Cancelled, MalformedAnswer, ServerFault, TimedOut, TooLarge


class Inline(Executor):
    """Runs at once, in the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def read(fetch: Callable[[int, int], Sequence[int]], expected: int, page_size: int = 10) -> list[int]:
    rows: list[int] = []
    pager = Pager(fetch, executor=Inline(), page_size=page_size, parallel=3, sleep=lambda _: None)
    pager.read_all(expected, rows.extend)
    return rows


@given(st.integers(0, 120), st.integers(0, 150), st.integers(1, 30), st.integers(1, 30))
def test_every_row_comes_whatever_is_expected_and_however_pages_are_clamped(
    total: int, expected: int, page_size: int, clamp: int
) -> None:
    rows = read(lambda o, n: list(range(total))[o : o + min(n, clamp)], expected, page_size)

    assert list(range(total)) == rows


@given(st.integers(0, 60), st.lists(st.integers(1, 9), min_size=1))
def test_pages_of_any_length_leave_no_gap(total: int, lengths: list[int]) -> None:
    def fetch(offset: int, size: int) -> Sequence[int]:
        return list(range(total))[offset : offset + min(size, lengths[offset % len(lengths)])]

    assert list(range(total)) == read(fetch, total)


def test_rows_added_while_paging_are_read_too() -> None:
    data = list(range(25))

    def fetch(offset: int, size: int) -> Sequence[int]:
        page = data[offset : offset + size]
        if offset == 20 and len(data) == 25:
            data.extend(range(25, 45))
        return page

    assert set(range(45)) == set(read(fetch, 25))


def test_a_page_over_the_servers_limit_is_asked_for_in_halves() -> None:
    asked: list[int] = []

    def fetch(offset: int, size: int) -> Sequence[int]:
        asked.append(size)
        if size > 30:
            raise TooLarge("32 MB", status=413)
        return list(range(200))[offset : offset + size]

    assert list(range(200)) == read(fetch, 200, page_size=100)
    assert asked[:3] == [100, 50, 25]
    assert max(asked[3:]) <= 25


def test_a_page_that_never_answers_fails_the_listing() -> None:
    def fetch(offset: int, size: int) -> Sequence[int]:
        raise ServerFault("down", status=503)

    with pytest.raises(ServerFault):
        read(fetch, 100)


def test_an_exact_expectation_costs_one_empty_page() -> None:
    asked: list[int] = []

    def fetch(offset: int, size: int) -> Sequence[int]:
        asked.append(offset)
        return list(range(40))[offset : offset + size]

    read(fetch, 40)

    assert asked == [0, 10, 20, 30, 40]


def test_a_page_that_arrives_broken_is_asked_for_again() -> None:
    broken = [True, True]

    def fetch(offset: int, size: int) -> Sequence[int]:
        if offset == 10 and broken:
            broken.pop()
            raise MalformedAnswer("half of a page")
        return list(range(40))[offset : offset + size]

    assert list(range(40)) == read(fetch, 40)


def test_a_page_that_is_always_broken_fails_the_listing() -> None:
    def fetch(offset: int, size: int) -> Sequence[int]:
        raise MalformedAnswer("half of a page")

    with pytest.raises(MalformedAnswer):
        read(fetch, 40)


class Server:
    """Pages of a list, with what is to happen to some of them; notes what it was asked and the pauses."""

    def __init__(self, total: int, *, clamp: int = 1 << 30) -> None:
        self.total = total
        self.clamp = clamp
        self.asked: list[tuple[int, int]] = []
        self.slept: list[float] = []
        self.odd: Callable[[int, int], Sequence[int] | None] = lambda offset, size: None

    def fetch(self, offset: int, size: int) -> Sequence[int]:
        self.asked.append((offset, size))
        found = self.odd(offset, size)
        return range(self.total)[offset : offset + min(size, self.clamp)] if found is None else found

    def read(
        self, expected: int, *, page_size: int = 10, parallel: int = 3, executor: Executor | None = None
    ) -> list[int]:
        rows: list[int] = []
        pager = Pager(
            self.fetch,
            executor=executor or Inline(),
            page_size=page_size,
            parallel=parallel,
            sleep=self.slept.append,
        )
        pager.read_all(expected, rows.extend)
        return rows


def test_an_end_that_comes_early_is_looked_at_for_some_seconds_and_then_believed() -> None:
    server = Server(20)
    assert server.read(30) == list(range(20))
    assert server.slept == [0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5]
    assert server.asked == [(0, 10), (10, 10), *[(20, 10)] * 8]


def test_an_empty_list_that_should_not_be_is_looked_at_too() -> None:
    server = Server(0)
    assert server.read(1) == []
    assert len(server.asked) == 8
    server = Server(0)
    assert server.read(0) == []
    assert server.asked == [(0, 10)]
    assert server.slept == []


def test_a_page_that_is_empty_for_a_moment_loses_nothing() -> None:
    server, empty = Server(40), [True, True]
    server.odd = lambda offset, size: () if offset == 10 and empty and empty.pop() else None
    assert server.read(40) == list(range(40))
    assert server.slept == [0.1, 0.2]


def test_a_server_that_ignores_the_offset_is_an_error_or_has_one_page() -> None:
    server = Server(10)
    server.odd = lambda offset, size: range(10)
    with pytest.raises(ServerFault, match="first page"):
        server.read(30)
    for expected in (0, 10):
        assert server.read(expected) == list(range(10))


def test_a_list_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightlyfs.catalog.listing._MOST_UNEXPECTED", 100)
    monkeypatch.setattr("lightlyfs.catalog.listing._MOST_UNKNOWN", 50)
    server = Server(1_000_000)
    with pytest.raises(MalformedAnswer, match="no end"):
        server.read(20)
    assert max(offset for offset, _ in server.asked) <= 400
    assert Server(140).read(20) == list(range(140))
    assert Server(50).read(0) == list(range(50))
    with pytest.raises(MalformedAnswer, match="no end"):
        Server(80).read(0)


@pytest.mark.parametrize("error", [TooLarge("x", status=413), TimedOut("x"), ServerFault("x", status=503)])
def test_a_page_that_fails_is_halved_down_to_twenty_rows(error: Exception) -> None:
    server = Server(100)

    def fail(offset: int, size: int) -> None:
        raise error

    server.odd = fail
    with pytest.raises(type(error)):
        server.read(100, page_size=150)
    assert server.asked == [(0, 150), (0, 75), (0, 37), (0, 20)]


def test_what_the_server_does_not_implement_is_not_asked_for_in_halves() -> None:
    server = Server(100)

    def fail(offset: int, size: int) -> None:
        raise ServerFault("x", status=501)

    server.odd = fail
    with pytest.raises(ServerFault):
        server.read(100, page_size=100)
    assert len(server.asked) == 1


def test_a_page_that_is_broken_three_times_is_what_the_server_sends() -> None:
    server = Server(100)

    def fail(offset: int, size: int) -> None:
        raise MalformedAnswer("x")

    server.odd = fail
    with pytest.raises(MalformedAnswer):
        server.read(100)
    assert server.asked == [(0, 10)] * 3


@pytest.mark.parametrize(("clamp", "size"), [(60, 60), (5, 10), (10, 10), (11, 11), (80, 80)])
def test_small_pages_of_a_server_are_taken_in_runs_of_an_eighth(clamp: int, size: int) -> None:
    """Runs that are too short cost more requests than those that take several pages."""
    server = Server(400, clamp=clamp)
    assert server.read(400, page_size=80, executor=Inline()) == list(range(400))
    assert server.asked[:2] == [(0, 80), (clamp, size)]


def test_so_many_runs_are_under_way_and_no_more() -> None:
    class Counting(Inline):
        under_way = most = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            made = super().submit(fn, *args, **kwargs)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            result = made.result

            def taken(timeout: float | None = None) -> Any:
                self.under_way -= 1
                return result(timeout)

            made.result = taken  # type: ignore[method-assign]
            return made

    pool = Counting()
    assert Server(200).read(200, parallel=4, executor=pool) == list(range(200))
    assert pool.most == 4


def test_past_the_expected_end_pages_are_read_until_one_is_empty() -> None:
    server = Server(160)
    assert server.read(10, parallel=8) == list(range(160))
    assert [offset for offset, _ in server.asked] == [*range(0, 160, 10), 160]


def test_a_pool_that_takes_no_job_ends_the_listing() -> None:
    class Closed(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise RuntimeError("cannot schedule new futures after shutdown")

    class Dropping(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            dropped: Future[Any] = Future()
            dropped.cancel()
            return dropped

    for pool in (Closed(), Dropping()):
        with pytest.raises(Cancelled):
            Server(100).read(100, executor=pool)


# comparing a stored listing with the server


class Stored:
    """A store of so many rows, and a server that may have others; a row is its number."""

    def __init__(self, listed: int) -> None:
        self.meta = {"listed": str(listed)}
        self.listed = listed
        self.other: set[int] = set()
        self.gone = 0
        self.clamp = 1 << 30
        self.compared: list[int] = []
        self.clock = Clock()
        self.verifier = Verifier(self, self, clock=self.clock)  # type: ignore[arg-type]

    def get_meta(self, key: str) -> str | None:
        return self.meta.get(key)

    def set_meta(self, values: dict[str, str]) -> None:
        self.meta.update(values)

    def page(self, offset: int, size: int) -> Sequence[int]:
        return range(self.listed - self.gone)[offset : offset + min(size, self.clamp)]

    def kept(self, rows: Sequence[int]) -> Sequence[int]:
        return [row for row in rows if row % 10]

    def holds(self, rows: Sequence[int]) -> bool:
        self.compared += rows
        return not self.other & {*rows}

    def check(self, after_s: float, *, most: int = 5_000, listing_s: float = 0.0, ttl_s: float = 60.0) -> int:
        """Wait and check; how many rows were compared, of which a tenth is not kept."""
        self.compared = []
        self.clock.sleep(after_s)
        assert self.verifier.holds(most_rows=most, listing_s=listing_s, ttl_s=ttl_s)
        return len(self.compared) * 10 // 9


@pytest.mark.parametrize(
    ("listed", "after_s", "options", "rows"),
    [
        (0, 60, {}, 0),
        (10, 60, {}, 10),
        (1_000, 60, {}, 1_000),
        (50_000, 60, {}, 1_000),  # 833 are due: at least a thousand are compared
        (90_000, 60, {}, 1_500),  # a sixtieth of an hour
        (90_000, 120, {}, 3_000),
        (90_000, 1_000, {}, 3_000),  # one check after a long time makes up for two
        (900_000, 60, {"most": 2_000}, 2_000),
        (900_000, 60, {"most": 20_000, "listing_s": 360.0}, 7_500),  # a round takes 20 listings
        (900_000, 60, {"most": 20_000, "listing_s": 180.0}, 15_000),
    ],
)
def test_so_many_rows_are_compared_that_a_round_takes_an_hour(
    listed: int, after_s: float, options: dict[str, Any], rows: int
) -> None:
    assert Stored(listed).check(after_s, **options) == rows


def test_a_round_goes_on_where_it_ended_and_begins_again_also_in_another_mount() -> None:
    stored = Stored(2_500)
    assert stored.check(60) == 1_000
    assert (stored.compared[0], stored.compared[-1]) == (1, 999)
    stored.verifier = Verifier(stored, stored, clock=stored.clock)  # type: ignore[arg-type]
    stored.check(60)
    assert (stored.compared[0], stored.compared[-1]) == (1_001, 1_999)
    stored.check(60)
    assert stored.compared[0] == 2_001
    assert stored.compared[-1] == 499
    assert stored.meta["verified_rows"] == "500"


def test_pages_of_any_length_are_compared() -> None:
    stored = Stored(2_500)
    stored.clamp = 300
    assert stored.check(60) == 1_000


def test_a_row_that_differs_or_is_missing_ends_the_comparison() -> None:
    stored = Stored(2_500)
    stored.other = {1_777}
    stored.check(60)
    assert not stored.verifier.holds(most_rows=5_000, listing_s=0, ttl_s=60)
    assert stored.meta["verified_rows"] == "1000"
    stored.other, stored.gone = set(), 2_000
    assert not stored.verifier.holds(most_rows=5_000, listing_s=0, ttl_s=60)
