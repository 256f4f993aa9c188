"""The dataset as a tree of names: lookup and list, from memory and disk, never older than promised.

Within the TTL no lookup asks the API. After the TTL a lookup returns the old answer and queues a check. With
a TTL of zero every lookup of a sample first asks the API for it. Until the first listing is complete, a
lookup asks the API for its path by name, and a listing of a directory waits.

Threads: any may call anything. Callers pass a `Wait`, which bounds each wait and makes it interruptible.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as futures_wait
from typing import Protocol, TypeVar

from cachetools import TTLCache

from lightlyfs.api.models import Sample
from lightlyfs.catalog.entries import (
    Changes,
    DirectoryEntry,
    Entry,
    Facts,
    Place,
    Row,
    SampleEntry,
    Totals,
    entry_of,
    true_name,
)
from lightlyfs.catalog.freshness import UNLISTED, FreshnessConfig
from lightlyfs.catalog.known import RecentLookups, Reported
from lightlyfs.catalog.names import join_name
from lightlyfs.catalog.refresher import Refresher
from lightlyfs.catalog.remote import DatasetState, Remote, stored_dataset
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.database import Failures
from lightlyfs.errors import Cancelled, LightlyFsError, NotFound, RequestError, Unreachable
from lightlyfs.tree import directory_ino, sample_ino

log = logging.getLogger(__name__)
T = TypeVar("T")

_FLUSH_EVERY_S = 0.5
_POLL_S = 0.2
_WRONG_HINTS = "wrong_hints"
# as long as the kernel keeps names that are not there
_ANSWER_TTL_S = 2.0
# before every sample: the inode numbers of directories are positive
_START: Place = (0, "")


# when no census was taken yet
_NEVER = (-1, -1)


class Census:
    """Looks for samples that storage has not reported, or has no object of; any thread may call.

    Remembers where it found the first one, so that all searches together cost little more than one scan.
    `absent_etag` is the version that stands for a sample without a stored object.
    """

    def __init__(self, store: CatalogStore, absent_etag: str) -> None:
        self._store = store
        self._absent_etag = absent_etag
        self._lock = threading.Lock()
        # guarded by _lock
        self._from = _START
        self._changes = 0
        self.settled = False

    def look(self) -> None:
        """Set `settled` if storage has reported all samples by now. Raises sqlite3.Error."""
        with self._lock:
            start, changes = self._from, self._changes
        found = self._store.first_unsettled(start, self._absent_etag)
        with self._lock:
            if self._changes == changes:
                self._from = start if found is None else found
                self.settled = found is None

    def start_over(self) -> None:
        """Start again from the first sample, because the catalogue changed."""
        with self._lock:
            self._from = _START
            self._changes += 1
            self.settled = False


class Wait(Protocol):
    """How long a caller can wait."""

    def check(self) -> None:
        """Raise what ends the wait, if something does."""

    def restart(self) -> None:
        """Restart the caller's time limit, because the work it waits for made progress."""


