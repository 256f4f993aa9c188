"""Databases of ours: put aside where SQLite says that they are damaged, and left alone for all else."""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from lightlyfs import database
from lightlyfs.cache.block_index import BlockIndex
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.desktop.thumbnails import PictureStore
from lightlyfs.errors import StartError
from lightlyfs.fetch.urls import UrlStore
from lightlyfs.staging.journal import Journal

Opened = Callable[[Path], object]

CACHES: dict[str, Opened] = {
    "catalogue": CatalogStore,
    "index": BlockIndex,
    "thumbnails": PictureStore,
    "urls": lambda path: UrlStore(path, "me", wall_clock=lambda: 0.0, later=lambda job: job()),
}
# what passes: the file is as good as it was
PASSING = {
    "full": sqlite3.SQLITE_FULL,
    "read-only": sqlite3.SQLITE_READONLY,
    "not permitted": sqlite3.SQLITE_CANTOPEN,
    "locked": sqlite3.SQLITE_BUSY,
    "I/O error": sqlite3.SQLITE_IOERR,
}
ODD_NAMES = ["a#b.db", "a?mode=ro.db", "a%20b.db", "a b.db", "a\nb.db", "file:x.db", "ä\udcff.db"]


def make(opened: Opened, path: Path) -> bytes:
    """A database that was used and closed; what is in its file."""
    opened(path).close()  # type: ignore[attr-defined]
    return path.read_bytes()


