"""Turns a local file into a sample once the server has it, and removes it once a listing holds the sample.

The bytes of an uploaded file become the cached content of its sample.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from cachetools import TTLCache

from lightlyfs.blocks import BLOCK_BYTES, ContentId, block_count, block_length, etag_of
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.errors import FileExists, LightlyFsError
from lightlyfs.fetch.reader import Reader
from lightlyfs.fs.attributes import SetTimes
from lightlyfs.fs.namespace import Namespace
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.spool import Spool
from lightlyfs.upload_rules import numbered

log = logging.getLogger(__name__)

# a program that saves by rename does so right after it closed the new file
_JUST_CREATED_S = 60.0
_MAX_JUST_CREATED = 10_000
# a sample that no listing holds this long after its upload may have gone with its dataset
_ASK_AFTER_S = 600.0


class Completion:
    """Follows uploads, in the uploader's threads, and listings.

    `adopt(record)` makes an uploaded file's bytes readable as those of a sample. `is_gone(sample_id)` asks
    the API whether there is no such sample. As soon as a listing holds a sample the catalogue alone
    says where it is.
    """

    def __init__(
        self,
        local: LocalFiles,
        namespace: Namespace,
        times: SetTimes,
        adopt: Callable[[Record], Record],
        is_gone: Callable[[str], bool],
        forget: Callable[[tuple[str, ...]], object],
        clock: Callable[[], float],
    ) -> None:
        self._local = local
        self._names = namespace
        self._catalog = namespace.catalog
        self._clock = clock
        self._times = times
        self._adopt = adopt
        self._is_gone = is_gone
        self._forget = forget
        self._pruned = False
        self._lock = threading.Lock()
        # guarded by _lock: samples that this mount created a moment ago
        self._created: TTLCache[str, None] = TTLCache(_MAX_JUST_CREATED, _JUST_CREATED_S, timer=clock)
        # what was uploaded before is asked of storage again, like all that was known of it then
        self._known_since = float("-inf")

    def was_just_created(self, sample_id: str) -> bool:
        """Return whether this mount created a sample within the last minute."""
        with self._lock:
            return sample_id in self._created

    def uploaded(self, file: LocalFile, record: Record) -> None:
        """Turn an uploaded generation of a file into a sample; called in the uploader's thread."""
        record, sample_id = self._adopt(record), record.sample_id
        assert sample_id is not None
        if not record.replaces:
            with self._lock:
                self._created[sample_id] = None
        self._times.keep_ino(sample_id, file.ino)
        file.uploaded_at = self._clock()
        with file.lock:
            if file.record.generation != record.generation or file.dirty:
                self._note_older_locked(file, record)
                return
            self._local.update(
                file,
                record.generation,
                durable=False,
                state=State.UPLOADED,
                error="",
                etag=record.etag,
                sample_id=sample_id,
                thumbnail_done=False,
            )
            if file.handles == 0:
                self._local.unstage_locked(file)
            self._local.drop_bytes(record)
        self._leave_to_catalogue(file)
        self._local.touch()

    def listed(self) -> None:
        """After a listing, drop files that it holds as samples, and move those whose names others use."""
        if not self._pruned:
            self._pruned = True
            self._times.prune(self._catalog.by_id)
        files = self._local.all()
        holding = {file.path.rpartition("/")[0] for file in files if not file.uploaded}
        self._move_directories(holding.union(self._local.made_directories()))
        for file in files:
            if file.uploaded:
                self._leave_to_catalogue(file, ask=self._clock() - file.uploaded_at > _ASK_AFTER_S)
            else:
                self._give_way(file)

    def outdate(self) -> None:
        """Have changes by others to the samples uploaded so far looked up again; called with a refresh."""
        self._known_since = self._clock()

    def failed(self, file: LocalFile, error: Exception) -> None:
        """Move a file whose upload ended because a sample has its name; called in the uploader's thread."""
        if not isinstance(error, FileExists):
            return
        self._give_way(file)
        self._catalog.expect_changes()

    def _leave_to_catalogue(self, file: LocalFile, *, ask: bool = False) -> None:
        with file.lock:
            record = file.record
            if not file.uploaded or file.handles or record.sample_id is None:
                return
        # a listing that began before the create does not hold it, and there is no delete
        listed = self._catalog.by_id(record.sample_id)
        if listed is None and not (ask and self._is_gone(record.sample_id)):
            return
        with file.lock:
            if file.record != record or file.handles:
                return
            # a sample that others gave another image meanwhile is asked for when it is opened
            if file.uploaded_at >= self._known_since and (
                listed is None or listed[1].size_hint in (None, record.size)
            ):
                self._catalog.record_facts(record.sample_id, record.size, record.etag)
            # the journal forgets it now, so the catalogue must not go back to an old version in a crash
            self._catalog.flush_facts()
            self._local.drop(file)
        self._forget((record.path,))

    def _give_way(self, file: LocalFile) -> None:
        """Show a file of this machine beside what others have put at its path."""
        path, record = file.path, file.record
        # what is open or owed still has its upload before it, which finds out by itself
        if record.replaces or record.owed or record.state is State.OPEN or file.handles:
            return
        if self._names.listed_at(path) is None:
            return
        free = self._free_beside(path)
        log.warning("%s is on the server now; the local file of that name is %s", path, free)
        with file.lock:
            if file.record is record and not file.unlinked:
                self._local.move(file, free, name=self._local.name_of(free))
        self._forget((path, free))

    def _move_directories(self, directories: set[str]) -> None:
        """Move local directories aside whose names are those of samples now."""
        above = {"/".join(parts[:n]) for parts in map(_split, directories) for n in range(1, len(parts) + 1)}
        for directory in sorted(above):
            if not isinstance(self._names.listed_at(directory), SampleEntry):
                continue
            free = self._free_beside(directory)
            log.warning("%s is a sample now; the local directory of that name is %s", directory, free)
            for file in self._local.below(directory):
                moved = free + file.path[len(directory) :]
                with file.lock:
                    self._local.move(file, moved, name=self._local.name_of(moved))
            self._local.move_directories(directory, free)
            self._forget((directory, free))

    def _free_beside(self, path: str) -> str:
        return next(
            other
            for other in numbered(path)
            if other != path and self._local.get(other) is None and self._names.listed_at(other) is None
        )

    def _note_older_locked(self, file: LocalFile, record: Record) -> None:
        """Note that an earlier generation is on the server: later ones go to the same sample."""
        known = file.record
        self._local.update(
            file,
            known.generation,
            sample_id=record.sample_id,
            mark=record.mark,
            create_sent=True,
            replaces=True,
            acknowledged=-1 if known.acknowledged <= record.generation else known.acknowledged,
        )
        if known.generation != record.generation:
            self._local.drop_bytes(record)
        if file.record.hidden:
            # what was written since is half of an image, and the sample has the whole one before it
            self._local.set_aside_locked(file)


