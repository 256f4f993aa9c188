"""When the API is asked, and what its answers, refusals and failures do to what users see."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from catalogkit import FakeRemote, Impatient, Record, World
from contentkit import Inline, sample_id

from lightlyfs.api.models import Sample
from lightlyfs.catalog.entries import DirectoryEntry, Row, SampleEntry
from lightlyfs.catalog.remote import Details
from lightlyfs.catalog.tables import INDEX_OF
from lightlyfs.errors import (
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    LightlyFsError,
    NotFound,
    Unauthorized,
    Unreachable,
)

INFINITE = float("inf")


def dataset(count: int) -> FakeRemote:
    return FakeRemote({sample_id(n): Record(f"d{n % 3}/{n}.jpg") for n in range(count)})


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., World]:
    def make_world(remote: FakeRemote, **options: Any) -> World:
        return World(tmp_path, remote, **options)

    return make_world


Make = Callable[..., World]


def lookup(world: World, path: str) -> Any:
    return world.catalog.lookup(path, Impatient())


def asked_by(remote: FakeRemote, action: Callable[[], object]) -> list[str]:
    remote.asked.clear()
    action()
    return remote.asked[:]


def test_the_record_of_the_dataset_is_that_of_the_last_listing(make: Make) -> None:
    remote = dataset(4)
    world = make(remote)
    assert world.catalog.dataset() is None
    world.tree()
    assert world.catalog.dataset() == remote.dataset() == ("cars", 4, 0, 1, 0, "")
    remote.modified = 7
    assert world.catalog.dataset() != remote.dataset()
    world.catalog.list_now()
    assert world.catalog.dataset() == remote.dataset()


# within and after the TTL


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
def test_within_the_ttl_nothing_is_asked_and_after_it_an_unchanged_dataset_costs_three_requests(
    make: Make, count: int
) -> None:
    remote = dataset(count)
    world = make(remote)
    world.tree()
    assert asked_by(remote, world.tree) == []
    world.clock.sleep(61)

    asked = asked_by(remote, lambda: lookup(world, "d0/0.jpg"))
    assert asked == ["dataset", "page", "page"][: 3 if count else 2]
    assert asked_by(remote, world.tree) == []


@pytest.mark.parametrize("claimed", [0, None, 1, 5, 1_000_000])
def test_a_wrong_count_in_the_record_neither_loses_samples_nor_lists_twice(
    make: Make, claimed: int | None
) -> None:
    remote = dataset(10)
    remote.samples = claimed
    world = make(remote)

    assert len([1 for sample in world.tree().values() if sample]) == 10
    assert remote.asked.count("dataset") == 2


def test_a_change_shows_at_the_first_access_after_the_ttl(make: Make) -> None:
    remote = dataset(4)
    world = make(remote)
    world.tree()
    remote.records[sample_id(9)] = Record("new.jpg")
    assert lookup(world, "new.jpg") is None

    world.clock.sleep(61)
    generation = world.catalog.generation
    lookup(world, "whatever")

    assert isinstance(lookup(world, "new.jpg"), SampleEntry)
    assert world.catalog.generation > generation


def test_a_change_that_moves_nothing_else_is_found_by_comparing_a_few_rows_at_a_time(make: Make) -> None:
    remote = dataset(10)
    world = make(remote)
    world.tree()
    remote.records[sample_id(8)].name = "renamed.jpg"

    rounds = 0
    while lookup(world, "renamed.jpg") is None:
        rounds += 1
        world.clock.sleep(61)
        lookup(world, "x")
    assert rounds == 3  # pages of three

    remote.records[sample_id(2)].hint = 77
    for _ in range(4):
        world.clock.sleep(61)
        lookup(world, "x")
    assert lookup(world, "d2/2.jpg").size_hint == 77


def test_a_large_dataset_in_use_is_compared_once_an_hour(make: Make) -> None:
    remote = FakeRemote(
        {sample_id(number): Record(f"d{number % 50}/{number}.jpg") for number in range(60_000)},
        page_limit=1_000_000,
    )
    world = make(remote, page_size=5_000)
    world.tree()
    rows = 0
    honest = remote.page

    def counted(offset: int, size: int) -> Sequence[Row]:
        nonlocal rows
        found = honest(offset, size)
        rows += len(found)
        return found

    remote.page = counted  # type: ignore[method-assign]
    remote.asked.clear()
    for _ in range(720):
        world.clock.sleep(5)
        lookup(world, "d1/1.jpg")

    assert 55_000 < rows < 65_000
    assert len(remote.asked) < 250

    remote.records[sample_id(7_777)].name = "renamed.jpg"
    for _ in range(730):
        world.clock.sleep(5)
        if lookup(world, "renamed.jpg") is not None:
            break
    assert lookup(world, "renamed.jpg") is not None


def test_a_catalogue_begun_with_an_index_takes_the_word_of_the_record_until_that_moves(make: Make) -> None:
    remote = dataset(4)
    world = make(remote)
    world.tree()
    world.store.set_meta({INDEX_OF: "a" * 24})
    for _ in range(3):
        world.clock.sleep(1_000_000)
        assert asked_by(remote, world.tree) == ["dataset"]

    remote.records[sample_id(0)].name = "d0/renamed.jpg"
    world.refresher.expect_changes()  # as an answer does that does not fit
    assert "d0/renamed.jpg" in world.tree()

    world.clock.sleep(1_000_000)
    assert "page" in asked_by(remote, world.tree)  # it is the listing of this machine now


def test_an_infinite_ttl_asks_nothing_after_the_first_listing_over_remounts(make: Make) -> None:
    remote = dataset(4)
    world = make(remote, ttl_s=INFINITE)
    world.tree()
    world.clock.sleep(1e9)
    assert asked_by(remote, world.tree) == []
    world.catalog.close()

    again = make(remote, ttl_s=INFINITE)
    assert asked_by(remote, again.tree) == []
    assert isinstance(lookup(again, "d0/0.jpg"), SampleEntry)


def test_a_remount_answers_from_the_store_and_refreshes_behind(make: Make) -> None:
    remote = dataset(4)
    world = make(remote)
    world.tree()
    world.catalog.close()
    remote.fail = Unreachable("no network")

    again = make(remote)

    assert len(again.tree()) == 7
    assert isinstance(again.refresher.error, Unreachable)
    assert not again.refresher.stopped


# failures


def test_after_a_failure_the_api_is_left_alone_for_a_while_and_then_asked_again(make: Make) -> None:
    remote = dataset(4)
    world = make(remote)
    world.tree()
    world.clock.sleep(61)
    remote.fail = Unreachable("down")
    assert asked_by(remote, world.tree) == ["dataset"]
    assert asked_by(remote, world.tree) == []

    remote.fail = None
    world.clock.sleep(6)
    world.tree()
    assert world.refresher.error is None


@pytest.mark.parametrize("kind", [Unauthorized, Forbidden, NotFound])
def test_a_refusal_is_asked_about_each_minute_and_then_each_ten(make: Make, kind: type[Exception]) -> None:
    remote = dataset(4)
    world = make(remote)
    world.tree()
    remote.fail = kind("no")
    asked = []
    for _ in range(60 * 60):
        world.clock.sleep(1)
        asked += [world.clock.now] * len(asked_by(remote, world.tree))
    assert world.refresher.stopped
    gaps = [second - first for first, second in itertools.pairwise(asked)]
    assert [round(gap) for gap in gaps] == [60] * 5 + [600] * 5

    remote.fail = None
    remote.records[sample_id(9)] = Record("new.jpg")
    world.clock.sleep(600)
    world.tree()
    assert not world.refresher.stopped
    assert isinstance(lookup(world, "new.jpg"), SampleEntry)


@pytest.mark.parametrize("kind", [Unauthorized, Forbidden, NotFound])
def test_after_a_refusal_a_refresh_asks_at_once(make: Make, kind: type[Exception]) -> None:
    remote = dataset(4)
    world = make(remote)
    world.tree()
    world.clock.sleep(61)
    remote.fail = kind("no")
    world.tree()
    assert world.refresher.stopped
    world.clock.sleep(10)
    assert asked_by(remote, world.tree) == []
    with pytest.raises(kind):
        world.catalog.refresh()

    remote.fail = None
    remote.records[sample_id(9)] = Record("new.jpg")
    world.catalog.refresh()

    assert not world.refresher.stopped
    assert isinstance(lookup(world, "new.jpg"), SampleEntry)


def test_without_a_stored_catalogue_a_refusal_is_an_error_and_no_end(make: Make) -> None:
    remote = dataset(4)
    remote.fail = Unauthorized("no")
    world = make(remote)
    with pytest.raises(Unauthorized):
        world.tree()
    with pytest.raises(Unauthorized):
        lookup(world, "d0/0.jpg")
    assert not world.refresher.stopped

    remote.fail = None
    world.clock.sleep(6)
    assert len(world.tree()) == 7


@pytest.mark.parametrize("failure", [sqlite3.OperationalError("disk full"), ValueError("a fault")])
def test_a_listing_that_the_disk_refuses_is_an_error_that_is_not_repeated_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    remote = dataset(4)
    world = make(remote)

    def fail() -> Any:
        raise failure

    monkeypatch.setattr(world.store, "listing", fail)
    with pytest.raises(LightlyFsError, match=str(failure)):
        world.tree()
    remote.asked.clear()
    with pytest.raises(LightlyFsError):
        world.tree()

    assert remote.asked == []


def test_a_refresh_without_a_network_keeps_what_is_verified(make: Make) -> None:
    remote = dataset(1)
    world = make(remote)
    world.tree()
    world.catalog.record_facts(sample_id(0), 7, "e1")
    remote.fail = Unreachable("down")

    with pytest.raises(Unreachable):
        world.catalog.refresh()

    assert lookup(world, "d0/0.jpg").verified


def test_a_refresh_makes_every_content_unverified_and_keeps_its_size_as_a_guess(make: Make) -> None:
    world = make(dataset(1))
    world.tree()
    world.catalog.record_facts(sample_id(0), 7, "e1")

    world.catalog.refresh()

    entry = lookup(world, "d0/0.jpg")
    assert not entry.verified
    assert (entry.published_size, entry.etag) == (7, "e1")


# drift


def test_rows_that_move_while_they_are_listed_are_listed_again(make: Make) -> None:
    remote = dataset(7)

    def move(kind: str) -> None:
        if kind == "page" and remote.asked.count("page") == 2:
            del remote.records[sample_id(0)]  # every later row moves up by one

    remote.before = move
    world = make(remote)

    assert set(filter(None, world.tree().values())) == set(remote.records)


def test_samples_added_during_the_listing_do_not_start_it_over(make: Make) -> None:
    remote = dataset(7)

    def grow(kind: str) -> None:
        if kind == "page" and remote.asked.count("page") == 2:
            remote.records[sample_id(50)] = Record("new.jpg")

    remote.before = grow
    world = make(remote)

    assert set(filter(None, world.tree().values())) == set(remote.records)
    assert remote.asked.count("dataset") == 2
    world.clock.sleep(61)
    assert "page" in asked_by(remote, world.tree)  # the record moved meanwhile, so all is listed once more


def test_a_dataset_that_never_stands_still_is_listed_a_few_times_and_shown(make: Make) -> None:
    remote = dataset(5)

    def churn(kind: str) -> None:
        if kind == "dataset":
            remote.modified += 1
            remote.samples = 1000 + remote.modified

    remote.before = churn
    world = make(remote)

    assert len([1 for sample in world.tree().values() if sample]) == 5
    assert remote.asked.count("dataset") == 4


def test_a_sample_the_server_lists_twice_is_one_sample_and_still_checked_cheaply(make: Make) -> None:
    remote = dataset(4)
    honest = remote.page
    remote.page = (
        lambda o, n: [  # type: ignore[method-assign]
            *honest(0, 100),
            *honest(0, 1),
        ][o : o + n]
    )
    world = make(remote)

    assert len([1 for sample in world.tree().values() if sample]) == 4
    world.clock.sleep(61)
    world.tree()
    assert remote.asked.count("dataset") == 5  # two for each of two listings at most, and the check


def test_a_server_that_pages_in_another_order_each_time_hides_no_sample(make: Make) -> None:
    """Its pages repeat some rows in the place of others; what several readings found is shown together."""
    remote = dataset(100)
    remote.page_limit = 10
    honest = remote.page
    orders = itertools.count()

    def page(offset: int, size: int) -> Sequence[Row]:
        turned = next(orders) % 3 == 1
        rows = honest(max(0, 90 - offset) if turned else offset, size)
        return rows[::-1] if turned and offset < 100 else rows

    remote.page = page  # type: ignore[method-assign]
    world = make(remote)

    assert len([1 for sample in world.tree().values() if sample]) == 100


def test_samples_that_no_page_holds_are_said_to_be_missing(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    remote = dataset(40)
    rows = list(remote.page(0, 40))
    rows[19] = rows[18]
    remote.page = lambda offset, size: rows[offset : offset + size]  # type: ignore[method-assign]
    world = make(remote)

    assert len([1 for sample in world.tree().values() if sample]) == 39
    assert "39 of 40 are shown; refresh asks again" in caplog.text


# before the first listing is complete


class Later(Inline):
    """A pool that keeps its jobs until it is told to run them."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if fn.__name__ == "_check_in_background":
            self.jobs.append(fn)
            return super().submit(lambda: None)
        return super().submit(fn, *args, **kwargs)


