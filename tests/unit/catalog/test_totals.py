"""The sums that `status` shows: kept beside the rows, and always those of a scan."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
from catalogkit import FakeRemote, Record, World
from contentkit import sample_id

from lightlyfs import database
from lightlyfs.catalog import tables
from lightlyfs.catalog.store import CatalogStore


def scanned(directory: Path) -> tuple[int, ...]:
    db = sqlite3.connect(directory / "catalog.db")
    try:
        return tables.scanned_totals(db)
    finally:
        db.close()


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_the_sums_are_those_of_a_scan(seed: int, tmp_path: Path) -> None:
    """Listings, facts that are written or published, by two processes, and refreshes in some order."""
    dice, remote = random.Random(seed), FakeRemote()
    world = World(tmp_path, remote)
    other = CatalogStore(tmp_path / "catalog.db", alone=False)
    for _ in range(25):
        step, number = dice.randrange(6), dice.randrange(12)
        if step < 2:
            hint = dice.choice([None, 7, 1 << 53])
            remote.records[sample_id(number)] = Record(f"{number % 4}/{number}.jpg", dice.randrange(3), hint)
            remote.modified += 1
            world.refresher.list_now()
        elif step == 2:
            remote.records.pop(sample_id(number), None)
            remote.modified += 1
            world.refresher.list_now()
        elif step == 3:
            world.catalog.record_facts(sample_id(number), dice.randrange(100), "etag")
            world.catalog.flush_facts()
        elif step == 4:
            world.catalog.record_facts(sample_id(number), dice.randrange(100), "etag")
            world.catalog.publish_facts([sample_id(number)])
        else:
            other.forget_facts()
        assert world.store.totals() == other.totals() == scanned(tmp_path), step
    other.close()
    world.catalog.close()


def test_the_sums_are_had_without_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Traced(database.Connection):
        """A connection that notes what it is asked."""

        def execute(self, query: str, *args: object) -> sqlite3.Cursor:  # type: ignore[override]
            asked.append(query)
            return super().execute(query, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(database, "Connection", Traced)
    world = World(tmp_path, FakeRemote({sample_id(1): Record("a.jpg", 1, 2)}))
    world.refresher.list_now()
    asked.clear()

    assert world.catalog.totals() == (1, 1, 2, 1)

    assert asked
    assert not [query for query in asked if "sample" in query or "directory" in query]
    world.catalog.close()


def test_a_catalogue_without_sums_gets_them(tmp_path: Path) -> None:
    world = World(tmp_path, FakeRemote({sample_id(1): Record("a.jpg", 1, 2)}))
    world.refresher.list_now()
    world.catalog.close()
    db = sqlite3.connect(tmp_path / "catalog.db")
    db.executescript("DELETE FROM meta WHERE key = 'totals'; PRAGMA user_version = 1")
    db.close()

    store = CatalogStore(tmp_path / "catalog.db")

    assert store.totals() == (1, 1, 2, 1)
    store.close()
    assert not list(tmp_path.glob("*.damaged"))
