"""What the catalogue asks the API for, and what it makes of odd answers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

import pytest
from contentkit import Clock, Inline

from lightlyfs.api.models import ListedSample, Sample, SampleMetaData
from lightlyfs.catalog.remote import (
    MAX_BYTES,
    MAX_SECONDS,
    MIN_SECONDS,
    ApiRemote,
    DatasetState,
    Details,
    Problem,
    Problems,
    is_plausible_time,
    is_settled,
    plausible_seconds,
    plausible_size,
)
from lightlyfs.catalog.tags import TagRecord
from lightlyfs.errors import Cancelled, MalformedAnswer, Unreachable

DATASET = "d" * 24


def ident(number: int) -> str:
    return f"{number:024x}"


class Client:
    """The API, whose answers the test says."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[Any, ...]] = []

    def _answer(self, what: str, *words: Any) -> Any:
        self.asked.append((what, *words))
        return self.answers[what]

    def get_dataset(self, dataset: str) -> Any:
        return self._answer("dataset", dataset)

    def get_tags(self, dataset: str) -> Any:
        return self._answer("tags", dataset)

    def get_sample(self, dataset: str, sample: str) -> Any:
        return self._answer("sample", dataset, sample)

    def get_mappings(self, dataset: str, field: str, offset: int, size: int) -> Any:
        self.asked.append(("mappings", dataset, field, offset, size))
        return self.answers["mappings"][offset : offset + size]

    def list_page(self, dataset: str, offset: int, size: int, **_: Any) -> Any:
        return self._answer("page", dataset, offset, size)

    def list_samples_partial(self, dataset: str, *, file_name: str, **more: Any) -> Any:
        return self._answer("find", dataset, file_name, more["mode"], more["offset"])


def remote(**answers: Any) -> tuple[ApiRemote, Client]:
    client = Client(**answers)
    return ApiRemote(client, DATASET, clock=Clock()), client  # type: ignore[arg-type]


def record(**values: Any) -> SimpleNamespace:
    none = dict.fromkeys(("name", "n_samples", "size_in_bytes", "created_at", "last_modified_at"))
    return SimpleNamespace(**(none | values))


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({}, (DATASET, 0, 0, 0, 0)),
        (
            {"name": "cars", "n_samples": 3, "size_in_bytes": 9, "created_at": 5, "last_modified_at": 7},
            ("cars", 3, 9, 5, 7),
        ),
        ({"created_at": 5}, (DATASET, 0, 0, 5, 5)),
        ({"n_samples": -1, "size_in_bytes": MAX_BYTES + 1}, (DATASET, 0, 0, 0, 0)),
    ],
)
def test_a_dataset_has_what_its_record_says_where_that_can_be(
    values: dict[str, Any], state: tuple[Any, ...]
) -> None:
    subject, _ = remote(dataset=record(**values))
    assert subject.dataset() == DatasetState(*state)


def test_a_sample_without_a_time_has_that_of_its_dataset() -> None:
    subject, client = remote(
        dataset=record(last_modified_at=1_700_000_000_000),
        page=[
            ListedSample(ident(1), "a.jpg", None, None, 5),
            ListedSample(ident(2), "b.jpg", 1_600_000_000_000, None, 5),
            ListedSample(ident(3), "c.jpg", 1_600_000_000_000, 1_650_000_000_000, 5),
            ListedSample(ident(4), None, None, None, None),
        ],
    )
    assert [row.mtime for row in subject.page(0, 9)] == [0, 1_600_000_000, 1_650_000_000, 0]
    subject.dataset()
    rows = subject.page(3, 9)
    assert client.asked[-1] == ("page", DATASET, 3, 9)
    assert [row.mtime for row in rows] == [1_700_000_000, 1_600_000_000, 1_650_000_000, 1_700_000_000]
    assert [row.created for row in rows] == [0, 1_600_000_000, 1_600_000_000, 0]
    assert [row.hint for row in rows] == [5, 5, 5, None]
    assert rows[3].wanted == ident(4)
    assert subject.problems.count() == 0


def test_odd_records_are_named_and_cost_themselves() -> None:
    subject, _ = remote(
        page=[
            ListedSample("", "no id", 0, 0, 5),
            ListedSample(ident(1), "size.jpg", 0, 0, MAX_BYTES + 1),
            ListedSample(ident(2), "time.jpg", 0, 10**17, 5),
            ListedSample(ident(3), "created.jpg", -1, None, 5),
            ListedSample(ident(4), "a//b", 0, 0, 5),
            ListedSample(ident(5), "good.jpg", 0, 1_700_000_000_000, MAX_BYTES),
        ]
    )
    rows = subject.page(0, 9)
    assert [row.wanted for row in subject.kept(rows)] == [
        "size.jpg",
        "time.jpg",
        "created.jpg",
        "%2Fb",
        "good.jpg",
    ]
    assert [row.hint for row in rows] == [None, None, 5, 5, 5, MAX_BYTES]
    assert rows[2].mtime == MAX_SECONDS
    assert subject.problems.all() == [
        Problem("a record: no id", "it is skipped"),
        Problem("size.jpg", f"its size of {MAX_BYTES + 1} bytes cannot be, and is asked of storage"),
        Problem("time.jpg", f"its time cannot be: {10**17}"),
        Problem("created.jpg", "its time cannot be: -1"),
        Problem("a//b", "no path can be spelled so; it is shown as a/%2Fb"),
    ]
    good = rows[1:]
    assert subject.kept(good) is good


