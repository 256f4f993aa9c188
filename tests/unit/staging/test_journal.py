"""The journal, and what a crash leaves of it."""

from __future__ import annotations

import errno
import re
import sqlite3
import zlib
from pathlib import Path

import pytest

import lightlyfs
from lightlyfs.errors import StartError
from lightlyfs.name_rules import numbered
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFiles
from lightlyfs.staging.record import TRANSITIONS, Leftover, LocalDirectory, Planned, Record, State
from lightlyfs.staging.spool import Spool, recovered

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
        """Put a record, whose size is that of its staged bytes."""
        sizes = {generation: len(data) for generation, data in staged}
        self.journal.put(record.changed(size=sizes.get(record.generation, record.size)))
        for generation, data in staged:
            self.spool.path(record.key, generation).write_bytes(data)

    def load(self) -> dict[str, State]:
        local = local_files(self)
        return {file.path: file.record.state for file in local.all()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def record(path: str = "x.jpg", state: State = State.PENDING, key: str = KEY, **values: object) -> Record:
    return Record(key, path, path, state).changed(**values)


def local_files(bench: Bench) -> LocalFiles:
    files = LocalFiles(bench.spool, bench.journal, name_of=lambda path: path, counts=lambda path: True)
    files.load()
    return files


def test_what_speaks_of_an_earlier_generation_leaves_the_later_one_alone(bench: Bench) -> None:
    bench.put(record("new.jpg", State.OPEN, generation=1), (1, b""))
    files = local_files(bench)
    (file,) = files.all()

    files.update(file, 0, state=State.FAILED, error="no", mark="m", create_sent=True)

    (left,) = bench.journal.records()
    assert (left.state, left.error) == (State.INTERRUPTED, file.record.error)
    assert (left.mark, left.create_sent) == ("m", True)


def test_a_change_of_what_was_removed_does_not_bring_it_back(bench: Bench) -> None:
    bench.put(record(), (0, b"x"))
    files = local_files(bench)
    (file,) = files.all()
    files.discard(file)

    files.update(file, 0, mark="m", create_sent=True)

    assert bench.journal.records() == []


def test_a_change_that_the_disk_does_not_take_is_not_made(bench: Bench) -> None:
    bench.put(record(), (0, b"x"))
    files = local_files(bench)
    (file,) = files.all()
    before = file.record
    bench.journal.close()

    with pytest.raises(OSError, match="journal"):
        files.update(file, 0, state=State.FAILED)

    assert file.record is before


@pytest.mark.parametrize("now", State)
@pytest.mark.parametrize("wanted", State)
def test_a_state_follows_only_those_it_may_follow(now: State, wanted: State) -> None:
    before = record(state=now)

    if wanted is now or wanted in TRANSITIONS[now]:
        assert before.changed(state=wanted).state is wanted
    else:
        with pytest.raises(ValueError, match=f"{now} cannot become {wanted}"):
            before.changed(state=wanted)


def test_the_transitions_are_those_of_the_documentation() -> None:
    text = (Path(lightlyfs.__file__).parent / "docs/semantics.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE))
    documented = {
        State(name): frozenset(map(State, re.findall(r"`(\w+)`", row))) for name, row in rows.items()
    }

    assert documented == TRANSITIONS


def test_names_that_are_not_text_are_kept(bench: Bench) -> None:
    bench.put(record("a\udcff\ud800.jpg"))
    bench.journal.put_directories(LocalDirectory("d\udc80", 0o750, 1, 2, 3))
    bench.journal.put_leftover(Leftover(SAMPLE, "\ud800", "y"))
    bench.journal.put_renames([Planned("\ud800", "new", SAMPLE)])
    bench.journal.close()

    again = Journal(bench.path)

    assert [r.path for r in again.records()] == ["a\udcff\ud800.jpg"]
    assert again.directories() == [LocalDirectory("d\udc80", 0o750, 1, 2, 3)]
    assert again.leftovers() == [Leftover(SAMPLE, "\ud800", "y")]
    assert again.renames() == [("\ud800", "new", SAMPLE)]


def test_an_error_that_is_none_of_the_databases_undoes_a_change(bench: Bench) -> None:
    """A transaction that stays open would take later, durable writes back with it."""

    class Odd:
        """No database has a type for it."""

    with pytest.raises(OSError, match="journal"):
        bench.journal.put(record(error=Odd()))

    def fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO time VALUES ('a', 1, '', 0)")
        raise RuntimeError("none of sqlite3")

    with pytest.raises(RuntimeError, match="none of sqlite3"):
        bench.journal._write(True, fail)
    bench.journal.put(record())
    bench.journal.close()

    again = Journal(bench.path)
    assert again.records() == [record()]
    assert again.times() == {}


def test_a_directory_and_its_times_are_kept(bench: Bench) -> None:
    files = local_files(bench)
    files.make_directory("a", 0o700)
    files.make_directory("a/b", 0o755)
    files.move_directories("a", "c")
    files.remove_directory("c/b")

    (left,) = bench.journal.directories()

    assert (left.path, left.mode) == ("c", 0o700)


def test_a_file_for_this_machine_only_is_not_interrupted_by_a_crash(bench: Bench) -> None:
    bench.put(record("notes.txt", State.OPEN), (0, b"so far"))
    bench.put(record("x.jpg", State.OPEN, key=OTHER), (0, b"hal"))

    found = recovered(bench.journal, bench.spool, lambda path: path.endswith(".jpg"))

    assert {r.path: (r.state, r.size) for r in found} == {
        "notes.txt": (State.LOCAL, 6),
        "x.jpg": (State.INTERRUPTED, 3),
    }


def test_half_of_a_new_image_for_a_sample_is_kept_out_of_view(bench: Bench) -> None:
    bench.put(record(state=State.OPEN, sample_id=SAMPLE, replaces=True), (0, b"hal"))

    files = local_files(bench)

    assert files.all() == []
    (half,) = files.aside()
    assert (half.record.state, half.record.size) == (State.INTERRUPTED, 3)
    assert bench.spool.path(KEY, 0).read_bytes() == b"hal"


def test_a_file_that_is_no_journal_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"not a database" * 1000)

    with pytest.raises(StartError, match=r"journal\.db cannot be read"):
        Journal(path)

    assert path.read_bytes() == b"not a database" * 1000


def test_a_journal_whose_definitions_are_no_text_is_rescued_from(bench: Bench) -> None:
    bench.put(record(), (0, b"one"))
    bench.journal.close()
    bench.path.write_bytes(bench.path.read_bytes().replace(b"CREATE TABLE", b"CREATE T\xe8BLE"))

    bench.journal = Journal(bench.path, rescue=True)

    assert bench.load() == {f"recovered-{KEY[:8]}": State.INTERRUPTED}


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

    time_ns = 2_000_000_000
    known = {"atime_ns": time_ns, "mtime_ns": time_ns, "ctime_ns": time_ns}
    assert journal.records() == [record(size=1, **known)]
    journal.put(record(broken=28))
    assert journal.records() == [record(broken=28)]


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
    broken = record(state=State.FAILED, broken=28, error="a write failed", generation=1, acknowledged=0)
    bench.put(broken, (0, b"whole"), (1, b"hal"))

    found = recovered(bench.journal, bench.spool, lambda path: True)
    assert [r.state for r in found] == [State.PENDING, State.INTERRUPTED]


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


def test_a_numbered_name_keeps_its_extension_and_its_length() -> None:
    long = "d/" + "é" * 125 + ".jpeg"
    names = numbered(long)

    assert next(names) == long
    second = next(names)
    assert second.endswith("~2.jpeg")
    assert len(second.encode()) <= 2 + 255


def test_what_can_be_read_of_a_damaged_journal_is_rescued(tmp_path: Path) -> None:
    """The records before and behind the damage; the journal itself is kept."""
    path, written = tmp_path / "journal.db", {f"{number:032x}": f"{number}.jpg" for number in range(400)}
    journal = Journal(path)
    journal.put(*(record(name, key=key) for key, name in written.items()))
    journal.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"damage" * 1000)
    damaged = path.read_bytes()

    rescued = Journal(path, rescue=True)

    found = {one.key: one.path for one in rescued.records()}
    assert 100 < len(found) < 400
    assert found.items() <= written.items()
    assert (tmp_path / "journal.db.damaged").read_bytes() == damaged
    rescued.close()


