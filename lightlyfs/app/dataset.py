"""The running parts of one dataset, the order in which they start and stop, and the directories they use."""

from __future__ import annotations

import json
import logging
import random
import shlex
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat

from lightlyfs import database, places
from lightlyfs.api.models import Sample
from lightlyfs.api.retry import Retrier
from lightlyfs.app.builders import Desktop, RecentLog, UrlParts, ViewForgetter
from lightlyfs.app.connections import CONTENT_THREADS, METADATA_THREADS, Connections
from lightlyfs.app.exported_index import import_index
from lightlyfs.app.kernel_interface import Kernel, NoKernel, open_files_limit
from lightlyfs.app.metrics import status_of
from lightlyfs.app.sharing import DirectoryWatch, listing_turn, opening, renewing
from lightlyfs.app.uploading import Uploads
from lightlyfs.blocks import BLOCK_BYTES, NO_OBJECT
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.cache.block_files import CacheConfig, bytes_beside, default_budget, free_bytes, shed
from lightlyfs.cache.fetch_once import FetchOnce
from lightlyfs.catalog.entries import Changes, SampleEntry, Totals
from lightlyfs.catalog.freshness import Freshness, FreshnessConfig
from lightlyfs.catalog.listing import Lister
from lightlyfs.catalog.refresher import Refresher
from lightlyfs.catalog.remote import ApiRemote, Details, Remote, TaggedRemote
from lightlyfs.catalog.sample_catalog import Catalog, Census
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.catalog.tags import Tags
from lightlyfs.cores import ThreadPool
from lightlyfs.desktop.programs import CrawlBudget
from lightlyfs.errors import (
    DeadlineExceeded,
    NoSuchFile,
    Retryable,
    SettingsError,
    StartError,
    TooManyWaiting,
)
from lightlyfs.fetch.fetcher import FetchConfig, Fetcher
from lightlyfs.fetch.prefetcher import Announcement, Ended, EpochFetcher, PrefetchStats
from lightlyfs.fetch.reader import Reader
from lightlyfs.fs.attributes import SetTimes
from lightlyfs.fs.direct_reads import CachedFiles, PathReads
from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.fs.namespace import Namespace
from lightlyfs.fs.patience import Patience
from lightlyfs.fs.samples import FilesBelow, Samples, known_content
from lightlyfs.fs.views import ExtendedAttributes, Views, ViewSources
from lightlyfs.fs.warming import Warming, WarmingParts
from lightlyfs.settings import LEAST_CACHE_BYTES, Settings
from lightlyfs.staging.facts_process import FactsPool
from lightlyfs.staging.local_files import LocalFile

log = logging.getLogger(__name__)

# documents are for people, who look at a few
_DOCUMENT_TTL_S = 60.0
# lists of paths written into `.lightlyfs/prefetch` that are worked on at once, each by `jobs` threads
_MAX_FETCHING = 4
# samples that are looked up at once to be listed: some ten milliseconds
_LISTED_AT_ONCE = 4_096
# announced paths that are looked up at once: a millisecond
_ANNOUNCED_AT_ONCE = 64
# files that a warming fetches at once, unless more are asked for; each has a thread
_WARMED_AT_ONCE = 64


