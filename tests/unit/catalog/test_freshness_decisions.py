"""When a catalogue is checked or listed again, decided from times alone."""

from __future__ import annotations

import math

import pytest
from contentkit import Clock

from lightlyfs.catalog.freshness import Freshness, FreshnessConfig


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