@pytest.mark.parametrize("value", [0, 1, 5, 0xFF])
def test_no_byte_of_the_header_costs_more_than_the_journal(tmp_path: Path, value: int) -> None:
    """Whatever it holds: the mount begins, with the records or an empty journal, and can write."""
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.put(record())
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    sound = path.read_bytes()
    later_versions = {(62, 1), (63, 5), (63, 0xFF)}  # 260, 5 and 255

    for place in range(100):
        if (place, value) in later_versions:
            continue
        damaged = bytearray(sound)
        damaged[place] = value
        (tmp_path / f"{place}").mkdir()
        (tmp_path / f"{place}/journal.db").write_bytes(damaged)
        rescued = Journal(tmp_path / f"{place}/journal.db", rescue=True)
        assert rescued.records() in ([record()], []), place
        rescued.put(record("y.jpg", key=OTHER))
        rescued.close()


def test_a_record_that_somebody_changed_is_not_believed(bench: Bench) -> None:
    """A sample that got a wrong name cannot be deleted; the bytes are shown for a person to look at."""
    bench.put(record(), (0, b"one"))
    bench.put(record("y.jpg", key=OTHER), (0, b"two"))
    bench.journal.close()
    with sqlite3.connect(bench.path) as db:
        db.execute("UPDATE file SET name = ? WHERE key = ?", (b"z.jpg", OTHER))
    db.close()

    with pytest.raises(StartError, match="not as they were written"):
        Journal(bench.path)
    bench.journal = Journal(bench.path, rescue=True)

    assert bench.load() == {"x.jpg": State.PENDING, f"recovered-{OTHER[:8]}": State.INTERRUPTED}


@pytest.mark.parametrize("damaged", [b"promised, and mor", b"promised, and mOre", b""])
def test_bytes_that_are_not_those_that_were_promised_go_to_nobody(bench: Bench, damaged: bytes) -> None:
    promised = b"promised, and more"
    bench.put(record(checksum=zlib.crc32(promised)), (0, promised))
    bench.spool.path(KEY, 0).write_bytes(damaged)

    assert bench.load() == {"x.jpg": State.FAILED}
    (left,) = bench.journal.records()
    assert (left.error, left.broken) == ("its staged bytes are damaged", errno.ENODATA)
    assert [path.read_bytes() for path in bench.path.parent.glob("files/*")] == [damaged]
