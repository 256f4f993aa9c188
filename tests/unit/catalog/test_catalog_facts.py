"""What the catalogue makes of a report of storage: shown at once, told before, kept over a remount."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from catalogkit import FakeRemote, Impatient, Record, World
from contentkit import sample_id

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.errors import LightlyFsError

NAMES = ["x.jpg", "a/y.jpg", "a/b/z.jpg"]


def world_of(directory: Path, **options: Any) -> World:
    records = {sample_id(number): Record(name, 100 + number, 5) for number, name in enumerate(NAMES)}
    world = World(directory, FakeRemote(records), **options)
    world.tree()
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_of(tmp_path)


def shown(world: World, path: str = "x.jpg") -> SampleEntry:
    entry = world.catalog.lookup(path, Impatient())
    assert isinstance(entry, SampleEntry)
    return entry


def moved(world: World) -> tuple[int, int]:
    return world.catalog.generation, world.catalog.sizes_moved


@pytest.mark.parametrize(
    ("first", "second", "moves"),
    [
        (None, (5, "e1"), False),
        (None, (6, "e1"), True),
        ((5, "e1"), (5, "e1"), False),
        ((5, "e1"), (5, "e2"), True),
        ((5, "e1"), (4, "e1"), True),
    ],
)
def test_what_is_shown_moves_with_a_size_or_a_version(
    world: World, first: tuple[int, str] | None, second: tuple[int, str], moves: bool
) -> None:
    if first is not None:
        world.catalog.record_facts(sample_id(0), *first)
    before, told = moved(world), []
    world.catalog.record_facts(sample_id(0), *second, told.append)
    after = moved(world)
    assert [later > earlier for later, earlier in zip(after, before, strict=True)] == [moves] * 2
    assert [entry.published_size for entry in told] == [5]
    entry = shown(world)
    assert (entry.published_size, entry.etag, entry.verified) == (*second, True)


def test_nobody_is_told_of_a_sample_that_is_not_shown(world: World) -> None:
    told: list[SampleEntry] = []
    before = moved(world)
    world.catalog.record_facts(sample_id(9), 7, "e1", told.append)
    assert told == []
    assert moved(world) > before  # its directory may show it soon


def test_what_is_not_certain_is_shown_and_asked_for_again(world: World) -> None:
    world.catalog.record_facts(sample_id(0), 6, "", certain=False)
    entry = shown(world)
    assert (entry.published_size, entry.verified) == (6, False)


def test_facts_are_kept_over_a_remount(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.catalog.record_facts(sample_id(0), 6, "e1")
    world.catalog.note_wrong_hint("x.jpg")
    assert world.catalog.hints_are_wrong
    world.catalog.close()
    again = world_of(tmp_path)
    assert shown(again).verified
    assert again.catalog.hints_are_wrong
    assert shown(again, "a/y.jpg").published_size == 5
    again.catalog.close()


def test_that_hints_are_wrong_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    before = moved(world)
    world.catalog.note_wrong_hint("x.jpg")
    between = moved(world)
    world.catalog.note_wrong_hint("a/y.jpg")
    assert before < between == moved(world)
    assert len([one for one in caplog.records if "sizes that the API lists" in one.message]) == 1


def test_a_sample_is_told_of_while_it_is_the_one_that_was_asked_about(world: World) -> None:
    entry = shown(world)
    told = world.catalog.told(entry)
    assert told is not None
    assert not told.verified
    world.catalog.record_facts(sample_id(0), 6, "e1")
    told = world.catalog.told(entry)
    assert told is not None
    assert (told.size, told.verified) == (6, True)
    assert world.catalog.told(entry._replace(mtime=99)) is None
    assert world.catalog.told(entry._replace(size_hint=4)) is None
    assert world.catalog.told(entry._replace(ino=5)) is None


def test_what_another_process_wrote_of_a_sample_is_told_where_that_is_wanted(
    tmp_path: Path,
) -> None:
    world, other = world_of(tmp_path), world_of(tmp_path)
    entry = shown(world)
    other.catalog.record_facts(sample_id(0), 6, "e1")
    other.catalog.publish_facts([sample_id(0)])
    mine = world.catalog.told(entry, by_others=False)
    assert mine is not None
    assert not mine.verified
    told = world.catalog.told(entry)
    assert told is not None
    assert told.verified
    generation = world.catalog.generation
    world.catalog.hear_others()
    assert shown(world).verified
    assert world.catalog.generation == generation  # its size was to be written first
    other.catalog.flush_facts()
    world.catalog.hear_others()
    assert world.catalog.generation > generation


def test_facts_that_another_process_wrote_are_read_only_where_they_are_wanted(tmp_path: Path) -> None:
    world, other = world_of(tmp_path), world_of(tmp_path)
    entry = shown(world)
    queries: list[str] = []
    for db in world.store._idle:
        db.set_trace_callback(queries.append)
    other.catalog.record_facts(sample_id(0), entry.published_size or 0, "e1")
    other.catalog.flush_facts()
    world.catalog.hear_others()
    assert shown(world) == entry
    assert queries == []
    assert world.catalog.may_lack_facts(entry)
    told = world.catalog.told(entry)
    assert told is not None
    assert told.verified
    assert shown(world).verified
    assert not world.catalog.may_lack_facts(entry)
    other.catalog.record_facts(sample_id(0), entry.published_size or 0, "e2")
    other.catalog.flush_facts()
    world.catalog.hear_others()
    assert shown(world).etag == "e2"


def test_a_listing_of_its_own_is_no_news_of_others(world: World, tmp_path: Path) -> None:
    entry = shown(world)
    world.catalog.hear_others()
    assert not world.catalog.may_lack_facts(entry)
    other = world_of(tmp_path)
    other.catalog.record_facts(sample_id(0), entry.published_size or 0, "e1")
    other.catalog.flush_facts()
    world.catalog.hear_others()
    assert world.catalog.may_lack_facts(entry)


def test_a_sample_is_found_by_its_id_with_what_is_known_of_it(world: World) -> None:
    world.catalog.record_facts(sample_id(2), 8, "e1")
    found = world.catalog.by_id(sample_id(2))
    assert found is not None
    path, entry = found
    assert (path, entry.published_size, world.catalog.with_facts(entry)) == ("a/b/z.jpg", 8, entry)
    assert world.catalog.by_id(sample_id(9)) is None
    assert world.catalog.known("a/b/z.jpg") is not None
    behind = world.catalog.samples_after("a/b/", 5)
    assert behind == [("a/b/z.jpg", entry)]


def test_facts_show_in_the_listing_of_their_directory(world: World) -> None:
    world.catalog.record_facts(sample_id(1), 9, "e1")
    directories, samples = world.catalog.list_directory("a", Impatient())
    assert [entry.name for entry in directories] == ["b"]
    assert [(entry.name, entry.published_size) for entry in samples] == [("y.jpg", 9)]


def test_a_refresh_that_the_disk_refuses_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(world.store, "forget_facts", full)
    with pytest.raises(LightlyFsError, match="full"):
        world.catalog.refresh()


def test_a_refresh_has_storage_asked_for_each_content_again(world: World) -> None:
    world.catalog.record_facts(sample_id(0), 6, "e1")
    before = moved(world)
    world.catalog.refresh()
    entry = shown(world)
    assert (entry.published_size, entry.verified, entry.stands) == (6, False, True)
    assert moved(world) > before
    assert not world.catalog.settled


def test_freshness_is_seen_to_before_a_listing_is_said_to_stand(world: World) -> None:
    generation = world.catalog.current_generation()
    assert generation == world.catalog.generation
    world.remote.records[sample_id(7)] = Record("new.jpg")
    world.clock.sleep(61)
    world.catalog.current_generation()
    assert world.catalog.generation > generation
    assert world.catalog.age_s() == 0
    assert world.catalog.known("new.jpg") is not None
