"""The composition root: settings in, running parts out; the order of start and stop.

Nothing else builds parts. A mount of the demo, of a test and of a user differ in their settings only.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from lightlyfs import places
from lightlyfs.api.calls import Credentials
from lightlyfs.api.client import LightlyClient
from lightlyfs.api.proxies import Proxies
from lightlyfs.api.retry import RetryPolicy
from lightlyfs.api.transport import RequestsTransport, Transport, TransportConfig
from lightlyfs.catalog.catalog import Catalog
from lightlyfs.catalog.details import Details
from lightlyfs.catalog.refresher import FreshnessConfig, Refresher
from lightlyfs.catalog.remote import ApiRemote
from lightlyfs.catalog.staging import Changes
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.content.cache import BlockCache, CacheConfig, default_budget
from lightlyfs.content.fetcher import FetchConfig, Fetcher
from lightlyfs.content.identity import ContentId
from lightlyfs.content.reader import Reader
from lightlyfs.content.thumbnails import Thumbnails
from lightlyfs.content.urls import ReadUrls
from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.fs.patience import Patience
from lightlyfs.fs.xattrs import ExtendedAttributes
from lightlyfs.settings import Secrets, Settings

log = logging.getLogger(__name__)

# requests of the catalogue: pages, single samples, checks; apart from content, so that neither waits for
# the other
_METADATA_THREADS = 16


class Kernel(Protocol):
    """What the parts need of the mount they serve; a no-op where there is none."""

    def interrupted(self) -> bool:
        """Whether the caller of the callback under way was interrupted."""
        ...

    def caller_name(self) -> str:
        """The program that the callback under way serves."""
        ...

    def forget(self, paths: tuple[str, ...] | None) -> bool:
        """Drop what the kernel knows of paths; whether that is done already."""
        ...


class NoKernel:
    """The file system without a mount, as tests and libraries use it."""

    def interrupted(self) -> bool:
        """Nobody interrupts."""
        return False

    def caller_name(self) -> str:
        """No program known."""
        return ""

    def forget(self, paths: tuple[str, ...] | None) -> bool:
        """Nothing is kept, so nothing has to be forgotten."""
        return True


def make_client(
    settings: Settings,
    secrets: Secrets,
    environ: Mapping[str, str],
    on_request: Callable[[str, str, float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[LightlyClient, Transport]:
    """The API client, and the transport for storage, which also carries the client's GETs."""
    config = TransportConfig(
        connections=settings.jobs + _METADATA_THREADS,
        ca_bundle=None if settings.ca_certs is None else str(settings.ca_certs),
        proxies=Proxies.from_environ(environ),
    )
    requests = RequestsTransport(config)
    hot = _hot_transport(config) or requests
    client = LightlyClient(
        settings.server,
        Credentials(token=secrets.token, bearer=secrets.bearer, public_token=secrets.public_token),
        requests,
        hot_transport=hot,
        on_request=on_request,
        cancelled=cancelled,
    )
    return client, hot


def _hot_transport(config: TransportConfig) -> Transport | None:
    """pycurl, or None where no wheel of it exists and the requests form has to do."""
    try:
        from lightlyfs.api.curl import CurlTransport
    except ImportError:
        return None
    return CurlTransport(config)


