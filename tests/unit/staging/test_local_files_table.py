"""Local files by path: made, moved, covered, set aside and deleted; what a listing of a directory shows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lightlyfs.errors import FileExists, NoSuchFile
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import GONE, Spool

SAMPLE = "c" * 24


class Bench:
    """The local files of one mount, and of the next one over the same disk."""

    def __init__(self, directory: Path) -> None:
        self.journal = Journal(directory / "journal.db")
        self.spool = Spool(directory / "files")
        self.files = self.next_mount()

    def next_mount(self) -> LocalFiles:
        self.files = LocalFiles(
            self.spool,
            self.journal,
            name_of=lambda path: f"name of {path}",
            counts=lambda path: path.endswith(".jpg"),
        )
        self.files.load()
        return self.files

    def new(self, path: str, data: bytes = b"", state: State = State.OPEN) -> LocalFile:
        file = self.files.new(path, 0o640)
        assert file is not None
        with file.lock:
            self.files.stage_locked(file).write_at(0, data)
            file.size = len(data)
            if state is not State.OPEN:
                self.files.update(file, 0, state=state, size=len(data))
        return file

    def upload(self, file: LocalFile) -> None:
        self.files.update(file, file.record.generation, state=State.PENDING)
        self.files.update(file, file.record.generation, state=State.UPLOADED, sample_id=SAMPLE)
        file.handles = file.writers = 0

    def names(self) -> set[str]:
        return {file.path for file in self.files.all()}

    def recorded(self) -> dict[str, State]:
        return {record.path: record.state for record in self.journal.records()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_new_file_is_open_for_writing_and_known_by_its_path(bench: Bench) -> None:
    before = bench.files.generation
    file = bench.new("d/x.jpg", b"data")
    record = file.record
    assert (record.path, record.name, record.state, record.mode) == (
        "d/x.jpg",
        "name of d/x.jpg",
        State.OPEN,
        0o640,
    )
    assert record.mtime_ns == record.atime_ns == record.ctime_ns > 0
    assert (file.dirty, file.handles, file.writers) == (True, 1, 1)
    assert (file.uploaded, file.sealed, file.unlinked) == (False, False, False)
    assert bench.files.get("d/x.jpg") is file
    assert bench.files.get("d/y.jpg") is None
    assert bench.files.generation > before
    assert bench.recorded() == {"d/x.jpg": State.OPEN}


def test_where_a_file_is_none_is_made_and_nothing_is_left_of_it(bench: Bench) -> None:
    file = bench.new("x.jpg", b"data")
    assert bench.files.new("x.jpg", 0o644) is None
    assert bench.files.get("x.jpg") is file
    assert bench.spool.generations() == [(file.record.key, 0)]
    assert len(bench.journal.records()) == 1


def test_files_are_found_in_and_below_a_directory(bench: Bench) -> None:
    for path in ("x.jpg", "d/x.jpg", "d/y.jpg", "d/e/x.jpg", "de/x.jpg"):
        bench.new(path)

    def paths(files: list[LocalFile]) -> list[str]:
        return sorted(file.path for file in files)

    assert paths(bench.files.within("")) == ["x.jpg"]
    assert paths(bench.files.within("d")) == ["d/x.jpg", "d/y.jpg"]
    assert paths(bench.files.below("d")) == ["d/e/x.jpg", "d/x.jpg", "d/y.jpg"]
    assert paths(bench.files.below("d/e")) == ["d/e/x.jpg"]
    assert bench.files.below("none") == bench.files.within("none") == []
    assert bench.files.directories_within("") == {"d", "de"}
    assert bench.files.directories_within("d") == {"e"}
    assert [bench.files.has_directory(path) for path in ("d", "d/e", "e", "x.jpg")] == [
        True,
        True,
        False,
        False,
    ]


# sealed generations


@pytest.mark.parametrize(
    ("state", "broken", "sealed"),
    [
        (State.OPEN, 0, False),
        (State.LOCAL, 0, False),
        (State.PENDING, 0, True),
        (State.FAILED, 0, True),
        (State.FAILED, errno.EIO, False),
        (State.INTERRUPTED, 0, False),
        (State.UPLOADED, 0, True),
    ],
)
def test_what_is_handed_over_never_changes_again(state: State, broken: int, sealed: bool) -> None:
    assert LocalFile(Record("k", "x", "x", state, broken=broken), None).sealed == sealed


@pytest.mark.parametrize("empty", [False, True])
def test_a_write_to_what_is_handed_over_goes_to_a_copy(bench: Bench, empty: bool) -> None:
    file = bench.new("x.jpg", b"first", State.PENDING)
    with file.lock:
        staged = bench.files.unseal_locked(file, empty=empty)
        assert staged.read_at(0, 100) == (b"" if empty else b"first")
        staged.write_at(0, b"later")
    record = file.record
    assert (record.generation, record.state, record.acknowledged) == (1, State.OPEN, 0)
    assert not record.replaces
    assert bench.spool.path(record.key, 0).read_bytes() == b"first"
    assert bench.spool.path(record.key, 1).read_bytes() == b"later"
    with file.lock:
        assert bench.files.unseal_locked(file) is staged  # it is open for writing already
    owed = bench.files.owed(file, 0)
    assert (owed.generation, owed.state, owed.size) == (0, State.PENDING, 5)
    assert bench.files.owed(file, 1) is file.record

    bench.files.update(file, 1, state=State.PENDING)
    with file.lock:
        bench.files.unseal_locked(file)
    assert (file.record.generation, file.record.acknowledged) == (2, 1)


def test_a_write_to_what_the_server_has_replaces_its_sample(bench: Bench) -> None:
    file = bench.new("x.jpg", b"first")
    bench.upload(file)
    with file.lock:
        bench.files.unseal_locked(file)
    record = file.record
    assert (record.generation, record.replaces, record.acknowledged) == (1, True, -1)
    assert record.sample_id == SAMPLE


@pytest.mark.parametrize(
    ("path", "state", "becomes"),
    [
        ("x.jpg", State.LOCAL, State.OPEN),
        ("x.txt", State.LOCAL, State.LOCAL),
        ("x.jpg", State.INTERRUPTED, State.OPEN),
        ("x.txt", State.INTERRUPTED, State.OPEN),
        ("x.jpg", State.OPEN, State.OPEN),
    ],
)
def test_a_file_that_only_this_machine_needs_is_never_half(
    bench: Bench, path: str, state: State, becomes: State
) -> None:
    file = bench.new(path, b"data", state)
    with file.lock:
        bench.files.unseal_locked(file)
    assert (file.record.state, file.record.generation) == (becomes, 0)


def test_a_copy_that_the_journal_does_not_take_is_deleted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bench.new("x.jpg", b"first", State.PENDING)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    with file.lock:
        monkeypatch.setattr(bench.journal, "put", full)
        with pytest.raises(OSError, match="No space"):
            bench.files.unseal_locked(file)
        assert bench.files.stage_locked(file).read_at(0, 10) == b"first"
    assert (file.record.generation, file.record.state) == (0, State.PENDING)
    assert bench.spool.generations() == [(file.record.key, 0)]


# moved and covered


def test_a_moved_file_is_at_its_new_path_alone_also_in_the_next_mount(bench: Bench) -> None:
    file = bench.new("x.txt", b"data", State.LOCAL)
    before, generation = file.record.ctime_ns, bench.files.generation
    assert bench.files.move(file, "d/y.txt", name="new name") is None
    assert (file.path, file.record.name) == ("d/y.txt", "new name")
    assert file.record.ctime_ns >= before
    assert bench.files.generation > generation
    assert bench.names() == {"d/y.txt"}
    assert bench.files.directory_time_ns("") > 0
    assert bench.files.directory_time_ns("d") > 0
    bench.next_mount()
    assert bench.names() == {"d/y.txt"}
    (loaded,) = bench.files.all()
    assert (loaded.handles, loaded.writers, loaded.dirty, loaded.size) == (0, 0, False, 4)
    assert loaded.ino == file.ino


@pytest.mark.parametrize("how", ["uploaded", "unlinked"])
def test_what_is_no_local_file_any_more_is_covered(bench: Bench, how: str) -> None:
    file, other = bench.new("x.jpg"), bench.new("y.jpg")
    if how == "uploaded":
        bench.upload(other)
    else:
        other.unlinked = True
    assert bench.files.move(file, "y.jpg") is other
    assert bench.files.get("y.jpg") is file
    assert bench.recorded() == {"y.jpg": State.OPEN}
    assert bench.files.move(file, "y.jpg") is None  # onto itself


def test_another_local_file_is_not_covered(bench: Bench) -> None:
    file, other = bench.new("x.jpg"), bench.new("y.jpg")
    with pytest.raises(FileExists):
        bench.files.move(file, "y.jpg")
    assert bench.files.get("x.jpg") is file
    assert bench.files.get("y.jpg") is other


def test_a_move_that_the_disk_does_not_take_is_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = bench.new("x.jpg"), bench.new("y.jpg")
    bench.upload(other)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(bench.journal, "put", full)
    with pytest.raises(OSError, match="No space"):
        bench.files.move(file, "y.jpg")
    assert bench.files.get("x.jpg") is file
    assert bench.files.get("y.jpg") is other
    assert (file.path, other.path) == ("x.jpg", "y.jpg")


def test_of_two_files_of_one_path_the_second_is_shown_beside_the_first(bench: Bench) -> None:
    file = bench.new("x.jpg", b"data", State.LOCAL)
    bench.files.move(file, "away.jpg")
    bench.new("x.jpg")
    file.record = file.record.changed(path="x.jpg")
    bench.files.show_beside(file, state=State.INTERRUPTED)
    assert file.path not in ("x.jpg", "away.jpg")
    assert file.record.name == f"name of {file.path}"
    assert file.record.state is State.INTERRUPTED
    assert bench.files.get(file.path) is file


def test_a_file_whose_path_is_free_or_its_own_is_shown_there(bench: Bench) -> None:
    file = bench.new("d/x.jpg", b"data", State.LOCAL)
    bench.files.show_beside(file, error="e")
    assert (file.path, file.record.error) == ("d/x.jpg", "e")
    other = bench.new("y.jpg")
    bench.upload(other)
    bench.files.show_beside(file, path="y.jpg", name="its name")
    assert (file.path, file.record.name) == ("y.jpg", "its name")
    assert bench.files.get("y.jpg") is file
    assert bench.files.get("d/x.jpg") is None
    assert file.record in bench.journal.records()


def test_one_that_may_be_on_the_server_keeps_its_name_there(bench: Bench) -> None:
    for changes in ({"create_sent": True}, {"sample_id": SAMPLE}):
        record = Record("k", "x.jpg", "its name", State.PENDING).changed(**changes)
        assert bench.files._moved(record, "y.jpg").name == "its name"
    record = Record("k", "x.jpg", "its name", State.PENDING)
    assert bench.files._moved(record, "y.jpg").name == "name of y.jpg"


# new images for samples


@pytest.mark.parametrize(
    ("state", "handles", "covers"),
    [(State.UPLOADED, 0, True), (State.UPLOADED, 1, False), (State.OPEN, 0, False)],
)
def test_a_new_image_covers_the_file_that_became_its_sample_unless_that_is_open(
    bench: Bench, state: State, handles: int, covers: bool
) -> None:
    other = bench.new("x.jpg")
    if state is State.UPLOADED:
        bench.upload(other)
    other.handles = handles
    draft = bench.files.draft()
    draft.staged.write_at(0, b"image")
    file = bench.files.publish(draft, "x.jpg", "x.jpg", sample_id=SAMPLE, ino=7)
    assert (file is not None) == covers
    if file is not None:
        assert (file.record.replaces, file.record.sample_id, file.ino, file.size) == (True, SAMPLE, 7, 5)
        assert bench.recorded() == {"x.jpg": State.OPEN}
    else:
        assert bench.files.get("x.jpg") is other
        assert not bench.spool.has(draft.key, 0)


def test_half_of_a_new_image_is_set_aside_and_found_so_by_the_next_mount(bench: Bench) -> None:
    draft = bench.files.draft()
    file = bench.files.publish(draft, "x.jpg", "x.jpg", sample_id=SAMPLE)
    assert file is not None
    with file.lock:
        bench.files.update(file, 0, state=State.INTERRUPTED)
        bench.files.set_aside_locked(file)
    for _ in range(2):
        assert bench.names() == set()
        assert [one.path for one in bench.files.aside()] == ["x.jpg"]
        bench.next_mount()
    (half,) = bench.files.aside()
    bench.files.discard(half)
    assert bench.files.aside() == []
    assert bench.recorded() == {}


def test_a_draft_that_is_scrapped_leaves_nothing(bench: Bench) -> None:
    draft = bench.files.draft()
    assert bench.spool.generations() == [(draft.key, 0)]
    bench.files.scrap(draft)
    assert bench.spool.generations() == []


def test_a_file_without_a_name_has_its_bytes_while_it_is_open(bench: Bench) -> None:
    draft = bench.files.draft()
    draft.staged.write_at(0, b"bytes")
    file = bench.files.nameless(draft, "x.jpg", ino=9)
    assert (file.unlinked, file.size, file.ino, file.handles, file.writers) == (True, 5, 9, 1, 1)
    assert bench.names() == set()
    assert bench.spool.generations() == []
    with file.lock:
        assert bench.files.unseal_locked(file).read_at(0, 10) == b"bytes"


# deleted


@pytest.mark.parametrize("handles", [0, 1])
def test_a_deleted_file_is_gone_but_for_those_who_have_it_open(bench: Bench, handles: int) -> None:
    file = bench.new("d/x.jpg", b"data")
    file.handles = handles
    bench.files.discard(file)
    assert bench.names() == set()
    assert bench.recorded() == {}
    assert bench.spool.generations() == []
    with file.lock:
        if handles:
            assert bench.files.stage_locked(file).read_at(0, 10) == b"data"
        else:
            with pytest.raises(NoSuchFile):
                bench.files.stage_locked(file)
    bench.files.update(file, 0, state=State.LOCAL)
    assert bench.recorded() == {}


def test_what_the_catalogue_shows_is_dropped_here(bench: Bench) -> None:
    file = bench.new("x.jpg", b"data")
    bench.upload(file)
    bench.files.drop_bytes(file.record)
    assert bench.spool.generations() == []
    bench.files.drop(file)
    assert bench.names() == set()
    assert bench.recorded() == {}


def test_what_the_server_has_of_a_half_is_shown_unless_a_file_is_there(bench: Bench) -> None:
    record = Record("k" * 32, "x.jpg", "x.jpg", State.UPLOADED, sample_id=SAMPLE)
    bench.files.show_uploaded(record)
    shown = bench.files.get("x.jpg")
    assert shown is not None
    assert shown.uploaded
    assert shown.record.key != record.key
    bench.files.show_uploaded(record)
    assert bench.files.get("x.jpg") is shown
    assert len(bench.journal.records()) == 1


def test_bytes_that_a_cleaner_deleted_are_written_again_or_named(bench: Bench) -> None:
    opened = bench.new("open.jpg", b"open")
    closed = bench.new("closed.jpg", b"closed", State.PENDING)
    empty = bench.new("empty.jpg", b"", State.LOCAL)
    sent = bench.new("sent.jpg", b"sent")
    bench.upload(sent)
    here = bench.new("here.jpg", b"here")
    for file in (closed, empty, sent):
        with file.lock:
            bench.files.unstage_locked(file)
    for file in (opened, closed, empty, sent):
        bench.spool.remove(file.record.key, 0)

    assert bench.files.note_deleted() == ["closed.jpg"]

    assert bench.spool.path(opened.record.key, 0).read_bytes() == b"open"
    assert bench.spool.path(empty.record.key, 0).read_bytes() == b""
    assert (closed.record.state, closed.record.broken, closed.record.error) == (
        State.FAILED,
        errno.ENODATA,
        GONE,
    )
    assert sent.uploaded
    assert here.record.state is State.OPEN
    assert bench.files.note_deleted() == []


def test_a_failed_write_makes_it_half_a_file_until_all_is_cut_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bench.new("x.jpg", b"data")
    with file.lock:
        bench.files.note_broken_locked(file, OSError(errno.ENOSPC, "full"))
        assert (file.record.state, file.record.broken) == (State.FAILED, errno.ENOSPC)
        assert os.strerror(errno.ENOSPC) in file.record.error
        bench.files.mend_locked(file)
        assert (file.record.state, file.record.broken, file.record.error) == (State.OPEN, 0, "")
        before = file.record
        bench.files.mend_locked(file)
        assert file.record is before

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left")

        monkeypatch.setattr(bench.journal, "put", full)
        bench.files.note_broken_locked(file, OSError("without a number"))
        assert (file.record.state, file.record.broken) == (State.FAILED, errno.EIO)


def test_a_sync_that_fails_breaks_the_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    file = bench.new("x.jpg", b"data")
    with file.lock:
        assert bench.files.seal_locked(file) == 0xADF3F363  # CRC-32 of "data"

        def fail(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            bench.files.seal_locked(file)
    assert (file.record.state, file.record.broken) == (State.FAILED, errno.EIO)


# directories


def test_directories_that_were_made_are_there_until_they_are_removed(bench: Bench) -> None:
    bench.files.make_directory("d", 0o750)
    bench.files.make_directory("d/e", 0o700)
    bench.next_mount()
    assert sorted(bench.files.made_directories()) == ["d", "d/e"]
    made = bench.files.directory("d")
    assert made is not None
    assert (made.mode, made.mtime_ns >= made.atime_ns > 0) == (0o750, True)
    assert bench.files.directories_within("") == {"d"}
    assert bench.files.directories_within("d") == {"e"}
    assert bench.files.has_directory("d/e")
    bench.files.remove_directory("d/e")
    assert not bench.files.has_directory("d/e")
    bench.next_mount()
    assert bench.files.made_directories() == ["d"]


def test_a_directory_is_renamed_with_those_below_it(bench: Bench) -> None:
    for path in ("d", "d/e", "d/e/f", "de"):
        bench.files.make_directory(path, 0o755)
    bench.files.move_directories("d", "n/d")
    assert sorted(bench.files.made_directories()) == ["de", "n/d", "n/d/e", "n/d/e/f"]
    bench.next_mount()
    assert sorted(bench.files.made_directories()) == ["de", "n/d", "n/d/e", "n/d/e/f"]


def test_a_directory_has_the_time_of_its_last_entry(bench: Bench) -> None:
    bench.files.make_directory("d", 0o755)
    assert bench.files.change_directory("d", mtime_ns=5, mode=0o700)
    made = bench.files.directory("d")
    assert made is not None
    assert (made.mode, made.mtime_ns) == (0o700, 5)
    assert bench.files.directory_time_ns("d") == 5
    before = bench.files.generation
    bench.new("d/x.jpg")
    assert bench.files.directories_within("") == {"d"}  # made here, and with a file in it
    assert bench.files.directory_time_ns("d") > 5
    assert bench.files.generation > before
    assert not bench.files.change_directory("other", mode=0o700)
    assert bench.files.directory_time_ns("other") == 0
    bench.files.touch_parent("other/x")
    assert bench.files.directory_time_ns("other") > 5


def test_a_directory_that_others_made_has_the_time_of_its_newest_local_file(bench: Bench) -> None:
    file = bench.new("d/e/x.jpg", b"data", State.LOCAL)
    bench.files.update(file, 0, mtime_ns=7_900_000_000)
    bench.next_mount()
    assert bench.files.directory_time_ns("d/e") == 7_000_000_000


def test_directories_stay_as_the_journal_has_them_where_it_takes_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    files = bench.files
    for path in ("a", "a/b"):
        files.make_directory(path, 0o755)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(bench.journal, "put_directories", full)
    for change in (lambda: files.move_directories("a", "c"), lambda: files.remove_directory("a/b")):
        with pytest.raises(OSError, match="full"):
            change()
        assert sorted(files.made_directories()) == ["a", "a/b"]
