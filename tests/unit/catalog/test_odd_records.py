"""One odd record of a listing costs itself: all others are listed, packed and found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from catalogkit import refresher
from contentkit import Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from lightlyfs.api import models
from lightlyfs.api.models import DatasetRecord, ListedSample
from lightlyfs.catalog.freshness import FreshnessConfig
from lightlyfs.catalog.remote import (
    MAX_SECONDS,
    MIN_SECONDS,
    ApiRemote,
    is_plausible_time,
    plausible_seconds,
    plausible_size,
)
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.errors import LightlyFsError, MalformedAnswer
from lightlyfs.fs.attributes import Attr, Ownership, attr_of_sample
from lightlyfs.fs.namespace import Listing
from lightlyfs.kernel import binding
from lightlyfs.kernel.binding import Packer

MS = 1_700_000_000_000
ODD: dict[str, dict[str, Any]] = {
    "size 2^63": {"metaData": {"sizeInBytes": 2**63}},
    "size 2^64": {"metaData": {"sizeInBytes": 2**64}},
    "size of a googol": {"metaData": {"sizeInBytes": 10**100}},
    "size below nothing": {"metaData": {"sizeInBytes": -1}},
    "size of text": {"metaData": {"sizeInBytes": "big"}},
    "size with a half": {"metaData": {"sizeInBytes": 7.5}},
    "size infinite": {"metaData": {"sizeInBytes": float("inf")}},
    "no size": {"metaData": None},
    "before 1970": {"createdAt": -1_000, "lastModifiedAt": -86_400_000},
    "before Christ": {"lastModifiedAt": -(10**15)},
    "far future": {"lastModifiedAt": 10**17},
    "beyond 64 bits": {"createdAt": 2**70, "lastModifiedAt": 2**70},
    "in seconds": {"createdAt": 1_700_000_000, "lastModifiedAt": 1_700_000_000},
    "time of text": {"lastModifiedAt": "yesterday"},
    "time with a half": {"lastModifiedAt": 1.5e12 + 0.5},
    "time that is none": {"lastModifiedAt": float("nan")},
}
NO_RECORDS: list[Any] = [None, 7, "x", [], {}, {"id": 5}, {"id": "ABC"}, {"id": "a" * 24, "fileName": 5}]


def sample_id(number: int) -> str:
    return f"{number:024x}"


def good(number: int) -> dict[str, Any]:
    return {
        "id": sample_id(number),
        "fileName": f"good/{number}.jpg",
        "createdAt": MS,
        "lastModifiedAt": MS,
        "metaData": {"sizeInBytes": 10},
    }


def records() -> list[Any]:
    rows: list[Any] = [good(number) for number in range(20)]
    for number, (name, odd) in enumerate(ODD.items(), 100):
        rows.insert(number % 17, {**good(number), "fileName": f"odd/{name}.jpg", **odd})
    for place, row in enumerate(NO_RECORDS):
        rows.insert(3 * place, row)
    return [*rows, good(3)]  # and one that comes twice


class Client:
    """The API, whose answers are decoded as those of a server are."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def get_dataset(self, *_: Any, **__: Any) -> DatasetRecord:
        return DatasetRecord(id="d" * 24, name="odd", n_samples=len(self.rows), last_modified_at=MS)

    def list_page(self, _: str, offset: int, size: int, **__: Any) -> list[ListedSample]:
        return models.decode_listing(json.dumps(self.rows[offset : offset + size]).encode())


@pytest.fixture
def listed(tmp_path: Path) -> tuple[CatalogStore, ApiRemote]:
    clock = Clock()
    store = CatalogStore(tmp_path / "catalog.db")
    remote = ApiRemote(Client(records()), "d" * 24, clock=clock)  # type: ignore[arg-type]
    refresher(store, remote, FreshnessConfig(60, 9, 2), clock, lambda _: None).list_now()
    return store, remote


def test_all_records_but_those_that_are_none_are_listed(listed: tuple[CatalogStore, ApiRemote]) -> None:
    store, _ = listed
    assert [one.name for one in store.list_directory("good")[1]] == sorted(f"{n}.jpg" for n in range(20))
    assert {one.name for one in store.list_directory("odd")[1]} == {f"{name}.jpg" for name in ODD}
    assert {directory.name for directory in store.list_directory("")[0]} == {"good", "odd"}