class Catalog:
    """Lookup and listing of one dataset; `close` flushes what storage reported."""

    def __init__(
        self,
        store: CatalogStore,
        remote: Remote,
        refresher: Refresher,
        config: FreshnessConfig,
        census: Census,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._remote = remote
        self._census = census
        self.refresher = refresher
        self._ask_always = config.ttl_s == 0
        self._hearing = threading.Lock()  # taken before all others
        self._lock = threading.Lock()
        self._reported = Reported(store, on_written=lambda facts: self._recent.written(facts))
        # guarded by _lock: what the API said, or is being asked, of single names
        self._answers: TTLCache[str, Future[list[Row]]] = TTLCache(10_000, _ANSWER_TTL_S, timer=clock)
        # whether storage ever had another size than a listing said
        self.hints_are_wrong = store.get_meta(_WRONG_HINTS) is not None
        self._looked_at = _NEVER  # what had changed at the last census; used by the flusher
        self._generation = 0
        # a number that changes whenever a size that was shown may be outdated
        self.sizes_moved = 0
        self._recent = RecentLookups(store)
        self._unlisted_fails = Failures(
            log, "the next mount may show old names for a moment", "the next mount will list first"
        )
        self._closing = threading.Event()
        self._due = threading.Event()  # the flusher has something to do
        self._flusher = threading.Thread(target=self._flush_loop, name="lightlyfs-facts", daemon=True)

    def start(self) -> None:
        """Start the thread that writes down what storage reported."""
        self._due.set()
        self._flusher.start()

    def start_listing(self) -> None:
        """Queue the first listing, unless one is stored."""
        if not self.refresher.complete:
            self.refresher.start_listing()

    def list_now(self) -> Changes:
        """List everything in this thread; raises what the API raised."""
        return self.refresher.list_now()

    def resume(self) -> None:
        """Check with the next access, because the API may accept requests again."""
        self.refresher.resume()

    def expect_changes(self) -> None:
        """Make a full listing due with the next access, because an answer contradicts the catalogue."""
        self.refresher.expect_changes()

    def note_unlisted(self) -> None:
        """Make the next mount list first, because this one has changed what no listing shows yet."""
        try:
            if not self._store.get_meta(UNLISTED):
                self._store.set_meta({UNLISTED: "1"})
            self._unlisted_fails.note_success()
        except sqlite3.Error as error:
            self._unlisted_fails.note(error)

    def wake(self) -> None:
        """Soon read what other processes wrote, and write down what storage reported."""
        self._due.set()

    def close(self) -> None:
        """Write down what storage reported and close the store."""
        self._closing.set()
        self._due.set()
        self.refresher.close()
        if self._flusher.is_alive():
            self._flusher.join()
        self._reported.write()
        self._store.close()

    @property
    def generation(self) -> int:
        """A number that moves whenever a listing would come out differently."""
        return self._generation

    @property
    def settled(self) -> bool:
        """Whether storage has reported every sample, and has an object of each; found in the background."""
        return self._census.settled

    def current_generation(self) -> int:
        """`generation`, after seeing to freshness; -1 where every listing has to ask the API."""
        if self._ask_always:
            return -1
        self.refresher.touch()
        return self._generation

    def note_changes(self) -> None:
        """Let `generation` move; called after each commit of a listing."""
        self._census.start_over()
        with self._lock:
            self._generation += 1
            self.sizes_moved += 1
            self._recent.outdate()
        self._reported.note_listing(self._stored)
        self._due.set()
        # The listing was committed over another connection, so it counts as the write of another process. If
        # it were noted later, each row that is looked up from here on would be read again.
        if self._hearing.acquire(blocking=False):
            try:
                self._take_news()
            finally:
                self._hearing.release()

    def age_s(self) -> float | None:
        """Return the seconds since the catalogue was last known to be true, over mounts; None if never."""
        return self.refresher.age_s()

    def dataset(self) -> DatasetState | None:
        """Return the dataset's record as of the last listing."""
        return stored_dataset(self._store)

    def totals(self, without: Collection[int] = ()) -> Totals:
        """Return sums over all samples but those of these inode numbers; not for a hot path."""
        return self._store.totals(without)

    # names

    def lookup(self, path: str, wait: Wait) -> Entry | None:
        """Return the entry of a path without a leading slash, or None where there is none.

        Raises what ended the wait, or what the first listing failed with, where nothing can be said.
        """
        if not self.refresher.complete:
            return self._lookup_early(path, wait)
        self.refresher.touch()
        if self._looked_at != self._recent.state and not self._due.is_set():
            self._due.set()
        entry = self._shown_at(path)
        if self._ask_always and not self.refresher.stopped:
            return self._lookup_asking(path, entry, wait)
        return entry

    def known(self, path: str) -> Entry | None:
        """Return the stored entry of a path, None before the first listing; never asks the API."""
        return self._recent.lookup(path) if self.refresher.complete else None

    def known_samples(self, paths: Sequence[str]) -> list[tuple[str, SampleEntry]]:
        """Return the stored samples at some paths, in their order, with their paths; never asks the API."""
        return self._recent.samples_at(paths) if self.refresher.complete else []

    def list_directory(self, path: str, wait: Wait) -> tuple[list[DirectoryEntry], list[SampleEntry]]:
        """Return the directories and samples in a directory, each in byte order; never a part of them."""
        self.wait_until_listed(wait)
        if self._ask_always and not self.refresher.stopped:
            # where it fails, as `status` then shows, the old answers stay
            self._wait_for(self.refresher.check_soon(), wait)
        self.refresher.touch()
        return self._reported.consistent(lambda: self._listed_in(path))

    def wait_until_listed(self, wait: Wait) -> None:
        """Return once all samples are listed; raises what the listing failed with, or what ends the wait."""
        while not self.refresher.complete:
            self._await_listing(wait)

    def samples_after(self, path: str, count: int) -> list[tuple[str, SampleEntry]]:
        """Return at most `count` samples after a path in its directory, with their paths; from the store.

        With a negative count those before it, the nearest first.
        """

        def read() -> list[tuple[str, SampleEntry]]:
            found = self._recent.samples_after(path, count)
            return [(name, self._reported.apply(entry)) for name, entry in found]

        return self._reported.consistent(read)

    def directories_in(self, path: str) -> list[str]:
        """Return the names of the directories directly in a directory; never asks the API."""
        return self._store.directories_in(path)

    def samples_below(self, directory: str, page: int) -> Iterator[tuple[str, SampleEntry]]:
        """Yield all samples below a directory, at any depth, with their paths; looks up a page at once."""
        prefix = directory + "/" if directory else ""
        last = prefix
        while found := self.samples_after(last, page):
            yield from found
            last = found[-1][0]
        for name in self.directories_in(directory):
            yield from self.samples_below(prefix + name, page)

    def sums_below(self, directory: str, unknown_bytes: int, most_bytes: int) -> tuple[int, int]:
        """Count the samples below a directory, and their bytes; ends early once those are too many."""
        files = size = 0
        waiting = [directory]
        while waiting and size <= most_bytes:
            path = waiting.pop()
            here = self._store.sums_in(path, unknown_bytes)
            files, size = files + here[0], size + here[1]
            prefix = path + "/" if path else ""
            waiting += [prefix + name for name in self.directories_in(path)]
        return files, size

    def with_facts(self, entry: SampleEntry) -> SampleEntry:
        """Return an entry with what storage reported of it since it was looked up; sends no request."""
        return self._reported.apply(entry)

    def directories_holding(self, ids: Container[bytes]) -> frozenset[int]:
        """Return the inode numbers of the directories that hold one of these samples, at any depth; scans."""
        return self._store.directories_holding(ids)

    def by_id(self, sample_id: str) -> tuple[str, SampleEntry] | None:
        """Return the path and entry of a sample, or None."""
        ino = sample_ino(bytes.fromhex(sample_id))

        def read() -> tuple[str, SampleEntry] | None:
            found = self._store.by_ino(ino)
            return None if found is None else (found[0], self._reported.apply(found[1]))

        return self._reported.consistent(read)

    # what storage reported

    def record_facts(
        self,
        sample_id: str,
        size: int,
        etag: str,
        before: Callable[[SampleEntry], None] = lambda _: None,
        *,
        certain: bool = True,
    ) -> None:
        """Keep a sample's true size in bytes and its version; written down shortly after. Never raises.

        `before` is called with the sample as it is shown, if it is, before that changes. What is not
        `certain` is shown, and asked for again at the next open.
        """
        ino = sample_ino(bytes.fromhex(sample_id))
        found, shown = self._reported.consistent(lambda: self._stored_and_shown(ino))
        if shown is not None:
            before(shown)
        replaced = shown is not None and shown.etag not in (None, etag)
        resized = shown is None or shown.published_size != size
        facts = Facts(size, etag, certain=certain)
        self._reported.put(ino, facts, found, resized=resized)
        if not self._due.is_set():
            self._due.set()
        if replaced or resized:
            self._note_resized()

    def note_wrong_hint(self, path_of: str) -> None:
        """Storage has another size than a listing said, so that no hint of this dataset is to be trusted."""
        if self.hints_are_wrong:
            return
        log.info("the sizes that the API lists are wrong (%s): they are asked of storage", path_of)
        self.hints_are_wrong = True
        self._note_resized()
        try:
            self._store.set_meta({_WRONG_HINTS: path_of})
        except sqlite3.Error as error:
            log.warning("the catalogue on disk cannot be written: %s", error)

    def told(self, entry: SampleEntry, *, by_others: bool = True) -> SampleEntry | None:
        """Return what is now known of a sample; None if it is another one now.

        Without `by_others`, facts that another process wrote may show with a delay of half a second.
        """
        found, shown = self._reported.consistent(lambda: self._stored_and_shown(entry.ino, reread=by_others))
        if found is None or (found.mtime, found.size_hint) != (entry.mtime, entry.size_hint):
            return None
        return shown

    def may_lack_facts(self, entry: SampleEntry) -> bool:
        """Whether another process may have written facts of a sample since it was looked up; no query."""
        return self._recent.may_lack_facts(entry.ino)

    def publish_facts(self, sample_ids: Iterable[str]) -> None:
        """Let other processes see what storage reported of samples."""
        self._reported.publish(sample_ino(bytes.fromhex(sample_id)) for sample_id in sample_ids)

    def flush_facts(self) -> None:
        """Write down now what storage reported."""
        self._reported.write()

    def refresh(self) -> Changes:
        """Ask the API for everything now, and storage for each content before it is next used.

        Where the API cannot be asked, what was known stays in force.
        """
        changes = self.list_now()
        self._reported.write()
        try:
            self._store.forget_facts()
        except sqlite3.Error as error:
            raise LightlyFsError(f"the catalogue on disk cannot be written: {error}") from error
        self._heed_refresh()
        self.note_changes()
        return changes

    def hear_others(self) -> None:
        """Take note of what other processes wrote into the store."""
        with self._hearing:
            self._take_news()

    def _take_news(self) -> None:
        try:
            news = self._store.news()
        except sqlite3.Error as error:
            log.warning("the catalogue on disk cannot be read: %s", error)
            return
        if news is None:
            return
        self._looked_at = _NEVER  # they may have reported what was left
        # facts alone outdate nothing: they are looked up again before storage is asked about a sample
        self._recent.heard()
        if news.refreshed:
            self._heed_refresh()
        if news.changed or news.resized:
            with self._lock:
                self._recent.outdate()
        if news.resized:
            self._note_resized()
        if news.changed:
            self.refresher.changed_elsewhere()

    def _heed_refresh(self) -> None:
        # what was reported meanwhile was told to the kernel, and is shown on
        self._reported.doubt()
        self._store.heed_refreshes()

    # asking the API

    def _lookup_asking(self, path: str, entry: Entry | None, wait: Wait) -> Entry | None:
        """Ask for the one sample, with a TTL of zero; where it moved, list everything in the background."""
        if isinstance(entry, DirectoryEntry):
            return entry
        try:
            if entry is None:
                return self._find(path, wait)
            return self._ask_for(path, entry, wait)
        except RequestError as error:
            if isinstance(error, Cancelled):
                raise
            return self._shown_at(path)  # the last known truth is better than none

    def _ask_for(self, path: str, entry: SampleEntry, wait: Wait) -> Entry | None:
        try:
            sample = self._await(self._ask_sample(entry.sample_id), wait)
        except NotFound:
            sample = None
        if sample is None or sample.file_name != true_name(path, entry):
            self.expect_changes()
            return self._find(path, wait)
        modified = (sample.last_modified_at or sample.created_at or 0) // 1000
        hint = sample.meta_data.size_in_bytes if sample.meta_data else None
        if modified not in (0, entry.mtime) or hint != entry.size_hint:
            self.expect_changes()
            entry = entry._replace(
                mtime=modified or entry.mtime, size_hint=hint, size=None, verified=False, stands=False
            )
            return self._with_facts(entry)
        return self._shown_at(path) or entry

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
        return self._shown_at(path)

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
        return self._with_facts(entry_of(rows[0])) if rows else None

    def _asked(self, path: str, file_name: str) -> Future[list[Row]]:
        """Return what the API says of a name; ten threads that ask cause one request."""
        with self._lock:
            try:
                return self._answers[path]
            except KeyError:
                answer: Future[list[Row]] = Future()
                self._answers[path] = answer
        self.refresher.run_into(answer, lambda: self._remote.find(file_name))
        return answer

    def _await(self, answer: Future[T], wait: Wait) -> T:
        """Return the result of a request, or raise its error."""
        self._wait_for(answer, wait)
        return answer.result()

    def _wait_for(self, answer: Future[T], wait: Wait) -> None:
        """Wait for a request; each progress of a listing restarts the caller's time limit."""
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
            return self._reported.apply(entry)
        return entry

    def _shown_at(self, path: str) -> Entry | None:
        """Return the entry of a path as it is shown now."""
        return self._reported.consistent(lambda: self._with_facts(self._recent.lookup(path)))

    def _listed_in(self, path: str) -> tuple[list[DirectoryEntry], list[SampleEntry]]:
        directories, samples = self._store.list_directory(path)
        if self._reported:
            samples = [self._reported.apply(entry) for entry in samples]
        return directories, samples

    def _stored_and_shown(
        self, ino: int, *, reread: bool = False
    ) -> tuple[SampleEntry | None, SampleEntry | None]:
        """Return the listed sample as the store has it, and as it is shown."""
        found = self._stored(ino, reread=reread)
        return found, None if found is None else self._reported.apply(found)

    def _stored(self, ino: int, *, reread: bool = False) -> SampleEntry | None:
        """Return the listed sample; None, too, where the disk fails."""
        try:
            return self._recent.sample(ino, reread=reread)
        except sqlite3.Error as error:
            log.warning("the catalogue on disk cannot be read: %s", error)
            return None

    def _note_resized(self) -> None:
        with self._lock:
            self._generation += 1
            self.sizes_moved += 1

    def _flush_loop(self) -> None:
        while self._due.wait() and not self._closing.wait(_FLUSH_EVERY_S):
            self._due.clear()
            if self._closing.is_set():
                return  # its wake-up may be the one that was just cleared
            self._reported.write()
            self.hear_others()
            if self._looked_at != self._recent.state and self.refresher.complete:
                self._look_around()

    def _look_around(self) -> None:
        """Check whether storage has reported every sample by now."""
        state = self._recent.state
        try:
            self._census.look()
        except sqlite3.Error as error:
            log.warning("the catalogue on disk cannot be read: %s", error)
            return
        self._looked_at = state
