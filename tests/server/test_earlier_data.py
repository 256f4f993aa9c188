"""What earlier versions left on disk is opened by this one, and what they owed arrives.

`tests/data/cache_of_0.1_before_rooms.tar.gz` is the directory of a dataset, made by lightlyfs of Nov 2026
(catalogue 1, journal 2): three images read, `done.jpg` uploaded, `owed.jpg` not, a local `notes.tmp` and an
empty directory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from trees import in_process, wait_until

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.staging.journal import Journal
from lightlyfs.testing import LocalServer, ServerOptions

DATA = Path(__file__).parents[1] / "data" / "cache_of_0.1_before_rooms.tar.gz"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    source = tmp_path / "images"
    source.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (number * 20, 9, 9)).save(source / f"{number}.jpg", "JPEG")
    with LocalServer(ServerOptions(source=source, dataset_name="files")) as running:
        yield running


def unpack(directory: Path) -> Path:
    directory.mkdir(parents=True)
    with tarfile.open(DATA) as archive:
        # Python 3.11.2 has no filters
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(directory)
    return directory


def test_the_catalogue_is_taken_over(tmp_path: Path) -> None:
    store = CatalogStore(unpack(tmp_path / "place") / "catalog.db")
    try:
        entry = store.lookup("0.jpg")
        assert isinstance(entry, SampleEntry)
        assert (entry.size, entry.verified) == (651, True)
        assert (store.totals().samples, store.totals().bytes) == (3, 651 * 2 + 652)
    finally:
        store.close()


def test_the_journal_is_taken_over(tmp_path: Path) -> None:
    journal = Journal(unpack(tmp_path / "place") / "uploads" / "0" / "journal.db")
    try:
        assert {record.path: record.owed for record in journal.records()} == {
            "owed.jpg": True,
            "notes.tmp": False,
            "done.jpg": False,
        }
        assert [made.path for made in journal.directories()] == ["made"]
    finally:
        journal.close()


def test_what_was_owed_arrives(server: LocalServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = server.url.removeprefix("http://").replace(":", "_")
    unpack(tmp_path / "tree" / "lightlyfs" / host / server.dataset_id)
    with in_process(server, tmp_path / "tree") as tree:
        wait_until(lambda: "owed.jpg" in {one["fileName"] for one in server.samples()}, 30)
        assert tree.read("0.jpg") == (tmp_path / "images" / "0.jpg").read_bytes()
        assert tree.read("notes.tmp") == b"local bytes"
        assert "made" in tree.names()
    assert "damaged" not in caplog.text
