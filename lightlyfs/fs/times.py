"""Times that were set on samples: the API has no place for them, so this machine remembers.

A time counts for one version of a sample: once its content is another one, the server's time is shown.
"""

from __future__ import annotations

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.staging.journal import Journal


class SetTimes:
    """The remembered times; any thread may call. Without a journal (a read-only mount) there are none."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._times = journal.times() if journal else {}

    def put(self, sample_id: str, size: int | None, etag: str | None, mtime: int) -> None:
        """Remember a time, in seconds, for a sample of this size and, where it is known, this version."""
        version = f"{size} {etag or ''}"
        self._times[sample_id] = (mtime, version)
        if self._journal is not None:
            self._journal.put_time(sample_id, mtime, version)

    def apply(self, entry: SampleEntry) -> SampleEntry:
        """The entry with the time that was set on it, if that still counts."""
        if not self._times:
            return entry
        known = self._times.get(entry.sample_id)
        if known is None:
            return entry
        mtime, (size, _, etag) = known[0], known[1].partition(" ")
        if size != str(entry.published_size) or (etag and entry.etag and etag != entry.etag):
            return entry
        return entry._replace(mtime=mtime)
