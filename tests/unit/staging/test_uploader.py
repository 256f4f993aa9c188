"""The table of uploads: who waits for what, and what a failure leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from catalogkit import Reachable

from lightlyfs.errors import Cancelled, FileExists, ServerFault, TooLarge, Unauthorized, Unreachable
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFile, LocalFiles, Ticket
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import Spool
from lightlyfs.staging.upload_steps import Moving, Note
from lightlyfs.staging.uploader import MAX_WORKERS, WORKERS, Uploader

WAIT_S = 5


class ScriptedSteps:
    """Uploads that wait for leave, and end as they are told."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.leave = threading.Semaphore(0)
        self.errors: list[Exception | None] = []

    def upload(self, record: Record, moving: Moving, note: Note) -> Record:
        self.begun.append(record.generation)
        assert self.leave.acquire(timeout=WAIT_S)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        note(sample_id="c" * 24, create_sent=True, mark="m")
        return record.changed(sample_id="c" * 24, state=State.UPLOADED)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Bench:
    def __init__(self, directory: Path, steps: ScriptedSteps | None = None) -> None:
        self.steps = steps or ScriptedSteps()
        self.journal = Journal(directory / "journal.db")
        self.files = LocalFiles(
            Spool(directory / "files"), self.journal, name_of=lambda path: path, counts=lambda path: True
        )
        file = self.files.new("x.jpg", 0o644)
        assert file is not None
        self.file = file
        self.done: list[int] = []
        self.closing = threading.Event()
        self.now = 0.0
        self.uploader = Uploader(
            self.steps,  # type: ignore[arg-type]
            self.files,
            self,
            Reachable(),
            clock=lambda: self.now,
            closing=self.closing,
        )

    def uploaded(self, file: LocalFile, record: Record) -> None:
        self.done.append(record.generation)

    def failed(self, file: LocalFile, error: Exception) -> None:
        """The record says so."""

    def submit(self, generation: int = 0, **options: float) -> Ticket:
        """Seal a generation of the file and hand it over."""
        if generation != self.file.record.generation:
            self.files.update(self.file, self.file.record.generation, generation=generation, state=State.OPEN)
        self.files.update(self.file, generation, state=State.PENDING)
        return self.uploader.submit(self.file, **options)

    def add(self, path: str) -> Ticket:
        """Seal a file and hand it over."""
        file = self.files.new(path, 0o644)
        assert file is not None
        self.files.update(file, 0, state=State.PENDING)
        return self.uploader.submit(file)

    @property
    def record(self) -> Record:
        """What the journal holds."""
        (record,) = self.journal.records()
        return record

    def begin(self) -> None:
        """Wait until the first upload is under way."""
        wait_for(lambda: bool(self.steps.begun))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    subject = Bench(tmp_path)
    yield subject
    subject.closing.set()
    subject.steps.leave.release(100)
    subject.uploader.close()


def test_who_waits_for_a_generation_that_is_never_sent_waits_for_the_one_after(bench: Bench) -> None:
    first = bench.submit(0)
    bench.begin()
    second = bench.submit(1)
    third = bench.submit(2)

    bench.steps.leave.release(2)

    assert first.result.result(WAIT_S).generation == 0
    assert second.result.result(WAIT_S).generation == third.result.result(WAIT_S).generation == 2
    assert bench.steps.begun == bench.done == [0, 2]


def test_an_earlier_generation_is_not_said_to_have_the_checksum_of_the_present_one(bench: Bench) -> None:
    bench.files.update(bench.file, 0, state=State.PENDING, checksum=1)
    assert bench.files.owed(bench.file, 0).checksum == 1
    bench.files.update(bench.file, 0, generation=1, state=State.OPEN)
    bench.files.update(bench.file, 1, state=State.PENDING, checksum=2)

    assert bench.files.owed(bench.file, 1).checksum == 2
    assert bench.files.owed(bench.file, 0).checksum == -1


def test_notes_of_an_earlier_generation_leave_the_sealed_one_in_the_journal(bench: Bench) -> None:
    first = bench.submit(0)
    bench.begin()
    bench.submit(1)
    bench.steps.leave.release(1)
    first.result.result(WAIT_S)

    left = bench.record

    assert (left.generation, left.state, left.sample_id) == (1, State.PENDING, "c" * 24)


def test_a_full_disk_under_the_journal_leaves_no_waiter_behind(bench: Bench) -> None:
    ticket = bench.submit()
    bench.begin()
    bench.journal.close()  # whatever is noted from here on fails
    bench.steps.leave.release(1)

    with pytest.raises(OSError, match="journal"):
        ticket.result.result(WAIT_S)

    assert bench.uploader.wait_idle(WAIT_S)[0] == 0
    assert bench.uploader.withdraw(bench.file.record.key)


def test_the_end_of_the_mount_leaves_an_upload_pending_without_a_complaint(bench: Bench) -> None:
    bench.steps.errors = [Cancelled("the mount is being taken down")]
    ticket = bench.submit()
    bench.steps.leave.release(1)

    with pytest.raises(Cancelled):
        ticket.result.result(WAIT_S)

    assert (bench.record.state, bench.record.error) == (State.PENDING, "")


def test_what_failed_is_tried_again_on_demand_and_not_after_it_was_withdrawn(bench: Bench) -> None:
    bench.steps.errors = [TooLarge("no", status=413), TooLarge("no", status=413)]
    bench.steps.leave.release(2)
    with pytest.raises(TooLarge):
        bench.submit().result.result(WAIT_S)
    assert bench.uploader.retry_all() == 1
    bench.uploader.wait_idle(WAIT_S)
    assert bench.uploader.stats().failed == 1

    assert bench.uploader.withdraw(bench.file.record.key)

    assert bench.uploader.retry_all() == 0
    assert bench.steps.begun == [0, 0]


