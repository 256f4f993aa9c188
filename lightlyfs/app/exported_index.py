"""Exports, checks and imports the catalogue as one file, so that workers need not list the dataset again.

The file is SQLite, like the catalogue itself: loading it is a copy and a check, which is the fastest form. It
includes what storage reported, so that workers open their first file without asking for its size.

An index from another user is untrusted input. Its tables, names, sizes and times are compared with what a
listing would have written; a hostile index causes an error message and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lightlyfs import database, places
from lightlyfs.catalog import tables
from lightlyfs.catalog.freshness import UNLISTED
from lightlyfs.catalog.names import is_component, is_plain_component, split_path
from lightlyfs.catalog.remote import MAX_BYTES, MAX_SECONDS, MIN_SECONDS, DatasetState
from lightlyfs.catalog.tables import INDEX_OF, SCHEMA, SCHEMA_VERSION
from lightlyfs.errors import StartError
from lightlyfs.forks import FORK_GATE
from lightlyfs.tree import ROOT_INO, directory_ino, sample_ino

_COPY_BYTES = 8 << 20


def export_index(catalogue: Path, target: Path, dataset_id: str) -> int:
    """Write the current state of a catalogue to a file, in one step; return how many samples it has.

    Mounts that use the catalogue are not disturbed. StartError where there is nothing to export, or the
    file cannot be written.
    """
    if not catalogue.exists():
        raise StartError("the samples were not listed on this machine yet; mount the dataset once")
    try:
        directory = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise StartError(f"the index cannot be written to {target}: {error.strerror}") from error
    try:
        copy = directory / "index"
        with contextlib.closing(database.open_file(catalogue, 60.0, "mode=ro")) as db:
            db.execute("VACUUM INTO ?", (str(copy),))
        with contextlib.closing(database.open_file(copy, 0.0)) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (INDEX_OF, dataset_id))
            db.execute("DELETE FROM meta WHERE key = ?", (UNLISTED,))
            listed = db.execute("SELECT value FROM meta WHERE key = 'listed_at'").fetchone()
            (samples,) = db.execute("SELECT count(*) FROM sample").fetchone()
        if listed is None:
            raise StartError(
                "the samples were not listed to the end yet; try again when a mount has done that"
            )
        os.replace(copy, target)
    except (OSError, sqlite3.Error) as error:
        raise StartError(f"the index cannot be written to {target}: {error}") from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return int(samples)


class Header(NamedTuple):
    """The header of an index: its dataset, and when it was last known to be true, in unix seconds."""

    dataset_id: str
    checked_at: float


def import_index(index: Path, place: places.DatasetPlace, tag: str | None, dataset_id: str) -> bool:
    """Install an exported catalogue unless this machine has a newer one or uses one; return whether it did.

    Raises StartError if the file is no index, or one of another version or dataset. Call it before the
    catalogue is opened, from the process that holds the place.
    """
    header = _header(index, index)
    if header.dataset_id != dataset_id:
        raise StartError(f"{index} is the index of another dataset: {header.dataset_id}")
    target = place.path / places.catalogue_name(tag)
    if not place.alone or _checked_at(target) >= header.checked_at:
        return False
    with _checked_copy(index, place.path) as (copy, header):
        if header.dataset_id != dataset_id:
            raise StartError(f"{index} was changed while it was read")
        for suffix in ("-wal", "-shm"):
            target.with_name(target.name + suffix).unlink(missing_ok=True)
        os.replace(copy, target)
    return True


def import_for_later(index: Path, server_root: Path, tag: str | None) -> tuple[Header, bool]:
    """Store an index for later mounts to start with; return its header, and whether it was taken.

    StartError where the file is no index, or a mount uses the dataset's directory now.
    """
    header = _header(index, index)
    with places.DatasetPlace(server_root, header.dataset_id) as place:
        if not place.alone:
            raise StartError(
                f"a mount, or a program over fsspec, uses the names of dataset {header.dataset_id} on this "
                "machine; unmount or end it first"
            )
        return header, import_index(index, place, tag, header.dataset_id)


@contextlib.contextmanager
def _checked_copy(index: Path, directory: Path) -> Iterator[tuple[Path, Header]]:
    """Return a private copy, after checking that a listing could have written it."""
    copy = None
    try:
        descriptor, name = tempfile.mkstemp(prefix="index.", dir=directory)
        copy = Path(name)
        with open(descriptor, "wb") as target, _open_plain(index) as source:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        yield copy, _header(index, copy, check_foreign)
    except OSError as error:
        raise StartError(f"{index} cannot be taken over: {error.strerror}") from None
    finally:
        if copy is not None:
            copy.unlink(missing_ok=True)


def _open_plain(index: Path) -> BinaryIO:
    """Open a regular file, never a device or a pipe, which have no end; raises StartError."""
    file = open(index, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise StartError(f"{index} is no file")


def _header(index: Path, path: Path, check: Callable[[sqlite3.Connection], None] = lambda _: None) -> Header:
    """Return what an index, or a copy of it at a path, says of itself; StartError where it is none."""
    try:
        _open_plain(path).close()
        with FORK_GATE, database.damage_told(), contextlib.closing(database.open_foreign(path)) as db:
            check(db)
            meta = meta_of(db)
    except (sqlite3.Error, OSError) as error:
        raise StartError(
            f"{index} is no index made by `lightlyfs index export` of this version: {error}"
        ) from None
    return Header(meta[INDEX_OF], float(meta.get("checked_at", 0)))


def _checked_at(catalogue: Path) -> float:
    """Return when a catalogue was last known to be true, in unix seconds; 0 where there is none."""
    if not catalogue.exists():
        return 0.0
    try:
        with FORK_GATE, contextlib.closing(database.open_file(catalogue, 0.0)) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'checked_at'").fetchone()
            return 0.0 if row is None else float(row[0])
    except (sqlite3.Error, ValueError):
        return 0.0


# the check of an index from another user

# clocks of machines differ; an index checked later than this would never be checked again
_CLOCKS_DIFFER_S = 86_400.0
_MAX_ETAG = 1_024
_TIME = re.compile(r"[0-9]{1,12}(\.[0-9]{1,20})?")
_COUNT = re.compile(r"[0-9]{1,15}")
_META = {
    INDEX_OF: re.compile(r"[0-9a-f]{24}"),
    "checked_at": _TIME,
    "listed_at": _TIME,
    "listing_s": re.compile(r"[0-9]{1,12}(\.[0-9]{1,20})?(e-[0-9]{1,2})?"),
    "listed": _COUNT,
    "missing": _COUNT,
    "changes": _COUNT,
    "resized": _COUNT,
    "refreshes": _COUNT,
    "verified_rows": _COUNT,
    "totals": re.compile(r"[0-9]{1,24}( [0-9]{1,24}){3}"),
    "tail": re.compile(r"([0-9a-f]{24})?"),
}
_IS_ODD = f"""
SELECT
EXISTS (SELECT 1 FROM sample WHERE NOT (
    typeof(dir) = 'integer' AND typeof(name) = 'text' AND typeof(ino) = 'integer'
    AND typeof(id) = 'blob' AND length(id) = 12 AND typeof(coalesce(file_name, x'')) = 'blob'
    AND typeof(coalesce(hint, 0)) = 'integer' AND coalesce(hint, 0) BETWEEN 0 AND {MAX_BYTES}
    AND typeof(coalesce(size, 0)) = 'integer' AND coalesce(size, 0) BETWEEN 0 AND {MAX_BYTES}
    AND typeof(mtime) = 'integer' AND mtime BETWEEN {MIN_SECONDS} AND {MAX_SECONDS}
    AND typeof(created) = 'integer' AND created BETWEEN {MIN_SECONDS} AND {MAX_SECONDS}
    AND typeof(coalesce(etag, '')) = 'text' AND length(coalesce(etag, '')) <= {_MAX_ETAG}
    AND coalesce(etag, '') NOT GLOB '*[^ -~\xa0-\xff]*'
    AND typeof(verified) = 'integer' AND verified IN (0, 1, 2)
    AND (verified = 0 OR size IS NOT NULL AND etag IS NOT NULL)))
