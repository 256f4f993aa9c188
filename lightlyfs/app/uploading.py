"""The part of the composition root for mounts that can be written to."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightlyfs import places
from lightlyfs.api.client import LightlyClient
from lightlyfs.api.contract import Request, Transport
from lightlyfs.api.retry import Retrier
from lightlyfs.api.status import raise_for_status
from lightlyfs.app.kernel_interface import Kernel
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.errors import Cancelled, FileExists, LightlyFsError, NotFound, Retryable, SettingsError
from lightlyfs.fetch.reader import Reader
from lightlyfs.fs.attributes import SetTimes
from lightlyfs.fs.changes import TreeChanges, sample_name
from lightlyfs.fs.completion import Adoption, Completion
from lightlyfs.fs.filesystem import WriteParts
from lightlyfs.fs.namespace import Namespace
from lightlyfs.fs.patience import Patience
from lightlyfs.fs.samples import Samples
from lightlyfs.fs.writer import Writer
from lightlyfs.settings import Settings
from lightlyfs.staging.edits import SampleEdits
from lightlyfs.staging.exactly_once import Once
from lightlyfs.staging.facts_process import FactsPool
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import Spool
from lightlyfs.staging.upload_steps import Steps, UploadConfig
from lightlyfs.staging.uploader import WORKERS, Uploader
from lightlyfs.upload_rules import WritePolicy, is_scratch

log = logging.getLogger(__name__)

# an end of the mount waits for uploads this long while none of them moves
_DRAIN_STALLED_S = 10.0
# names in the catalogue are trusted this long when a sample is created
_NAMES_FRESH_S = 2.0
_NAMED_FILES = 3
_SHOWN_LOCAL = 100


@dataclass(frozen=True)
class UploadNeeds:
    """What the parts for writing take from the parts for reading."""

    settings: Settings
    client: LightlyClient
    dataset_id: str
    transport: Transport
    storage: Transport
    storage_retrier: Retrier
    pictures: FactsPool
    catalog: Catalog
    reader: Reader
    cache: BlockCache
    samples: Samples
    executor: Executor
    patience: Patience
    closing: threading.Event
    kernel: Kernel
    resolve: Callable[[str], str]
    has_new_token: Callable[[], bool]


class Uploads:
    """The running parts for writing; `start` before use, `close` once."""

    def __init__(self, needs: UploadNeeds, place: places.SpoolPlace) -> None:
        for other in place.others:
            _take_over(other, place)
        place.drop_others()
        self._needs = needs
        self._place = place
        self._started = time.monotonic()
        rules = needs.settings.upload
        self.policy = WritePolicy(rules, needs.settings.allow_overwrite, needs.settings.write_back)
        self._renewing = threading.Lock()
        self.spool = Spool(place.path / "files", on_deleted=self._renew)
        self.journal = Journal(place.path / "journal.db", on_deleted=self._renew, rescue=True)
        self.local = LocalFiles(self.spool, self.journal, name_of=sample_name, counts=rules.counts)
        self.times = SetTimes(self.journal)
        self.namespace = Namespace(needs.catalog, self.local, self.times, needs.kernel.forget)
        # thumbnail, image and the look for a rival are sent at the same time
        self._side = ThreadPoolExecutor(2 * WORKERS, "lightlyfs-upload-side")
        adoption = Adoption(needs.catalog, needs.reader, needs.cache, self.spool, self.times)
        self.completion = Completion(
            self.local,
            self.namespace,
            self.times,
            adoption,
            self._is_gone,
            needs.kernel.forget,
            time.monotonic,
        )
        steps = self._make_steps(self.spool.path)
        self.uploader = Uploader(
            steps,
            self.local,
            clock=time.monotonic,
            closing=needs.closing,
            on_uploaded=self.completion.uploaded,
            on_failed=self._note_failed,
            has_new_token=needs.has_new_token,
            outage_s=needs.client.outage_s,
        )
        self.writer = Writer(
            self.local,
            self.uploader,
            self.policy,
            needs.patience,
            self.times,
            read_sample=needs.samples.read_entry,
            callers=needs.kernel,
            exists=self.namespace.knows,
            shows_again=self._shows_again,
        )
        # beside the spools, each of which is one process's own
        self.once = Once(
            self._make_steps(lambda key, _: Path(key), sole_writer=True),
            needs.storage,
            needs.resolve,
            place.path.parent.parent / "once",
        )
        self.edits = SampleEdits(
            needs.client, needs.dataset_id, needs.executor, self._can_be_read, steps.put_away
        )

    def write_parts(self) -> WriteParts:
        """Return the parts as the file system takes them."""
        changes = TreeChanges(
            self.namespace, self.local, self.writer, self.edits, self.completion, self._needs.kernel
        )
        return WriteParts(self.writer, changes, self.completion)

    def start(self) -> None:
        """Go on with what an earlier mount left."""
        self.uploader.start()
        self.writer.resume()
        renames = self.journal.renames()
        if renames:
            self._needs.executor.submit(self._finish_renames, renames)

    def name_lost(self) -> None:
        """See whether a cleaner deleted what is staged; files whose bytes are gone fail, and are logged."""
        self._renew()
        try:
            lost = self.local.note_deleted()
        except OSError as error:
            log.warning("what was staged cannot be looked at: %s", error)
            return
        if lost:
            named = ", ".join(lost[:_NAMED_FILES]) + (", ..." if len(lost) > _NAMED_FILES else "")
            log.error(
                "%d files were deleted from the state directory before they were on the server: %s",
                len(lost),
                named,
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
            self._needs.executor.submit(self.name_lost)

    def drain(self) -> None:
        """Wait for the uploads under way, as long as they move."""
        left, _ = self.uploader.wait_idle(0)
        # `umount` may have waited already
        while left and self.uploader.stalled_s() < _DRAIN_STALLED_S:
            left, _ = self.uploader.wait_idle(1.0)

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

    def stop(self) -> None:
        """Upload no more; what is not uploaded stays in the journal."""
        for line in kept_lines(self.local.all(), self.policy):
            log.info("%s", line)
        self.uploader.close()
        self.name_lost()
        self._side.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Close the journal; after the catalogue, which says what is uploaded by now."""
        self.journal.close()
        self._place.close()

    def leave_locks(self) -> None:
        """Let go of the locks in a forked child; the parent has them as long as it lives."""
        self._place.close()

    def _make_steps(self, path_of: Callable[[str, int], Path], *, sole_writer: bool = False) -> Steps:
        needs = self._needs
        config = UploadConfig(
            s3_sse_kms_key=needs.settings.s3_sse_kms_key,
            allow_overwrite=needs.settings.allow_overwrite,
            sole_writer=sole_writer or needs.settings.sole_writer,
        )
        return Steps(
            needs.client,
            needs.dataset_id,
            needs.transport,
            needs.pictures.facts_of,
            path_of,
            config,
            needs.storage_retrier,
            cancelled=needs.closing.is_set,
            side=self._side,
            knows_no=self._knows_no,
            on_leftover=self.journal.put_leftover,
        )

    def _shows_again(self, path: str, sample_id: str) -> None:
        self._needs.samples.outdate(sample_id)
        self._needs.kernel.forget((path,))

    def _knows_no(self, path: str) -> bool:
        age_s = self._needs.catalog.refresher.age_s()
        # what an earlier mount compared says nothing of what it created after that
        fresh_s = min(_NAMES_FRESH_S, time.monotonic() - self._started)
        if age_s is None or age_s >= fresh_s or self.namespace.listed_at(path) is not None:
            return False
        return all(half.path != path for half in self.local.aside())

    def _is_gone(self, sample_id: str) -> bool:
        """Whether the API has no such sample; False where it cannot be asked."""
        try:
            self._needs.client.get_sample(self._needs.dataset_id, sample_id)
        except NotFound:
            return True
        except LightlyFsError:
            pass
        return False

    def _note_failed(self, file: LocalFile, error: Exception) -> None:
        if isinstance(error, FileExists):
            self.completion.name_taken(file)

    def _can_be_read(self, sample_id: str) -> None:
        """Read one byte of a sample, with each try through a URL that was asked for just now."""

        def attempt() -> None:
            url = self._needs.resolve(sample_id)
            request = Request("GET", url, headers={"Range": "bytes=0-0"}, fresh=True)
            response = self._needs.storage.send(request)
            if response.status != 416:  # an empty object has no first byte
                raise_for_status(response, what="the read of a renamed sample", storage=True, reads=True)

        self._needs.storage_retrier.call(attempt, kind="renamed", what=sample_id)

    def _finish_renames(self, renames: list[tuple[str, str, str]]) -> None:
        for old, new, sample_id in renames:
            try:
                self.edits.finish_rename(sample_id, old, new)
            except (Retryable, Cancelled) as error:
                log.warning("a rename that was begun is finished by the next mount: %s", error)
                continue
            except LightlyFsError as error:
                log.warning("a rename that was begun could not be finished: %s", error)
            self.journal.remove_rename(sample_id)


