"""The journal, and what a crash leaves of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from lightlyfs.errors import StartError
from lightlyfs.fs.local import LocalFiles
from lightlyfs.fs.paths import is_scratch, numbered
from lightlyfs.staging.journal import Journal, Record, State
from lightlyfs.staging.recovery import recovered
from lightlyfs.staging.spool import Spool

KEY = "a" * 32
OTHER = "b" * 32
SAMPLE = "c" * 24


class Bench:
    """A journal and a spool on disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "journal.db"
        self.journal = Journal(self.path)
        self.spool = Spool(directory / "files")

    def put(self, record: Record, *staged: tuple[int, bytes]) -> None:
        self.journal.put(record)
        for generation, data in staged:
            self.spool.path(record.key, generation).write_bytes(data)

    def load(self) -> dict[str, State]:
        local = LocalFiles(self.spool, self.journal)
        local.load()
        return {file.path: file.record.state for file in local.all()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def record(path: str = "x.jpg", state: State = State.PENDING, key: str = KEY, **values: object) -> Record:
    return Record(key, path, path, state).changed(**values)


def test_a_note_of_an_upload_leaves_a_later_generation_and_its_place_alone(bench: Bench) -> None:
    bench.put(record("new.jpg", State.OPEN, generation=1))

    bench.journal.note(record("old.jpg", State.FAILED, error="no", mark="m", create_sent=True))

    assert bench.journal.records() == [
        record("new.jpg", State.OPEN, generation=1, mark="m", create_sent=True)
    ]


def test_a_note_of_an_upload_does_not_bring_back_what_was_forgotten(bench: Bench) -> None:
    bench.journal.note(record())

    assert bench.journal.records() == []


def test_a_file_that_is_no_journal_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database" * 1000)

    with pytest.raises(StartError, match=r"journal\.db cannot be read"):
        Journal(path)

    assert path.read_bytes() == b"not a database" * 1000


def test_a_damaged_journal_is_named(bench: Bench) -> None:
    for number in range(200):
        bench.put(record(f"{number}.jpg", key=f"{number:032x}"))
    bench.journal.close()
    data = bytearray(bench.path.read_bytes())
    data[4096 * 3 : 4096 * 4] = b"x" * 4096
    bench.path.write_bytes(data)

    with pytest.raises(StartError):
        Journal(bench.path)


def test_a_journal_without_the_later_columns_is_gone_on_with(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "journal.db")
    names = "key path name state generation size mtime sample_id mark create_sent replaces thumbnail_done"
    columns = [*names.split(), "etag", "error"]
    old.execute(f"CREATE TABLE file ({', '.join(columns)}, PRIMARY KEY (key)) WITHOUT ROWID")
    old.execute(
        "INSERT INTO file VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        [KEY, "x.jpg", "x.jpg", "pending", 0, 1, 2, None, "", 0, 0, 0, "", ""],
    )
    old.commit()
    old.close()

    journal = Journal(tmp_path / "journal.db")

    assert journal.records() == [record(size=1, mtime=2)]
    journal.put(record(broken=True))
    assert journal.records() == [record(broken=True)]


def test_an_acknowledged_generation_goes_up_though_a_crash_cut_off_a_later_one(bench: Bench) -> None:
    bench.put(record(state=State.OPEN, generation=2, acknowledged=1), (1, b"whole"), (2, b"hal"))

    assert bench.load() == {"x.jpg": State.PENDING, "x~2.jpg": State.INTERRUPTED}

    (whole, half) = sorted(bench.journal.records(), key=lambda r: r.path)
    assert bench.spool.path(whole.key, whole.generation).read_bytes() == b"whole"
    assert bench.spool.path(half.key, half.generation).read_bytes() == b"hal"
    assert (whole.size, half.size) == (5, 3)


def test_a_broken_generation_does_not_go_up_with_the_next_mount_but_the_one_before_does(
    bench: Bench,
) -> None:
    broken = record(state=State.FAILED, broken=True, error="a write failed", generation=1, acknowledged=0)
    bench.put(broken, (0, b"whole"), (1, b"hal"))

    assert [r.state for r in recovered(bench.journal, bench.spool)] == [State.PENDING, State.INTERRUPTED]


def test_two_files_of_one_path_are_both_there(bench: Bench) -> None:
    bench.put(record(key=KEY), (0, b"one"))
    bench.put(record(key=OTHER), (0, b"two"))

    assert bench.load() == {"x.jpg": State.PENDING, "x~2.jpg": State.PENDING}
    assert bench.load() == {"x.jpg": State.PENDING, "x~2.jpg": State.PENDING}
    assert {r.name for r in bench.journal.records()} == {"x.jpg", "x~2.jpg"}


def test_a_record_whose_bytes_are_gone_is_shown_as_failed_unless_the_server_may_have_it(
    bench: Bench,
) -> None:
    bench.put(record("never-sent.jpg", key=KEY))
    bench.put(record("sent.jpg", key=OTHER, create_sent=True, mark="m"))
    bench.put(record("begun.jpg", State.OPEN, key="d" * 32))

    assert bench.load() == {"never-sent.jpg": State.FAILED}


def test_an_uploaded_file_makes_room_for_a_newer_image_of_the_same_sample(bench: Bench) -> None:
    bench.put(record(state=State.UPLOADED, sample_id=SAMPLE))
    bench.put(record(key=OTHER, sample_id=SAMPLE, replaces=True), (0, b"new"))

    assert bench.load() == {"x.jpg": State.PENDING}
    assert [r.key for r in bench.journal.records()] == [OTHER]


@pytest.mark.parametrize("name", ["x.lock", "x.bak", "x.temp", "x.partial", "x.download", "#x#", "tmp.jpg"])
def test_a_real_name_is_not_taken_for_a_scratch_name(name: str) -> None:
    assert not is_scratch(f".hidden/{name}")


@pytest.mark.parametrize("name", ["4913", ".x.swx", "x.SWP", "x.crdownload", "x.filepart", "x~"])
def test_a_scratch_name_is_one(name: str) -> None:
    assert is_scratch(f"dir/{name}")


def test_a_numbered_name_keeps_its_extension_and_its_length() -> None:
    long = "d/" + "é" * 125 + ".jpeg"
    names = numbered(long)

    assert next(names) == long
    second = next(names)
    assert second.endswith("~2.jpeg")
    assert len(second.encode()) <= 2 + 255
