"""What this machine owes to servers: the journals of all mounts, running or not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from lightlyfs import places
from lightlyfs.errors import StartError
from lightlyfs.staging.journal import Journal, Record, State

log = logging.getLogger(__name__)


class OwedFile(NamedTuple):
    """A local file of some mount, running or not."""

    server: str
    dataset_id: str
    spool: Path
    in_use: bool
    record: Record

    @property
    def staged(self) -> Path:
        """Where its bytes are."""
        return self.spool / "files" / f"{self.record.key}.{self.record.generation}"


def owed_files(cache_dir: Path | None) -> list[OwedFile]:
    """Every file on this machine that a server does not have, whichever mount it is of."""
    found = []
    for host in sorted(path for path in places.state_root(cache_dir).iterdir() if path.is_dir()):
        for dataset in sorted(path for path in host.iterdir() if path.is_dir()):
            for spool in places.spools_of(host, dataset.name):
                if not (spool / "journal.db").exists():
                    continue
                records = _records_of(spool)
                in_use = not places.is_free(spool)
                found += [OwedFile(host.name, dataset.name, spool, in_use, record) for record in records]
    return found


def _records_of(spool: Path) -> list[Record]:
    """What a journal says is owed; one that cannot be read is told of, and does not hide the others."""
    try:
        journal = Journal(spool / "journal.db")
    except StartError as error:
        log.warning("%s", error)
        return []
    try:
        return [record for record in journal.records() if record.state is not State.UPLOADED]
    finally:
        journal.close()


def discard_owed(owed: OwedFile) -> None:
    """Forget a file, with its bytes; StartError where a mount has taken it meanwhile."""
    if not places.is_free(owed.spool):
        raise StartError(f"a mount that runs has {owed.record.path}; unmount it first")
    journal = Journal(owed.spool / "journal.db")
    journal.remove(owed.record.key)
    journal.close()
    owed.staged.unlink(missing_ok=True)