def test_a_sample_is_found_by_its_exact_name_the_lowest_id_first() -> None:
    subject, client = remote(
        find=[
            Sample(id=ident(3), file_name="a.jpg", meta_data=SampleMetaData(size_in_bytes=7)),
            Sample(id=ident(1), file_name="a.jpg.bak"),
            Sample(id=ident(2), file_name="a.jpg"),
        ],
        sample="whole",
    )
    found = subject.find("a.jpg")
    assert [(row.id.hex(), row.hint) for row in found] == [(ident(2), None), (ident(3), 7)]
    assert client.asked == [("find", DATASET, "a.jpg", "full", 0)]
    assert subject.sample(ident(9)) == "whole"
    assert client.asked[-1] == ("sample", DATASET, ident(9))


def test_a_tag_without_a_name_or_a_mask_is_left_out() -> None:
    def tag(name: str | None, mask: str | None) -> SimpleNamespace:
        return SimpleNamespace(id="t", name=name, bit_mask_data=mask)

    subject, _ = remote(
        tags=[
            tag("good", "0x1F"),
            tag(None, "0x1"),
            tag("a", None),
            tag("b", "1"),
            tag("c", "0xg"),
            tag("", "0x1"),
        ]
    )
    assert subject.tags() == [TagRecord("t", "good", "0x1F")]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_the_mappings_are_read_to_their_end(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("lightlyfs.catalog.remote._MAPPINGS_PER_PAGE", 3)
    subject, client = remote(mappings=[ident(number) for number in range(count)])
    assert subject.mapping() == b"".join(bytes.fromhex(ident(number)) for number in range(count))
    assert client.asked[0] == ("mappings", DATASET, "_id", 0, 3)


def test_what_is_no_id_keeps_its_place_in_the_mappings() -> None:
    subject, _ = remote(mappings=[ident(1), "no id", ident(2)])
    assert subject.mapping() == bytes.fromhex(ident(1)) + bytes(12) + bytes.fromhex(ident(2))


def test_mappings_without_an_end_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def __getitem__(self, part: slice) -> list[str]:
            return [ident(1)]

    class Growing:
        def __getitem__(self, part: slice) -> list[str]:
            return [ident(part.start)]

    subject, _ = remote(mappings=Same())
    with pytest.raises(MalformedAnswer, match="no end"):
        subject.mapping()
    monkeypatch.setattr("lightlyfs.catalog.remote.MAX_SAMPLES", 5)
    subject, client = remote(mappings=Growing())
    with pytest.raises(MalformedAnswer, match="no end"):
        subject.mapping()
    assert len(client.asked) == 7


@pytest.mark.parametrize(
    ("size", "expected"),
    [(None, None), (-1, None), (0, 0), (1 << 53, 1 << 53), ((1 << 53) + 1, None)],
)
def test_a_size_that_no_file_has_is_unknown(size: int | None, expected: int | None) -> None:
    assert plausible_size(size) == expected


@pytest.mark.parametrize(
    ("milliseconds", "seconds", "plausible"),
    [
        (None, None, True),
        (0, 0, True),
        (-1, -1, False),
        (1_999, 1, True),
        (99_999_999, 99_999, True),
        (100_000_000, 100_000_000, False),  # seconds
        (4_999_999_999, 4_999_999_999, False),
        (5_000_000_000, 5_000_000, True),
        (1_700_000_000_000, 1_700_000_000, True),
        (MAX_SECONDS * 1000 + 999, MAX_SECONDS, True),
        (MAX_SECONDS * 1000 + 1000, MAX_SECONDS, False),
        (MIN_SECONDS * 1000 - 1, MIN_SECONDS, False),
    ],
)
def test_a_time_is_in_milliseconds_or_is_clamped(
    milliseconds: int | None, seconds: int | None, plausible: bool
) -> None:
    assert plausible_seconds(milliseconds) == seconds
    assert is_plausible_time(milliseconds) == plausible


def test_problems_are_counted_beyond_those_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightlyfs.catalog.remote._MAX_PROBLEMS", 3)
    problems = Problems()
    problems.note("a", "odd")
    problems.note("a", "odder")
    problems.note_unreadable(ident(1), "b.jpg", "cut")
    problems.note_unreadable(ident(2), "b.jpg", "cut")
    assert problems.count() == 3
    for _ in range(2):
        problems.note("c", "odd")
        problems.note_unreadable(ident(3), "d.jpg", "cut")
    assert problems.count() == 5
    problems.note("a", "oddest")  # it is kept already
    assert problems.all() == [Problem("a", "oddest"), Problem("b.jpg", "cut"), Problem("b.jpg", "cut")]
    problems.note_read(ident(1))
    problems.note_read(ident(9))
    assert problems.count() == 4
    assert problems.all() == [Problem("a", "oddest"), Problem("b.jpg", "cut")]


STATE = DatasetState("cars", 10, 5, 1, 1)


@pytest.mark.parametrize(
    ("after", "listed", "distinct", "settled"),
    [
        (STATE, 10, 10, True),
        (STATE, 12, 12, True),
        (STATE, 11, 10, False),
        (STATE._replace(samples=12, last_modified_at=2), 12, 12, True),
        (STATE._replace(samples=12, last_modified_at=2), 11, 11, False),
        (STATE._replace(samples=10, last_modified_at=2), 10, 10, True),
        (STATE._replace(samples=9, last_modified_at=2), 10, 10, False),
        (STATE._replace(selection="x"), 9, 9, False),
    ],
)
def test_a_listing_is_settled_where_nothing_can_have_been_missed(
    after: DatasetState, listed: int, distinct: int, settled: bool
) -> None:
    assert is_settled(STATE, after, listed, distinct) == settled


def test_a_record_that_counts_nothing_says_nothing_of_what_was_added() -> None:
    empty = STATE._replace(samples=0)
    assert not is_settled(empty, empty._replace(samples=2, last_modified_at=2), 2, 2)


# whole samples, one at a time


class Later(Executor):
    """Keeps jobs until the test runs them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Future[Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs.append((lambda: fn(*args, **kwargs), Future()))
        return self.jobs[-1][1]

    def run(self) -> None:
        job, future = self.jobs.pop(0)
        future.set_result(job())


def details(
    executor: Executor, ttl_s: float = 60.0, failures: int = 0
) -> tuple[Details[str], list[str], Clock]:
    asked: list[str] = []
    clock = Clock()

    def request(sample: str) -> str:
        asked.append(sample)
        if len(asked) <= failures:
            raise Unreachable("down")
        return f"{sample}{len(asked)}"

    return Details(request, executor, ttl_s=ttl_s, clock=clock), asked, clock


def test_those_who_want_one_sample_at_once_ask_for_it_once() -> None:
    pool = Later()
    subject, asked, _ = details(pool)
    first, second, other = subject.get("a"), subject.get("a"), subject.get("b")
    assert first is second
    pool.run()
    pool.run()
    assert (first.result(0), other.result(0)) == ("a1", "b2")
    assert asked == ["a", "b"]


@pytest.mark.parametrize(("ttl_s", "kept_s"), [(60.0, 60.0), (0.0, 1.0), (0.5, 1.0)])
def test_a_sample_is_kept_for_the_ttl_and_at_least_a_second(ttl_s: float, kept_s: float) -> None:
    subject, _, clock = details(Inline(), ttl_s)
    subject.get("a")
    clock.sleep(kept_s - 0.01)
    assert subject.get("a").result(0) == "a1"
    clock.sleep(0.02)
    assert subject.get("a").result(0) == "a2"


def test_a_failure_is_not_kept_and_what_is_forgotten_is_asked_for_again() -> None:
    subject, asked, _ = details(Inline(), failures=1)
    assert isinstance(subject.get("a").exception(0), Unreachable)
    assert subject.get("a").result(0) == "a2"
    assert subject.get("b").result(0) == "b3"
    subject.forget("a")
    subject.forget("unknown")
    assert subject.get("a").result(0) == "a4"
    assert subject.get("b").result(0) == "b3"
    subject.forget_all()
    assert subject.get("b").result(0) == "b5"
    assert len(asked) == 5


def test_a_late_failure_of_what_was_forgotten_does_not_cost_the_next_answer() -> None:
    pool = Later()
    subject, asked, _ = details(pool)
    first = subject.get("a")
    subject.forget("a")
    second = subject.get("a")
    assert second is not first
    first.set_exception(Unreachable("down"))
    assert subject.get("a") is second
    assert asked == []


def test_while_the_mount_ends_a_sample_is_not_had() -> None:
    class Closed(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise RuntimeError("cannot schedule new futures after shutdown")

    subject, _, _ = details(Closed())
    assert isinstance(subject.get("a").exception(0), Cancelled)
