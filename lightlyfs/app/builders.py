"""Builds the parts beside the read path: thumbnails, the unlisted folder, read URLs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightlyfs.api.contract import Timeouts
from lightlyfs.api.redaction import LineFormatter
from lightlyfs.api.retry import Retrier
from lightlyfs.app.connections import Connections
from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.cores import ThreadPool
from lightlyfs.desktop.prefill import WORKERS, ThumbnailPrefill, thumbnail_cache
from lightlyfs.desktop.thumbnails import PictureStore, Thumbnails
from lightlyfs.errors import NotFound
from lightlyfs.fetch.fetcher import FirstTry
from lightlyfs.fetch.prefetcher import Ended
from lightlyfs.fetch.urls import ReadUrls, UrlStore
from lightlyfs.fs.attributes import SetTimes
from lightlyfs.fs.samples import content_of
from lightlyfs.fs.views import Views
from lightlyfs.places import DatasetPlace
from lightlyfs.settings import Settings

if TYPE_CHECKING:
    from lightlyfs.app.dataset import Dataset

# samples looked up at once
_PAGE = 128
# an original that is decoded for its picture is held in memory whole
_MAX_ORIGINAL_BYTES = 64 << 20


class Desktop:
    """The thumbnails of one mount; `close` once. Built by `Dataset`, of the parts that it made before."""

    def __init__(self, dataset: Dataset, mountpoint: Path | None) -> None:
        self._dataset = dataset
        self._mountpoint = mountpoint
        place = dataset.place
        self._store = PictureStore(
            place.path / "thumbnails.db", alone=place.alone, make_directory=place.locks.renew
        )
        self._pool = ThreadPool(WORKERS, "lightlyfs-thumbnails")
        self.thumbnails = Thumbnails(
            self._resolve,
            dataset.connections.storage,
            self._pool,
            to_png=dataset.pictures.png_of,
            original=self._cached_original,
            store=self._store,
        )

    def make_prefill(self, times: SetTimes) -> ThumbnailPrefill | None:
        """Return the part that fills the desktop's thumbnail cache; None if it should not be filled."""
        dataset, settings, mountpoint = self._dataset, self._dataset.settings, self._mountpoint
        if settings.thumbnails != "prefill" or mountpoint is None or settings.uid != os.getuid():
            return None
        try:
            home = Path.home()
        except RuntimeError:
            return None  # a user without a home has no desktop
        cache = thumbnail_cache(os.environ.get("XDG_CACHE_HOME"), home)
        if cache is None:
            return None

        def samples(directory: str, after: str) -> list[tuple[str, SampleEntry]]:
            path = f"{directory}/{after}" if directory else after
            while found := dataset.catalog.samples_after(path, _PAGE):
                shown = [(path, times.apply(entry)) for path, entry in found if settings.shown.shows(path)]
                if shown:
                    return shown
                path = found[-1][0]
            return []

        # a link to the mountpoint makes another URI of each file
        mountpoints = dict.fromkeys((str(mountpoint), os.path.realpath(mountpoint)))

        def places(path: str) -> list[str]:
            shown = dataset.part.shown(path)
            return [] if shown is None else [f"{mountpoint}/{shown}" for mountpoint in mountpoints]

        return ThumbnailPrefill(
            cache,
            places,
            samples,
            self._picture,
            self._pool,
            dataset.closing.is_set,
            time.monotonic,
        )

    def close(self) -> None:
        """Let go of the store; pictures under way are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    def _resolve(self, sample_id: str) -> str:
        if self._dataset.settings.thumbnails == "off":
            raise NotFound("thumbnails are off")
        return self._dataset.client.get_sample_read_url(self._dataset.dataset_id, sample_id, "thumbnail")

    def _picture(self, entry: SampleEntry) -> bytes:
        return self.thumbnails.get(entry.sample_id, str(entry.mtime))

    def _cached_original(self, sample_id: str) -> bytes | None:
        dataset = self._dataset
        found = dataset.catalog.by_id(sample_id)
        if dataset.settings.thumbnails == "off" or found is None or not found[1].verified:
            return None
        content = content_of(found[1])
        if not 0 < content.size <= _MAX_ORIGINAL_BYTES or not dataset.reader.holds(content):
            return None
        return dataset.reader.read(content, 0, content.size, dataset.patience.turn().result)


# the unlisted folder `.lightlyfs/`

# lines for people, here and in the log file
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_LOG_LINES = 2_000
# how long the kernel may use what it was shown
_HOLDS_S = 1.0


class RecentLog(logging.Handler):
    """The last lines of the log, in memory; as many as a person reads."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(LOG_FORMAT))
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(self.format(record))

    def text(self) -> bytes:
        """All of them."""
        return "".join(line + "\n" for line in self._lines.copy()).encode("utf-8", "backslashreplace")


class ViewForgetter:
    """Has the kernel forget, each second, what it was shown of the folder; `start` and `close` once."""

    def __init__(
        self,
        views: Views,
        forget: Callable[[tuple[str, ...] | None], bool],
        closing: threading.Event,
    ) -> None:
        self._views = views
        self._forget = forget
        self._closing = closing
        self._thread = threading.Thread(target=self._run, name="lightlyfs-views", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; the event of closing is set."""
        self._views.shown.set()

    def _run(self) -> None:
        while self._views.shown.wait() and not self._closing.wait(_HOLDS_S):
            for path in self._views.take_shown():
                # one by one, for several at once would drop every name the kernel knows
                self._forget((path,))
            if self._closing.is_set():
                return  # `take_shown` may have cleared what `close` set


# read URLs: asked for, kept on disk, asked for ahead


# time limits of the first try at a small file; a later try may take longer
_FIRST_TRY = Timeouts(connect_s=3.0, total_s=20.0)


class UrlParts:
    """The read URLs of one dataset, and the first try at small files with them; `close` once, after their
    users.
    """

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        dataset_id: str,
        place: DatasetPlace,
        storage: Retrier,
        *,
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self._redirect = settings.read_mode == "redirect"
        self._client = connections.client
        self._loop = connections.loop
        self._dataset_id = dataset_id
        self.store = UrlStore(
            place.path / "urls.db",
            connections.fingerprint,
            wall_clock=time.time,
            later=later,
            locks=place.locks,
        )
        self.urls = ReadUrls(self.resolve, wall_clock=time.time, store=self.store)
        self.first_try = None
        if self._loop is not None:
            self.first_try = FirstTry(
                self._loop,
                self.urls,
                partial(self._client.read_url_attempt, dataset_id, redirect=self._redirect),
                self._client.retrier,
                storage,
                connections.requests,
                _FIRST_TRY,
            )

    def get_ahead(self, sample_id: str, ended: Ended) -> bool:
        """Get the read URL of a sample that has none; False where it has one, or this is not the time."""
        return self.first_try is not None and self.first_try.url(sample_id, lambda got: ended(got, None))

    def close(self) -> None:
        """Stop asking, and write down what is known."""
        if self._loop is not None:
            self._loop.close()
        self.store.close()

    def resolve(self, sample_id: str) -> str:
        """Ask the API for the read URL of a sample."""
        if self._redirect:
            return self._client.get_sample_redirect_url(self._dataset_id, sample_id)
        return self._client.get_sample_read_url(self._dataset_id, sample_id)
