"""Signed read URLs: requested once, kept until shortly before they expire.

A URL is a secret. It is held in memory and in the `UrlStore`, and passed only to the transport.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from math import isfinite
from urllib.parse import unquote

from cachetools import TLRUCache

from lightlyfs.fetch.url_store import KeptUrl, UrlStore

# a URL is not handed out in the last moments of its life: a transfer has to begin before it ends
EXPIRY_MARGIN_S = 30.0
# for a URL that does not say when it expires, or whose life is over by our clock although it is new, so
# that one of the two clocks is wrong; a refusal renews it earlier
UNKNOWN_LIFETIME_S = 600.0
# a URL with session credentials has some 1.5 KB
MAX_URLS = 20_000
# what a URL names may have been moved since it was got, after a while
_NEW_S = 60.0

# the longest name of a parameter that tells a time: X-Amz-Expires and those like it
_MAX_NAME = 20


def expiry_of(url: str) -> float | None:
    """Return when a signed URL expires, in unix seconds; None where it does not say.

    Knows SigV4 (`X-Amz-Date` + `X-Amz-Expires`), those made like it (`X-Goog-*`, `X-Oss-*`), Azure (`se`)
    and the plain `Expires` of S3 V2, CloudFront and others.
    """
    try:
        expiry = _expiry_in(_short_parameters(url))
    except (KeyError, ValueError, OverflowError):
        return None
    return expiry if expiry is not None and isfinite(expiry) else None


def _short_parameters(url: str) -> dict[str, str]:
    """The parameters of a URL that may tell a time, by lower-case names; the last of each name."""
    found = {}
    for part in url.partition("#")[0].partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if value and len(name) <= _MAX_NAME:
            found[name.lower()] = value
    return found


def _expiry_in(query: dict[str, str]) -> float | None:
    for name, value in query.items():
        if name.startswith("x-") and name.endswith("-date"):
            return _unix_time(unquote(value)) + float(unquote(query[f"{name[:-5]}-expires"]))
    if "se" in query:
        return _unix_time(unquote(query["se"]).partition("Z")[0].partition(".")[0])
    return float(unquote(query["expires"])) if "expires" in query else None


def _unix_time(text: str) -> float:
    """The unix time of a moment in a form of ISO 8601, in UTC where it does not say."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class ReadUrls:
    """The read URLs of samples; ten threads that miss one URL cause one request.

    `resolve(sample_id)` asks the API and may raise; it is called with no lock held. `wall_clock` is in
    unix seconds, for that is what URLs speak of. `store` holds them over remounts, and those that memory
    has no room for.
    """

    def __init__(
        self,
        resolve: Callable[[str], str],
        *,
        wall_clock: Callable[[], float],
        store: UrlStore | None = None,
        max_urls: int = MAX_URLS,
    ) -> None:
        self._resolve = resolve
        self._max_urls = max_urls
        self._store = store
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._urls: TLRUCache[str, KeptUrl] = TLRUCache(max_urls, ttu=_last_use, timer=wall_clock)
        self._asking: dict[str, Future[str] | None] = {}  # the futures for others who wait

    def get(self, sample_id: str) -> str:
        """Return a URL that stays valid for some time; raises the API's error."""
        while True:
            found = self.begin(sample_id)
            if isinstance(found, str):
                return found
            if found is None:
                return self._ask(sample_id)
            try:
                return found.result()
            except AskedOnce:
                continue

    def begin(self, sample_id: str) -> str | Future[str] | None:
        """Return a URL, or the future of one that is asked for; None: the caller is to ask, and to `end`.

        The future raises the API's error, or AskedOnce where the request was not tried again.
        """
        with self._lock:
            kept = self._kept_locked(sample_id)
            if kept is not None:
                return kept.url
            if sample_id in self._asking:
                asking = self._asking[sample_id] = self._asking[sample_id] or Future()
                return asking
            self._asking[sample_id] = None
            known = len(self._urls)
        store = self._store
        # in a first epoch each URL in the store is in memory, too
        stored = store.get(sample_id) if store is not None and store.holds_more_than(known) else None
        if stored is None:
            return None
        self._keep(sample_id, stored)
        return stored.url

    def end(self, sample_id: str, url: str | None, error: BaseException | None = None) -> None:
        """Give what was asked for after `begin` to all who wait for it; without a URL, why there is none."""
        if url is not None:
            self._keep(sample_id, self._new(sample_id, url))
            return
        with self._lock:
            waited_for = self._asking.pop(sample_id)
        if waited_for is not None:
            waited_for.set_exception(error or AskedOnce())

    def is_new(self, sample_id: str, url: str) -> bool:
        """Whether this URL of a sample was got a moment ago, so that another would say the same."""
        with self._lock:
            found = self._kept_locked(sample_id)
        return found is None or found.url != url or self._wall_clock() < found.since + _NEW_S

    def renew(self, sample_id: str, refused: str) -> str:
        """Another URL than the refused one, from the API unless another thread has it already."""
        self.discard(sample_id, refused)
        return self.get(sample_id)

    def discard(self, sample_id: str, refused: str) -> None:
        """Forget a refused URL, unless it was replaced by now."""
        with self._lock:
            kept = self._kept_locked(sample_id)
            if kept is not None and kept.url == refused:
                with suppress(KeyError):  # its time may end between the two looks
                    del self._urls[sample_id]
        if self._store is not None:
            self._store.discard(sample_id, refused)

    def _kept_locked(self, sample_id: str) -> KeptUrl | None:
        try:
            # not `get`, which looks at the clock twice and fails where the time ends in between
            return self._urls[sample_id]
        except KeyError:
            return None

    def _ask(self, sample_id: str) -> str:
        try:
            url = self._resolve(sample_id)
        except BaseException as error:
            self.end(sample_id, None, error)
            raise
        self.end(sample_id, url)
        return url

    def _keep(self, sample_id: str, kept: KeptUrl) -> None:
        with self._lock:
            self._urls[sample_id] = kept
            waited_for = self._asking.pop(sample_id)
        if waited_for is not None:
            waited_for.set_result(kept.url)

    def _new(self, sample_id: str, url: str) -> KeptUrl:
        expiry = expiry_of(url)
        if self._store is not None and expiry is not None:
            self._store.put(sample_id, url, expiry)
        now = self._wall_clock()
        return KeptUrl(url, now, _end_of_use(expiry, now))


class AskedOnce(Exception):
    """A request for a URL failed that is not tried again: who needs the URL asks himself."""


def _last_use(_sample_id: str, kept: KeptUrl, _now: float) -> float:
    return kept.until


def _end_of_use(expiry: float | None, now: float) -> float:
    if expiry is None or expiry <= now:
        return now + UNKNOWN_LIFETIME_S
    # one that lives for less than the margin is used to its end, for the next one would live no longer
    return expiry - EXPIRY_MARGIN_S if expiry - EXPIRY_MARGIN_S > now else expiry
