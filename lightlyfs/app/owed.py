"""Lists the files that this machine still has to upload, from the journals of all mounts, running or not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from lightlyfs import places
from lightlyfs.errors import StartError
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import Record, State

log = logging.getLogger(__name__)


class OwedFile(NamedTuple):
    """A local file of some mount, running or not."""

    server: str
    dataset_id: str
    spool: Path
    in_use: bool
    record: Record
    leftover: str = ""  # the name of a sample that was renamed out of the way

    @property
    def staged(self) -> Path:
        """Where its bytes are."""
        return self.spool / "files" / f"{self.record.key}.{self.record.generation}"


def owed_files(cache_dir: Path | None) -> list[OwedFile]:
    """Every file on this machine that a server does not have, of any mount, and samples that were put away.

    Without a directory all are looked into that mounts of this user have used.
    """
    roots = places.state_roots() if cache_dir is None else [places.state_root(cache_dir)]
    found = []
    for root in roots:
        for host in sorted(path for path in root.iterdir() if path.is_dir()):
            for dataset in sorted(path for path in host.iterdir() if path.is_dir()):
                for spool in places.spools_of(host, dataset.name):
                    if (spool / "journal.db").exists():
                        found += _owed_in(spool, host.name, dataset.name)
    return found


def _owed_in(spool: Path, server: str, dataset_id: str) -> list[OwedFile]:
    """What a journal holds; one that cannot be read is logged, and does not hide the others."""
    try:
        journal = Journal(spool / "journal.db")
    except StartError as error:
        log.warning("%s", error)
        return []
    in_use = not places.is_free(spool)
    try:
        records = [record for record in journal.records() if record.state is not State.UPLOADED]
        leftovers = journal.leftovers()
    finally:
        journal.close()
    records.sort(key=lambda record: record.path)
    put_away = [(Record("", one.was, one.was, State.UPLOADED), one.name) for one in leftovers]
    return [
        OwedFile(server, dataset_id, spool, in_use, record, name)
        for record, name in [*((record, "") for record in records), *put_away]
    ]


def discard_owed(owed: OwedFile) -> None:
    """Forget a file, with its bytes; StartError where a mount has taken it meanwhile."""
    if not places.is_free(owed.spool):
        raise StartError(f"a mount that runs has {owed.record.path}; unmount it first")
    if owed.leftover:
        raise StartError(f"{owed.record.path} is a sample, and the Lightly API cannot delete samples")
    journal = Journal(owed.spool / "journal.db")
    journal.remove(owed.record.key)
    journal.close()
    owed.staged.unlink(missing_ok=True)