def _split(directory: str) -> list[str]:
    return directory.split("/") if directory else []


# larger files, if they are read, are fetched from the server like any other
_MAX_ADOPTED_BYTES = 64 << 20
_IDENTIFY_S = 30.0


class Adoption:
    """Called in an uploader's thread for each file that is uploaded."""

    def __init__(
        self, catalog: Catalog, reader: Reader, cache: BlockCache, spool: Spool, times: SetTimes
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._cache = cache
        self._spool = spool
        self._times = times

    def __call__(self, record: Record) -> Record:
        """Keep what is known of the upload; returns the record with its version as contents are called."""
        content = self._identify(record)
        record = record.changed(etag=content.etag)
        sample_id = content.sample_id
        if content.size == record.size:
            self._fill_cache(content, self._spool.path(record.key, record.generation))
        self._catalog.record_facts(sample_id, content.size, content.etag)
        try:
            self._times.put(sample_id, content.size, content.etag, record.mtime)
        except OSError as error:
            log.warning("the time of an uploaded file is not kept: %s", error)  # the upload stands
        return record

    def _identify(self, record: Record) -> ContentId:
        """Return the version storage gave it: from the answer to the PUT, else by asking."""
        assert record.sample_id is not None
        etag = etag_of({"etag": record.etag})
        if etag:
            return ContentId(record.sample_id, etag, record.size)
        future = self._reader.identify(record.sample_id, size_hint=record.size, for_reading=False)
        try:
            return future.result(_IDENTIFY_S)
        except (LightlyFsError, TimeoutError) as error:
            log.info("the version of an uploaded file is not known yet: %s", error)
            return ContentId(record.sample_id, "", record.size)

    def _fill_cache(self, content: ContentId, path: Path) -> None:
        if content.size > _MAX_ADOPTED_BYTES or not content.etag:
            return
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            for block in range(block_count(content.size)):
                length = block_length(block, content.size)
                self._cache.write(content, block, os.pread(descriptor, length, block * BLOCK_BYTES))
        finally:
            os.close(descriptor)
            # a program writes thousands, and reads few of them again
            self._cache.let_go(content)
