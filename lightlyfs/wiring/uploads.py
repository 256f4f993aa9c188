"""The part of the composition root that a mount needs to be written to."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightlyfs import places
from lightlyfs.api.client import LightlyClient
from lightlyfs.api.transport import Request, Transport, raise_for_status
from lightlyfs.catalog.catalog import Catalog
from lightlyfs.content.cache import BlockCache
from lightlyfs.content.reader import Reader
from lightlyfs.errors import Cancelled, LightlyFsError, Retryable
from lightlyfs.fs.adoption import Adoption
from lightlyfs.fs.changes import ChangeParts, TreeChanges
from lightlyfs.fs.completion import Completion
from lightlyfs.fs.filesystem import WriteParts
from lightlyfs.fs.local import LocalFiles
from lightlyfs.fs.namespace import Namespace
from lightlyfs.fs.patience import Patience
from lightlyfs.fs.policy import WritePolicy
from lightlyfs.fs.samples import Samples
from lightlyfs.fs.times import SetTimes
from lightlyfs.fs.writer import Writer
from lightlyfs.settings import Settings
from lightlyfs.staging.edits import SampleEdits
from lightlyfs.staging.facts_process import FactsPool
from lightlyfs.staging.journal import Journal, State
from lightlyfs.staging.once import Once
from lightlyfs.staging.spool import Spool
from lightlyfs.staging.steps import Steps, UploadConfig
from lightlyfs.staging.uploader import Uploader

log = logging.getLogger(__name__)

# an end of the mount waits for uploads this long without one of them ending
_DRAIN_STALLED_S = 30.0


@dataclass(frozen=True)
class UploadNeeds:
    """What the parts for writing take from the parts for reading."""

    settings: Settings
    client: LightlyClient
    dataset_id: str
    transport: Transport
    storage: Transport
    catalog: Catalog
    reader: Reader
    cache: BlockCache
    samples: Samples
    executor: Executor
    patience: Patience
    closing: threading.Event
    caller_process: Callable[[], int]
    resolve: Callable[[str], str]


class Uploads:
    """The running parts for writing; `start` before use, `close` once."""

    def __init__(self, needs: UploadNeeds, place: places.SpoolPlace) -> None:
        for other in place.others:
            _take_over(other, place)
        self._needs = needs
        self._place = place
        self.spool = Spool(place.path / "files")
        self.journal = Journal(place.path / "journal.db")
        self.local = LocalFiles(self.spool, self.journal)
        self.times = SetTimes(self.journal)
        self.facts = FactsPool()
        adoption = Adoption(needs.catalog, needs.reader, needs.cache, self.spool, self.times)
        self.completion = Completion(self.local, needs.catalog, adoption)
        self.uploader = Uploader(
            self._make_steps(self.spool.path),
            self.journal,
            clock=time.monotonic,
            closing=needs.closing,
            on_done=self.completion.done,
            on_note=self.completion.noted,
        )
        self.writer = Writer(
            self.local,
            self.uploader,
            WritePolicy(needs.settings.allow_overwrite, needs.settings.write_back),
            needs.patience,
            read_sample=needs.samples.read_entry,
            caller_process=needs.caller_process,
        )
        # beside the spools, each of which is one process's own
        self.once = Once(
            self._make_steps(lambda key, _: Path(key)),
            needs.storage,
            needs.resolve,
            place.path.parent.parent / "once",
        )
        self.edits = SampleEdits(needs.client, needs.dataset_id, needs.executor, self._can_be_read)

    def write_parts(self, namespace: Namespace) -> WriteParts:
        """The parts as the file system takes them."""
        parts = ChangeParts(namespace, self.local, self.writer, self.edits)
        return WriteParts(self.writer, TreeChanges(parts), self.completion)

    def start(self) -> None:
        """Go on with what an earlier mount left."""
        self.uploader.start()
        self.writer.resume()
        renames = self.journal.renames()
        if renames:
            self._needs.executor.submit(self._finish_renames, renames)

    def drain(self) -> None:
        """Wait for the uploads under way, as long as one ends every now and then."""
        left, since = self.uploader.wait_idle(0), time.monotonic()
        while left and time.monotonic() - since < _DRAIN_STALLED_S:
            now = self.uploader.wait_idle(1.0)
            if now < left:
                left, since = now, time.monotonic()

    def close(self) -> None:
        """Stop; what is not uploaded stays in the journal."""
        self.uploader.close()
        self.facts.close()
        self.journal.close()
        self._place.close()

    def _make_steps(self, path_of: Callable[[str, int], Path]) -> Steps:
        needs = self._needs
        return Steps(
            needs.client,
            needs.dataset_id,
            needs.transport,
            self.facts.facts_of,
            path_of,
            UploadConfig(s3_sse_kms_key=needs.settings.s3_sse_kms_key),
            clock=time.monotonic,
            sleep=self._pause,
            random=random.random,
            cancelled=needs.closing.is_set,
        )

    def _pause(self, seconds: float) -> None:
        self._needs.closing.wait(seconds)

    def _can_be_read(self, sample_id: str) -> None:
        """Read one byte of a sample through a URL that was asked for just now."""
        request = Request("GET", self._needs.resolve(sample_id), headers={"Range": "bytes=0-0"})
        response = self._needs.storage.send(request)
        if response.status != 416:  # an empty object has no first byte
            raise_for_status(response, what="the read of a renamed sample", storage=True)

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
    """What `status` shows of uploads, as plain values."""
    if uploads is None:
        return {"pending": 0, "failed": 0, "under_way": 0, "uploaded": 0, "files": []}
    stats = uploads.uploader.stats()
    files = [
        {"path": record.path, "state": record.state.value, "error": record.error, "size": record.size}
        for record in (file.record for file in uploads.local.all())
        if record.state is not State.UPLOADED
    ]
    return {
        "pending": stats.under_way + stats.waiting,
        "failed": stats.failed,
        "under_way": stats.under_way,
        "uploaded": stats.uploaded,
        "files": files,
    }


def _take_over(source: Path, place: places.SpoolPlace) -> None:
    """Move what another mount left into the place of this one; a crash in the middle is gone on with.

    A record leaves its journal last, when its bytes are here for sure.
    """
    if not (source / "journal.db").exists():
        return
    journal, mine = Journal(source / "journal.db"), Journal(place.path / "journal.db")
    theirs, ours = Spool(source / "files"), Spool(place.path / "files")
    try:
        records = journal.records()
        here = {record.key for record in mine.records()} & {key for key, _ in ours.generations()}
        for record in records:
            if record.key not in here:
                mine.put(record)
        keys = {record.key for record in records}
        for key, generation in theirs.generations():
            if key in keys:
                os.rename(theirs.path(key, generation), ours.path(key, generation))
        for sample_id, (mtime, version) in journal.times().items():
            mine.put_time(sample_id, mtime, version)
        renames = journal.renames()
        mine.put_renames(renames)
        ours.sync()
        for key in keys:
            journal.remove(key)
        for _, _, sample_id in renames:
            journal.remove_rename(sample_id)
    finally:
        journal.close()
        mine.close()
