"""Signed URLs: how long they live by anybody's clock, and that they are asked for once."""

from __future__ import annotations

import pytest

from lightlyfs.errors import Unreachable
from lightlyfs.fetch.urls import EXPIRY_MARGIN_S, UNKNOWN_LIFETIME_S, ReadUrls, expiry_of

DAY = 1_700_006_400  # 2023-11-15T00:00:00Z


@pytest.mark.parametrize(
    ("query", "expiry"),
    [
        ("X-Amz-Date=20231115T000000Z&X-Amz-Expires=3600", DAY + 3600),
        ("x-amz-expires=60&x-amz-date=20231115T000000Z", DAY + 60),
        ("X-Goog-Date=20231115T000000Z&X-Goog-Expires=601201", DAY + 601201),
        ("x-oss-date=20231115T000000Z&x-oss-expires=5", DAY + 5),
        ("sv=2021&se=2023-11-15T00%3A00%3A10Z&sig=x", DAY + 10),
        ("se=2023-11-15T00:00Z", DAY),
        ("se=2023-11-15", DAY),
        ("se=2023-11-15T00:00:10.1234567Z", DAY + 10),
        (f"Expires={DAY}&Signature=x", DAY),
        ("X-Amz-Date=20231115T000000Z", None),
        ("X-Amz-Date=yesterday&X-Amz-Expires=3600", None),
        ("Expires=never", None),
        ("Expires=inf", None),
        ("Expires=nan", None),
        ("se=soon", None),
        ("", None),
    ],
)
def test_the_end_of_a_url_is_read_from_it(query: str, expiry: float | None) -> None:
    assert expiry_of(f"https://bucket.test/key?{query}") == expiry


def test_an_address_that_is_none_has_no_end() -> None:
    assert expiry_of("http://[bad") is None


class Api:
    """Gives out numbered URLs that end `life_s` seconds after they were made, by the server's clock."""

    def __init__(self, life_s: float | None, ahead_s: float = 0.0) -> None:
        self.now = float(DAY)
        self.asked = 0
        self._life_s = life_s
        self._ahead_s = ahead_s

    def resolve(self, sample: str) -> str:
        self.asked += 1
        end = "" if self._life_s is None else f"&Expires={self.now + self._ahead_s + self._life_s}"
        return f"https://bucket.test/{sample}?n={self.asked}{end}"

    def urls(self, **options: int) -> ReadUrls:
        return ReadUrls(self.resolve, wall_clock=lambda: self.now, **options)


@pytest.mark.parametrize(
    ("life_s", "ahead_s", "kept_s"),
    [
        (3600.0, 0.0, 3600 - EXPIRY_MARGIN_S),
        (None, 0.0, UNKNOWN_LIFETIME_S),
        (20.0, 0.0, 20.0),  # shorter than the margin, and no other would be longer
        (3600.0, -86_400.0, UNKNOWN_LIFETIME_S),  # our clock is a day ahead: it looks over, and is not
    ],
)
def test_a_url_is_kept_as_long_as_it_is_good(life_s: float | None, ahead_s: float, kept_s: float) -> None:
    api = Api(life_s, ahead_s)
    urls = api.urls()
    first = urls.get("a")
    api.now += kept_s - 1
    assert urls.get("a") == first
    api.now += 2
    assert urls.get("a") != first
    assert api.asked == 2


def test_a_refused_url_is_renewed_once_however_many_were_refused() -> None:
    api = Api(3600.0)
    urls = api.urls()
    refused = urls.get("a")

    assert {urls.renew("a", refused) for _ in range(5)} == {urls.get("a")}
    assert api.asked == 2


def test_a_failure_is_not_kept() -> None:
    api = Api(3600.0)
    failures = [Unreachable("down")]

    def resolve(sample: str) -> str:
        if failures:
            raise failures.pop()
        return api.resolve(sample)

    urls = ReadUrls(resolve, wall_clock=lambda: api.now)
    with pytest.raises(Unreachable):
        urls.get("a")
    assert urls.get("a") == urls.get("a")
    assert api.asked == 1


def test_a_url_that_ends_between_two_looks_at_the_clock_is_asked_for_again() -> None:
    api = Api(3600.0)
    ticking = [False]

    def clock() -> float:
        api.now += 1000.0 if ticking[0] else 0.0
        return api.now

    urls = ReadUrls(api.resolve, wall_clock=clock)
    first = urls.get("a")
    ticking[0] = True

    assert [urls.renew("a", first), *[urls.get("a") for _ in range(10)]]


def test_the_number_of_urls_in_memory_is_bounded() -> None:
    api = Api(3600.0)
    urls = api.urls(max_urls=2)
    for sample in "abc":
        urls.get(sample)
    urls.get("c")
    assert api.asked == 3
    urls.get("a")
    assert api.asked == 4
