"""When uploads are tried again, and which of them; without threads, step by step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lightlyfs.errors import (
    Cancelled,
    FileExists,
    Forbidden,
    ServerFault,
    TooLarge,
    Unauthorized,
    Unreachable,
)
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFile, LocalFiles, Ticket
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import GONE, Spool
from lightlyfs.staging.upload_steps import Moving, Note
from lightlyfs.staging.uploader import Uploader

FAULT = ServerFault("busy", status=503)


class Pool:
    """Keeps jobs until the test runs them."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], Any]] = []
        self.closed = False

    def submit(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self.jobs.append(lambda: fn(*args))
        return Future()

    def shutdown(self, **_: object) -> None:
        self.closed = True


class Bench:
    """An uploader over scripted steps, whose pool and whose thread the test moves."""

    def __init__(self, directory: Path) -> None:
        self.now = 1_000.0
        self.outage = 0.0
        self.new_token = False
        self.outcomes: list[Exception | None] = []
        self.tried: list[str] = []
        self.ended: list[str] = []
        self.closing = threading.Event()
        self.files = LocalFiles(
            Spool(directory / "files"),
            Journal(directory / "journal.db"),
            name_of=lambda path: path,
            counts=lambda path: True,
        )
        self.uploader = Uploader(
            self,  # type: ignore[arg-type]
            self.files,
            self,
            self,  # type: ignore[arg-type]
            clock=lambda: self.now,
            closing=self.closing,
        )
        self.pool = Pool()
        self.uploader._pool = self.pool  # type: ignore[assignment]

    # the steps, the outcome and the server

    def upload(self, record: Record, moving: Moving, note: Note) -> Record:
        self.tried.append(record.path)
        moving.moved += 1
        error = self.outcomes.pop(0) if self.outcomes else None
        if error is not None:
            raise error
        return record.changed(state=State.UPLOADED)

    def uploaded(self, file: LocalFile, record: Record) -> None:
        self.ended.append(file.path)

    def failed(self, file: LocalFile, error: Exception) -> None:
        self.ended.append(f"not {file.path}")

    def outage_s(self) -> float:
        return self.outage

    def has_new_token(self) -> bool:
        found, self.new_token = self.new_token, False
        return found

    # the test

    def file(self, path: str) -> LocalFile:
        file = self.files.new(path, 0o644)
        assert file is not None
        self.files.update(file, 0, state=State.PENDING)
        return file

    def submit(self, path: str = "x.jpg", **options: float) -> Ticket:
        return self.uploader.submit(self.file(path), **options)

    def work(self) -> list[str]:
        """Run what the pool has; the paths that were tried."""
        before = len(self.tried)
        while self.pool.jobs:
            self.pool.jobs.pop(0)()
        return self.tried[before:]

    def step(self) -> float | None:
        """Let the thread that tries again look once; for how long it would wait."""
        pauses: list[float | None] = []

        def wait(pause: float | None = None) -> bool:
            pauses.append(pause)
            self.closing.set()
            return True

        self.uploader._is_due.wait = wait  # type: ignore[method-assign]
        self.closing.clear()
        self.uploader._retry_loop()
        self.closing.clear()
        return pauses[0]

    def state_of(self, path: str = "x.jpg") -> tuple[State, str]:
        file = self.files.get(path)
        assert file is not None
        return file.record.state, file.record.error


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_an_upload_begins_at_once_and_is_counted(bench: Bench) -> None:
    assert bench.step() is None
    ticket = bench.submit()
    assert bench.uploader.stats() == (0, 1, 0, 0, "")
    assert bench.step() is None  # what is on its way is not tried again
    assert bench.work() == ["x.jpg"]
    assert ticket.result.result(0).state is State.UPLOADED
    assert bench.uploader.stats() == (1, 0, 0, 0, "")
    assert bench.ended == ["x.jpg"]


@pytest.mark.parametrize(
    ("error", "delays"),
    [
        (FAULT, [5, 10, 20, 40, 80, 160, 300, 300]),
        (OSError(28, "No space left"), [5, 10, 20]),
        (Unauthorized("no", status=401), [60, 60, 60, 60, 60, 600, 600]),
        (Forbidden("no", status=403), [60, 60, 60, 60, 60, 600]),
    ],
    ids=["fault", "disk", "token", "permission"],
)
def test_a_failed_upload_is_tried_again_later_and_later(
    bench: Bench, error: Exception, delays: list[float]
) -> None:
    bench.outcomes = [error] * len(delays)
    ticket = bench.submit()
    bench.work()
    assert ticket.result.exception(0) is error
    for delay in delays:
        assert bench.uploader.stats() == (0, 0, 1, 0, "")
        bench.now += delay - 0.5
        pause = bench.step()
        assert pause == (0.5 if isinstance(error, Unauthorized | Forbidden) else pytest.approx(0.5))
        assert bench.work() == []
        bench.now += 0.5
        bench.step()
        assert bench.work() == ["x.jpg"]
    assert bench.uploader.stats() == (1, 0, 0, 0, "")
    assert ticket.result.exception(0) is error  # its caller was told


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (FAULT, State.PENDING, "busy"),
        (TooLarge("too much", status=413), State.FAILED, "too much"),
        (FileNotFoundError(2, "No such file"), State.FAILED, GONE),
        (OSError(28, "full"), State.PENDING, "[Errno 28] full"),
        (Cancelled("the end"), State.PENDING, ""),
        (FileExists("taken"), State.LOCAL, "taken"),
        (Unauthorized("no", status=401), State.PENDING, "no; then run: lightlyfs refresh MOUNTPOINT"),
        (RuntimeError("a fault of ours"), State.FAILED, "a fault of ours"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_failure_leaves(bench: Bench, error: Exception, state: State, text: str) -> None:
    bench.outcomes = [error]
    bench.submit()
    bench.work()
    assert bench.state_of() == (state, text)
    assert bench.ended == ["not x.jpg"]
    failed = int(state is State.FAILED)
    assert bench.uploader.stats()[1:4] == (0, int(state is State.PENDING), failed)
    bench.now += 10_000
    bench.step()
    assert bench.work() == ([] if state is not State.PENDING else ["x.jpg"])


def test_all_is_tried_again_on_demand(bench: Bench) -> None:
    bench.outcomes = [FAULT, TooLarge("no", status=413), FAULT]
    for path in ("a.jpg", "b.jpg", "c.jpg"):
        bench.submit(path)
    bench.pool.jobs[0]()
    bench.pool.jobs[1]()
    del bench.pool.jobs[:2]
    assert bench.uploader.stats() == (0, 1, 1, 1, "")
    assert bench.uploader.retry_all() == 2  # not what is on its way
    assert bench.work() == ["c.jpg", "a.jpg", "b.jpg"]
    assert bench.uploader.stats()[:2] == (2, 0)
    bench.step()
    assert bench.work() == ["c.jpg"]  # that one failed: it is tried again at once, and as for the first time
    assert bench.uploader.stats() == (3, 0, 0, 0, "")


def test_failures_are_counted_from_zero_once_all_was_tried_again(bench: Bench) -> None:
    bench.outcomes = [FAULT] * 10
    bench.submit()
    bench.work()
    bench.uploader.retry_all()
    bench.work()
    bench.now += 5
    bench.step()
    assert bench.work() == ["x.jpg"]


def test_a_new_token_has_all_tried_again(bench: Bench) -> None:
    bench.outcomes = [Unauthorized("no", status=401), FAULT]
    bench.submit("a.jpg")
    bench.submit("b.jpg")
    bench.work()
    bench.new_token = True
    assert bench.step() is None
    assert bench.work() == ["a.jpg", "b.jpg"]
    bench.new_token = True
    bench.step()
    assert bench.new_token  # nothing is refused: it is not looked for


# a server that cannot be reached


def test_while_the_server_is_away_one_upload_is_the_probe(bench: Bench) -> None:
    away = Unreachable("no route")
    bench.outcomes = [away, away, away]
    tickets = [bench.submit(path) for path in ("a.jpg", "b.jpg")]
    assert bench.work() == ["a.jpg", "b.jpg"]
    assert all(ticket.result.exception(0) is away for ticket in tickets)
    assert bench.uploader.stats() == (0, 0, 2, 0, "no route")
    late = bench.submit("c.jpg")
    assert isinstance(late.result.exception(0), Unreachable)
    assert bench.state_of("c.jpg") == (State.PENDING, "no route")
    assert bench.uploader.wait_idle(0)[0] == 0

    assert bench.step() == 3.0
    bench.now += 2.9
    assert bench.step() == pytest.approx(0.1)
    assert bench.work() == []
    bench.now += 0.1
    assert bench.step() is None
    assert len(bench.pool.jobs) == 1
    assert bench.step() is None  # while it is on its way, no other
    assert bench.work() == ["a.jpg"]
    bench.now += 3.5
    bench.step()
    assert bench.work() == ["a.jpg", "b.jpg", "c.jpg"]
    assert bench.uploader.stats() == (3, 0, 0, 0, "")


def test_what_is_due_waits_for_the_next_probe_while_the_server_is_away(bench: Bench) -> None:
    bench.outcomes = [FAULT, Unreachable("no route")]
    bench.submit("a.jpg")
    bench.work()
    bench.now += 4
    bench.submit("b.jpg")
    bench.work()
    bench.now += 2  # a.jpg is due since a second ago, the probe in another
    assert bench.step() == 1.0
    assert bench.work() == []
    bench.now += 1
    bench.step()
    assert bench.work() == ["a.jpg", "b.jpg"]


def test_another_failure_shows_that_the_server_is_there(bench: Bench) -> None:
    bench.outcomes = [Unreachable("no route"), Unreachable("no route"), FAULT]
    for path in ("a.jpg", "b.jpg"):
        bench.submit(path)
    bench.work()
    bench.now += 3
    bench.step()
    tried = bench.work()
    assert tried[0] == "a.jpg"
    assert "b.jpg" in tried
    assert bench.uploader.stats().offline == ""


def test_the_end_of_the_mount_says_nothing_of_the_server(bench: Bench) -> None:
    bench.outcomes = [Unreachable("no route"), Cancelled("the end")]
    bench.submit()
    bench.work()
    bench.now += 3
    bench.step()
    bench.work()
    assert bench.uploader.stats().offline == "no route"


@pytest.mark.parametrize(("outage", "tried"), [(9.9, True), (10.0, False)])
def test_a_server_that_does_not_answer_for_ten_seconds_is_away(
    bench: Bench, outage: float, tried: bool
) -> None:
    bench.outage = outage
    ticket = bench.submit()
    assert bool(bench.work()) == tried
    assert (ticket.result.exception(0) is None) == tried
    assert bool(bench.uploader.stats().offline) != tried


# delayed, hastened, withdrawn, and one behind the other


def test_a_delayed_upload_waits_for_its_time_or_for_who_hastens_it(bench: Bench) -> None:
    bench.submit("a.jpg", delay_s=2.0)
    assert bench.uploader.stats() == (0, 0, 1, 0, "")
    assert bench.step() == 2.0
    bench.now += 1.95
    assert bench.step() == 0.1  # not less, so that it never goes round and round
    assert bench.work() == []
    bench.now += 0.05
    bench.step()
    assert bench.work() == ["a.jpg"]

    file = bench.file("b.jpg")
    bench.uploader.submit(file, delay_s=2.0)
    bench.uploader.hasten(file)
    bench.uploader.hasten(file)
    assert bench.work() == ["b.jpg"]
    bench.uploader.hasten(file)
    assert bench.work() == []


def test_while_the_server_is_away_nothing_is_hastened(bench: Bench) -> None:
    file = bench.file("b.jpg")
    bench.uploader.submit(file, delay_s=2.0)
    bench.outcomes = [Unreachable("no route")]
    bench.submit("a.jpg")
    bench.work()
    bench.uploader.hasten(file)
    assert bench.work() == []


def test_what_is_on_its_way_is_not_withdrawn(bench: Bench) -> None:
    file = bench.file("x.jpg")
    bench.uploader.submit(file)
    assert not bench.uploader.withdraw(file.record.key)
    bench.outcomes = [FAULT]
    bench.work()
    assert bench.uploader.withdraw(file.record.key)
    assert bench.uploader.withdraw(file.record.key)
    assert bench.uploader.stats() == (0, 0, 0, 0, "")
    bench.now += 100
    bench.step()
    assert bench.work() == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_later_generation_follows_the_one_that_is_on_its_way(bench: Bench, fails: bool) -> None:
    file = bench.file("x.jpg")
    first = bench.uploader.submit(file)
    bench.files.update(file, 0, generation=1, state=State.OPEN)
    bench.files.update(file, 1, state=State.PENDING)
    second = bench.uploader.submit(file)
    assert bench.uploader.stats() == (0, 1, 0, 0, "")
    bench.outcomes = [FAULT] if fails else []
    bench.files.owed = lambda file, generation: file.record  # type: ignore[method-assign]
    assert bench.work() == ["x.jpg", "x.jpg"]
    assert (first.result.exception(0) is FAULT) == fails
    assert second.result.exception(0) is None
    assert bench.uploader.stats() == (1 if fails else 2, 0, 0, 0, "")


# waiting for the end


def test_a_waiter_hears_what_is_under_way_and_whether_it_moves(bench: Bench) -> None:
    assert bench.uploader.wait_idle(0)[0] == 0
    bench.submit("a.jpg")
    bench.submit("b.jpg", delay_s=2.9)
    bench.submit("c.jpg", delay_s=60.0)
    under_way, moved = bench.uploader.wait_idle(0)
    assert under_way == 2  # and what begins soon
    bench.now += 2
    assert bench.uploader.wait_idle(0) == (2, moved)
    bench.outcomes = [FAULT]
    bench.work()
    assert bench.uploader.wait_idle(0)[0] == 1  # what failed once is not waited for
    bench.now += 5
    bench.step()
    bench.work()
    assert bench.uploader.wait_idle(0)[1] > moved


def drain(bench: Bench, each_second: Callable[[], object]) -> float:
    """Wait for the end as a mount does, for ten seconds without progress; for how long that was."""

    class Seconds:
        def wait(self, seconds: float) -> None:
            bench.now += seconds
            each_second()

        def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
            return condition()

        def notify_all(self) -> None:
            pass

    began = bench.now
    bench.uploader._is_idle = Seconds()  # type: ignore[assignment]
    bench.uploader.drain(10.0)
    return bench.now - began


def test_the_end_waits_for_what_moves(bench: Bench) -> None:
    names = [f"{number:02d}.jpg" for number in range(20)]
    for name in names:
        bench.submit(name)

    assert drain(bench, lambda: bench.pool.jobs and bench.pool.jobs.pop(0)()) == 20
    assert bench.ended == names


def test_the_end_does_not_wait_for_an_upload_that_fails_again_and_again(bench: Bench) -> None:
    """Each try gets as far as the ones before it, which is no progress."""
    bench.submit()

    def retry() -> None:
        bench.outcomes = [FAULT]
        bench.uploader.retry_all()
        bench.work()
        bench.uploader.retry_all()

    assert drain(bench, retry) <= 12
    assert len(bench.tried) > 1


def test_the_end_does_not_wait_for_files_that_are_closed_meanwhile(bench: Bench) -> None:
    bench.submit("first.jpg")
    later = [f"{number}.jpg" for number in range(100)]

    def write_on() -> None:
        bench.submit(later.pop(0))
        bench.pool.jobs.pop()()

    assert drain(bench, write_on) <= 11
    assert bench.ended


def test_the_end_waits_for_the_last_generation_of_a_file_that_was_closed_by_then(bench: Bench) -> None:
    file = bench.file("x.jpg")
    bench.uploader.submit(file)
    bench.files.update(file, 0, generation=1, state=State.OPEN)
    bench.files.update(file, 1, state=State.PENDING)
    bench.uploader.submit(file)
    bench.files.owed = lambda file, generation: file.record  # type: ignore[method-assign]

    assert drain(bench, lambda: bench.pool.jobs.pop(0)()) == 2
    assert bench.ended == ["x.jpg", "x.jpg"]


def test_a_pool_that_is_shut_down_leaves_it_to_the_journal(bench: Bench) -> None:
    bench.uploader.close()
    bench.submit()
    assert bench.uploader.stats() == (0, 0, 1, 0, "")
    assert bench.state_of()[0] is State.PENDING
    assert bench.step() == 0.1