def unlisted(make: Make, remote: FakeRemote) -> tuple[World, Later]:
    world, later = make(remote), Later()
    world.refresher._executor = later
    world.refresher.start_listing()
    return world, later


def test_a_name_the_api_knows_does_not_wait_for_the_listing(make: Make) -> None:
    world, _ = unlisted(make, dataset(4))

    entry = lookup(world, "d1/1.jpg")

    assert isinstance(entry, SampleEntry)
    assert entry.sample_id == sample_id(1)
    assert not world.refresher.complete


def test_facts_of_a_file_found_early_are_kept_until_it_is_listed(make: Make) -> None:
    world, later = unlisted(make, dataset(4))
    lookup(world, "d1/1.jpg")
    world.catalog.record_facts(sample_id(1), 77, "e1")
    assert lookup(world, "d1/1.jpg").size == 77
    world.catalog.flush_facts()

    later.jobs.pop()()
    world.catalog.flush_facts()

    assert lookup(world, "d1/1.jpg").size == 77
    assert world.store.sample(lookup(world, "d1/1.jpg").ino).size == 77  # type: ignore[union-attr]


def test_facts_of_a_file_found_early_hold_for_what_the_listing_finds(make: Make) -> None:
    remote = dataset(4)
    world, later = unlisted(make, remote)
    lookup(world, "d1/1.jpg")
    world.catalog.record_facts(sample_id(1), 77, "e1")
    later.jobs.pop()()
    assert lookup(world, "d1/1.jpg").verified

    remote.records[sample_id(1)].mtime = 200
    world.refresher.list_now()
    assert not lookup(world, "d1/1.jpg").verified
    world.catalog.flush_facts()
    assert not lookup(world, "d1/1.jpg").verified


