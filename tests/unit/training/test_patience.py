"""What a training reads again, and what it is told at once."""

from __future__ import annotations

import errno

import pytest

from lightlyfs.errors import (
    Cancelled,
    ContentChanged,
    Forbidden,
    LightlyFsError,
    NoContent,
    StartError,
    Unauthorized,
    Unreachable,
)
from lightlyfs.training.reading import batches_ahead, read_patiently


class Failing:
    """Reads that fail, each for a reason, and then come; with a clock that only sleeping moves."""

    def __init__(self, *errors: OSError) -> None:
        self.errors = list(errors)
        self.now = 0.0

    def read(self) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        return b"data"

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def result(self) -> bytes:
        return read_patiently(self.read, clock=lambda: self.now, sleep=self.sleep)


def caused(error: LightlyFsError) -> OSError:
    """What fsspec raises for an error of ours."""
    failure = OSError(5, "Input/output error")
    failure.__cause__ = error
    return failure


def not_opened(error: LightlyFsError) -> StartError:
    """What keeps a process from opening a dataset."""
    failure = StartError("the dataset cannot be opened")
    failure.__cause__ = error
    return failure


@pytest.mark.parametrize(
    "error",
    [
        caused(Unreachable("x")),
        caused(ContentChanged("x")),
        caused(Unauthorized("x")),
        caused(not_opened(Unreachable("x"))),
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.ENOTCONN, "the mount is away"),
        OSError(errno.ESTALE, "the mount has another version"),
    ],
    ids=repr,
)
def test_what_passes_is_waited_for(error: OSError) -> None:
    failing = Failing(*[error] * 100)
    assert failing.result() == b"data"
    assert failing.now >= 100


def test_an_outage_that_does_not_end_is_raised_after_a_quarter_of_an_hour() -> None:
    failing = Failing(*[caused(Unreachable("x"))] * 10_000)
    with pytest.raises(OSError, match="Input/output error"):
        failing.result()
    assert 850 < failing.now < 950


@pytest.mark.parametrize(
    "error",
    [
        caused(Forbidden("x")),
        caused(NoContent("x")),
        caused(Cancelled("x")),
        caused(not_opened(Forbidden("x"))),
        caused(StartError("x")),
        FileNotFoundError(),
        PermissionError(),
    ],
    ids=repr,
)
def test_what_does_not_pass_is_raised_at_once(error: OSError) -> None:
    failing = Failing(error)
    with pytest.raises(type(error)):
        failing.result()
    assert failing.now == 0


@pytest.mark.parametrize(
    ("size", "workers", "count"),
    [(1, 1, 640), (64, 1, 10), (64, 2, 5), (64, 8, 2), (64, 256, 2), (1000, 1, 2)],
)
def test_workers_share_what_is_ahead_and_each_has_two_batches(size: int, workers: int, count: int) -> None:
    assert batches_ahead(size, workers) == count
