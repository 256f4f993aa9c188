"""Hearing of what other processes write into a directory, also when it was deleted meanwhile."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightlyfs.app import sharing
from lightlyfs.app.sharing import DirectoryWatch

HEARD_S = 5.0


class Heard:
    """A watch of a directory, and whether it called since that was last asked."""

    def __init__(self, directory: Path) -> None:
        self._called = threading.Semaphore(0)
        self.watch = DirectoryWatch(directory, self._called.release)
        self.watch.start()

    def again(self, timeout_s: float = HEARD_S) -> bool:
        return self._called.acquire(timeout=timeout_s)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "watched"
    made.mkdir()
    return made


@pytest.fixture
def heard(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    monkeypatch.setattr(sharing, "_PAUSE_S", 0.01)
    monkeypatch.setattr(sharing, "_TICK_S", 0.05)
    made = Heard(directory)
    yield made
    made.watch.close()


def test_a_write_is_heard_of_and_nothing_else(heard: Heard, directory: Path) -> None:
    assert not heard.again(0.2)

    (directory / "new").write_bytes(b"1")

    assert heard.again()


def test_a_directory_that_took_the_place_of_a_deleted_one_is_watched(heard: Heard, directory: Path) -> None:
    shutil.rmtree(directory)
    assert heard.again()
    directory.mkdir()
    while heard.again(0.5):
        pass  # it is looked for now and then, until it is there

    (directory / "new").write_bytes(b"1")

    assert heard.again()


def test_a_directory_whose_files_are_still_open_is_watched_no_longer_than_it_is_there(
    heard: Heard, directory: Path
) -> None:
    """The system says that it is gone only once they are closed, as other processes do when they please."""
    with (directory / "old").open("wb"):
        assert heard.again()
        shutil.rmtree(directory)
        assert heard.again()
        directory.mkdir()
        while heard.again(0.5):
            pass

        (directory / "new").write_bytes(b"1")

        assert heard.again()


def test_without_inotify_it_calls_now_and_then(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_directory: Path) -> int:
        raise OSError("no inotify left")

    monkeypatch.setattr(sharing, "_watch", none_left)
    monkeypatch.setattr(sharing, "_PAUSE_S", 0.01)
    monkeypatch.setattr(sharing, "_TICK_S", 0.05)
    heard = Heard(directory)
    try:
        assert heard.again()
        assert heard.again()
    finally:
        heard.watch.close()
