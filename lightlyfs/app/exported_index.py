"""Exports and imports the catalogue as one file, so that workers need not list the dataset themselves.

The file is SQLite, like the catalogue itself: loading it is a copy and a check, which is the fastest form. It
includes what storage reported, so that workers open their first file without asking for its size.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lightlyfs import database, places
from lightlyfs.catalog import foreign
from lightlyfs.catalog.tables import INDEX_OF
from lightlyfs.errors import StartError
from lightlyfs.forks import FORK_GATE

_COPY_BYTES = 8 << 20


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
        with contextlib.closing(database.open_file(catalogue, 60.0, "mode=ro")) as db:
            db.execute("VACUUM INTO ?", (str(copy),))
        with contextlib.closing(database.open_file(copy, 0.0)) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (INDEX_OF, dataset_id))
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
    """What an index says of itself: its dataset, and when that was last known to be true, in unix seconds."""

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
    """Put an index where later mounts begin with it; what it says of itself, and whether it was taken.

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
        yield copy, _header(index, copy, foreign.check_foreign)
    except OSError as error:
        raise StartError(f"{index} cannot be taken over: {error.strerror}") from None
    finally:
        if copy is not None:
            copy.unlink(missing_ok=True)


def _open_plain(index: Path) -> BinaryIO:
    """Open a file that is one, and no device or pipe, which have no end; raises StartError."""
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
            meta = foreign.meta_of(db)
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
