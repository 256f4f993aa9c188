"""Times that were set on samples, and inode numbers that files keep when they become samples."""

from __future__ import annotations

from pathlib import Path

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.fs.attributes import Attr, SetTimes
from lightlyfs.staging.journal import Journal

ONE, TWO, THREE, FOUR = (digit * 24 for digit in "abcd")


def entry(sample_id: str, size: int | None = 5, etag: str | None = "e1") -> SampleEntry:
    return SampleEntry("x.jpg", 7, bytes.fromhex(sample_id), None, size, 0, size, etag, True, True)


def test_times_of_samples_that_changed_or_are_gone_are_forgotten_on_disk_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    times = SetTimes(journal)
    for sample_id in (ONE, TWO, THREE, FOUR):
        times.put(sample_id, 5, "e1", 1_600_000_000)
    listed = {ONE: entry(ONE), TWO: entry(TWO, size=6), THREE: entry(THREE, etag="e2")}

    def by_id(sample_id: str) -> tuple[str, SampleEntry] | None:
        found = listed.get(sample_id)
        return None if found is None else ("x.jpg", found)

    times.prune(by_id)

    assert set(journal.times()) == {ONE}
    assert times.apply(entry(ONE)).mtime == 1_600_000_000


def test_a_sample_that_storage_has_not_reported_keeps_its_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    times = SetTimes(journal)
    times.put(ONE, 5, "e1", 1_600_000_000)

    times.prune(lambda _: ("x.jpg", entry(ONE, size=None, etag=None)))

    assert set(journal.times()) == {ONE}


def test_a_file_keeps_its_inode_number_when_it_becomes_a_sample() -> None:
    times = SetTimes(None)
    times.keep_ino(ONE, 42)

    assert times.numbered(Attr(7, False, 5, 0), bytes.fromhex(ONE)).ino == 42
    assert times.numbered(Attr(7, False, 5, 0), bytes.fromhex(TWO)).ino == 7
    assert times.ino_of(entry(ONE)) == 42
