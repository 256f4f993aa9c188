"""The part of the composition root for mounts that can be written to, and what such mounts have staged.

`Uploads` are the running parts for writing to a dataset. `Staged` is the directory of one mount: its spool,
its journal and its local files. Files that other mounts left in theirs are taken over at its start; where a
cleaner deletes the directory, it is made again. `owed_files` finds what all of them owe to a server.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightlyfs import places
from lightlyfs.api.contract import Request
from lightlyfs.api.retry import raise_for_status
from lightlyfs.app.kernel_interface import Kernel
from lightlyfs.cores import ThreadPool
from lightlyfs.errors import (
    LightlyFsError,
    NotFound,
    SettingsError,
    StartError,
)
from lightlyfs.fs.attributes import SetTimes
from lightlyfs.fs.changes import TreeChanges, sample_name
from lightlyfs.fs.conversion import Adoption, Completion, Takeover
from lightlyfs.fs.filesystem import WriteParts
from lightlyfs.fs.namespace import Namespace
from lightlyfs.fs.patience import UploadWaits
from lightlyfs.fs.writer import Writer
from lightlyfs.name_rules import WritePolicy, is_scratch
from lightlyfs.staging.edits import SampleEdits
from lightlyfs.staging.exactly_once import Once
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import Spool
from lightlyfs.staging.upload_steps import Steps, StoredObjects, UploadConfig, UploadedSamples
from lightlyfs.staging.uploader import MAX_WORKERS, Uploader

if TYPE_CHECKING:
    from lightlyfs.app.dataset import Dataset

log = logging.getLogger(__name__)

# an end of the mount waits for uploads this long while none of them moves
_DRAIN_STALLED_S = 10.0
# names in the catalogue are trusted this long when a sample is created
_NAMES_FRESH_S = 2.0
_NAMED_FILES = 3
_SHOWN_LOCAL = 100


class Uploads:
    """The running parts for writing to a dataset; `start` before use, `close` once.

    Built by `Dataset`, of the parts for reading that it made before.
    """

    def __init__(self, dataset: Dataset, place: places.SpoolPlace, kernel: Kernel) -> None:
        self._dataset = dataset
        self._kernel = kernel
        self._started = time.monotonic()
        settings = dataset.settings
        self.policy = WritePolicy(settings.upload, settings.allow_overwrite, settings.write_back)
        self._staged = Staged(place, settings.upload.counts, dataset.metadata_pool)
        self.spool, self.journal, self.local = self._staged.spool, self._staged.journal, self._staged.local
        self.times = SetTimes(self.journal)
        self.namespace = Namespace(dataset.catalog, self.local, self.times, settings.shown, kernel.forget)
        # thumbnail, image and the search for a rival are sent at the same time
        self._side = ThreadPool(2 * MAX_WORKERS, "lightlyfs-upload-side")
        adoption = Adoption(dataset.catalog, dataset.reader, dataset.cache, self.spool, self.times)
        self.completion = Completion(
            self.local, self.namespace, self.times, adoption, self._is_gone, kernel.forget, time.monotonic
        )
        self._make_uploader(place.path.parent.parent / "once")
        self._make_writer()
        self.edits = SampleEdits(
            self._samples, dataset.metadata_pool, self._can_be_read, sole_writer=settings.sole_writer
        )
        self._changes = TreeChanges(
            self.namespace,
            self.local,
            self.writer,
            self.edits,
            self.completion,
            kernel,
            dataset.patience,
        )

    def _make_uploader(self, once: Path) -> None:
        """`once` is beside the spools, each of which is one process's own."""
        dataset = self._dataset
        client, dataset_id, retrier = dataset.client, dataset.dataset_id, dataset.storage_retrier
        config = UploadConfig(
            s3_sse_kms_key=dataset.settings.s3_sse_kms_key,
            allow_overwrite=dataset.settings.allow_overwrite,
            sole_writer=dataset.settings.sole_writer,
        )
        journal = self.journal
        self._samples = UploadedSamples(
            client, dataset_id, retrier, config.policy, journal.put_leftover, journal.leftovers
        )
        objects = StoredObjects(client, dataset_id, dataset.connections.uploads, retrier, config)

        def steps(path_of: Callable[[str, int], Path], config: UploadConfig) -> Steps:
            facts_of = dataset.pictures.facts_of
            return Steps(
                self._samples, objects, facts_of, path_of, config, side=self._side, knows_no=self._knows_no
            )

        self.uploader = Uploader(
            steps(self.spool.path, config),
            self.local,
            self.completion,
            dataset.connections,
            clock=time.monotonic,
            closing=dataset.closing,
        )
        self._once = Once(
            steps(lambda key, _: Path(key), replace(config, sole_writer=True)),
            self._samples,
            dataset.connections.storage,
            dataset.urls.resolve,
            once,
        )

    def _make_writer(self) -> None:
        dataset = self._dataset
        takeover = Takeover(
            self.local,
            dataset.samples.read_entry,
            dataset.patience,
            self.times.ino_of,
            self._shows_again,
        )
        self.writer = Writer(
            self.local,
            self.uploader,
            self.policy,
            self.namespace,
            takeover,
            UploadWaits(dataset.patience),
            self._kernel,
        )

    def write_parts(self) -> WriteParts:
        """Return the parts as the file system takes them."""
        return WriteParts(self.writer, self._changes, self.completion)

    def start(self) -> None:
        """Resume what an earlier mount left."""
        self._side.start()
        self.uploader.start()
        renames = [] if self.policy.rules.sends_nothing else self.journal.renames()
        self.writer.resume(held={planned.file_key for planned in renames})
        self.completion.resume_renames()
        self._changes.left.resume(renames)

    @property
    def staged_in(self) -> Path:
        """The directory that holds what is owed."""
        return self._staged.path

    def drain(self) -> None:
        """Wait for the uploads under way while they make progress; not for those that begin meanwhile."""
        self.uploader.drain(_DRAIN_STALLED_S)

    def refresh(self) -> None:
        """Retry everything, and have changes by others to the uploaded samples looked up."""
        self.uploader.retry_all()
        self.completion.outdate()

    def retry_all(self) -> int:
        """Try everything that waits or failed now; returns how many files that are."""
        return self.uploader.retry_all()

    def wait_idle(self, seconds: float, last: int | None = None) -> tuple[int, int]:
        """Wait until nothing is under way; see `Uploader.wait_idle`."""
        return self.uploader.wait_idle(seconds, last)

    def send(self, paths: list[str]) -> dict[str, str]:
        """Upload local files because a person says so; returns why, by path, for those that are not."""
        refused: dict[str, str] = {}
        for path in paths:
            file = self.local.get(path)
            if file is None or file.uploaded:
                refused[path] = "it is on the server" if file else "there is no local file of this name"
                continue
            try:
                self.writer.send(file)
            except (LightlyFsError, OSError) as error:
                refused[path] = str(error)
        return refused

    def put_once(self, local: Path, name: str) -> bool:
        """Have the sample `name` hold the bytes of a file; see `Once.put`."""
        return self._once.put(local, name)

    def stop(self) -> None:
        """Stop uploading; what is not uploaded stays in the journal."""
        for line in kept_lines(self.local.all(), self.policy):
            log.info("%s", line)
        self.uploader.close()
        self._staged.name_lost()
        self._side.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Close the journal; after the catalogue, which says what is uploaded by now."""
        self._staged.close()

    def leave_locks(self) -> None:
        """Let go of the locks in a forked child; the parent has them as long as it lives."""
        self._staged.leave_locks()

    def name_lost(self) -> None:
        """See whether a cleaner deleted what is staged; files whose bytes are gone fail, and are logged."""
        self._staged.name_lost()

    def _shows_again(self, path: str, sample_id: str) -> None:
        self._dataset.samples.outdate(sample_id)
        self._kernel.forget((path,))

    def _knows_no(self, path: str) -> bool:
        age_s = self._dataset.catalog.age_s()
        # an earlier mount may have created samples after its last comparison
        fresh_s = min(_NAMES_FRESH_S, time.monotonic() - self._started)
        if age_s is None or age_s >= fresh_s or self.namespace.listed_at(path) is not None:
            return False
        return all(half.path != path for half in self.local.aside())

    def _is_gone(self, sample_id: str) -> bool:
        """Return whether the API has no such sample; False where it cannot be asked."""
        try:
            self._samples.get(sample_id)
        except NotFound:
            return True
        except LightlyFsError:
            pass
        return False

    def _can_be_read(self, sample_id: str) -> None:
        """Read one byte of a sample, with each try through a URL that was asked for just now."""

        def attempt() -> None:
            url = self._dataset.urls.resolve(sample_id)
            request = Request("GET", url, headers={"Range": "bytes=0-0"}, fresh=True)
            response = self._dataset.connections.storage.send(request)
            if response.status != 416:  # an empty object has no first byte
                raise_for_status(response, what="the read of a renamed sample", storage=True, reads=True)

        self._dataset.storage_retrier.call(attempt, kind="renamed", what=sample_id)


def uploads_status(uploads: Uploads | None) -> dict[str, Any]:
    """Return what `status` shows of uploads, as plain values."""
    if uploads is None:
        empty: dict[str, Any] = {"files": [], "local": 0, "kept": [], "leftovers": [], "refused": []}
        zeros = {"pending": 0, "failed": 0, "under_way": 0, "uploaded": 0, "moved": 0}
        return zeros | {"offline": "", "renames_off": "", "staged_in": None} | empty
    uploads.name_lost()
    stats = uploads.uploader.stats()
    shown = uploads.local.all()
    here = [file.record for file in shown + uploads.local.aside() if not file.uploaded]
    # a repository has tens of thousands; `uploads list` shows all
    owed = [record for record in here if record.owed or record.state is State.INTERRUPTED]
    local = [record for record in here if not record.owed and record.state is not State.INTERRUPTED]
    under_way, moved = uploads.uploader.wait_idle(0)
    return {
        "pending": stats.under_way + stats.waiting,
        "failed": stats.failed,
        "under_way": under_way,
        "moved": moved,
        "uploaded": stats.uploaded,
        "offline": stats.offline,
        "renames_off": uploads.edits.renames_are_off(),
        "staged_in": str(uploads.staged_in),
        "files": [_file_status(record) for record in owed + local[:_SHOWN_LOCAL]],
        "local": len(here) - sum(record.owed for record in here),
        "kept": kept_lines(shown, uploads.policy),
        "refused": list(dict.fromkeys(uploads.writer.refused)),
        "leftovers": [leftover._asdict() for leftover in uploads.journal.leftovers()],
    }


def _file_status(record: Record) -> dict[str, Any]:
    values = {"path": record.path, "state": record.state.value, "error": record.error, "size": record.size}
    return values | {"owed": record.owed}


def kept_lines(files: list[LocalFile], policy: WritePolicy) -> list[str]:
    """Return one line a directory of the files that their name keeps from the server."""
    by_directory: dict[str, list[str]] = {}
    for file in files:
        record = file.record
        if record.state is State.LOCAL and record.size and not record.error and not is_scratch(record.path):
            directory, _, name = record.path.rpartition("/")
            by_directory.setdefault(directory, []).append(name)
    if policy.rules.sends_nothing:
        return []
    why = "not images" if policy.rules.text == "images" else f"not counted by --upload {policy.rules.text}"
    return [
        f"{directory or 'top folder'}: {len(names):,} "
        f"{'file stays' if len(names) == 1 else 'files stay'} local ({why}): "
        f"{', '.join(sorted(names)[:_NAMED_FILES])}{', ...' if len(names) > _NAMED_FILES else ''}; "
        "--upload all uploads them"
        for directory, names in sorted(by_directory.items())
    ]


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

    @property
    def path(self) -> Path:
        """The directory."""
        return self._place.path

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
        renamed = journal.renamed()
        mine.put_renamed(*renamed)
        ours.sync()
        journal.put(forget=keys)
        journal.remove_renames(one.key for one in renames)
        journal.remove_renamed(renamed)
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


def owed_files(cache_dir: Path | None, unreadable: list[StartError] | None = None) -> list[OwedFile]:
    """Return every file on this machine that a server does not have, and samples that were put away.

    Without a directory, those that mounts of this user have used are searched. A journal that cannot be read
    does not hide the others: the error is added to `unreadable`, or logged.
    """
    roots = places.state_roots() if cache_dir is None else [places.state_root(cache_dir)]
    found = []
    for root in roots:
        for host in sorted(path for path in root.iterdir() if path.is_dir()):
            for dataset in sorted(path for path in host.iterdir() if path.is_dir()):
                for spool in places.spools_of(host, dataset.name):
                    if (spool / "journal.db").exists():
                        try:
                            found += _owed_in(spool, host.name, dataset.name)
                        except StartError as error:
                            if unreadable is None:
                                log.warning("%s", error)
                            else:
                                unreadable.append(error)
    return found


def _owed_in(spool: Path, server: str, dataset_id: str) -> list[OwedFile]:
    """Return what a journal holds; StartError where it cannot be read."""
    journal = Journal(spool / "journal.db")
    try:
        records = [record for record in journal.records() if record.state is not State.UPLOADED]
        leftovers = journal.leftovers()
    finally:
        journal.close()
    in_use = not places.is_free(spool)
    records.sort(key=lambda record: record.path)
    put_away = [(Record("", one.was, one.was, State.UPLOADED), one.name) for one in leftovers]
    return [
        OwedFile(server, dataset_id, spool, in_use, record, name)
        for record, name in [*((record, "") for record in records), *put_away]
    ]


def owed_at_the_end(staged_in: Path) -> list[dict[str, Any]]:
    """Return what a mount that has ended owes, as `status` shows it."""
    if not (staged_in / "journal.db").exists():
        return []
    try:
        return [_file_status(owed.record) for owed in _owed_in(staged_in, "", "") if owed.record.owed]
    except StartError as error:
        log.warning("%s", error)
        return []


def discard_owed(owed: OwedFile) -> None:
    """Forget a file, with its bytes; StartError where a mount has taken it meanwhile."""
    if not places.is_free(owed.spool):
        raise StartError(f"a mount that runs has {owed.record.path}; unmount it first")
    if owed.leftover:
        raise StartError(f"{owed.record.path} is a sample, and the Lightly API cannot delete samples")
    journal = Journal(owed.spool / "journal.db")
    try:
        # the bytes first: on a full disk the journal needs the room they free
        owed.staged.unlink(missing_ok=True)
        journal.remove(owed.record.key)
    finally:
        journal.close()
