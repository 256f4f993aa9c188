"""When a catalogue is checked or listed again, decided from times alone."""

from __future__ import annotations

import math

import pytest
from contentkit import Clock

from lightlyfs.catalog.freshness import UNLISTED, Freshness, FreshnessConfig


def made(stored: dict[str, str], ttl_s: float = 60.0) -> tuple[Freshness, Clock]:
    clock = Clock()
    return Freshness(FreshnessConfig(ttl_s), stored.get, clock=clock, wall_clock=clock), clock


def listed(clock: Clock | None = None) -> dict[str, str]:
    now = str(0.0 if clock is None else clock())
    return {"listed_at": now, "checked_at": now, "listing_s": "2.0"}


def test_a_stored_listing_is_checked_once_at_the_start_and_then_after_the_ttl() -> None:
    freshness, clock = made(listed(Clock()))
    assert freshness.is_listed
    assert freshness.is_due()

    freshness.note_checked()
    assert not freshness.is_due()
    clock.sleep(60)
    assert freshness.is_due()


def test_with_an_infinite_ttl_a_stored_listing_is_believed() -> None:
    freshness, clock = made(listed(Clock()), ttl_s=math.inf)
    clock.sleep(1e9)
    assert not freshness.is_due()


def test_without_a_listing_only_one_can_tell() -> None:
    freshness, _ = made({})
    assert freshness.needs_listing()
    freshness.note_listed(0.0)
    assert not freshness.needs_listing()
    freshness.distrust()
    assert freshness.needs_listing()


def test_what_another_process_stored_counts_after_it_was_heard() -> None:
    stored: dict[str, str] = {}
    freshness, clock = made(stored)
    clock.sleep(100)
    stored.update(listed(clock))
    assert not freshness.was_checked_elsewhere()

    freshness.hear()

    assert freshness.is_listed
    assert freshness.was_checked_elsewhere()
    assert freshness.age_s() == 0


@pytest.mark.parametrize(("ttl_s", "pause_s"), [(60.0, 5.0), (2.0, 2.0), (0.0, 1.0)])
def test_after_a_failure_the_api_is_left_alone_for_a_while(ttl_s: float, pause_s: float) -> None:
    freshness, clock = made({}, ttl_s)
    freshness.note_failure(stop=False)
    assert not freshness.may_ask()
    clock.sleep(pause_s)
    assert freshness.may_ask()


def test_a_refusal_is_tried_again_each_minute_and_later_each_ten() -> None:
    freshness, clock = made(listed(Clock()))
    for pause_s in (60.0,) * 5 + (600.0,):
        freshness.note_failure(stop=True)
        assert freshness.stopped
        clock.sleep(pause_s - 1)
        assert not freshness.may_ask()
        clock.sleep(1)
        assert freshness.may_ask()
    freshness.note_success()
    assert not freshness.stopped


def test_rows_are_compared_once_the_ttl_is_over_and_with_none_a_listing_has_its_share() -> None:
    freshness, clock = made({})
    freshness.note_listed(clock())
    assert freshness.rows_stand() is True
    clock.sleep(60)
    assert freshness.rows_stand() is None

    always, clock = made({}, ttl_s=0.0)
    always.note_listed(clock() - 2.0)
    assert always.rows_stand() is True
    clock.sleep(40)
    assert always.rows_stand() is False


@pytest.mark.parametrize(("ttl_s", "pause_s"), [(60.0, 5.0), (5.5, 5.0), (4.0, 4.0), (0.5, 1.0)])
def test_the_pause_after_a_failure_is_the_ttl_between_one_and_five_seconds(
    ttl_s: float, pause_s: float
) -> None:
    freshness, clock = made({}, ttl_s)
    assert freshness.may_ask()
    freshness.note_failure(stop=False)
    assert not freshness.stopped
    clock.sleep(pause_s - 0.01)
    assert not freshness.may_ask()
    clock.sleep(0.02)
    assert freshness.may_ask()


