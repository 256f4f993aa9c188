"""All that a journal keeps, over a mount and a move; and what a mount that crashed finds, field by field."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from lightlyfs.errors import StartError
from lightlyfs.staging.journal import SCHEMA_VERSION, Journal
from lightlyfs.staging.record import Leftover, LocalDirectory, Planned, Record, SetTime, State
from lightlyfs.staging.spool import GONE, Spool, recovered

A, B, C = "a" * 32, "b" * 32, "c" * 32
SAMPLE = "d" * 24

FULL = Record(
    A,
    "d/x.jpg",
    "name",
    State.PENDING,
    generation=3,
    size=5,
    mode=0o600,
    atime_ns=1,
    mtime_ns=2_999_999_999,
    ctime_ns=3,
    sample_id=SAMPLE,
    mark="m",
    create_sent=True,
    replaces=True,
    thumbnail_done=True,
    etag="e",
    error="text",
    broken=28,
    acknowledged=2,
    checksum=77,
)
PLAIN = Record(B, "y.jpg", "", State.LOCAL)


def filled(path: Path) -> Journal:
    journal = Journal(path)
    journal.put(FULL, PLAIN)
    journal.put_directories(LocalDirectory("d", 0o750, 1, 2, 3), LocalDirectory("e", 0o700, 4, 5, 6))
    journal.put_leftover(Leftover(SAMPLE, "was", "is"))
    journal.put_time(SAMPLE, SetTime(7, "v", 8))
    journal.put_renames([Planned("old", "new", SAMPLE), Planned("old2", "new2", "e" * 24)])
    return journal


def content_of(journal: Journal) -> tuple[object, ...]:
    return (
        sorted(journal.records(), key=lambda one: one.key),
        sorted(journal.directories()),
        journal.leftovers(),
        journal.times(),
        sorted(journal.renames()),
    )


FILLED = (
    [FULL, PLAIN],
    [LocalDirectory("d", 0o750, 1, 2, 3), LocalDirectory("e", 0o700, 4, 5, 6)],
    [Leftover(SAMPLE, "was", "is")],
    {SAMPLE: SetTime(7, "v", 8)},
    [("old", "new", SAMPLE), ("old2", "new2", "e" * 24)],
)


def test_all_that_is_kept_is_there_in_the_next_mount(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = filled(path)
    assert content_of(journal) == FILLED
    journal.close()
    again = Journal(path)
    assert content_of(again) == FILLED
    assert path.stat().st_mode & 0o777 == 0o600


def test_all_of_it_can_be_replaced_and_forgotten(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.db")
    later = FULL.changed(error="later")
    journal.put(later, forget=(B, C))
    assert journal.records() == [later]
    journal.remove(A)
    assert journal.records() == []
    journal.put_directories(LocalDirectory("d", 0o711, 9, 9, 9), forget=("e", "none"))
    assert journal.directories() == [LocalDirectory("d", 0o711, 9, 9, 9)]
    journal.put_leftover(Leftover(SAMPLE, "was", "another"))
    assert journal.leftovers() == [Leftover(SAMPLE, "was", "another")]
    journal.put_time(SAMPLE, SetTime(8, "w", 9))
    journal.put_time("f" * 24, SetTime(1, "x", 2))
    assert journal.times()[SAMPLE] == SetTime(8, "w", 9)
    journal.remove_times([SAMPLE, "0" * 24])
    assert journal.times() == {"f" * 24: SetTime(1, "x", 2)}
    journal.remove_renames([SAMPLE])
    assert journal.renames() == [("old2", "new2", "e" * 24)]


def test_a_journal_that_is_moved_takes_all_of_it_along(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.db")
    assert not journal.is_deleted()
    for path in tmp_path.glob("journal.db*"):
        path.unlink()
    assert journal.is_deleted()
    journal.move_to(tmp_path / "other.db")
    assert not journal.is_deleted()
    journal.remove(B)
    journal.close()
    assert Journal(tmp_path / "other.db").records() == [FULL]


def test_who_owns_the_journal_is_told_before_a_write_that_would_be_lost(tmp_path: Path) -> None:
    told: list[int] = []

    def deleted() -> None:
        told.append(1)
        journal.move_to(tmp_path / "other.db")

    journal = Journal(tmp_path / "journal.db", deleted)
    journal.put(PLAIN)
    assert told == []
    for path in tmp_path.glob("journal.db*"):
        path.unlink()
    journal.put(FULL)
    journal.put(FULL)
    assert told == [1]
    assert len(Journal(tmp_path / "other.db").records()) == 2


def test_a_place_that_takes_no_journal_leaves_it_where_it_is(tmp_path: Path) -> None:
    journal = filled(tmp_path / "journal.db")
    with pytest.raises(FileNotFoundError):
        journal.move_to(tmp_path / "none" / "other.db")
    journal.put(FULL.changed(error="later"))
    journal.close()
    with pytest.raises(OSError, match="closed") as caught:
        journal.put(PLAIN)
    assert caught.value.errno == errno.EIO


def test_a_durable_write_waits_for_the_disk_and_another_does_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")

    def synchronous() -> int:
        return int(journal._db.execute("PRAGMA synchronous").fetchone()[0])

    assert synchronous() == 2
    journal.put(PLAIN, durable=False)
    assert synchronous() == 1
    journal.put(FULL)
    assert synchronous() == 2
    journal.remove(A)
    assert synchronous() == 1
    journal.put_leftover(Leftover(SAMPLE, "was", "is"))
    assert synchronous() == 2


def test_a_journal_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    filled(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    for rescue in (False, True):
        with pytest.raises(StartError, match="later version"):
            Journal(path, rescue=rescue)
    assert not list(tmp_path.glob("*.damaged"))


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("directory", "UPDATE directory SET mode = 'x'"),
        ("leftover", "UPDATE leftover SET was = 5"),
        ("time", "UPDATE time SET version = x'ff'"),
        ("rename", "UPDATE rename SET old = x'ff'"),
    ],
)
def test_a_row_that_cannot_be_is_named_for_it_may_be_owed(tmp_path: Path, table: str, change: str) -> None:
    journal = filled(tmp_path / "journal.db")
    journal._db.execute(change)
    reads = {
        "directory": journal.directories,
        "leftover": journal.leftovers,
        "time": journal.times,
        "rename": journal.renames,
    }
    with pytest.raises(StartError, match="cannot be read"):
        reads[table]()


def test_the_other_tables_of_a_damaged_journal_are_rescued_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    filled(path).close()
    db = sqlite3.connect(path)
    db.execute("UPDATE file SET crc = 1 WHERE key = ?", (A,))
    db.execute("UPDATE directory SET mode = 'x' WHERE path = ?", (b"e",))
    db.commit()
    db.close()
    rescued = Journal(path, rescue=True)
    assert content_of(rescued) == ([PLAIN], FILLED[1][:1], *FILLED[2:])  # type: ignore[index]
    assert path.with_name("journal.db.damaged").exists()


# what a mount that crashed finds


class Crashed:
    """A journal and a spool, as a crash left them."""

    def __init__(self, directory: Path) -> None:
        self.journal = Journal(directory / "journal.db")
        self.spool = Spool(directory / "files")

    def stage(self, key: str, generation: int, data: bytes) -> None:
        self.spool.path(key, generation).write_bytes(data)

    def find(self) -> list[Record]:
        return recovered(self.journal, self.spool, lambda path: path.endswith(".jpg"))


@pytest.fixture
def crashed(tmp_path: Path) -> Crashed:
    return Crashed(tmp_path)


def made(key: str, path: str, state: State, **values: object) -> Record:
    return Record(key, path, path, state).changed(**values)


def test_half_a_file_has_the_size_and_the_time_of_what_was_written(crashed: Crashed) -> None:
    crashed.journal.put(made(A, "x.jpg", State.OPEN, size=99, mtime_ns=5, ctime_ns=6, mode=0o600))
    crashed.stage(A, 0, b"half")
    (found,) = crashed.find()
    written = crashed.spool.path(A, 0).stat().st_mtime_ns
    assert (found.state, found.size, found.mtime_ns, found.ctime_ns, found.mode) == (
        State.INTERRUPTED,
        4,
        written,
        written,
        0o600,
    )
    assert found.error
    assert crashed.journal.records() == [found]


@pytest.mark.parametrize("state", [State.LOCAL, State.INTERRUPTED])
def test_a_file_that_was_complete_keeps_its_time(crashed: Crashed, state: State) -> None:
    crashed.journal.put(made(A, "x.jpg", state, size=99, mtime_ns=5, ctime_ns=6))
    crashed.stage(A, 0, b"whole")
    (found,) = crashed.find()
    assert (found.state, found.size, found.mtime_ns, found.ctime_ns) == (state, 5, 5, 6)


def test_a_half_that_is_split_off_keeps_what_was_known_of_it(crashed: Crashed) -> None:
    crashed.journal.put(
        made(
            A,
            "x.jpg",
            State.OPEN,
            generation=4,
            acknowledged=2,
            mode=0o600,
            atime_ns=1,
            mtime_ns=2,
            ctime_ns=3,
            sample_id=SAMPLE,
            replaces=True,
            thumbnail_done=True,
            checksum=-1,
            mark="m",
        )
    )
    crashed.stage(A, 2, b"whole")
    crashed.stage(A, 4, b"half")
    whole, half = sorted(crashed.find(), key=lambda one: one.generation)
    assert (whole.key, whole.state, whole.generation, whole.size, whole.acknowledged) == (
        A,
        State.PENDING,
        2,
        5,
        -1,
    )
    assert (whole.thumbnail_done, whole.error, whole.mark, whole.sample_id) == (False, "", "m", SAMPLE)
    assert (half.state, half.generation, half.size, half.mode) == (State.INTERRUPTED, 4, 4, 0o600)
    assert (half.atime_ns, half.mtime_ns, half.ctime_ns) == (1, 2, 3)
    assert (half.sample_id, half.replaces, half.hidden) == (SAMPLE, True, True)
    assert half.key != A
    assert sorted(crashed.spool.generations()) == sorted([(A, 2), (half.key, 4)])
    assert crashed.find()  # as often as it crashes
    assert len(crashed.journal.records()) == 2


def test_a_half_of_a_new_file_is_no_image_of_the_sample_that_the_whole_becomes(crashed: Crashed) -> None:
    crashed.journal.put(
        made(A, "x.jpg", State.OPEN, generation=1, acknowledged=0, sample_id=SAMPLE, create_sent=True)
    )
    crashed.stage(A, 0, b"whole")
    crashed.stage(A, 1, b"half")
    half = next(one for one in crashed.find() if one.key != A)
    assert (half.sample_id, half.replaces, half.hidden) == (None, False, False)


def test_bytes_of_which_nothing_is_known_are_shown_unless_they_are_none(crashed: Crashed) -> None:
    for generation, data in ((0, b"old"), (2, b"newest"), (1, b"between")):
        crashed.stage(A, generation, data)
    crashed.stage(B, 0, b"")
    (found,) = crashed.find()
    written = crashed.spool.path(A, 2).stat().st_mtime_ns
    assert (found.key, found.path, found.state) == (A, f"recovered-{A[:8]}", State.INTERRUPTED)
    assert (found.generation, found.size, found.mtime_ns, found.atime_ns) == (2, 6, written, written)
    assert found.error
    assert crashed.journal.records() == [found]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"state": State.PENDING}, True),
        ({"state": State.LOCAL}, True),
        ({"state": State.FAILED}, True),
        ({"state": State.OPEN}, False),
        ({"state": State.INTERRUPTED}, False),
        ({"state": State.PENDING, "sample_id": SAMPLE}, False),
        ({"state": State.PENDING, "create_sent": True}, False),
        ({"state": State.FAILED, "broken": errno.ENODATA, "sample_id": SAMPLE}, True),
    ],
)
def test_a_record_without_bytes_is_a_loss_where_they_were_promised(
    crashed: Crashed, values: dict[str, object], kept: bool
) -> None:
    crashed.journal.put(Record(A, "x.jpg", "x.jpg", **values))  # type: ignore[arg-type]
    found = crashed.find()
    assert [(one.state, one.broken) for one in found] == [(State.FAILED, errno.ENODATA)] * kept
    assert len(crashed.journal.records()) == kept
    if kept and "broken" not in values:
        assert found[0].error == GONE


def test_of_files_with_one_path_the_uploaded_and_the_sent_come_first(crashed: Crashed) -> None:
    def put(key: str, state: State, data: bytes = b"1", **values: object) -> None:
        crashed.journal.put(made(key * 32, "x.jpg", state, size=1, **values))
        crashed.stage(key * 32, 0, data)

    put("1", State.INTERRUPTED)
    put("2", State.FAILED, broken=28)
    put("3", State.PENDING)
    put("4", State.PENDING, create_sent=True)
    put("5", State.UPLOADED, sample_id=SAMPLE)
    put("6", State.LOCAL)
    assert [one.key[0] for one in crashed.find()] == ["5", "4", "3", "6", "1", "2"]


def test_of_several_uploads_of_one_sample_the_next_listing_tells(crashed: Crashed) -> None:
    for key in (A, B):
        crashed.journal.put(made(key, f"{key[0]}.jpg", State.UPLOADED, sample_id=SAMPLE))
    crashed.journal.put(made(C, "c.jpg", State.UPLOADED, sample_id="e" * 24))
    assert [one.key for one in crashed.find()] == [C]
    assert [one.key for one in crashed.journal.records()] == [C]
