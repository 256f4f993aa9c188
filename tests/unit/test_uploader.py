"""The table of uploads: who waits for what, and what a failure leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightlyfs.errors import Cancelled, Forbidden
from lightlyfs.staging.journal import Journal, Record, State
from lightlyfs.staging.steps import Moving
from lightlyfs.staging.uploader import Uploader

KEY = "a" * 32
WAIT_S = 5


class ScriptedSteps:
    """Uploads that wait for leave, and end as they are told."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.leave = threading.Semaphore(0)
        self.errors: list[Exception | None] = []

    def upload(self, record: Record, moving: Moving, note: Callable[[Record], None]) -> Record:
        self.begun.append(record.generation)
        assert self.leave.acquire(timeout=WAIT_S)
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        record = record.changed(sample_id="c" * 24, create_sent=True, mark="m")
        note(record)
        return record.changed(state=State.UPLOADED)


class Bench:
    def __init__(self, directory: Path) -> None:
        self.steps = ScriptedSteps()
        self.journal = Journal(directory / "journal.db")
        self.done: list[int] = []
        self.closing = threading.Event()
        self.uploader = Uploader(
            self.steps,  # type: ignore[arg-type]
            self.journal,
            clock=time.monotonic,
            closing=self.closing,
            on_done=lambda record: self.done.append(record.generation),
            on_note=lambda record: None,
        )

    def record(self, generation: int = 0) -> Record:
        record = Record(KEY, "x.jpg", "x.jpg", State.PENDING, generation=generation)
        self.journal.put(record)
        return record

    def begin(self) -> None:
        """Wait until the first upload is under way."""
        deadline = time.monotonic() + WAIT_S
        while not self.steps.begun:
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    subject = Bench(tmp_path)
    yield subject
    subject.closing.set()
    subject.steps.leave.release(100)
    subject.uploader.close()


def test_who_waits_for_a_generation_that_is_never_sent_waits_for_the_one_after(bench: Bench) -> None:
    first = bench.uploader.submit(bench.record(0))
    bench.begin()
    second = bench.uploader.submit(bench.record(1))
    third = bench.uploader.submit(bench.record(2))

    bench.steps.leave.release(2)

    assert first.result.result(WAIT_S).generation == 0
    assert second.result.result(WAIT_S).generation == third.result.result(WAIT_S).generation == 2
    assert bench.steps.begun == bench.done == [0, 2]


def test_notes_of_an_earlier_generation_leave_the_sealed_one_in_the_journal(bench: Bench) -> None:
    first = bench.uploader.submit(bench.record(0))
    bench.begin()
    bench.uploader.submit(bench.record(1))
    bench.steps.leave.release(1)
    first.result.result(WAIT_S)

    (left,) = bench.journal.records()

    assert (left.generation, left.state, left.sample_id) == (1, State.PENDING, "c" * 24)


def test_a_full_disk_under_the_journal_leaves_no_waiter_behind(bench: Bench) -> None:
    ticket = bench.uploader.submit(bench.record())
    bench.begin()
    bench.journal.close()  # whatever is noted from here on fails
    bench.steps.leave.release(1)

    with pytest.raises(OSError, match="journal"):
        ticket.result.result(WAIT_S)

    assert bench.uploader.wait_idle(WAIT_S) == 0
    assert bench.uploader.withdraw(KEY)


def test_the_end_of_the_mount_leaves_an_upload_pending_without_a_complaint(bench: Bench) -> None:
    bench.steps.errors = [Cancelled("the mount is being taken down")]
    ticket = bench.uploader.submit(bench.record())
    bench.steps.leave.release(1)

    with pytest.raises(Cancelled):
        ticket.result.result(WAIT_S)

    (left,) = bench.journal.records()
    assert (left.state, left.error) == (State.PENDING, "")


def test_what_failed_is_tried_again_on_demand_and_not_after_it_was_withdrawn(bench: Bench) -> None:
    bench.steps.errors = [Forbidden("no", status=403), Forbidden("no", status=403)]
    bench.steps.leave.release(2)
    with pytest.raises(Forbidden):
        bench.uploader.submit(bench.record()).result.result(WAIT_S)
    assert bench.uploader.retry_all() == 1
    bench.uploader.wait_idle(WAIT_S)
    assert bench.uploader.stats().failed == 1

    assert bench.uploader.withdraw(KEY)

    assert bench.uploader.retry_all() == 0
    assert bench.steps.begun == [0, 0]