@pytest.mark.parametrize("filter_ignored", [False, True])
def test_a_name_the_api_cannot_tell_waits_and_is_asked_for_once_in_two_seconds(
    make: Make, filter_ignored: bool
) -> None:
    remote = dataset(4)
    remote.filter_ignored = filter_ignored
    world, later = unlisted(make, remote)
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            world.catalog.lookup("nobody.jpg", Impatient(0))
    assert remote.asked.count("find") == 1
    world.clock.sleep(3)
    with pytest.raises(DeadlineExceeded):
        world.catalog.lookup("nobody.jpg", Impatient(0))
    assert remote.asked.count("find") == 2

    later.jobs.pop()()
    assert lookup(world, "nobody.jpg") is None


def test_an_api_that_fails_to_find_by_name_leaves_it_to_the_listing(make: Make) -> None:
    remote = dataset(4)
    world, later = unlisted(make, remote)

    def fail_to_find(kind: str) -> None:
        if kind == "find":
            later.jobs.pop()()
            raise Forbidden("not by name")

    remote.before = fail_to_find
    assert isinstance(lookup(world, "d1/1.jpg"), SampleEntry)


def test_a_directory_the_listing_has_met_is_there_before_its_end(make: Make) -> None:
    remote = dataset(9)
    world, later = unlisted(make, remote)
    seen: list[Any] = []

    def look(kind: str) -> None:
        if kind == "page" and remote.asked.count("page") == 2:
            seen.append(lookup(world, "d1"))

    remote.before = look
    later.jobs.pop()()

    assert isinstance(seen[0], DirectoryEntry)
    assert seen[0].ino == lookup(world, "d1").ino
    assert remote.asked.count("find") == 0


