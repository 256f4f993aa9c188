"""What one process hears of the writes of others to the catalogue, and of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contentkit import sample_id

from lightlyfs.catalog.entries import Facts, News, make_row
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.tree import sample_ino


def ino(number: int) -> int:
    return sample_ino(bytes.fromhex(sample_id(number)))


def list_all(store: CatalogStore, count: int = 3) -> None:
    with store.listing() as writer:
        writer.add([make_row(sample_id(number), f"{number}.jpg", 5, 7, 7) for number in range(count)])
        writer.commit({"listed_at": "1"})


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[CatalogStore, CatalogStore]]:
    mine = CatalogStore(tmp_path / "catalog.db")
    list_all(mine)
    mine.record_facts({ino(0): Facts(5, "e1")})
    other = CatalogStore(tmp_path / "catalog.db", alone=False)
    for store in (mine, other):
        store.news()
    yield mine, other
    other.close()
    mine.close()


def test_own_changes_are_no_news(two: tuple[CatalogStore, CatalogStore]) -> None:
    mine, _ = two
    list_all(mine, 4)
    mine.record_facts({ino(0): Facts(5, "e2")})
    mine.record_facts({ino(1): Facts(6, "e1")}, resized=True)
    mine.forget_facts()
    mine.heed_refreshes()
    assert mine.news() in (None, News(changed=False, resized=False))


def test_names_versions_and_sizes_of_others_are_news_once(two: tuple[CatalogStore, CatalogStore]) -> None:
    mine, other = two
    assert mine.news() is None
    list_all(other, 4)
    assert mine.news() == News(changed=True, resized=False)
    assert mine.news() is None
    other.record_facts({ino(0): Facts(5, "e2")})
    assert mine.news() == News(changed=True, resized=False)
    other.record_facts({ino(1): Facts(6, "e1")}, resized=True)
    assert mine.news() == News(changed=False, resized=True)
    other.record_facts({ino(2): Facts(5, "e1")})
    assert mine.news() == News(changed=False, resized=False)
    other.forget_facts()
    assert mine.news() == News(changed=True, resized=False, refreshed=True)
    mine.heed_refreshes()
    list_all(other, 4)  # the same again
    assert mine.news() == News(changed=False, resized=False)


def test_a_change_of_others_before_an_own_one_is_not_hidden_by_it(
    two: tuple[CatalogStore, CatalogStore],
) -> None:
    mine, other = two
    other.record_facts({ino(0): Facts(5, "e2")})
    mine.record_facts({ino(0): Facts(5, "e3")})
    assert mine.news() == News(changed=True, resized=False)


def test_after_a_write_that_failed_anything_may_be_news(two: tuple[CatalogStore, CatalogStore]) -> None:
    mine, other = two
    with pytest.raises(sqlite3.IntegrityError):
        mine.set_meta({"a": None})  # type: ignore[dict-item]
    other.set_meta({"b": "1"})
    assert mine.news() == News(changed=True, resized=True)
    other.set_meta({"b": "2"})
    assert mine.news() == News(changed=False, resized=False)
    assert (mine.get_meta("a"), mine.get_meta("b")) == (None, "2")


def test_a_catalogue_that_was_deleted_is_written_again_and_may_be_news(
    two: tuple[CatalogStore, CatalogStore], tmp_path: Path
) -> None:
    mine, _ = two
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    assert mine.news() == News(changed=True, resized=True, refreshed=True)
    assert (tmp_path / "catalog.db").exists()
    found = mine.sample(ino(0))
    assert found is not None
    assert (found.size, found.etag) == (5, "e1")
    assert mine.totals().samples == 3


def test_of_two_that_find_the_catalogue_deleted_the_second_takes_over_what_the_first_wrote(
    two: tuple[CatalogStore, CatalogStore], tmp_path: Path
) -> None:
    mine, other = two
    lost: list[int] = []
    mine.on_lost = lambda: lost.append(1)
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    other.set_meta({"b": "1"})
    mine.set_meta({"c": "1"})
    for store in two:
        assert (store.get_meta("b"), store.get_meta("c"), store.get_meta("listed_at")) == ("1", "1", "1")
        assert store.totals().samples == 3
    assert lost == []


def test_a_damaged_catalogue_is_put_aside_and_begun_again_without_rows(
    two: tuple[CatalogStore, CatalogStore], tmp_path: Path
) -> None:
    mine, other = two
    lost: list[str] = []
    mine.on_lost = lambda: lost.append("mine")
    other.on_lost = lambda: lost.append("other")
    mine._is_damaged = True  # as SQLite said of some page
    mine.set_meta({"a": "1"})
    assert lost == ["mine"]
    assert (tmp_path / "catalog.db.damaged").exists()
    assert (mine.get_meta("a"), mine.get_meta("listed_at")) == ("1", None)
    assert mine.totals().samples == 0
    mine.set_meta({"a": "2"})
    assert lost == ["mine"]


LISTED = (7, 5)  # time and hint of what `list_all` lists


def verified(store: CatalogStore, number: int) -> tuple[str | None, bool]:
    entry = store.sample(ino(number))
    assert entry is not None
    return entry.etag, bool(entry.verified)


@pytest.mark.parametrize("write", [CatalogStore.record_facts, CatalogStore.publish_facts])
def test_what_was_reported_before_others_wrote_another_version_verifies_nothing(
    two: tuple[CatalogStore, CatalogStore], write: Callable[..., list[int]]
) -> None:
    """It waited to be written, and would bring the old image back for both."""
    mine, other = two
    other.record_facts({ino(0): Facts(5, "e2", LISTED, before="e1")})

    assert write(mine, {ino(0): Facts(5, "e0", LISTED, before="e1")}) == [ino(0)]

    assert verified(mine, 0) == verified(other, 0) == ("e0", False)
    assert other.news() == News(changed=True, resized=False)


@pytest.mark.parametrize("before", ["e1", None])
def test_two_that_report_one_version_verify_it(
    two: tuple[CatalogStore, CatalogStore], before: str | None
) -> None:
    mine, other = two
    other.record_facts({ino(0): Facts(5, "e2", LISTED, before="e1"), ino(1): Facts(5, "e1", LISTED)})

    facts = {ino(0): Facts(5, "e2", LISTED, before=before), ino(1): Facts(5, "e1", LISTED)}

    assert mine.record_facts(facts) == []
    assert verified(mine, 0) == ("e2", True)
    assert verified(mine, 1) == ("e1", True)


def test_a_version_that_follows_the_one_that_others_wrote_is_verified(
    two: tuple[CatalogStore, CatalogStore],
) -> None:
    mine, other = two
    other.record_facts({ino(0): Facts(5, "e2", LISTED, before="e1")})

    assert mine.record_facts({ino(0): Facts(5, "e3", LISTED, before="e2")}) == []
    assert verified(mine, 0) == ("e3", True)
