"""What becomes of a local file while the uploader works on it, and after."""

from __future__ import annotations

from collections.abc import Callable

from lightlyfs.catalog.catalog import Catalog
from lightlyfs.fs.local import LocalFiles
from lightlyfs.fs.local_file import LocalFile
from lightlyfs.staging.journal import Record

# a listing may have begun before a change, or be of a server that lags; after this many the sample was
# renamed or deleted by others
MAX_LISTINGS_WITHOUT = 5


class Completion:
    """Follows uploads, in the uploader's threads.

    `adopt(record)` makes an uploaded file's bytes readable as those of a sample.
    """

    def __init__(self, local: LocalFiles, catalog: Catalog, adopt: Callable[[Record], Record]) -> None:
        self._local = local
        self._catalog = catalog
        self._adopt = adopt

    def noted(self, record: Record) -> None:
        """An upload took a step or failed; called in the uploader's thread, before the journal is told."""
        file = self._local.by_key(record.key)
        if file is None:
            return
        with file.lock:
            known = file.record.changed(
                sample_id=record.sample_id or file.record.sample_id,
                mark=record.mark,
                create_sent=record.create_sent,
            )
            if record.generation == known.generation:
                known = known.changed(state=record.state, error=record.error)
            file.record = known

    def done(self, record: Record) -> None:
        """The uploader brought a generation to the server; called in its thread."""
        record = self._adopt(record)
        file = self._local.by_key(record.key)
        if file is None:
            self._local.journal.remove(record.key)
            self._local.spool.remove_up_to(record.key, record.generation)
            return
        with file.lock:
            if file.record.generation != record.generation or file.dirty:
                self._note_older_done_locked(file, record)
                return
            uploaded = record.changed(path=file.path, name=file.record.name, mtime=file.mtime)
            self._local.journal.settle(uploaded)
            file.now_uploaded(uploaded)
            if file.handles == 0:
                self._local.unstage_locked(file)
            self._local.spool.remove_up_to(record.key, record.generation)
        self._leave_to_catalogue(file)
        self._local.touch()

    def prune(self) -> None:
        """Leave to the catalogue what it shows by itself now, and what it does not show time and again."""
        for file in self._local.all():
            if file.entry is not None:
                file.listings_without += 1
                self._leave_to_catalogue(file)

    def _leave_to_catalogue(self, file: LocalFile) -> None:
        with file.lock:
            entry = file.entry
            if entry is None or entry.size is None or entry.etag is None or file.handles:
                return
            found = self._catalog.by_id(entry.sample_id)
            shown = found is not None and found[0] == file.path
            if not shown and file.listings_without < MAX_LISTINGS_WITHOUT:
                return
            self._catalog.record_facts(entry.sample_id, entry.size, entry.etag)
            # the journal forgets it now, so the catalogue must not go back to an old version in a crash
            self._catalog.flush_facts()
            self._local.drop(file)
            self._local.journal.remove(file.record.key)

    def _note_older_done_locked(self, file: LocalFile, record: Record) -> None:
        """An earlier generation is on the server: later ones go to the same sample."""
        known = file.record
        file.record = known.changed(
            sample_id=record.sample_id,
            mark=record.mark,
            create_sent=True,
            replaces=True,
            acknowledged=-1 if known.acknowledged <= record.generation else known.acknowledged,
        )
        self._local.journal.put(file.record)
        if known.generation != record.generation:
            self._local.spool.remove_up_to(record.key, record.generation)