def test_a_listing_of_a_directory_is_never_a_part(make: Make) -> None:
    remote = dataset(9)
    world, later = unlisted(make, remote)

    def look(kind: str) -> None:
        if kind == "page":
            with pytest.raises(DeadlineExceeded):
                world.catalog.list_directory("d1", Impatient(0))

    remote.before = look
    later.jobs.pop()()
    assert len(world.catalog.list_directory("d1", Impatient())[1]) == 3


# a TTL of zero


def test_a_ttl_of_zero_asks_for_the_one_sample(make: Make) -> None:
    remote = dataset(4)
    world = make(remote, ttl_s=0)
    world.tree()
    world.refresher._freshness.listing_s = 1000.0

    assert asked_by(remote, lambda: lookup(world, "d1/1.jpg")).count("sample") == 1
    assert world.catalog.current_generation() == -1


def test_with_a_ttl_of_zero_every_change_of_the_sample_shows_at_once(make: Make) -> None:
    remote = dataset(4)
    world = make(remote, ttl_s=0)
    world.tree()
    world.catalog.record_facts(sample_id(1), 7, "e1")
    assert lookup(world, "d1/1.jpg").verified

    remote.records[sample_id(1)].mtime = 200
    assert lookup(world, "d1/1.jpg").mtime == 200
    assert not lookup(world, "d1/1.jpg").verified
    remote.records[sample_id(1)].name = "moved.jpg"
    assert lookup(world, "d1/1.jpg") is None
    world.clock.sleep(3)
    assert lookup(world, "moved.jpg").sample_id == sample_id(1)
    del remote.records[sample_id(2)]
    assert lookup(world, "d2/2.jpg") is None


