"""The dataset as a tree of names: lookup and list, from memory and disk, never older than promised.

Within the TTL no answer asks the API. After it the old answer is given and a check is queued; with a TTL
of zero every lookup of a sample asks for it first. Until the first listing is complete a single path is
asked for by name, and a listing waits.

Threads: any may call anything. Waiting is left to the `Wait` a caller brings, so that every wait is
bounded and interruptible.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from cachetools import TTLCache

from lightlyfs.catalog.inodes import directory_ino, sample_ino
from lightlyfs.catalog.refresher import FreshnessConfig, Refresher, stored_dataset
from lightlyfs.catalog.remote import DatasetState, Remote
from lightlyfs.catalog.staging import Changes, Row
from lightlyfs.catalog.store import CatalogStore, DirectoryEntry, Entry, Facts, SampleEntry, Totals
from lightlyfs.catalog.tree import join_name
from lightlyfs.errors import LightlyFsError, NotFound, Unreachable

_FLUSH_EVERY_S = 0.5
_POLL_S = 0.2
_NEGATIVE_TTL_S = 2.0


class Wait(Protocol):
    """How long a caller can wait."""

    def check(self) -> None:
        """Raise what ends the wait, if something does."""

    def restart(self) -> None:
        """Something moved: the time a caller may wait begins anew."""


class Catalog:
    """Lookup and listing of one dataset; `close` flushes what storage reported."""

    def __init__(
        self,
        store: CatalogStore,
        remote: Remote,
        refresher: Refresher,
        config: FreshnessConfig,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._remote = remote
        self.refresher = refresher
        self._ask_always = config.ttl_s == 0
        self._lock = threading.Lock()
        # guarded by _lock: what storage reported since the last flush, by inode number
        self._facts: dict[int, Facts] = {}
        # guarded by _lock: answers of the API while the first listing runs
        self._early: TTLCache[str, SampleEntry | None] = TTLCache(10_000, _NEGATIVE_TTL_S, timer=clock)
        self._generation = 0
        self._closing = threading.Event()
        self._flusher = threading.Thread(target=self._flush_loop, name="lightlyfs-facts", daemon=True)

    def start(self) -> None:
        """Start the thread that writes down what storage reported."""
        self._flusher.start()

    def close(self) -> None:
        """Write down what storage reported and close the store."""
        self._closing.set()
        if self._flusher.is_alive():
            self._flusher.join()
        self._flush()
        self._store.close()

    @property
    def generation(self) -> int:
        """A number that moves whenever a listing would come out differently."""
        return self._generation

    def current_generation(self) -> int:
        """`generation`, after seeing to freshness; -1 where every listing has to ask the API."""
        if self._ask_always:
            return -1
        self.refresher.touch()
        return self._generation

    def note_changes(self) -> None:
        """Let `generation` move; called after each commit of a listing."""
        with self._lock:
            self._generation += 1

    def dataset(self) -> DatasetState | None:
        """The dataset's record as of the last listing."""
        return stored_dataset(self._store)

    def totals(self) -> Totals:
        """Sums over all samples; not for a hot path."""
        return self._store.totals()

    # names

    def lookup(self, path: str, wait: Wait) -> Entry | None:
        """The entry of a path without a leading slash, or None where there is none.

        Raises what ended the wait, or what the first listing failed with, where nothing can be said.
        """
        if not self.refresher.complete:
            return self._lookup_early(path, wait)
        self.refresher.touch()
        entry = self._store.lookup(path)
        if self._ask_always:
            return self._lookup_asking(path, entry)
        return self._with_facts(entry)

    def list_directory(self, path: str, wait: Wait) -> tuple[list[DirectoryEntry], list[SampleEntry]]:
        """The directories and samples in a directory, each in byte order; never a part of them."""
        self._need_listing(wait)
        if self._ask_always:
            self._check_quietly()
        self.refresher.touch()
        samples = self._store.list_samples(path)
        if self._facts:
            samples = [self._with_sample_facts(entry) for entry in samples]
        return self._store.list_directories(path), samples

    def by_id(self, sample_id: str) -> tuple[str, SampleEntry] | None:
        """The path and entry of a sample, or None."""
        found = self._store.by_ino(sample_ino(bytes.fromhex(sample_id)))
        return None if found is None else (found[0], self._with_sample_facts(found[1]))

    # what storage reported

    def record_facts(self, sample_id: str, size: int, etag: str) -> None:
        """Keep a sample's true size in bytes and its version; written down shortly after."""
        ino = sample_ino(bytes.fromhex(sample_id))
        found = self._store.by_ino(ino)
        published = None if found is None else self._with_sample_facts(found[1]).published_size
        with self._lock:
            self._facts[ino] = Facts(size, etag)
            self._generation += published != size

    def refresh(self) -> Changes:
        """Ask the API for everything now, and storage for each content before it is next used."""
        self._flush()
        self._store.forget_facts()
        self.note_changes()
        return self.refresher.list_now()

    def _lookup_asking(self, path: str, entry: Entry | None) -> Entry | None:
        """With a TTL of zero: ask for the one sample, and list again only where it moved."""
        try:
            if isinstance(entry, SampleEntry):
                sample = self._remote.sample(entry.sample_id)
                modified = (sample.last_modified_at or 0) // 1000
                if sample.file_name == _name_of(path, entry) and modified in (0, entry.mtime):
                    return self._with_facts(entry)
            elif entry is not None or not self._find(path):
                return entry
        except NotFound:
            pass
        except LightlyFsError:
            return self._with_facts(entry)  # the last known truth is better than none
        self._check_quietly(full=True)
        return self._with_facts(self._store.lookup(path))

    def _check_quietly(self, *, full: bool = False) -> None:
        try:
            if full:
                self.refresher.list_now()
            else:
                self.refresher.check_now()
        except LightlyFsError:
            pass  # kept by the refresher and shown by `status`; the old answers stay

    def _lookup_early(self, path: str, wait: Wait) -> Entry | None:
        if not path:
            return DirectoryEntry("", directory_ino(""), 0)
        with self._lock:
            if path in self._early and self._early[path] is not None:
                return self._early[path]
        found = self._find(path)
        if found is not None:
            with self._lock:
                self._early[path] = found
            return found
        while not self.refresher.complete:
            if self.refresher.listing_has_directory(path):
                return DirectoryEntry(path.rpartition("/")[2], directory_ino(path), 0)
            self._await_listing(wait)
        return self._with_facts(self._store.lookup(path))

    def _find(self, path: str) -> SampleEntry | None:
        """Ask the API for the one sample whose path this is."""
        file_name = join_name(path.split("/"))
        if file_name is None:
            return None
        rows = self._remote.find(file_name)
        return _entry_of(rows[0]) if rows else None

    def _need_listing(self, wait: Wait) -> None:
        while not self.refresher.complete:
            self._await_listing(wait)

    def _await_listing(self, wait: Wait) -> None:
        """Wait a moment for the first listing; raises what it failed with, or what ends the wait."""
        self.refresher.touch()
        wait.check()
        if self.refresher.wait_for_progress(_POLL_S):
            wait.restart()
        if not self.refresher.active and not self.refresher.complete:
            raise self.refresher.error or Unreachable("the dataset could not be listed")

    # facts

    def _with_facts(self, entry: Entry | None) -> Entry | None:
        if isinstance(entry, SampleEntry):
            return self._with_sample_facts(entry)
        return entry

    def _with_sample_facts(self, entry: SampleEntry) -> SampleEntry:
        facts = self._facts.get(entry.ino)
        if facts is None:
            return entry
        return entry._replace(size=facts.size, etag=facts.etag, verified=True)

    def _flush_loop(self) -> None:
        while not self._closing.wait(_FLUSH_EVERY_S):
            if self._facts:
                self._flush()

    def _flush(self) -> None:
        with self._lock:
            facts = dict(self._facts)
        if not facts:
            return
        self._store.record_facts(facts)
        with self._lock:
            for ino, fact in facts.items():
                if self._facts.get(ino) is fact:
                    del self._facts[ino]


def true_name(path: str, entry: SampleEntry) -> str:
    """The sample's name on the server, which its path may spell differently."""
    return _name_of(path, entry)


def _name_of(path: str, entry: SampleEntry) -> str:
    raw = entry.file_name_raw
    return path if raw is None else raw.decode("utf-8", "surrogatepass")


def _entry_of(row: Row) -> SampleEntry:
    return SampleEntry(
        row.wanted, sample_ino(row.id), row.id, row.file_name_raw, row.hint, row.mtime, None, None, False
    )