def uploads_status(uploads: Uploads | None) -> dict[str, Any]:
    """Return what `status` shows of uploads, as plain values."""
    if uploads is None:
        empty: dict[str, Any] = {"files": [], "local": 0, "kept": [], "leftovers": []}
        zeros = {"pending": 0, "failed": 0, "under_way": 0, "uploaded": 0, "moved": 0}
        return zeros | {"offline": "", "renames_off": ""} | empty
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
        "files": [_file_status(record) for record in owed + local[:_SHOWN_LOCAL]],
        "local": len(here) - sum(record.owed for record in here),
        "kept": kept_lines(shown, uploads.policy),
        "leftovers": [leftover._asdict() for leftover in uploads.journal.leftovers()],
    }


def _file_status(record: Record) -> dict[str, Any]:
    values = {"path": record.path, "state": record.state.value, "error": record.error, "size": record.size}
    return values | {"owed": record.owed}


def kept_lines(files: list[LocalFile], policy: WritePolicy) -> list[str]:
    """One line a directory of the files that their name keeps from the server."""
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
        f"{directory or 'top folder'}: {len(names):,} files stay local ({why}): "
        f"{', '.join(sorted(names)[:_NAMED_FILES])}{', ...' if len(names) > _NAMED_FILES else ''}; "
        "--upload all uploads them"
        for directory, names in sorted(by_directory.items())
    ]


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
