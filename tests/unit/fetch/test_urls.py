"""Signed URLs: how long they live by anybody's clock, and that they are asked for once."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from lightlyfs.errors import Unreachable
from lightlyfs.fetch.urls import EXPIRY_MARGIN_S, UNKNOWN_LIFETIME_S, AskedOnce, ReadUrls, expiry_of

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


@pytest.mark.parametrize("name", ["a", "z"])
def test_a_url_is_new_for_a_minute_and_any_other_is_as_good_as_new(name: str) -> None:
    """So that a sample is asked for again only where another URL may say something else."""
    api = Api(3600.0)
    urls = api.urls()
    url = urls.get("s")
    other = f"https://{name}.test/"
    assert urls.is_new("unknown", url)
    api.now += 59
    assert urls.is_new("s", url)
    api.now += 1
    assert not urls.is_new("s", url)
    assert urls.is_new("s", other)


def test_a_url_that_is_being_asked_for_is_given_to_all_who_wait() -> None:
    urls = Api(None).urls()
    assert urls.begin("s") is None
    waits = urls.begin("s")
    assert isinstance(waits, Future)
    assert urls.begin("s") is waits
    urls.end("s", "https://bucket.test/s")
    assert waits.result(0) == urls.begin("s") == urls.get("s") == "https://bucket.test/s"


@pytest.mark.parametrize("error", [None, Unreachable("down")])
def test_where_a_url_did_not_come_those_who_wait_are_told_and_the_next_asks(
    error: Unreachable | None,
) -> None:
    urls = Api(None).urls()
    urls.begin("s")
    waits = urls.begin("s")
    assert isinstance(waits, Future)
    urls.end("s", None, error)
    failed = waits.exception(0)
    assert failed is error if error else isinstance(failed, AskedOnce)
    assert urls.begin("s") is None


def test_a_discarded_url_is_gone_and_another_one_stays() -> None:
    api = Api(3600.0)
    urls = api.urls()
    first = urls.get("s")
    urls.discard("s", "another")
    assert urls.get("s") == first
    urls.discard("s", first)
    urls.discard("s", first)
    assert urls.get("s") != first
    assert api.asked == 2


@pytest.mark.parametrize(("life_s", "used_s"), [(29.0, 29.0), (30.0, 30.0), (31.0, 1.0), (0.0, 600.0)])
def test_the_margin_is_not_taken_from_those_that_live_no_longer(life_s: float, used_s: float) -> None:
    api = Api(life_s)
    urls = api.urls()
    first = urls.get("s")
    api.now += used_s - 0.5
    assert urls.get("s") == first
    api.now += 0.5
    assert urls.get("s") != first


@pytest.mark.parametrize(
    ("query", "expiry"),
    [
        (f"Expires={DAY}#se=2023-11-14", DAY),
        (f"Expires={DAY}&{'x' * 20}=1&Signature=", DAY),
        ("se=2023-11-15T00%3A00%3A10%2B00%3A00", DAY + 10),
        (f"x-abcdefghi-date=20231115T000000Z&x-abcdefghi-expires=5&Expires={DAY + 99}", DAY + 5),
        ("X-Amz-Date=20231115T000000Z&X-Goog-Expires=3600", None),
        ("Expires=", None),
        ("Expires=1e400", None),
        (f"x-abcdefghijklmnop-date=20231115T000000Z&Expires={DAY}", DAY),
        (f"Expires={DAY}&expires=", DAY),
        (f"Expires={DAY}&expires={DAY + 5}", DAY + 5),
    ],
)
def test_only_what_tells_the_end_is_read(query: str, expiry: float | None) -> None:
    assert expiry_of(f"https://bucket.test/key?{query}") == expiry
