"""The part of the composition root that sees to read URLs: asked for, kept on disk, got ahead."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from lightlyfs.api.retry import NO_RETRIES, RetryPolicy
from lightlyfs.catalog.catalog import Catalog
from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.content.cache import BlockCache
from lightlyfs.content.identity import ContentId
from lightlyfs.content.url_store import UrlStore
from lightlyfs.content.urls import ReadUrls
from lightlyfs.content.urls_ahead import UrlsAhead
from lightlyfs.places import DatasetPlace
from lightlyfs.settings import Settings
from lightlyfs.wiring.connections import URL_THREADS, Connections


class UrlParts:
    """The read URLs of one dataset; `close` once, after those who use them."""

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        dataset_id: str,
        place: DatasetPlace,
        catalog: Catalog,
        cache: BlockCache,
        *,
        later: Callable[[Callable[[], None]], object],
        closing: Callable[[], bool],
    ) -> None:
        self._redirect = settings.read_mode == "redirect"
        self._client = connections.client
        self._dataset_id = dataset_id
        self._catalog = catalog
        self._cache = cache
        self._pool = ThreadPoolExecutor(URL_THREADS, "lightlyfs-urls")
        self.store = UrlStore(
            place.path / "urls.db",
            connections.fingerprint,
            wall_clock=time.time,
            later=later,
            locks=place.locks,
        )
        self.urls = ReadUrls(self.resolve, wall_clock=time.time, store=self.store, locks=place.locks)
        self.ahead: UrlsAhead[SampleEntry] = UrlsAhead(
            catalog.samples_after,
            self._get_ahead,
            lambda: 0 if closing() else self.urls.room,
            self._pool,
            clock=time.monotonic,
            max_under_way=URL_THREADS,
        )

    def resolve(self, sample_id: str, policy: RetryPolicy | None = None) -> str:
        """Ask the API for the read URL of a sample."""
        if self._redirect:
            return self._client.get_sample_redirect_url(self._dataset_id, sample_id, policy=policy)
        return self._client.get_sample_read_url(self._dataset_id, sample_id, policy=policy)

    def close(self) -> None:
        """Ask no more, and write down what is known."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.store.close()

    def _get_ahead(self, entry: SampleEntry) -> bool:
        entry = self._catalog.with_facts(entry)
        if entry.size is not None and entry.etag is not None:
            content = ContentId(entry.sample_id, entry.etag, entry.size)
            if not content.has_object or self._cache.has_whole(content):
                return False
        return self.urls.get_ahead(entry.sample_id, partial(self.resolve, policy=NO_RETRIES))
