"""The catalogue as one file, so that a thousand workers need not each list a million samples.

SQLite, as the catalogue itself is: a copy is the fastest form to load, for loading is nothing but copying.
What storage reported comes along, so that workers open the first file without asking for its size.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import NamedTuple

from lightlyfs import places
from lightlyfs.catalog.store import INDEX_OF, SCHEMA_VERSION
from lightlyfs.errors import StartError
from lightlyfs.forks import FORK_GATE


def export_index(catalogue: Path, target: Path, dataset_id: str) -> int:
    """Write a catalogue's present state to a file, in one step; how many samples it has.

    Mounts that use the catalogue are not disturbed. StartError where there is nothing to export, or the
    file cannot be written.
    """
    if not catalogue.exists():
        raise StartError("the samples were not listed on this machine yet; mount the dataset once")
    directory = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        copy = directory / "index"
        with contextlib.closing(sqlite3.connect(f"file:{catalogue}?mode=ro", uri=True, timeout=60)) as db:
            db.execute("VACUUM INTO ?", (str(copy),))
        with contextlib.closing(sqlite3.connect(copy)) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (INDEX_OF, dataset_id))
            listed = db.execute("SELECT value FROM meta WHERE key = 'listed_at'").fetchone()
            (samples,) = db.execute("SELECT count(*) FROM sample").fetchone()
            db.commit()
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
    """What an index says of itself: its dataset, and when that was last known to be true, in unix seconds."""

    dataset_id: str
    checked_at: float


def read_header(index: Path) -> Header:
    """What a file is the index of; StartError where it is none, or one of another version."""
    try:
        header = sqlite3.connect(f"file:{index}?mode=ro&immutable=1", uri=True)
        with FORK_GATE, contextlib.closing(header) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            of = _meta(db, INDEX_OF)
            checked = float(_meta(db, "checked_at") or 0)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise StartError(f"{index} is no index made by `lightlyfs index export`: {error}") from None
    if version != SCHEMA_VERSION or of is None:
        raise StartError(f"{index} is no index of this version; make it again with `lightlyfs index export`")
    return Header(of, checked)


def import_index(index: Path, place: places.DatasetPlace, tag: str | None, dataset_id: str) -> bool:
    """Begin with an exported catalogue, unless this machine has a newer one or uses one; whether it did.

    StartError where the file is no index, of another version, or of another dataset. To be called before
    the catalogue is opened, by whoever holds the place.
    """
    header = read_header(index)
    if header.dataset_id != dataset_id:
        raise StartError(f"{index} is the index of another dataset: {header.dataset_id}")
    target = place.path / places.catalogue_name(tag)
    if not place.alone or _checked_at(target) >= header.checked_at:
        return False
    for suffix in ("-wal", "-shm"):
        target.with_name(target.name + suffix).unlink(missing_ok=True)
    temporary = target.with_name(target.name + ".new")
    shutil.copyfile(index, temporary)
    os.chmod(temporary, 0o600)
    os.replace(temporary, target)
    return True


def import_for_later(index: Path, server_root: Path, tag: str | None) -> tuple[Header, bool]:
    """Put an index where later mounts begin with it; what it says of itself, and whether it was taken.

    StartError where the file is no index, or a mount uses the dataset's directory now.
    """
    header = read_header(index)
    with places.DatasetPlace(server_root, header.dataset_id) as place:
        if not place.alone:
            raise StartError(
                f"a mount, or a program over fsspec, uses the names of dataset {header.dataset_id} on this "
                "machine; unmount or end it first"
            )
        return header, import_index(index, place, tag, header.dataset_id)


def _checked_at(catalogue: Path) -> float:
    """When a catalogue was last known to be true, in unix seconds; 0 where there is none."""
    if not catalogue.exists():
        return 0.0
    try:
        with FORK_GATE, contextlib.closing(sqlite3.connect(catalogue)) as db:
            return float(_meta(db, "checked_at") or 0)
    except (sqlite3.Error, ValueError):
        return 0.0


def _meta(db: sqlite3.Connection, key: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])
