"""Checks that a catalogue from another user is one that lightlyfs could have written.

An index is untrusted input. Its tables, names, sizes and times are compared with what a listing would have
written; a hostile index causes an error message and nothing else.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time

from lightlyfs import database
from lightlyfs.catalog import tables
from lightlyfs.catalog.names import is_component, is_plain_component, split_path
from lightlyfs.catalog.remote import MAX_BYTES, MAX_SECONDS, MIN_SECONDS, DatasetState
from lightlyfs.catalog.tables import INDEX_OF, SCHEMA, SCHEMA_VERSION
from lightlyfs.inodes import ROOT_INO, directory_ino, sample_ino

# clocks of machines differ; what was checked later than this would never be checked again
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
