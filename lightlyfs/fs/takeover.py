"""Turns samples into local files when a program changes them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lightlyfs.catalog.entries import SampleEntry, true_name
from lightlyfs.errors import NoContent, NotPermitted
from lightlyfs.fs.handles import WriteHandle
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.spool import StagedFile

_COPY_BYTES = 4 << 20

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
        # guarded by _lock: open handles of samples that nothing was changed by yet
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

        All writers of the sample share one staged file; none sees it before its bytes are complete.
        """
        while handle.file is None:
            entry = handle.entry
            assert entry is not None
            file = self._local.get(handle.path)
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
                # it may have been renamed meanwhile
                path, name = handle.path, true_name(handle.path, handle.entry or entry)
                handle.file = self._local.publish(
                    draft, path, name, sample_id=entry.sample_id, ino=self.ino_of(entry)
                )
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

    @staticmethod
    def _is_of(file: LocalFile, entry: SampleEntry) -> bool:
        """Return whether a local file at a sample's path is its own; NotPermitted where it is another."""
        if file.record.sample_id == entry.sample_id:
            return True
        if not file.uploaded:
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
