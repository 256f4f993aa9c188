"""Staged files of this machine: those of one mount and of earlier ones, and what all of them owe to a server.

`Staged` is the directory of one mount: its spool, its journal and its local files. Files that other mounts
left in theirs are taken over at its start; where a cleaner deletes the directory, it is made again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lightlyfs import places
from lightlyfs.errors import SettingsError, StartError
from lightlyfs.fs.changes import sample_name
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFiles
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import Spool

log = logging.getLogger(__name__)

_NAMED_FILES = 3


class Staged:
    """The staged files of one mount, in a directory that is locked; `close` once."""

    def __init__(self, place: places.SpoolPlace, counts: Callable[[str], bool], executor: Executor) -> None:
        """`counts(path)` says whether a complete file at a path is for the server."""
        for other in place.others:
            _take_over(other, place)
        place.drop_others()
        self._place = place
        self._executor = executor
        self._renewing = threading.Lock()
        self.spool = Spool(place.path / "files", on_deleted=self._renew)
        self.journal = Journal(place.path / "journal.db", on_deleted=self._renew, rescue=True)
        self.local = LocalFiles(self.spool, self.journal, name_of=sample_name, counts=counts)

    def close(self) -> None:
        """Close the journal, and let go of the directory."""
        self.journal.close()
        self._place.close()

    def leave_locks(self) -> None:
        """Let go of the locks in a forked child; the parent has them as long as it lives."""
        self._place.close()

    def name_lost(self) -> None:
        """See whether a cleaner deleted what is staged; files whose bytes are gone fail, and are logged."""
        self._renew()
        try:
            lost = self.local.note_deleted()
        except OSError as error:
            log.warning("what was staged cannot be looked at: %s", error)
            return
        if lost:
            log.error(
                "%d files were deleted from the state directory before they were on the server: %s",
                len(lost),
                ", ".join(lost[:_NAMED_FILES]) + (", ..." if len(lost) > _NAMED_FILES else ""),
            )

    def _renew(self) -> None:
        """Keep what is staged in a new directory where a cleaner deleted it."""
        with self._renewing:
            stands = not (self.journal.is_deleted() or self.spool.is_deleted())
            if stands and self._place.is_locked():
                return
            try:
                if not stands:
                    log.error("%s was deleted, with what was staged for the server", self._place.path)
                self._place.renew(stands=stands)
                if not stands:
                    self.spool.move_to(self._place.path / "files")
                    self.journal.move_to(self._place.path / "journal.db")
            except (OSError, SettingsError) as error:
                log.error("what is written now is lost with the mount: %s", error)
                return
        # not here, where the caller may hold a file's lock
        with suppress(RuntimeError):
            self._executor.submit(self.name_lost)


def _take_over(source: Path, place: places.SpoolPlace) -> None:
    """Move what another mount left into the place of this one; safe to repeat after a crash.

    A record leaves its journal last, when its bytes are here for sure.
    """
    if not (source / "journal.db").exists():
        return
    journal = Journal(source / "journal.db", rescue=True)
    mine = Journal(place.path / "journal.db", rescue=True)
    theirs, ours = Spool(source / "files"), Spool(place.path / "files")
    try:
        records = journal.records()
        here = {record.key for record in mine.records()} & {key for key, _ in ours.generations()}
        mine.put(*(record for record in records if record.key not in here))
        mine.put_directories(*journal.directories())
        for leftover in journal.leftovers():
            mine.put_leftover(leftover)
        keys = {record.key for record in records}
        for key, generation in theirs.generations():
            if key in keys:
                os.rename(theirs.path(key, generation), ours.path(key, generation))
        for sample_id, time_set in journal.times().items():
            mine.put_time(sample_id, time_set)
        renames = journal.renames()
        mine.put_renames(renames)
        ours.sync()
        journal.put(forget=keys)
        for _, _, sample_id in renames:
            journal.remove_rename(sample_id)
    finally:
        journal.close()
        mine.close()


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
    """Return every file on this machine that a server does not have, and samples that were put away.

    Without a directory, those that mounts of this user have used are searched.
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
    """Return what a journal holds; one that cannot be read is logged, and does not hide the others."""
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
