"""The dataset as a tree of names: lookup and list, from memory and disk, never older than promised.

Within the TTL no answer asks the API. After it the old answer is given and a check is queued; with a TTL
of zero every lookup of a sample asks for it first. Until the first listing is complete a single path is
asked for by name, and a listing waits.

Threads: any may call anything. Waiting is left to the `Wait` a caller brings, so that every wait is
bounded and interruptible.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as futures_wait
from typing import Protocol, TypeVar

from cachetools import TTLCache

from lightlyfs.api.models import Sample
from lightlyfs.catalog.inodes import directory_ino, sample_ino
from lightlyfs.catalog.refresher import FreshnessConfig, Refresher, stored_dataset
from lightlyfs.catalog.remote import DatasetState, Remote
from lightlyfs.catalog.staging import Changes, Row
from lightlyfs.catalog.store import CatalogStore, DirectoryEntry, Entry, Facts, SampleEntry, Totals
from lightlyfs.catalog.tree import join_name
from lightlyfs.errors import Cancelled, LightlyFsError, NotFound, RequestError, Unreachable

log = logging.getLogger(__name__)

T = TypeVar("T")

_FLUSH_EVERY_S = 0.5
_POLL_S = 0.2
# as long as the kernel keeps names that are not there
_ANSWER_TTL_S = 2.0
# while the disk takes none of them; older ones are asked for again
_MAX_WAITING_FACTS = 100_000


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
        # guarded by _lock: the same of samples that no listing has met yet
        self._unlisted: dict[int, Facts] = {}
        # guarded by _lock: what the API said, or is being asked, of single names
        self._answers: TTLCache[str, Future[list[Row]]] = TTLCache(10_000, _ANSWER_TTL_S, timer=clock)
        self._flush_fails = False  # used by whoever flushes
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
            unlisted = list(self._unlisted)
        for ino in unlisted:
            if self._stored(ino) is not None:
                with self._lock:
                    facts = self._unlisted.pop(ino, None)
                    if facts is not None:
                        self._facts.setdefault(ino, facts)

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
        if self._ask_always and not self.refresher.stopped:
            return self._lookup_asking(path, entry, wait)
        return self._with_facts(entry)

    def list_directory(self, path: str, wait: Wait) -> tuple[list[DirectoryEntry], list[SampleEntry]]:
        """The directories and samples in a directory, each in byte order; never a part of them."""
        while not self.refresher.complete:
            self._await_listing(wait)
        if self._ask_always and not self.refresher.stopped:
            # where it fails, as `status` then shows, the old answers stay
            self._wait_for(self.refresher.check_soon(), wait)
        self.refresher.touch()
        directories, samples = self._store.list_directory(path)
        if self._facts or self._unlisted:
            samples = [self._with_sample_facts(entry) for entry in samples]
        return directories, samples

    def samples_after(self, path: str, count: int) -> list[tuple[str, SampleEntry]]:
        """At most `count` samples behind a path in its directory, with their paths; never asks the API."""
        directory = path.rpartition("/")[0]
        prefix = directory + "/" if directory else ""
        found = self._store.samples_after(path, count)
        return [(prefix + entry.name, self._with_sample_facts(entry)) for entry in found]

    def with_facts(self, entry: SampleEntry) -> SampleEntry:
        """An entry with what storage reported of it since it was looked up; asks nobody."""
        return self._with_sample_facts(entry)

    def by_id(self, sample_id: str) -> tuple[str, SampleEntry] | None:
        """The path and entry of a sample, or None."""
        found = self._store.by_ino(sample_ino(bytes.fromhex(sample_id)))
        return None if found is None else (found[0], self._with_sample_facts(found[1]))

    # what storage reported

    def record_facts(self, sample_id: str, size: int, etag: str) -> None:
        """Keep a sample's true size in bytes and its version; written down shortly after. Never raises."""
        ino = sample_ino(bytes.fromhex(sample_id))
        found = self._stored(ino)
        published = None if found is None else self._with_sample_facts(found).published_size
        with self._lock:
            self._generation += published != size
            if found is None:
                _put_bounded(self._unlisted, ino, Facts(size, etag))
            else:
                _put_bounded(self._facts, ino, Facts(size, etag, (found.mtime, found.size_hint)))

    def flush_facts(self) -> None:
        """Write down now what storage reported."""
        self._flush()

    def refresh(self) -> Changes:
        """Ask the API for everything now, and storage for each content before it is next used.

        Where the API cannot be asked, what was known stays in force.
        """
        changes = self.refresher.list_now()
        self._flush()
        try:
            self._store.forget_facts()
        except sqlite3.Error as error:
            raise LightlyFsError(f"the catalogue on disk cannot be written: {error}") from error
        with self._lock:
            self._facts.clear()
            self._unlisted.clear()
        self.note_changes()
        return changes

    # asking the API

    def _lookup_asking(self, path: str, entry: Entry | None, wait: Wait) -> Entry | None:
        """With a TTL of zero: ask for the one sample; where it moved, everything is listed behind."""
        if isinstance(entry, DirectoryEntry):
            return entry
        try:
            if entry is None:
                return self._find(path, wait)
            return self._ask_for(path, entry, wait)
        except RequestError as error:
            if isinstance(error, Cancelled):
                raise
            return self._with_facts(entry)  # the last known truth is better than none

    def _ask_for(self, path: str, entry: SampleEntry, wait: Wait) -> Entry | None:
        try:
            sample = self._await(self._ask_sample(entry.sample_id), wait)
        except NotFound:
            sample = None
        if sample is None or sample.file_name != true_name(path, entry):
            self.refresher.expect_changes()
            return self._find(path, wait)
        modified = (sample.last_modified_at or sample.created_at or 0) // 1000
        hint = sample.meta_data.size_in_bytes if sample.meta_data else None
        if modified not in (0, entry.mtime) or hint != entry.size_hint:
            self.refresher.expect_changes()
            entry = entry._replace(mtime=modified or entry.mtime, size_hint=hint, size=None, verified=False)
        return self._with_facts(entry)

    def _ask_sample(self, sample_id: str) -> Future[Sample]:
        answer: Future[Sample] = Future()
        self.refresher.run_into(answer, lambda: self._remote.sample(sample_id))
        return answer

    def _lookup_early(self, path: str, wait: Wait) -> Entry | None:
        """Before the first listing is complete: what it has met so far, or what the API says of the name."""
        if not path:
            return DirectoryEntry("", directory_ino(""), 0)
        asked = False
        while not self.refresher.complete:
            if self.refresher.listing_has_directory(path):
                return DirectoryEntry(path.rpartition("/")[2], directory_ino(path), 0)
            if not asked:
                asked = True
                found = self._find(path, wait)
                if found is not None:
                    return found
                continue
            self._await_listing(wait)
        return self._with_facts(self._store.lookup(path))

    def _find(self, path: str, wait: Wait) -> Entry | None:
        """Ask the API for the one sample whose path this is; None where it knows none or cannot tell.

        The answer, also that there is none, holds for two seconds: many programs try many names.
        """
        file_name = join_name(path.split("/"))
        if file_name is None:
            return None
        try:
            rows = self._await(self._asked(path, file_name), wait)
        except RequestError as error:
            if isinstance(error, Cancelled):
                raise
            return None  # the listing will tell
        return self._with_facts(_entry_of(rows[0])) if rows else None

    def _asked(self, path: str, file_name: str) -> Future[list[Row]]:
        """What the API says of a name; ten threads that ask cause one request."""
        with self._lock:
            try:
                return self._answers[path]
            except KeyError:
                answer: Future[list[Row]] = Future()
                self._answers[path] = answer
        self.refresher.run_into(answer, lambda: self._remote.find(file_name))
        return answer

    def _await(self, answer: Future[T], wait: Wait) -> T:
        """The result of a request, or what it raised."""
        self._wait_for(answer, wait)
        return answer.result()

    def _wait_for(self, answer: Future[T], wait: Wait) -> None:
        """Wait for a request; while a listing moves on, the caller's limit counts anew."""
        seen = self.refresher.progress
        while not futures_wait((answer,), _POLL_S).done:
            wait.check()
            if self.refresher.progress is not seen:
                seen = self.refresher.progress
                wait.restart()

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
        facts = self._facts.get(entry.ino) or self._unlisted.get(entry.ino)
        if facts is None or not facts.hold_for(entry):
            return entry
        return entry._replace(size=facts.size, etag=facts.etag, verified=True)

    def _stored(self, ino: int) -> SampleEntry | None:
        """The listed sample; None, too, where the disk fails."""
        try:
            return self._store.sample(ino)
        except sqlite3.Error as error:
            log.warning("the catalogue on disk cannot be read: %s", error)
            return None

    def _flush_loop(self) -> None:
        while not self._closing.wait(_FLUSH_EVERY_S):
            if self._facts:
                self._flush()

    def _flush(self) -> None:
        """Write facts down; where the disk fails they stay in memory, and count from there."""
        with self._lock:
            facts = dict(self._facts)
        if not facts:
            return
        try:
            self._store.record_facts(facts)
        except sqlite3.Error as error:
            if not self._flush_fails:
                log.warning("what storage reports cannot be written to the catalogue: %s", error)
            self._flush_fails = True
            return
        self._flush_fails = False
        with self._lock:
            for ino, fact in facts.items():
                if self._facts.get(ino) is fact:
                    del self._facts[ino]


def _put_bounded(facts: dict[int, Facts], ino: int, fact: Facts) -> None:
    facts[ino] = fact
    while len(facts) > _MAX_WAITING_FACTS:
        del facts[next(iter(facts))]


def true_name(path: str, entry: SampleEntry) -> str:
    """The sample's name on the server, which its path may spell differently."""
    raw = entry.file_name_raw
    return path if raw is None else raw.decode("utf-8", "surrogatepass")


def _entry_of(row: Row) -> SampleEntry:
    return SampleEntry(
        row.wanted, sample_ino(row.id), row.id, row.file_name_raw, row.hint, row.mtime, None, None, False
    )
