"""A hostile index: an error message, and nothing written anywhere."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from catalogkit import FakeRemote, Record, World
from contentkit import sample_id

from lightlyfs.app.exported_index import export_index, import_for_later
from lightlyfs.errors import StartError

DATASET = "d" * 24
NAMES = [
    "a.jpg",
    "deep/er/b.jpg",
    "deep/er/b.jpg",
    "odd//name",
    ".lightlyfs/c",
    "x" * 300,
    "\ud800.jpg",
    "d/..",
]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index as `index export` makes it, of odd names too."""
    remote = FakeRemote({sample_id(number): Record(name, 100, 10) for number, name in enumerate(NAMES)})
    (tmp_path / "made").mkdir()
    world = World(tmp_path / "made", remote)
    world.refresher.list_now()
    world.catalog.record_facts(sample_id(0), 10, "etag")
    world.catalog.close()
    (catalogue,) = (tmp_path / "made").glob("*.db")
    assert export_index(catalogue, tmp_path / "i#n?d%e x", DATASET) == len(NAMES)
    return tmp_path / "i#n?d%e x"


def taken(index: Path, tmp_path: Path) -> bool:
    root = tmp_path / "root"
    root.mkdir(mode=0o700, exist_ok=True)
    return import_for_later(index, root, None)[1]


def test_an_index_of_odd_names_is_taken(index: Path, tmp_path: Path) -> None:
    assert taken(index, tmp_path)
    assert not taken(index, tmp_path)  # it is there already
    assert {path.name for path in (tmp_path / "root" / DATASET).iterdir()} == {"catalog.db", "lock"}


def test_a_folder_that_is_not_there_is_told_in_one_line(index: Path, tmp_path: Path) -> None:
    (catalogue,) = (tmp_path / "made").glob("*.db")
    target = tmp_path / "none/x"
    with pytest.raises(StartError, match=f"^the index cannot be written to {target}: No such file") as caught:
        export_index(catalogue, target, DATASET)
    assert str(caught.value).endswith("directory")