OR EXISTS (SELECT 1 FROM directory WHERE NOT (
    typeof(parent) = 'integer' AND typeof(name) = 'text'
    AND typeof(mtime) = 'integer' AND mtime BETWEEN {MIN_SECONDS} AND {MAX_SECONDS}))
OR EXISTS (SELECT 1 FROM meta WHERE NOT (typeof(key) = 'text' AND typeof(value) = 'text'))
"""


def meta_of(db: sqlite3.Connection) -> dict[str, str]:
    """Return the header of a foreign catalogue; raises sqlite3.Error if it is none of this version."""
    if database.user_version(db) != SCHEMA_VERSION:
        raise database.Damaged("it is of another version")
    # before anything is asked of them: a view may be a program
    database.check_tables(db, SCHEMA)
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    for key, form in _META.items():
        if key in meta and not (isinstance(meta[key], str) and form.fullmatch(meta[key])):
            raise database.Damaged(f"its {key} cannot be")
    if not meta.keys() >= {INDEX_OF, "listed_at", "totals"}:
        raise database.Damaged("it does not say of which dataset it is")
    if max(float(meta["listed_at"]), float(meta.get("checked_at", 0))) > time.time() + _CLOCKS_DIFFER_S:
        raise database.Damaged("it was made in the future")
    return meta


def check_foreign(db: sqlite3.Connection) -> None:
    """Raise sqlite3.Error where a foreign catalogue holds what no listing would have written."""
    _check_dataset(meta_of(db).get("dataset", ""))
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise database.Damaged(str(verdict).splitlines()[-1])
    if db.execute(_IS_ODD).fetchone() != (0,):
        raise database.Damaged("it holds sizes, times or ids that cannot be")
    if tables.stored_totals(db) != tables.scanned_totals(db):
        raise database.Damaged("its sums are not those of its samples")
    try:
        _check_names(db, _directories(db))
    except UnicodeError:
        raise database.Damaged("it holds names that are no text") from None


def _check_dataset(text: str) -> None:
    try:
        DatasetState(*json.loads(text))
        types = [type(value) for value in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        types = []
    if types[:5] != [str, int, int, int, int] or not set(types[5:]) <= {str}:
        raise database.Damaged("its record of the dataset cannot be")


def _directories(db: sqlite3.Connection) -> dict[int, str]:
    """Return the path of each directory by its number, which has to be that of its path."""
    below: dict[int, list[tuple[int, str]]] = {}
    for ino, parent, name in db.execute("SELECT ino, parent, name FROM directory"):
        if ino != ROOT_INO:
            below.setdefault(parent, []).append((ino, name))
    paths, level = {ROOT_INO: ""}, [ROOT_INO]
    while level:
        parent = level.pop()
        for ino, name in below.pop(parent, ()):
            path = f"{paths[parent]}/{name}" if parent != ROOT_INO else name
            if not is_component(name, first=parent == ROOT_INO) or directory_ino(path) != ino:
                raise database.Damaged("it holds a directory that cannot be")
            paths[ino] = path
            level.append(ino)
    if below:
        raise database.Damaged("it holds directories that are in no other")
    return paths


def _check_names(db: sqlite3.Connection, paths: dict[int, str]) -> None:
    """See that each sample has its number, and is in the directory that its name says."""
    last, directory, is_plain = -1, "", False
    for ino, sample_id, parent, name, file_name in db.execute(
        "SELECT ino, id, dir, name, file_name FROM sample ORDER BY dir, name"
    ):
        if parent != last:
            if parent not in paths:
                raise database.Damaged("it holds samples of no directory")
            last, directory = parent, paths[parent]
            is_plain = directory == "" or split_path(f"{directory}/x")[0] == directory
        if ino != sample_ino(sample_id):
            raise database.Damaged("it holds a sample of another number")
        # nearly all are, and there may be millions
        if file_name is None and is_plain and is_plain_component(name):
            continue
        true_name = f"{directory}/{name}" if directory else name
        if file_name is not None:
            true_name = file_name.decode("utf-8", "surrogatepass")
        wanted = split_path(true_name)
        is_spelled = file_name is not None or wanted[1] == name
        if wanted[0] != directory or not is_spelled or not is_component(name, first=not directory):
            raise database.Damaged("it holds a sample whose name cannot be")