def test_an_answer_ends_the_count_of_refusals() -> None:
    freshness, clock = made(listed(Clock()))
    for _ in range(5):
        freshness.note_failure(stop=True)
    freshness.note_success()
    freshness.note_failure(stop=True)
    clock.sleep(60)
    assert freshness.may_ask()


def test_one_may_ask_at_once_after_a_resume_and_when_all_was_lost() -> None:
    freshness, _ = made(listed(Clock()))
    freshness.note_checked()
    freshness.note_failure(stop=True)
    freshness.resume()
    assert freshness.may_ask()
    assert freshness.is_due()
    assert not freshness.stopped
    assert not freshness.needs_listing()

    freshness.note_checked()
    freshness.note_failure(stop=False)
    freshness.distrust()
    assert freshness.is_due()
    assert freshness.needs_listing()
    assert not freshness.may_ask()  # the API is left alone all the same
    freshness.start_over()
    assert freshness.may_ask()
    assert freshness.needs_listing()


@pytest.mark.parametrize(("ttl_s", "ago_s", "stand"), [(60.0, 59.0, True), (60.0, 60.0, None)])
def test_a_listing_of_another_process_stands_for_the_ttl(
    ttl_s: float, ago_s: float, stand: bool | None
) -> None:
    clock = Clock()
    then = listed(clock)
    clock.sleep(ago_s)
    freshness = Freshness(FreshnessConfig(ttl_s), then.get, clock=clock, wall_clock=clock)
    assert freshness.rows_stand() is stand
    assert freshness.age_s() == ago_s
    assert freshness.listing_s == 2.0


def test_with_no_ttl_listings_take_a_twentieth_of_the_time() -> None:
    freshness, clock = made({}, ttl_s=0.0)
    clock.sleep(3.0)
    freshness.note_listed(clock() - 3.0)
    assert freshness.listing_s == 3.0
    clock.sleep(59.9)
    assert freshness.rows_stand() is True
    clock.sleep(0.2)
    assert freshness.rows_stand() is False


def test_what_was_checked_and_listed_is_stored_for_other_processes() -> None:
    stored: dict[str, str] = {}
    mine, clock = made(stored)
    assert mine.age_s() is None
    stored["listed_at"] = mine.stamp_listing()
    clock.sleep(4)
    mine.note_listed(clock() - 4)
    stored.update(mine.note_checked())
    assert stored == {"listed_at": "1000.0", "checked_at": "1004.0", "listing_s": "4.0"}

    clock.sleep(10)
    other = Freshness(FreshnessConfig(60.0), stored.get, clock=clock, wall_clock=clock)
    assert other.age_s() == 10
    assert not other.needs_listing()
    assert other.is_due()  # once, as the mount begins
    mine.hear()
    assert not mine.is_due()
    clock.sleep(50)
    assert mine.is_due()


@pytest.mark.parametrize("ttl_s", [60.0, math.inf])
def test_what_this_machine_changed_since_has_to_be_listed(ttl_s: float) -> None:
    clock = Clock()
    stored = {"listed_at": str(clock()), "checked_at": str(clock()), UNLISTED: "1"}
    freshness = Freshness(FreshnessConfig(ttl_s), stored.get, clock=clock, wall_clock=clock)
    assert freshness.is_listed
    assert freshness.is_due()
    assert freshness.needs_listing()
    assert not freshness.was_checked_elsewhere()
    stored[UNLISTED] = ""
    assert not freshness.needs_listing()


def test_a_clock_that_was_set_back_makes_nothing_younger_than_now() -> None:
    clock = Clock()
    stored = {"listed_at": "9e9", "checked_at": "9e9", "listing_s": "1"}
    freshness = Freshness(FreshnessConfig(60.0), stored.get, clock=clock, wall_clock=clock)
    assert freshness.age_s() == 0
    clock.sleep(59)
    assert freshness.rows_stand() is True
    clock.sleep(1)
    assert freshness.rows_stand() is None
