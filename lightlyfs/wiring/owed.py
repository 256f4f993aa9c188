"""What this machine owes to servers: the journals of all mounts, running or not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightlyfs import places
from lightlyfs.upload.journal import Journal, Record, State


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
                journal = Journal(spool / "journal.db")
                records = [record for record in journal.records() if record.state is not State.UPLOADED]
                journal.close()
                in_use = not places.is_free(spool)
                found += [OwedFile(host.name, dataset.name, spool, in_use, record) for record in records]
    return found


def discard_owed(owed: OwedFile) -> None:
    """Forget a file that no mount uses, with its bytes."""
    journal = Journal(owed.spool / "journal.db")
    journal.remove(owed.record.key)
    journal.close()
    owed.staged.unlink(missing_ok=True)