@pytest.mark.parametrize("name", ["a.jpg", "d1/1.jpe", "z.jpg"])
def test_with_a_ttl_of_zero_a_renamed_sample_is_not_found_under_its_old_name(make: Make, name: str) -> None:
    remote = dataset(4)
    world = make(remote, ttl_s=0)
    world.tree()
    remote.records[sample_id(1)].name = name
    assert lookup(world, "d1/1.jpg") is None
    assert lookup(world, name).sample_id == sample_id(1)


@pytest.mark.parametrize("mtime", [99, 101])
@pytest.mark.parametrize("hint", [4, 6, None])
def test_with_a_ttl_of_zero_a_time_or_a_size_that_moved_outdates_what_storage_reported(
    make: Make, mtime: int, hint: int | None
) -> None:
    remote = FakeRemote({sample_id(n): Record(f"{n}.jpg", mtime=100, hint=5) for n in range(3)})
    world = make(remote, ttl_s=0)
    world.tree()
    for number in range(3):
        world.catalog.record_facts(sample_id(number), 9, "e1")
    remote.records[sample_id(1)].mtime = mtime
    remote.records[sample_id(2)].hint = hint
    remote.fail = None

    same, older, other = (lookup(world, f"{number}.jpg") for number in range(3))

    assert (same.mtime, same.published_size, same.verified) == (100, 9, True)
    assert (older.mtime, older.published_size, older.verified) == (mtime, 5, False)
    assert (other.mtime, other.published_size, other.verified) == (100, hint, False)