SCHEMA = {
    "a view": "DROP TABLE meta; CREATE VIEW meta AS WITH RECURSIVE n (key, value) AS"
    " (SELECT 1, 1 UNION ALL SELECT key + 1, 1 FROM n) SELECT * FROM n",
    "one more view": "CREATE VIEW v AS SELECT load_extension('x')",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM sample; END",
    "a virtual table": "CREATE VIRTUAL TABLE v USING fts5 (x)",
    "one more table": "CREATE TABLE sqlite (x)",
    "one more column": "ALTER TABLE sample ADD COLUMN x AS (ino + 1)",
    "one more index": "CREATE INDEX i ON sample (upper(name))",
    "an index that is gone": "DROP INDEX sample_by_ino",
    "another version": "PRAGMA user_version = 9",
}
ROWS = {
    "another directory's path as its dataset": "UPDATE meta SET value = '../../out' WHERE key = 'index_of'",
    "no dataset": "DELETE FROM meta WHERE key = 'index_of'",
    "a time that is none": "UPDATE meta SET value = 'nan' WHERE key = 'checked_at'",
    "the future": f"UPDATE meta SET value = '{time.time() + 1e6}' WHERE key = 'listed_at'",
    "a number of bytes": "UPDATE meta SET value = x'ff' WHERE key = 'listed'",
    "an odd record": "UPDATE meta SET value = '[1, 2]' WHERE key = 'dataset'",
    "a deep record": f"UPDATE meta SET value = '{'[' * 100_000}' WHERE key = 'dataset'",
    "a name with a slash": "UPDATE sample SET name = '../../x' WHERE name = 'a.jpg'",
    "a name that goes up": "UPDATE sample SET name = '..' WHERE name = 'a.jpg'",
    "a name that stands for another": "UPDATE sample SET name = '%2F' WHERE name = 'a.jpg'",
    "an empty name": "UPDATE sample SET name = '' WHERE name = 'a.jpg'",
    "a name with NUL": "UPDATE sample SET name = 'a' || char(0) WHERE name = 'a.jpg'",
    "a name that is no text": "UPDATE sample SET name = CAST(x'ff' AS TEXT) WHERE name = 'a.jpg'",
    "a name that is a number": "UPDATE sample SET name = x'61' WHERE name = 'a.jpg'",
    "a long name": f"UPDATE sample SET name = '{'y' * 256}' WHERE name = 'a.jpg'",
    "the unlisted folder": "UPDATE directory SET name = '.lightlyfs' WHERE name = 'deep'",
    "a directory that goes up": "UPDATE directory SET name = '..' WHERE name = 'deep'",
    "a directory of itself": "UPDATE directory SET parent = ino WHERE name = 'deep'",
    "another number": "UPDATE directory SET ino = ino + 1 WHERE name = 'er'",
    "another inode": "UPDATE sample SET ino = 1 WHERE name = 'a.jpg'",
    "a directory that is not there": "UPDATE sample SET dir = 7 WHERE name = 'a.jpg'",
    "another name": "UPDATE sample SET file_name = CAST('/etc/passwd' AS BLOB) WHERE name = 'a.jpg'",
    "bytes for a name": "UPDATE sample SET file_name = x'ff' WHERE name = 'a.jpg'",
    "a short id": "UPDATE sample SET id = x'01' WHERE name = 'a.jpg'",
    "a text for an id": "UPDATE sample SET id = 'abcdefghijkl' WHERE name = 'a.jpg'",
    "a size below zero": "UPDATE sample SET size = -1 WHERE name = 'a.jpg'",
    "a size that is too large": "UPDATE sample SET size = 1 << 62 WHERE name = 'a.jpg'",
    "a hint that is text": "UPDATE sample SET hint = 'x' WHERE name = 'a.jpg'",
    "a time before all": "UPDATE sample SET mtime = -(1 << 62) WHERE name = 'a.jpg'",
    "two lines of etag": "UPDATE sample SET etag = 'x' || char(10) || 'Host: y' WHERE name = 'a.jpg'",
    "facts that were never reported": "UPDATE sample SET verified = 1, size = NULL WHERE name = 'a.jpg'",
}


@pytest.mark.parametrize("statements", [*SCHEMA.values(), *ROWS.values()], ids=[*SCHEMA, *ROWS])
def test_what_no_listing_would_write_is_refused(statements: str, index: Path, tmp_path: Path) -> None:
    db = sqlite3.connect(index)
    db.executescript(statements)
    db.commit()
    db.close()
    refused(index, tmp_path)


def garbage(index: Path) -> None:
    with index.open("r+b") as file:
        file.seek(4096 * 2)
        file.write(os.urandom(4096))


def no_text(index: Path) -> None:
    index.write_bytes(index.read_bytes().replace(b"CREATE TABLE", b"CREATE T\xe8BLE"))


def cut(index: Path) -> None:
    os.truncate(index, index.stat().st_size // 2)


def pipe(index: Path) -> None:
    index.unlink()
    os.mkfifo(index)


def directory(index: Path) -> None:
    index.unlink()
    index.mkdir()


def endless(index: Path) -> None:
    index.unlink()
    index.symlink_to("/dev/zero")


@pytest.mark.parametrize("damage", [garbage, no_text, cut, pipe, directory, endless])
def test_what_is_no_index_is_refused(damage: Callable[[Path], None], index: Path, tmp_path: Path) -> None:
    damage(index)
    refused(index, tmp_path)


def refused(index: Path, tmp_path: Path) -> None:
    """One line says why, and no file is anywhere that was not there before."""
    before = {path for path in tmp_path.rglob("*") if "root" not in path.parts}
    with pytest.raises(StartError) as caught:
        taken(index, tmp_path)
    assert str(index) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert {path for path in tmp_path.rglob("*") if "root" not in path.parts} == before
    assert not list((tmp_path / "root").glob("*/*.db"))