@pytest.mark.parametrize("opened", [*CACHES.values(), Journal], ids=[*CACHES, "journal"])
@pytest.mark.parametrize("code", PASSING.values(), ids=list(PASSING))
def test_what_passes_deletes_nothing(
    opened: Opened, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make(opened, tmp_path / "x.db")

    def fail(*_: object, **__: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("as SQLite says it")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(database, "open_file", fail)
    try:
        opened(tmp_path / "x.db")
    except (sqlite3.OperationalError, StartError) as error:
        assert "as SQLite says it" in str(error)  # noqa: PT017 - the stores that bypass themselves raise none

    assert (tmp_path / "x.db").read_bytes() == before
    assert list(tmp_path.glob("*.damaged*")) == []


@pytest.mark.parametrize("opened", CACHES.values(), ids=list(CACHES))
def test_a_lock_of_another_process_deletes_nothing(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.01)
    monkeypatch.setattr("lightlyfs.catalog.store._WRITE_TIMEOUT_S", 0.01)
    path = tmp_path / "x.db"
    before = make(opened, path)
    other = sqlite3.connect(path)
    other.execute("PRAGMA journal_mode = DELETE")
    other.execute("BEGIN EXCLUSIVE")
    try:
        opened(path)
    except sqlite3.OperationalError as error:
        assert "locked" in str(error)  # noqa: PT017 - as above
    other.close()

    assert list(tmp_path.glob("*.damaged*")) == []
    assert path.stat().st_size == len(before)


@pytest.mark.parametrize("opened", CACHES.values(), ids=list(CACHES))
@pytest.mark.parametrize("damage", ["no database", "other tables", "no text", "a directory"])
def test_a_damaged_cache_is_kept_beside_the_one_that_is_begun(
    opened: Opened, damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.db"
    if damage == "no database":
        path.write_bytes(b"this is no database" * 1000)
    elif damage == "no text":
        path.write_bytes(make(opened, path).replace(b"CREATE TABLE", b"CREATE T\xe8BLE"))
    elif damage == "a directory":
        path.mkdir()
        (path / "x").write_bytes(b"x")
    else:
        db = sqlite3.connect(path)
        db.execute("CREATE VIEW sample AS SELECT 1")
        db.close()
    opened(path).close()  # type: ignore[attr-defined]

    assert path.read_bytes()[:6] == b"SQLite"
    assert [one.name for one in tmp_path.glob("*.damaged")] == ["x.db.damaged"]


def written(path: Path, query: str = "") -> None:
    db = database.open_file(path, 1.0, query)
    try:
        with database.transaction(db):
            db.execute("PRAGMA user_version = 7")
    finally:
        db.close()


@pytest.mark.parametrize("version", [3, 255])
def test_a_header_that_lets_nothing_be_written_is_damage_and_a_disk_is_not(
    version: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.db"
    sound = make(CACHES["index"], path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        written(path, "mode=ro")
    path.write_bytes(sound[:18] + bytes([version]) + sound[19:])
    with pytest.raises(database.Damaged) as caught:
        written(path)
    assert database.is_damage(caught.value)
    database.see_writable(path)
    make(CACHES["index"], path)
    assert [one.name for one in tmp_path.glob("*.damaged")] == ["x.db.damaged"]


class Rival:
    """Another process, which has a transaction open; it moves each time that `waiting` tries to begin one."""

    def __init__(self, path: Path, waiting: sqlite3.Connection, commits: int) -> None:
        self.tries, self.commits = 0, commits
        self.db = database.connect(path)
        self.db.execute("CREATE TABLE moved (number)")
        self.db.execute("BEGIN IMMEDIATE")
        waiting.set_trace_callback(self.move)

    def move(self, statement: str) -> None:
        if statement != "BEGIN IMMEDIATE":
            return
        self.tries += 1
        if self.tries <= self.commits:
            self.db.execute("INSERT INTO moved VALUES (?)", (self.tries,))
            self.db.execute("COMMIT")
            if self.tries < self.commits:
                self.db.execute("BEGIN IMMEDIATE")


def test_a_transaction_waits_for_others_while_they_end_theirs(tmp_path: Path) -> None:
    db = database.connect(tmp_path / "x.db", timeout_s=0.0)
    rival = Rival(tmp_path / "x.db", db, commits=5)
    with database.transaction(db):
        db.execute("INSERT INTO moved VALUES (0)")
    assert rival.tries == 5
    assert db.execute("SELECT count(*) FROM moved").fetchone() == (6,)


@pytest.mark.parametrize(
    ("commits", "longest_s", "tries"), [(0, 30.0, 2), (1_000, 0.0, 1)], ids=["stuck", "endless"]
)
def test_a_transaction_does_not_wait_for_one_that_is_stuck_nor_without_end(
    commits: int, longest_s: float, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_IN_ALL_S", longest_s)
    db = database.connect(tmp_path / "x.db", timeout_s=0.0)
    rival = Rival(tmp_path / "x.db", db, commits)
    with pytest.raises(sqlite3.OperationalError) as caught, database.transaction(db):
        pass
    assert database.is_busy(caught.value)
    assert rival.tries == tries


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_means_its_file_and_no_option(name: str, tmp_path: Path) -> None:
    database.connect(tmp_path / name).close()
    (tmp_path / name).chmod(0o600)
    db = database.open_file(tmp_path / name, 0.0, "mode=ro")
    db.execute("SELECT * FROM sqlite_master").fetchall()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        db.execute("CREATE TABLE x (y)")
    db.close()

    assert {one.name.removesuffix("-wal").removesuffix("-shm") for one in tmp_path.iterdir()} == {name}


def test_no_query_has_numbered_parameters() -> None:
    """Python 3.14 takes them by name alone, and we give sequences."""
    package = Path(database.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"[ (=]\?[0-9]", line)
    ]
    assert found == []


def test_failures_are_logged_by_kind_and_over_once_none_came_for_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    failures = database.Failures(database.log, "it fails", "it works", lambda: now[0])

    def said() -> list[str]:
        texts = [record.getMessage().partition(";")[0] for record in caplog.records]
        caplog.clear()
        return texts

    failures.note_success()
    assert said() == []
    for _ in range(3):
        failures.note(OSError(errno.ENOSPC, "no space"))
        failures.note(sqlite3.OperationalError("database or disk is full"))
        failures.note(OSError(errno.EIO, "worn out"))
    assert said() == ["it fails: [Errno 28] no space", "it fails: [Errno 5] worn out"]

    now[0] = 59.0
    failures.note_success()
    failures.note(OSError(errno.EIO, "worn out"))
    now[0] = 61.0
    failures.note_success()
    assert said() == []

    now[0] = 120.0
    failures.note_success()
    failures.note_success()
    failures.note(OSError(errno.EIO, "worn out"))
    assert said() == ["it works", "it fails: [Errno 5] worn out"]
