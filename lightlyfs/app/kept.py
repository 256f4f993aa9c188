"""Report what the caches of this machine hold, by dataset, and empty those that are not in use."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from lightlyfs import database, places


class KeptDataset(NamedTuple):
    """The cache of one dataset: its directory, and the files and bytes in it."""

    directory: Path
    files: int
    bytes: int


def kept_datasets(cache_dir: Path | None) -> list[KeptDataset]:
    """Return the caches below a cache directory, without one the user's; a damaged one counts nothing."""
    found = []
    for index in sorted(places.cache_root(cache_dir).glob("*/*/blocks.db")):
        files = size = 0
        try:
            with closing(database.connect(index)) as db:
                (files,) = db.execute("SELECT count(DISTINCT key) FROM block").fetchone()
                (size,) = db.execute("SELECT bytes FROM total").fetchone()
        except sqlite3.Error:
            pass  # the next mount begins it again
        found.append(KeptDataset(index.parent, files, size))
    return found


def clear_unused(kept: KeptDataset) -> bool:
    """Delete the blocks of a cache; False where a mount or a program uses it."""
    with places.DatasetPlace(kept.directory.parent, kept.directory.name) as place:
        if place.temporary or not place.alone:
            return False
        for file in place.path.glob("blocks.db*"):
            file.unlink(missing_ok=True)
        shutil.rmtree(place.path / "blocks", ignore_errors=True)
    return True