class RequestCounter:
    """Counts API requests by operation, for `status`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def __call__(self, method: str, operation: str, seconds: float) -> None:
        with self._lock:
            self._counts[operation] = self._counts.get(operation, 0) + 1

    def counts(self) -> dict[str, int]:
        """Requests so far by operation."""
        with self._lock:
            return dict(sorted(self._counts.items()))


class Parts:
    """The running parts of one dataset; `start` before use, `close` once."""

    def __init__(
        self,
        settings: Settings,
        client: LightlyClient,
        storage: Transport,
        dataset_id: str,
        place: places.DatasetPlace,
        *,
        kernel: Kernel | None = None,
        requests: RequestCounter | None = None,
        closing: threading.Event | None = None,
    ) -> None:
        kernel = kernel or NoKernel()
        self.settings = settings
        self.dataset_id = dataset_id
        self.place = place
        self.requests = requests or RequestCounter()
        self.closing = closing or threading.Event()
        self._client = client
        self._storage = storage
        self._metadata_pool = ThreadPoolExecutor(_METADATA_THREADS, "lightlyfs-metadata")
        self._page_pool = ThreadPoolExecutor(_METADATA_THREADS, "lightlyfs-pages")
        self._content_pool = ThreadPoolExecutor(settings.jobs, "lightlyfs-content")
        self.catalog = self._make_catalog()
        self.cache = BlockCache(place.path, CacheConfig(self._budget()))
        self.reader = self._make_reader()
        self.filesystem = Filesystem(
            self.catalog,
            self.reader,
            self._make_xattrs(),
            Patience(clock=time.monotonic, interrupted=kernel.interrupted, closing=self.closing),
            caller_name=kernel.caller_name,
            forget=kernel.forget,
        )

    def start(self) -> None:
        """Start the threads of the parts, and the first listing where there is none stored."""
        self.catalog.start()
        if not self.catalog.refresher.complete:
            self.catalog.refresher.start_listing()

    def stop_waiting(self) -> None:
        """End every wait of a callback, and every transfer, soon."""
        self.closing.set()

    def close(self) -> None:
        """Stop the parts in the order in which nobody calls a closed one."""
        self.closing.set()
        for pool in (self._content_pool, self._metadata_pool, self._page_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        self.catalog.close()
        self.cache.close()
        self.place.close()

    def refresh(self) -> Changes:
        """Ask the API for everything now; what the kernel knows is forgotten along with it."""
        self._details.forget_all()
        changes = self.catalog.refresh()
        self.filesystem.note_changes(None)
        return changes

    def _make_catalog(self) -> Catalog:
        settings = self.settings
        freshness = FreshnessConfig(settings.metadata_ttl_s, settings.page_size)
        store = CatalogStore(self.place.path / "catalog.db")
        remote = ApiRemote(self._client, self.dataset_id)
        refresher = Refresher(
            store,
            remote,
            freshness,
            executor=self._metadata_pool,
            page_executor=self._page_pool,
            clock=time.monotonic,
            wall_clock=time.time,
            on_changes=self._on_changes,
        )
        self._details = Details(
            remote, self._metadata_pool, ttl_s=settings.metadata_ttl_s, clock=time.monotonic
        )
        return Catalog(store, remote, refresher, freshness, clock=time.monotonic)

    def _make_reader(self) -> Reader:
        if self.settings.read_mode == "redirect":
            resolve = self._client.get_sample_redirect_url
        else:
            resolve = self._client.get_sample_read_url
        fetcher = Fetcher(
            ReadUrls(lambda sample_id: resolve(self.dataset_id, sample_id), wall_clock=time.time),
            self._storage,
            FetchConfig(),
            clock=time.monotonic,
            sleep=self._pause,
            random=random.random,
            cancelled=self.closing.is_set,
        )
        return Reader(self.cache, fetcher, self._content_pool, self._on_facts)

    def _make_xattrs(self) -> ExtendedAttributes:
        thumbnails = Thumbnails(
            lambda sample_id: self._client.get_sample_read_url(self.dataset_id, sample_id, "thumbnail"),
            self._storage,
            self._content_pool,
        )
        return ExtendedAttributes(self._details.get, thumbnails.png)

    def _pause(self, seconds: float) -> None:
        self.closing.wait(seconds)

    def _budget(self) -> int:
        chosen = self.settings.cache_size_bytes
        return default_budget(self.place.path) if chosen is None else chosen

    def _on_facts(self, content: ContentId) -> None:
        self.catalog.record_facts(content.sample_id, content.size, content.etag)

    def _on_changes(self, changes: Changes) -> None:
        self.catalog.note_changes()
        self._details.forget_all()
        self.filesystem.note_changes(changes.paths)


def open_place(settings: Settings, dataset_id: str) -> places.DatasetPlace:
    """The directory of a dataset on this machine, locked; a private one with `--no-cache`."""
    root = places.server_directory(places.cache_root(settings.cache_dir), settings.server)
    return places.DatasetPlace(root, dataset_id, temporary=settings.no_cache)


def quick_policy() -> RetryPolicy:
    """For the checks at start: somebody waits, and the answer to a failure is to try again."""
    return RetryPolicy(attempts=3, budget_s=10.0)


def program_of(pid: int) -> str:
    """The name of a process as the kernel keeps it, at most 15 bytes; "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def status_of(parts: Parts) -> dict[str, Any]:
    """What `lightlyfs status` shows, as plain values."""
    refresher = parts.catalog.refresher
    record = parts.catalog.dataset()
    totals = parts.catalog.totals()
    cache = parts.cache.stats()
    reader = parts.reader.stats()
    return {
        "pid": os.getpid(),
        "dataset": {"id": parts.dataset_id, "name": record.name if record else None},
        "server": parts.settings.server,
        "catalogue": {
            "complete": refresher.complete,
            "age_s": refresher.age_s(),
            "stopped": refresher.stopped,
            "error": None if refresher.error is None else str(refresher.error),
            "listed": refresher.progress.listed,
            "expected": refresher.progress.expected,
            **totals._asdict(),
        },
        "cache": {"directory": str(parts.place.path), "private": parts.place.temporary, **cache._asdict()},
        "content": reader._asdict(),
        "open_files": parts.filesystem.open_files,
        "requests": parts.requests.counts(),
        "uploads": {"pending": 0},
    }
