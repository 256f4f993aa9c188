"""Paging: every sample exactly once or more, whatever the server does to the pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightlyfs.catalog.listing import Pager
from lightlyfs.errors import MalformedAnswer, ServerFault, TooLarge


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