@pytest.mark.parametrize("page_size", [1, 4, 20, 5_000])
def test_a_page_without_a_record_costs_its_rows(tmp_path: Path, page_size: int) -> None:
    store, clock = CatalogStore(tmp_path / "catalog.db"), Clock()
    client = Client([good(number) for number in range(20)] + NO_RECORDS)
    remote = ApiRemote(client, "d" * 24, clock=clock)  # type: ignore[arg-type]
    subject = refresher(store, remote, FreshnessConfig(60, page_size, 2), clock, lambda _: None)

    subject.list_now()
    clock.sleep(61)
    client.rows[0] = {**good(0), "fileName": "good/renamed.jpg"}
    subject.touch()  # asks for the end of the list, which holds no record

    assert subject.error is None
    assert sorted(one.name for one in store.list_directory("good")[1]) == sorted(
        ["renamed.jpg", *(f"{number}.jpg" for number in range(1, 20))]
    )


@pytest.mark.parametrize("count", [1, 200])
def test_a_list_without_a_record_is_no_empty_dataset(tmp_path: Path, count: int) -> None:
    store, clock = CatalogStore(tmp_path / "catalog.db"), Clock()
    remote = ApiRemote(Client([{"error": "no"}] * count), "d" * 24, clock=clock)  # type: ignore[arg-type]
    subject = refresher(store, remote, FreshnessConfig(60, 50, 2), clock, lambda _: None)

    with pytest.raises(MalformedAnswer, match="no row"):
        subject.list_now()


def test_what_is_odd_is_named(listed: tuple[CatalogStore, ApiRemote]) -> None:
    _, remote = listed
    named = {problem.name for problem in remote.problems.all()}
    passed_over = {"no size", "size of text", "size with a half", "size infinite"}
    passed_over |= {"size 2^64", "size of a googol", "time of text", "time with a half", "time that is none"}
    passed_over |= {"beyond 64 bits"}  # what has not the type of the field counts as absent
    assert {f"odd/{name}.jpg" for name in ODD if name not in passed_over} <= named
    assert len([name for name in named if name.startswith("a record: ")]) >= 4
    assert remote.problems.count() == len(named)


def test_a_directory_of_odd_records_is_packed(listed: tuple[CatalogStore, ApiRemote]) -> None:
    store, _ = listed
    entries = [(one.name, attr_of_sample(one)) for one in store.list_directory("odd")[1]]
    stat_type = binding.load_mfusepy(_library()).c_stat
    packer = Packer(stat_type, Ownership(0, 0))
    packed = packer.listing("odd", 1, lambda _: Listing(1, 2, 1, entries))
    assert len(packed.names) == len(ODD) + 2
    by_name = dict(entries)
    assert by_name["before 1970.jpg"].mtime == -86_400
    assert by_name["in seconds.jpg"].mtime == 1_700_000_000
    assert by_name["size 2^63.jpg"].size == -1


def test_an_entry_that_cannot_be_packed_costs_itself() -> None:
    stat_type = binding.load_mfusepy(_library()).c_stat
    packer = Packer(stat_type, Ownership(0, 0))
    entries = [("a", Attr(5, False, 3, 1)), ("b", Attr(1 << 70, False, 3, 1)), ("c", Attr(7, False, 3, 1))]
    packed = packer.listing("", 1, lambda _: Listing(1, 2, 1, entries))
    assert [bool(known) for known in packed.known] == [True, True, True, False, True]


def _library() -> binding.Library:
    try:
        return binding.find_library("3")
    except LightlyFsError as error:
        pytest.skip(f"no libfuse: {error}")


@settings(max_examples=200, deadline=None)
@given(st.none() | st.integers())
def test_any_number_gives_a_size_and_a_time_that_can_be(number: int | None) -> None:
    size, seconds = plausible_size(number), plausible_seconds(number)
    assert size is None or (0 <= size <= 1 << 53 and size == number)
    assert (seconds is None) == (number is None)
    assert seconds is None or MIN_SECONDS <= seconds <= MAX_SECONDS
    if number is not None and is_plausible_time(number):
        assert seconds == number // 1000
