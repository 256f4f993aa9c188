"""Times that were set on samples: the API has no place for them, so this machine remembers.

A time counts for one version of a sample: once its content is another one, the server's time is shown.
"""

from __future__ import annotations

from lightlyfs.catalog.store import SampleEntry
from lightlyfs.upload.journal import Journal


class SetTimes:
    """The remembered times; any thread may call. Without a journal (a read-only mount) there are none."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._times = journal.times() if journal else {}

    def put(self, sample_id: str, size: int | None, mtime: int) -> None:
        """Remember a time, in seconds, for a sample of this size."""
        self._times[sample_id] = (mtime, str(size))
        if self._journal is not None:
            self._journal.put_time(sample_id, mtime, str(size))

    def apply(self, entry: SampleEntry) -> SampleEntry:
        """The entry with the time that was set on it, if that still counts."""
        if not self._times:
            return entry
        known = self._times.get(entry.sample_id)
        if known is None or known[1] != str(entry.published_size):
            return entry
        return entry._replace(mtime=known[0])