class Dataset:
    """The running parts of one dataset; `start` before use, `close` once.

    Once they are made other processes may use the place.
    """

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        dataset_id: str,
        place: places.DatasetPlace,
        *,
        kernel: Kernel | None = None,
        closing: threading.Event | None = None,
        spool_place: places.SpoolPlace | None = None,
    ) -> None:
        """`spool_place` is where a mount that may be written to keeps what it owes; otherwise None."""
        kernel = kernel or NoKernel()
        self.settings = settings
        self.dataset_id = dataset_id
        self.place = place
        self.connections = connections
        self.closing = closing or threading.Event()
        self.client = connections.client
        self.metadata_pool = ThreadPool(METADATA_THREADS, "lightlyfs-metadata")
        self._page_pool = ThreadPool(METADATA_THREADS, "lightlyfs-pages")
        self._content_pool = ThreadPool(min(settings.jobs, CONTENT_THREADS), "lightlyfs-content")
        self._open_stores(kernel)
        self.reader = self._make_reader()
        self.uploads: Uploads | None = None
        self.patience = Patience(clock=time.monotonic, interrupted=kernel.interrupted, closing=self.closing)
        self.samples = self._make_samples(kernel)
        self.recent_log = RecentLog()
        self._fetching: list[Warming] = []
        self._mountpoint = kernel.mountpoint
        self.part = kernel.part
        self.pictures = FactsPool()
        self.desktop = Desktop(self, kernel.mountpoint)
        self.filesystem = self._make_filesystem(kernel, spool_place)
        self._watch = DirectoryWatch(place.path, self._hear_others)
        place.share()

    def start(self) -> None:
        """Start the threads of the parts, and the first listing where there is none stored."""
        if self.connections.token_file is not None:
            self.connections.token_file.on_change = self._go_on
        for pool in (self.metadata_pool, self._page_pool, self._content_pool):
            pool.start()
        self.catalog.start()
        self._once.start()
        if self._forgets_views is not None:
            self._forgets_views.start()
        self._watch.start()
        if self.uploads is not None:
            self.uploads.start()
        self.catalog.start_listing()

    def need_folder(self, dataset: str) -> None:
        """StartError, with the name of the dataset, where the folder that is mounted is not there."""
        folder = self.part.folder
        node = self._namespace.find(folder, self._own_patience().turn()) if folder else None
        if isinstance(node, SampleEntry | LocalFile):
            raise StartError(f"{folder!r} is a file of {dataset}; mount the folder that it is in")
        if folder and node is None:
            raise StartError(
                f"{dataset} has no folder {folder!r}; `lightlyfs ls {shlex.quote(dataset)}` lists what it has"
            )

    def hides_all(self) -> bool:
        """Return whether `--include` and `--exclude` leave no sample of what is mounted."""
        if self.settings.shown.show_all or not self._namespace.totals().samples:
            return False
        return next(self._namespace.samples_below(self.part.folder, _LISTED_AT_ONCE), None) is None

    def drain(self) -> None:
        """Wait for the uploads under way while they make progress; what is left stays in the journal."""
        if self.uploads is not None:
            self.uploads.drain()

    def stop_waiting(self) -> None:
        """End every wait of a callback, and every transfer, soon."""
        self.closing.set()

    def close(self) -> None:
        """Stop the parts, each after all parts that call it."""
        self.closing.set()
        self._epochs.shut_down()
        if self.uploads is not None:
            self.uploads.stop()
        for pool in (self._content_pool, self.metadata_pool, self._page_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        self._watch.close()
        if self._forgets_views is not None:
            self._forgets_views.close()
        self.urls.close()
        self.desktop.close()
        self.pictures.close()
        self._once.close()
        self.catalog.close()
        if self.uploads is not None:
            self.uploads.close()
        self.cache.close()
        self.place.close()

    def leave_locks(self) -> None:
        """Let go of the locks in a forked child: they are the parent's, and end with it alone."""
        self.place.locks.close()
        if self.uploads is not None:
            self.uploads.leave_locks()

    def prefetch_stats(self) -> PrefetchStats:
        """Return what was fetched before it was asked for."""
        return self.samples.prefetcher.stats()

    def url_stats(self) -> dict[str, int]:
        """Read URLs on disk, and those that were got before they were asked for."""
        ahead = self._epochs.stats()
        return {
            "stored": len(self.urls.store),
            "store_errors": self.urls.store.errors,
            "got": ahead.urls,
            "under_way": ahead.under_way,
            "limit": ahead.limit,
        }

    def ahead(self, batches: Iterable[Sequence[str]]) -> Announcement:
        """Fetch files, named by their paths, in this order ahead of a program that is about to read them.

        Returns at once. The order may be of any length: it is asked for as it is needed, in another thread,
        and the paths of a batch are looked up together. At most `read_ahead_limit` bytes are fetched and not
        read. Paths that name no sample are passed over.
        """
        limit = self.settings.read_ahead_limit_bytes
        most = self.cache.room.ahead_bytes
        return self._epochs.announce(self._samples_at(batches), most if limit is None else min(limit, most))

    def _samples_at(self, batches: Iterable[Sequence[str]]) -> Iterator[tuple[str, SampleEntry, int] | None]:
        """Yield what is to be fetched of an order, and None for each path of which nothing is."""
        self.catalog.wait_until_listed(self._own_patience().turn())
        for paths in batches:
            for start in range(0, len(paths), _ANNOUNCED_AT_ONCE):
                some = paths[start : start + _ANNOUNCED_AT_ONCE]
                known = self.catalog.known_samples(some)
                left = [(path, entry) for path, entry in known if not self.samples.is_cached(entry)]
                yield from repeat(None, len(some) - len(left))
                for path, entry in left:
                    size = entry.published_size
                    yield path, entry, BLOCK_BYTES if size is None else size

    def epoch_stats(self) -> dict[str, int]:
        """What was fetched ahead for readers without order, and how much of it was read."""
        ahead = self._epochs.stats()
        return {
            "files": ahead.files,
            "bytes": ahead.bytes,
            "files_read": ahead.files_read,
            "unread": ahead.unread,
        }

    def _fetch_ahead(self, entry: SampleEntry, ended: Ended) -> bool:
        return self.samples.fetch_ahead(entry, ended)

    def _get_url_ahead(self, entry: SampleEntry, ended: Ended) -> bool:
        """Get the read URL of a file that is not in the cache."""
        entry = self.catalog.with_facts(entry)
        content = known_content(entry)
        if content is not None and (not content.has_object or self.cache.has_whole(content)):
            return False
        return self.urls.get_ahead(entry.sample_id, ended)

    def warming(
        self, names: Iterable[str], jobs: int | None, tag: str | None, pin_bytes: int | None = None
    ) -> Warming:
        """Files and directories, or what a tag holds of them, on their way into the cache.

        With `jobs` downloads, but no more than the mount has. With `pin_bytes` they are pinned, up to that.
        """
        only = None if tag is None else self.members(tag)
        # a quarter of the downloads is left to readers who wait, unless all are asked for
        jobs = max(1, min(jobs or min(self.settings.jobs * 3 // 4, _WARMED_AT_ONCE), self.settings.jobs))
        parts = WarmingParts(
            self._namespace,
            self.reader,
            self.cache,
            self.samples.ask,
            self._own_patience(),
            self.closing.is_set,
        )
        return Warming(parts, names, jobs, only, pin_bytes=pin_bytes)

    def members(self, tag: str) -> frozenset[bytes]:
        """Return the ids of the samples of a tag, by its name or id; NoSuchFile where there is none."""
        found = self._tags.find(tag)
        if found is None:
            raise NoSuchFile(f"the dataset has no tag {tag!r}")
        return self._tags.members(found)

    def samples_below(self, directory: str) -> Iterator[tuple[str, bytes]]:
        """Yield the path and id of every sample below a directory that is shown, as the API has them now.

        Where the API does not answer they are those of an earlier listing; raises where there is none.
        """
        turn = self._own_patience().turn()
        refresher = self.catalog.refresher
        if refresher.complete:
            try:
                turn.result(refresher.check_soon(), moved=lambda: refresher.progress.listed)
            except (Retryable, DeadlineExceeded) as error:
                log.warning("the names of an earlier listing are used: %s", error)
        self.catalog.wait_until_listed(turn)
        self.filesystem.getattr(directory)
        for path, entry in self._namespace.samples_below(directory, _LISTED_AT_ONCE):
            yield path, entry.id

    def totals(self) -> Totals:
        """Return sums over all samples, with what this mount uploaded and renamed since the listing."""
        return self._namespace.totals()

    def cached_files(self) -> CachedFiles:
        """Return the cached files of samples, for programs that read them by themselves."""
        return CachedFiles(self._namespace, self.samples, self.reader, self.cache, self._own_patience())

    def _go_on(self) -> None:
        """Retry what was refused with the old token, because there is another one."""
        self.catalog.resume()
        if self.uploads is not None:
            self.uploads.retry_all()

    def reload_token(self) -> bool:
        """Read the token file again, and try again what was refused; False where there is none to be had."""
        if self.connections.token_file is None or not self.connections.token_file.reload():
            return False
        self._go_on()
        return True

    def refresh(self) -> Changes:
        """Ask the API for everything now, and have the kernel forget what it knows.

        The token file is read again, for callers that renewed the token.
        """
        self.reload_token()
        self._forget_details()
        if self.uploads is not None:
            self.uploads.refresh()
        changes = self.catalog.refresh()
        self.filesystem.note_changes(None)
        return changes

    def _own_patience(self) -> Patience:
        """Return the waiting rules of calls that no callback of the kernel makes."""
        return Patience(clock=time.monotonic, interrupted=lambda: False, closing=self.closing)

    def _open_stores(self, kernel: Kernel) -> None:
        """Open catalogue and cache, in another place where the disk does not let us."""
        try:
            self._try_stores(kernel)
        except StartError as error:
            log.warning("%s; this mount keeps a cache of its own", error)
            self.place.leave(str(error))
            self._try_stores(kernel)

    def _try_stores(self, kernel: Kernel) -> None:
        with opening(self.place):
            self.catalog = self._make_catalog()
            try:
                self.cache = self._make_cache(kernel)
            except BaseException:
                self.catalog.close()
                raise

    def _make_catalog(self) -> Catalog:
        settings = self.settings
        config = FreshnessConfig(settings.metadata_ttl_s, settings.page_size)
        name = places.catalogue_name(settings.tag)
        store = CatalogStore(
            self.place.path / name, alone=self.place.alone, opening=partial(renewing, self.place)
        )
        api = ApiRemote(self.client, self.dataset_id)
        self.problems = api.problems
        self._tags = Tags(api, ttl_s=settings.metadata_ttl_s, clock=time.monotonic)
        remote: Remote = api if settings.tag is None else TaggedRemote(api, self._tags, settings.tag)
        lister = Lister(
            store, remote, config, executor=self._page_pool, clock=time.monotonic, sleep=self._pause
        )
        refresher = Refresher(
            store,
            lister,
            Freshness(config, store.get_meta, clock=time.monotonic, wall_clock=time.time),
            self.connections,
            executor=self.metadata_pool,
            on_changes=self._on_changes,
            turn=listing_turn(self.place, name, self.closing.is_set),
        )
        self._details: Details[Sample] = Details(
            remote.sample, self.metadata_pool, ttl_s=settings.metadata_ttl_s, clock=time.monotonic
        )
        self._documents: Details[bytes] = Details(
            lambda sample_id: self.client.get_sample_document(self.dataset_id, sample_id),
            self.metadata_pool,
            ttl_s=min(settings.metadata_ttl_s, _DOCUMENT_TTL_S),
            clock=time.monotonic,
        )
        return Catalog(store, remote, refresher, config, Census(store, NO_OBJECT), clock=time.monotonic)

    def _make_cache(self, kernel: Kernel) -> BlockCache:
        path, budget = self.place.path, self.settings.cache_size_bytes
        config = CacheConfig(
            default_budget(path) if budget is None else budget,
            self.settings.cache_min_free_bytes,
            open_files_limit(kernel),
        )
        cache = BlockCache(path, config, locks=self.place.locks, beside=partial(bytes_beside, path))
        if cache.room.is_held_down and cache.room.limit < LEAST_CACHE_BYTES:
            free = free_bytes(path) >> 20
            log.warning(
                "the disk of %s is nearly full (%d MiB free): next to nothing is cached, and each read is a "
                "download; choose another with --cache-dir, or see --cache-min-free",
                path,
                free,
            )
        return cache

    def _make_reader(self) -> Reader:
        # what reads and uploads find out about the storage is common to them
        self.storage_retrier = Retrier(
            clock=time.monotonic, sleep=self._pause, random=random.random, cancelled=self.closing.is_set
        )
        self.urls = UrlParts(
            self.settings,
            self.connections,
            self.dataset_id,
            self.place,
            self.storage_retrier,
            later=self.metadata_pool.submit,
        )
        fetcher = Fetcher(
            self.urls.urls,
            self.connections.storage,
            FetchConfig(),
            self.storage_retrier,
            cancelled=self.closing.is_set,
        )
        self._once = FetchOnce(
            self.cache,
            self.place.locks,
            publish_facts=self.catalog.publish_facts,
            cancelled=self.closing.is_set,
        )
        return Reader(
            self.cache,
            fetcher,
            self._content_pool,
            lambda content, certain: self.samples.storage_reported(content, certain),
            self._once,
            self.urls.first_try,
        )

    def _make_samples(self, kernel: Kernel) -> Samples:
        # a quarter of the downloads is left to readers who wait
        jobs = self.settings.jobs if self.connections.loop is not None else CONTENT_THREADS
        most = jobs * 3 // 4
        self._epochs: EpochFetcher[SampleEntry] = EpochFetcher(
            FilesBelow(self.catalog, self.reader, self.settings.shown),
            self._fetch_ahead,
            self._get_url_ahead,
            self._content_pool,
            guesses=self.settings.read_ahead == "epochs",
            clock=time.monotonic,
            max_under_way=most,
        )
        return Samples(
            self.catalog,
            self.reader,
            problems=self.problems,
            caller_name=kernel.caller_name,
            forget=kernel.forget,
            max_prefetches=most,
            epochs=self._epochs,
            follows_order=self.settings.read_ahead != "off",
            crawls=CrawlBudget(kernel.caller_name, time.monotonic),
            rules=self.settings.shown,
        )

    def _fetch(self, paths: list[str]) -> None:
        """Fetch files in the background; the result shows in the cache."""
        self._fetching = [one for one in self._fetching if not one.wait(0).ended]
        if len(self._fetching) >= _MAX_FETCHING:
            raise TooManyWaiting(f"{_MAX_FETCHING} lists of files are being fetched already")
        # an absolute path comes without its first slash
        above = f"{self._mountpoint}/".lstrip("/")
        inside = [self.part.inside(path.removeprefix(above)) for path in paths]
        self._fetching.append(self.warming(inside, None, None))
        self._fetching[-1].start()

    def _make_views(self, namespace: Namespace, kernel: Kernel) -> Views:
        sources = ViewSources(
            status=lambda: json.dumps(status_of(self), indent=1).encode() + b"\n",
            log=self.recent_log.text,
            document=self._documents.get,
            thumbnail=self.desktop.thumbnails.png,
            tags=lambda: self.metadata_pool.submit(self._tags.all),
            members=lambda tag: self.metadata_pool.submit(self._tags.members, tag),
            fetch=self._fetch,
        )
        views = Views(namespace, self.catalog, sources, self.part)
        self._forgets_views = (
            ViewForgetter(views, kernel.forget, self.closing) if kernel.forgets_at_once else None
        )
        return views

    def _make_filesystem(self, kernel: Kernel, spool_place: places.SpoolPlace | None) -> Filesystem:
        if spool_place is not None:
            self.uploads = Uploads(self, spool_place, kernel)
        times = self.uploads.times if self.uploads else SetTimes(None)
        namespace = (
            self.uploads.namespace
            if self.uploads
            else Namespace(self.catalog, None, times, self.settings.shown)
        )
        self._namespace = namespace
        if not isinstance(kernel, NoKernel):
            namespace.held_sizes = self.samples.held_sizes
        by_path = None
        if self.uploads is None and kernel.forgets_at_once:
            by_path = PathReads(
                namespace, self.samples, settled=lambda: self.catalog.settled, forget=kernel.forget
            )
        return Filesystem(
            namespace,
            self.samples,
            ExtendedAttributes(self._details.get, self.desktop.thumbnails.png, self._details.forget),
            times,
            self.patience,
            forget=kernel.forget,
            writing=self.uploads.write_parts() if self.uploads else None,
            by_path=by_path,
            views=self._make_views(namespace, kernel),
            prefill=self.desktop.make_prefill(times),
            caller_name=kernel.caller_name,
            caller_process=kernel.caller_process,
        )

    def _pause(self, seconds: float) -> None:
        self.closing.wait(seconds)

    def _forget_details(self) -> None:
        self._details.forget_all()
        self._documents.forget_all()
        self._tags.forget_all()

    def _hear_others(self) -> None:
        """Check what was written to the directory of the dataset, perhaps by another process."""
        self.catalog.wake()
        self._once.keep_up_soon()

    def _on_changes(self, changes: Changes) -> None:
        self.catalog.note_changes()
        self._forget_details()
        self.filesystem.note_changes(changes.paths)


# the logs of five databases, and what is written to them while a mount starts
_FREE_BYTES = 16 << 20


def open_spool(settings: Settings, dataset_id: str) -> places.SpoolPlace | None:
    """Open and lock the directory for a mount's pending uploads, with those of earlier mounts.

    None for a read-only mount, and where the disk takes nothing, which is logged.
    """
    if settings.read_only:
        return None
    place = None
    try:
        state = places.state_root(settings.cache_dir)
        places.remember_state_root(state)
        place = places.SpoolPlace(places.server_directory(state, settings.server), dataset_id)
        database.see_writable(place.path / "journal.db")
    except (OSError, sqlite3.OperationalError, SettingsError) as error:
        if place is not None:
            place.close()
        if isinstance(error, SettingsError) and not places.is_passing(error.__cause__):
            raise
        log.warning("this mount is read-only, for what is written cannot be kept: %s", error)
        return None
    return place


def open_place(settings: Settings, dataset_id: str) -> places.DatasetPlace:
    """Return the directory of a dataset on this machine; a private one with `--no-cache`.

    On a full disk the cache shrinks first, for databases need some room. With an index it begins with that,
    unless another process uses it, for then its names count. StartError where it is not one of this dataset.
    """
    if where := places.elsewhere(settings.cache_dir):
        log.warning("%s", where)
    root = places.server_cache(settings.cache_dir, settings.server)
    place = places.DatasetPlace(root, dataset_id, temporary=settings.no_cache)
    try:
        shed(place.path / "blocks", _FREE_BYTES)
        if settings.index is not None:
            import_index(settings.index, place, settings.tag, dataset_id)
    except BaseException:
        place.close()
        raise
    return place


def list_once(settings: Settings, connections: Connections, dataset_id: str) -> None:
    """List a dataset into this machine's catalogue; raises what the API raised."""
    with open_place(settings, dataset_id) as place:
        parts = Dataset(settings, connections, dataset_id, place)
        try:
            parts.catalog.list_now()
        finally:
            parts.close()