def test_with_a_ttl_of_zero_and_no_network_the_last_truth_is_shown(make: Make) -> None:
    remote = dataset(4)
    world = make(remote, ttl_s=0)
    world.tree()
    remote.fail = Unreachable("down")

    assert isinstance(lookup(world, "d1/1.jpg"), SampleEntry)
    assert len(world.tree()) == 7
    assert lookup(world, "nobody") is None


def test_with_a_ttl_of_zero_a_directory_is_checked_before_it_is_listed(make: Make) -> None:
    remote = dataset(4)
    world = make(remote, ttl_s=0)
    world.tree()
    remote.records[sample_id(9)] = Record("d0/new.jpg")

    names = [entry.name for entry in world.catalog.list_directory("d0", Impatient())[1]]

    assert "new.jpg" in names


# facts


def test_facts_hold_only_for_what_storage_was_asked_about(make: Make) -> None:
    remote = dataset(1)
    world = make(remote)
    world.tree()
    world.catalog.record_facts(sample_id(0), 7, "e1")
    remote.records[sample_id(0)].mtime = 200
    world.refresher.list_now()
    assert not lookup(world, "d0/0.jpg").verified

    world.catalog.flush_facts()

    assert not lookup(world, "d0/0.jpg").verified


def test_facts_the_disk_refuses_count_from_memory_and_are_written_later(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = make(dataset(1))
    world.tree()
    real = world.store.record_facts

    def fail(facts: Any, **flags: bool) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(world.store, "record_facts", fail)
    world.catalog.record_facts(sample_id(0), 7, "e1")
    for _ in range(3):
        world.catalog.flush_facts()
    assert lookup(world, "d0/0.jpg").size == 7
    assert caplog.text.count("cannot be written") == 1

    monkeypatch.setattr(world.store, "record_facts", real)
    world.catalog.flush_facts()
    assert world.store.lookup("d0/0.jpg").size == 7  # type: ignore[union-attr]


def test_a_store_that_cannot_be_read_costs_no_fact(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(dataset(1))
    world.tree()

    def fail(ino: int) -> None:
        raise sqlite3.DatabaseError("malformed")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "sample", fail)
        world.catalog.record_facts(sample_id(0), 7, "e1")

    assert lookup(world, "d0/0.jpg").size == 7


# details


def test_details_are_asked_for_once_in_the_ttl_and_failures_are_not_kept() -> None:
    remote = dataset(1)
    now = [0.0]
    details = Details(remote.sample, Inline(), ttl_s=60, clock=lambda: now[0])
    assert [details.get(sample_id(0)).result().file_name for _ in range(3)] == ["d0/0.jpg"] * 3
    assert remote.asked == ["sample"]
    now[0] = 61
    details.get(sample_id(0))
    assert remote.asked == ["sample"] * 2

    remote.fail = Unreachable("down")
    for _ in range(2):
        assert isinstance(details.get(sample_id(5)).exception(), Unreachable)
    assert remote.asked == ["sample"] * 4


def test_details_of_a_mount_that_ends_are_an_error() -> None:
    class Closed(Inline):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("cannot schedule new futures after shutdown")

    future: Any = Details(dataset(1).sample, Closed(), ttl_s=60, clock=lambda: 0.0).get(sample_id(0))

    assert isinstance(future.exception(), Cancelled)
    assert not isinstance(future, Sample)


# what storage reported, between memory and the store


READS: dict[str, tuple[str, Callable[[World], Any]]] = {
    "lookup": ("lookup_with_next", lambda world: lookup(world, "d0/0.jpg")),
    "list": ("list_directory", lambda world: world.catalog.list_directory("d0", Impatient())[1][0]),
    "next": ("samples_after", lambda world: world.catalog.samples_after("d0/", 1)[0][1]),
    "by id": ("by_ino", lambda world: world.catalog.by_id(sample_id(0))[1]),  # type: ignore[index]
    "told": ("sample", lambda world: world.catalog.told(world.store.lookup("d0/0.jpg"))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("way", READS)
def test_what_is_written_down_while_the_store_is_read_is_not_missed(
    make: Make, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The reader has the old row, and finds in memory no more what storage reported of it."""
    world = make(dataset(3))
    method, read = READS[way]
    world.catalog.refresh()
    world.catalog.record_facts(sample_id(0), 17, '"new"')
    of_store = getattr(world.store, method)

    def read_slowly(*args: Any) -> Any:
        found = of_store(*args)
        world.catalog.flush_facts()
        return found

    monkeypatch.setattr(world.store, method, read_slowly)
    assert (read(world).size, read(world).etag) == (17, '"new"')


def test_what_storage_reports_during_a_refresh_is_shown_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel was told of it, and would not be told that another size is shown again."""
    world = make(dataset(3))
    world.catalog.refresh()
    world.catalog.record_facts(sample_id(0), 9, '"old"')
    forget = world.store.forget_facts

    def meanwhile() -> None:
        forget()
        world.catalog.record_facts(sample_id(0), 17, '"new"')

    monkeypatch.setattr(world.store, "forget_facts", meanwhile)
    world.catalog.refresh()
    entry = lookup(world, "d0/0.jpg")
    assert (entry.published_size, entry.etag, entry.verified) == (17, '"new"', False)


def test_a_burst_of_accesses_after_the_ttl_queues_one_check(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = dataset(3)
    world = make(remote)
    world.tree()
    world.clock.sleep(61)
    queued: list[Callable[[], None]] = []
    monkeypatch.setattr(world.refresher, "_submit", lambda job: queued.append(job) or True)

    for _ in range(5):
        lookup(world, "d0/0.jpg")
    assert len(queued) == 1

    queued.pop()()
    world.clock.sleep(61)
    lookup(world, "d0/0.jpg")
    assert len(queued) == 1


@pytest.mark.parametrize("closed", [False, True])
def test_a_check_that_the_end_cuts_short_is_no_news(
    make: Make, caplog: pytest.LogCaptureFixture, closed: bool
) -> None:
    remote = dataset(3)
    world = make(remote)
    world.tree()
    world.clock.sleep(61)
    remote.fail = Unreachable("away")
    if closed:
        world.refresher.close()

    lookup(world, "d0/0.jpg")

    assert bool([one for one in caplog.records if one.levelname == "WARNING"]) is not closed


def test_files_and_bytes_below_a_directory_are_counted_until_there_are_too_many(make: Make) -> None:
    names = ["a/1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/c/4.jpg", "d/5.jpg", "6.jpg"]
    hints = [3, 3, 7, None, 9, 1]
    remote = FakeRemote(
        {
            sample_id(n): Record(name, hint=hint)
            for n, (name, hint) in enumerate(zip(names, hints, strict=True))
        }
    )
    world = make(remote)
    world.tree()
    assert world.catalog.sums_below("", 100, 1_000) == (6, 123)
    assert world.catalog.sums_below("a", 100, 1_000) == (4, 113)
    assert world.catalog.sums_below("a/b", 100, 1_000) == (2, 107)
    assert world.catalog.sums_below("none", 100, 1_000) == (0, 0)
    files, size = world.catalog.sums_below("", 100, 9)
    assert 9 < size < 123
    assert 1 < files < 6
    below = [path for path, _ in world.catalog.samples_below("", 2)]
    assert sorted(below) == sorted(names)
    assert [path for path, _ in world.catalog.samples_below("a", 1)] == names[:4]
