"""Small pictures for file managers: where they come from, and who gets them unasked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lightlyfs.api.client import LightlyClient
from lightlyfs.api.contract import Transport
from lightlyfs.catalog.catalog import Catalog
from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.content.pictures import PictureStore
from lightlyfs.content.reader import Reader
from lightlyfs.content.thumbnails import Thumbnails
from lightlyfs.errors import NotFound
from lightlyfs.fs.patience import Patience
from lightlyfs.fs.samples import content_of
from lightlyfs.fs.thumbnails import WORKERS, ThumbnailPrefill, thumbnail_cache
from lightlyfs.fs.times import SetTimes
from lightlyfs.places import DatasetPlace
from lightlyfs.staging.facts_process import FactsPool

# samples looked up at once
_PAGE = 128
# an original that is decoded for its picture is held in memory whole
_MAX_ORIGINAL_BYTES = 64 << 20


@dataclass(frozen=True)
class DesktopNeeds:
    """What the pictures of one mount are made with; `mode` is that of the setting `thumbnails`."""

    mode: str
    client: LightlyClient
    dataset_id: str
    transport: Transport
    catalog: Catalog
    reader: Reader
    patience: Patience
    place: DatasetPlace
    mountpoint: Path | None
    owner: int
    pictures: FactsPool
    closing: threading.Event


class Desktop:
    """The thumbnails of one mount; `close` once."""

    def __init__(self, needs: DesktopNeeds, environ: Mapping[str, str] = os.environ) -> None:
        self._needs = needs
        self._store = PictureStore(
            needs.place.path / "thumbnails.db",
            alone=needs.place.alone,
            make_directory=needs.place.locks.renew,
        )
        self._pool = ThreadPoolExecutor(WORKERS, "lightlyfs-thumbnails")
        self.thumbnails = Thumbnails(
            self._resolve,
            needs.transport,
            self._pool,
            to_png=needs.pictures.png_of,
            original=self._cached_original,
            store=self._store,
        )
        self._environ = environ

    def make_prefill(self, times: SetTimes) -> ThumbnailPrefill | None:
        """What fills the desktop's cache; None where nobody's is to be filled."""
        needs = self._needs
        if needs.mode != "prefill" or needs.mountpoint is None or needs.owner != os.getuid():
            return None
        try:
            home = Path.home()
        except RuntimeError:
            return None  # a user without a home has no desktop
        cache = thumbnail_cache(self._environ.get("XDG_CACHE_HOME"), home)
        if cache is None:
            return None

        def samples(directory: str, after: str) -> list[tuple[str, SampleEntry]]:
            path = f"{directory}/{after}" if directory else after
            found = needs.catalog.samples_after(path, _PAGE)
            return [(path, times.apply(entry)) for path, entry in found]

        # a link to the mountpoint makes another URI of each file
        mountpoints = dict.fromkeys((str(needs.mountpoint), os.path.realpath(needs.mountpoint)))
        return ThumbnailPrefill(
            cache,
            tuple(mountpoints),
            samples,
            self._picture,
            self._pool,
            needs.closing.is_set,
            time.monotonic,
        )

    def close(self) -> None:
        """Let go of the store; pictures under way are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._store.close()

    def _resolve(self, sample_id: str) -> str:
        if self._needs.mode == "off":
            raise NotFound("thumbnails are off")
        return self._needs.client.get_sample_read_url(self._needs.dataset_id, sample_id, "thumbnail")

    def _picture(self, entry: SampleEntry) -> bytes:
        return self.thumbnails.get(entry.sample_id, str(entry.mtime))

    def _cached_original(self, sample_id: str) -> bytes | None:
        found = self._needs.catalog.by_id(sample_id)
        if self._needs.mode == "off" or found is None or not found[1].verified:
            return None
        content = content_of(found[1])
        if not 0 < content.size <= _MAX_ORIGINAL_BYTES or not self._needs.reader.holds(content):
            return None
        return self._needs.reader.read(content, 0, content.size, self._needs.patience.turn().result)