def test_a_refused_token_keeps_a_file_pending_and_says_the_way_out(bench: Bench) -> None:
    bench.steps.errors = [Unauthorized("no", status=401)]
    bench.steps.leave.release(1)

    with pytest.raises(Unauthorized):
        bench.submit().result.result(WAIT_S)

    assert bench.record.state is State.PENDING
    assert "lightlyfs refresh" in bench.record.error


def test_what_is_refused_after_everything_was_tried_again_is_tried_at_once(bench: Bench) -> None:
    """It was sent with the token of before; the next try is not a minute away."""
    bench.steps.errors = [Unauthorized("the token is not valid", status=401), None]
    bench.uploader.start()
    ticket = bench.submit()
    bench.begin()
    bench.uploader.retry_all()  # the token file changed
    bench.steps.leave.release(2)

    with pytest.raises(Unauthorized):
        ticket.result.result(WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while not bench.done:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert bench.steps.begun == [0, 0]


def test_a_name_that_is_taken_is_not_owed(bench: Bench) -> None:
    bench.steps.errors = [FileExists("taken")]
    bench.steps.leave.release(1)

    with pytest.raises(FileExists):
        bench.submit().result.result(WAIT_S)

    assert bench.record.state is State.LOCAL
    assert bench.uploader.retry_all() == 0


def test_while_the_server_is_away_further_files_are_owed_at_once(bench: Bench) -> None:
    bench.steps.errors = [Unreachable("refused")]
    bench.steps.leave.release(1)
    with pytest.raises(Unreachable):
        bench.submit().result.result(WAIT_S)

    other = bench.files.new("y.jpg", 0o644)
    assert other is not None
    bench.files.update(other, 0, state=State.PENDING)
    with pytest.raises(Unreachable):
        bench.uploader.submit(other).result.result(0)

    assert bench.steps.begun == [0]
    assert bench.uploader.stats().offline
    assert bench.uploader.wait_idle(0)[0] == 0


def test_one_success_brings_back_all_that_waited_for_the_server(bench: Bench) -> None:
    bench.steps.errors = [Unreachable("refused")]
    bench.steps.leave.release(3)
    with pytest.raises(Unreachable):
        bench.submit().result.result(WAIT_S)
    other = bench.files.new("y.jpg", 0o644)
    assert other is not None
    bench.files.update(other, 0, state=State.PENDING)
    bench.uploader.submit(other)

    bench.uploader.start()
    bench.now += 100.0  # the probe is due

    deadline = time.monotonic() + WAIT_S
    while len(bench.done) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not bench.uploader.stats().offline


def test_a_delayed_upload_that_is_withdrawn_was_never_begun(bench: Bench) -> None:
    bench.submit(delay_s=2.0)

    assert bench.uploader.withdraw(bench.file.record.key)
    assert bench.steps.begun == []


def test_a_delayed_upload_begins_when_its_time_has_come(bench: Bench) -> None:
    bench.steps.leave.release(1)
    ticket = bench.submit(delay_s=2.0)
    bench.uploader.start()
    assert not ticket.result.done()

    bench.now += 2.0

    assert ticket.result.result(WAIT_S).state is State.UPLOADED


class FailingNames(ScriptedSteps):
    """Uploads of names with `bad` in them fail at first, and then wait for leave; all others end at once."""

    def __init__(self, *, fail_first: bool) -> None:
        super().__init__()
        self._fails = fail_first
        self._lock = threading.Lock()
        self.waiting: set[str] = set()
        self.failed: set[str] = set()

    def upload(self, record: Record, moving: Moving, note: Note) -> Record:
        if "bad" in record.path:
            with self._lock:
                first = self._fails and record.path not in self.failed
                (self.failed if first else self.waiting).add(record.path)
            if first:
                raise ServerFault("no", status=500)
            assert self.leave.acquire(timeout=60)
        return record.changed(sample_id="c" * 24, state=State.UPLOADED)


@pytest.fixture(params=[False, True], ids=["first-tries", "later-tries"])
def failing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Uploads half of which stand: more of them than may run at once where they are tried again."""
    subject = Bench(tmp_path, FailingNames(fail_first=request.param))
    subject.uploader.start()
    yield subject
    subject.closing.set()
    subject.steps.leave.release(1_000)
    subject.uploader.close()


def test_files_that_the_server_fails_for_do_not_keep_others_waiting(failing: Bench) -> None:
    steps = failing.steps
    assert isinstance(steps, FailingNames)
    again = steps._fails
    count = 2 * MAX_WORKERS if again else WORKERS + 4
    for number in range(count):
        failing.add(f"bad{number}.jpg")
    if again:
        wait_for(lambda: failing.uploader.stats().waiting == count)
        failing.now += 5.0
        failing.uploader.withdraw("of no file")  # has the thread that tries again look at the clock
    wait_for(lambda: len(steps.waiting) == WORKERS)

    good = failing.add("good.jpg")
    failing.now += 3.0
    good.result.result(WAIT_S)

    failing.now += 3.0
    late = failing.add("late.jpg")
    late.result.result(WAIT_S)
    assert len(steps.waiting) <= MAX_WORKERS


def test_with_one_thread_each_file_is_uploaded_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a user or of a container leaves no more."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bench.uploader.start()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for number in range(5):
        bench.add(f"{number}.jpg")
    bench.begin()
    bench.uploader.retry_all()
    bench.steps.leave.release(20)
    wait_for(lambda: len(bench.done) >= 5 and not bench.uploader.stats().under_way)
    assert len(bench.steps.begun) == 5
