"""Turns samples that a program changes into local files, and local files that are uploaded into samples.

A local file is left to the catalogue once a listing holds its sample. The bytes of an uploaded file become
the cached content of its sample.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cachetools import TTLCache

from lightlyfs.blocks import BLOCK_BYTES, ContentId, block_count, block_length, etag_of
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.catalog.entries import SampleEntry, true_name
from lightlyfs.catalog.names import join_name
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.errors import FileExists, LightlyFsError, NoContent, NotPermitted
from lightlyfs.fetch.reader import Reader
from lightlyfs.fs.attributes import SetTimes
from lightlyfs.fs.handles import WriteHandle
from lightlyfs.fs.namespace import LISTING_LAGS_S, Namespace, entry_of_uploaded
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.name_rules import numbered
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Record, Renamed, State
from lightlyfs.staging.spool import Spool, StagedFile
from lightlyfs.tree import above

log = logging.getLogger(__name__)

_COPY_BYTES = 4 << 20
# how soon a writer sees that a file at its path was replaced, or shows again
_LOOK_AGAIN_S = 0.05

# read a sample's bytes: (entry, offset, size, turn)
ReadSample = Callable[[SampleEntry, int, int, Turn], bytes]


class Takeover:
    """Opens local files, and makes local files of samples at their first change; any thread may call."""

    def __init__(
        self,
        local: LocalFiles,
        read_sample: ReadSample,
        patience: Patience,
        ino_of: Callable[[SampleEntry], int],
        shows_again: Callable[[str, str], None],
    ) -> None:
        """`shows_again(path, sample_id)` is called when a path shows its sample again."""
        self._local = local
        self._read_sample = read_sample
        self._patience = patience
        self.ino_of = ino_of
        self.shows_again = shows_again
        # taken before any other lock; held while a file appears at the path its handle has then
        self._lock = threading.Lock()
        # guarded by _lock: open handles of samples that have changed nothing yet
        self._watched: dict[int, WriteHandle] = {}

    def read(self, entry: SampleEntry, offset: int, size: int) -> bytes:
        """Return bytes of a sample that is not a local file yet."""
        return self._read_sample(entry, offset, size, self._patience.turn())

    def join(self, file: LocalFile, writable: bool) -> bool:
        """Open a local file once more; False if it is on the server now, or deleted."""
        with file.lock:
            if file.unlinked or (file.uploaded and not file.handles):
                return False
            self._local.stage_locked(file)
            file.handles += 1
            file.writers += writable
            return True

    def watch(self, handle: WriteHandle) -> None:
        """Track a handle that has a sample open for writing."""
        with self._lock:
            self._watched[id(handle)] = handle

    def forget(self, handle: WriteHandle) -> None:
        """Stop tracking a handle that was closed, or that has a local file."""
        with self._lock:
            self._watched.pop(id(handle), None)

    def take(self, handle: WriteHandle, *, copy: bool) -> None:
        """Stage a sample that is about to change, with its present bytes unless they are cut away.

        All writers of the sample share one staged file; none sees it before its bytes are complete. Where a
        file that is about to be replaced has the path, the call waits, but no longer than any.
        """
        turn = self._patience.turn()
        while handle.file is None:
            entry = handle.entry
            assert entry is not None
            file = None if handle.replaced else self._local.get(handle.path)
            if file is not None and self._is_of(file, entry) and self.join(file, True):
                handle.file = file
                break
            draft = self._local.draft()
            if copy:
                try:
                    self.copy_sample(entry, draft.staged)
                except BaseException:
                    self._local.scrap(draft)
                    raise
            with self._lock:
                if handle.replaced:
                    handle.file = self._local.nameless(draft, handle.path, ino=self.ino_of(entry))
                    break
                # it may have been renamed meanwhile
                path, name = handle.path, true_name(handle.path, handle.entry or entry)
                handle.file = self._local.publish(
                    draft, path, name, sample_id=entry.sample_id, ino=self.ino_of(entry)
                )
            if handle.file is None:
                turn.sleep(_LOOK_AGAIN_S)
        self.forget(handle)

    def follow(self, renamed: SampleEntry, path: str) -> None:
        """Move the handles that have a renamed sample open for writing to its new path."""
        with self._lock:
            for handle in self._watched.values():
                if handle.entry is not None and handle.entry.id == renamed.id:
                    handle.path = path
                    handle.entry = handle.entry._replace(
                        name=renamed.name, file_name_raw=renamed.file_name_raw
                    )

    @contextmanager
    def replacing(self, sample_id: str) -> Iterator[None]:
        """Let what open handles of a sample write reach no path from here on: another file takes it."""
        with self._lock:
            handles = [
                one for one in self._watched.values() if one.entry and one.entry.sample_id == sample_id
            ]
            for handle in handles:
                handle.replaced = True
        try:
            yield
        except BaseException:
            for handle in handles:
                handle.replaced = False
            raise

    @staticmethod
    def _is_of(file: LocalFile, entry: SampleEntry) -> bool:
        """Return whether a local file at a sample's path is its own; NotPermitted where it is another."""
        if file.record.sample_id == entry.sample_id:
            return True
        if not file.uploaded or file.handles:
            raise NotPermitted(f"{file.path} is another file now")
        return False

    def copy_sample(self, entry: SampleEntry, target: StagedFile) -> None:
        """Copy a sample's bytes; NoContent where it has an image that cannot be read."""
        offset = 0
        while data := self.read(entry, offset, _COPY_BYTES):
            target.write_at(offset, data)
            offset += len(data)
        if offset == 0 and entry.published_size:
            raise NoContent(f"the image of {entry.name} cannot be read, so that it cannot be changed in part")


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
        # earlier uploads are confirmed with storage again, like everything that was known by then
        self._known_since = float("-inf")
        # guarded by _lock: renames of samples that the journal has, by sample
        self._renamed: dict[str, Renamed] = {}

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
            is_older = file.record.generation != record.generation or file.dirty
            if is_older:
                self._note_older_locked(file, record)
            else:
                self._note_uploaded_locked(file, record)
        if is_older:
            if file.record.hidden:
                self._forget((record.path,))
            return
        if not record.replaces:
            self._catalog.note_unlisted()
        self._leave_to_catalogue(file)
        self._local.touch()

    def closed(self, file: LocalFile) -> None:
        """Leave a sample that has a new image to the catalogue, which also knows what others put there."""
        if file.uploaded and file.record.replaces:
            self._leave_to_catalogue(file)

    def listed(self) -> None:
        """After a listing, drop files that it holds as samples, and move those whose names others use."""
        if not self._pruned:
            self._pruned = True
            self._times.prune(self._catalog.by_id)
        self._forget_renames()
        files = self._local.all()
        holding = {file.path.rpartition("/")[0] for file in files if not file.uploaded}
        self._move_directories(holding.union(self._local.made_directories()))
        for file in files:
            if file.uploaded:
                self._leave_to_catalogue(file, ask=self._clock() - file.uploaded_at > _ASK_AFTER_S)
            else:
                self._give_way(file)
        if self._renamed or any(self._is_unlisted(file) for file in files):
            self._catalog.note_unlisted()

    def _is_unlisted(self, file: LocalFile) -> bool:
        sample_id = file.record.sample_id
        return file.uploaded and sample_id is not None and self._catalog.by_id(sample_id) is None

    # renames of samples

    def note_renamed(self, old: str, new: str, entry: SampleEntry) -> None:
        """Show a sample, with `entry` as its entry there, at a new path until a listing does."""
        self._names.renamed.note(old, new, entry)
        self._catalog.note_unlisted()
        try:
            listed = self._catalog.by_id(entry.sample_id)
            noted = Renamed(entry.sample_id, old if listed is None else listed[0], new, int(time.time()))
            self._local.journal.put_renamed(noted)
        except (OSError, sqlite3.Error) as error:
            log.warning(
                "%s is %s now; the next mount may show the old name for a moment: %s", old, new, error
            )
            return
        with self._lock:
            self._renamed[entry.sample_id] = noted

    def resume_renames(self) -> None:
        """Show samples where an earlier mount renamed them to, unless a listing has shown more since."""
        noted = self._local.journal.renamed()
        with self._lock:
            self._renamed = {one.sample_id: one for one in noted}
        try:
            self._show_renamed(noted)
        except sqlite3.Error as error:
            log.warning(
                "the catalogue on disk cannot be read, so earlier names may show for a moment: %s", error
            )
            return
        self._forget_renames()

    def _show_renamed(self, noted: list[Renamed]) -> None:
        directories: set[str] = set()
        for one in noted:
            listed, age_s = self._catalog.by_id(one.sample_id), time.time() - one.renamed_s
            if listed is not None and listed[0] == one.old != one.new and age_s <= LISTING_LAGS_S:
                entry = listed[1].at(one.new, join_name(one.new.split("/")) or one.new)
                self._names.renamed.note(one.old, one.new, entry, max(0.0, age_s))
                directories.update(above(one.old))
        for directory in sorted(directories, reverse=True):
            if self._names.renamed.leaves_nothing(directory, self._catalog):
                self._names.renamed.note_removed(directory)

    def _forget_renames(self) -> None:
        """Have the journal forget the renames that listings show, or that others have undone."""
        with self._lock:
            noted = list(self._renamed.values())
        waiting = self._names.renamed.paths() if noted else set()
        done = [one for one in noted if one.new not in waiting]
        if not done:
            return
        try:
            self._local.journal.remove_renamed(done)
        except OSError as error:
            log.warning("renames that are done are not forgotten yet: %s", error)
            return
        with self._lock:
            for one in done:
                if self._renamed.get(one.sample_id) is one:
                    del self._renamed[one.sample_id]

    def outdate(self) -> None:
        """Have changes by others to the samples uploaded so far looked up again; called with a refresh."""
        self._known_since = self._clock()

    def failed(self, file: LocalFile, error: Exception) -> None:
        """Move a file aside if its upload ended because a sample has its name; in the uploader's thread."""
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
            # where another file has its place by now, what that says of the sample is the latest
            if file.record != record or file.handles or self._local.get(record.path) is not file:
                return
            # a sample that others gave another image meanwhile is asked for when it is opened
            if file.uploaded_at >= self._known_since and (
                listed is None or listed[1].size_hint in (None, record.size)
            ):
                is_ours = not record.replaces and (listed is None or listed[1].etag in (None, record.etag))
                self._catalog.record_facts(record.sample_id, record.size, record.etag, certain=is_ours)
            # the journal forgets it now, so the catalogue must not go back to an old version in a crash
            self._catalog.flush_facts()
            self._names.renamed.note_written(record.path, entry_of_uploaded(record))
            self._local.drop(file)
        self._forget((record.path,))

    def _give_way(self, file: LocalFile) -> None:
        """Show a file of this machine beside what others have put at its path."""
        path, record = file.path, file.record
        # a file that is open or owed is still to be uploaded, and its upload will notice
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
        for directory in sorted(directories.union(*map(above, directories)) - {""}):
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

    def _note_uploaded_locked(self, file: LocalFile, record: Record) -> None:
        """Note that a file is on the server as it is here."""
        self._local.update(
            file,
            record.generation,
            durable=False,
            state=State.UPLOADED,
            error="",
            etag=record.etag,
            sample_id=record.sample_id,
            thumbnail_done=False,
        )
        if file.handles == 0:
            self._local.unstage_locked(file)
        self._local.drop_bytes(record)

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
            if self._catalog.by_id(record.sample_id or "") is None:
                self._local.show_uploaded(record)


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
            self._fill_cache(content, record)
        # others may have replaced the same image since, with a size and within a second that are the same
        self._catalog.record_facts(sample_id, content.size, content.etag, certain=not record.replaces)
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

    def _fill_cache(self, content: ContentId, record: Record) -> None:
        if not 0 < content.size <= _MAX_ADOPTED_BYTES or not content.etag:
            return
        path = self._spool.path(record.key, record.generation)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            checksums = [record.checksum] if content.size <= BLOCK_BYTES and record.checksum >= 0 else []
            checksums = checksums or [zlib.crc32(data) for data in _blocks_in(descriptor, content.size)]
            # the same file costs neither a copy nor a file of its own
            if not self._cache.adopt(content, path, checksums):
                for block, data in enumerate(_blocks_in(descriptor, content.size)):
                    self._cache.write(content, block, data)
        finally:
            os.close(descriptor)
            # a program writes thousands, and reads few of them again
            self._cache.let_go(content)


def _blocks_in(descriptor: int, size: int) -> Iterator[bytes]:
    for block in range(block_count(size)):
        yield os.pread(descriptor, block_length(block, size), block * BLOCK_BYTES)
