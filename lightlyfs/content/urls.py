"""Signed read URLs: asked for once, kept until shortly before they expire.

A URL is a secret. It is held in memory and in the `UrlStore`, handed to the transport and nowhere else.
"""

from __future__ import annotations

import re
import threading
from calendar import timegm
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from math import isfinite
from time import strptime
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from cachetools import TLRUCache

from lightlyfs.content.url_store import UrlStore

# a URL is not handed out in the last moments of its life: a transfer has to begin before it ends
EXPIRY_MARGIN_S = 30.0
# for a URL that does not say when it expires, or whose life is over by our clock although it is new, so
# that one of the two clocks is wrong; a refusal renews it earlier
UNKNOWN_LIFETIME_S = 600.0
# a URL with session credentials has some 1.5 KB
MAX_URLS = 20_000

_SIGNED_AT = re.compile(r"(x-[a-z]+)-date")
_SAS_FORMS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d")


def expiry_of(url: str) -> float | None:
    """When a signed URL expires, in unix seconds; None where it does not say.

    Knows SigV4 (`X-Amz-Date` + `X-Amz-Expires`), those made like it (`X-Goog-*`, `X-Oss-*`), Azure (`se`)
    and the plain `Expires` of S3 V2, CloudFront and others.
    """
    try:
        query = {name.lower(): values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
        expiry = _expiry_in(query)
    except (KeyError, ValueError):
        return None
    return expiry if expiry is not None and isfinite(expiry) else None


def _expiry_in(query: dict[str, str]) -> float | None:
    for name, value in query.items():
        vendor = _SIGNED_AT.fullmatch(name)
        if vendor:
            return timegm(strptime(value, "%Y%m%dT%H%M%SZ")) + float(query[f"{vendor[1]}-expires"])
    if "se" in query:
        return _sas_time(query["se"].partition("Z")[0].partition(".")[0])
    return float(query["expires"]) if "expires" in query else None


def _sas_time(text: str) -> float | None:
    for form in _SAS_FORMS:
        with suppress(ValueError):
            return float(timegm(strptime(text, form)))
    return None


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
        self._urls: TLRUCache[str, _KeptUrl] = TLRUCache(max_urls, ttu=_last_use, timer=wall_clock)
        self._asking: dict[str, Future[str]] = {}

    def get(self, sample_id: str) -> str:
        """A URL that is good for some time yet; raises what the API raised."""
        while True:
            found = self._look(sample_id)
            if isinstance(found, str):
                return found
            if found is None:
                return self._ask(sample_id, self._resolve)
            try:
                return found.result()
            except _AskedOnce:
                continue

    def get_ahead(self, sample_id: str, resolve: Callable[[str], str]) -> bool:
        """See that the URL of a sample is known before it is needed; False where it was, or is on its way.

        `resolve` should not try again: readers who find it under way wait for it, and ask themselves where
        it fails.
        """
        if self._look(sample_id) is not None:
            return False
        self._ask(sample_id, resolve, told=_AskedOnce())
        return True

    def renew(self, sample_id: str, refused: str) -> str:
        """Another URL than the refused one, from the API unless another thread has it already."""
        with self._lock:
            if self._kept_locked(sample_id) == refused:
                with suppress(KeyError):  # its time may end between the two looks
                    del self._urls[sample_id]
        if self._store is not None:
            self._store.discard(sample_id, refused)
        return self.get(sample_id)

    @property
    def room(self) -> int:
        """How many more URLs can be kept before others make way."""
        store = self._store
        return self._max_urls - len(self._urls) if store is None or store.is_off else store.room

    def _kept_locked(self, sample_id: str) -> str | None:
        try:
            # not `get`, which looks at the clock twice and fails where the time ends in between
            return self._urls[sample_id].url
        except KeyError:
            return None

    def _look(self, sample_id: str) -> str | Future[str] | None:
        """A URL, or the future of one that another thread asks for; None where the caller has to `_ask`."""
        with self._lock:
            url = self._kept_locked(sample_id)
            if url is not None:
                return url
            asking = self._asking.get(sample_id)
            if asking is None:
                self._asking[sample_id] = Future()
            return asking

    def _ask(self, sample_id: str, resolve: Callable[[str], str], told: BaseException | None = None) -> str:
        """Get a URL for all who wait for it; where that fails they are told the reason, or `told`."""
        try:
            kept = self._stored(sample_id) or self._new(sample_id, resolve)
        except BaseException as error:
            with self._lock:
                mine = self._asking.pop(sample_id)
            mine.set_exception(told or error)
            raise
        with self._lock:
            self._urls[sample_id] = kept
            mine = self._asking.pop(sample_id)
        mine.set_result(kept.url)
        return kept.url

    def _stored(self, sample_id: str) -> _KeptUrl | None:
        found = None if self._store is None else self._store.get(sample_id)
        return None if found is None else _KeptUrl(found.url, found.until)

    def _new(self, sample_id: str, resolve: Callable[[str], str]) -> _KeptUrl:
        url = resolve(sample_id)
        expiry = expiry_of(url)
        if self._store is not None and expiry is not None:
            self._store.put(sample_id, url, expiry)
        return _KeptUrl(url, _end_of_use(expiry, self._wall_clock()))


class _AskedOnce(Exception):
    """Whoever asked did so ahead of time, and did not try again."""


class _KeptUrl(NamedTuple):
    url: str
    until: float


def _last_use(_sample_id: str, kept: _KeptUrl, _now: float) -> float:
    return kept.until


def _end_of_use(expiry: float | None, now: float) -> float:
    if expiry is None or expiry <= now:
        return now + UNKNOWN_LIFETIME_S
    # one that lives for less than the margin is used to its end, for the next one would live no longer
    return expiry - EXPIRY_MARGIN_S if expiry - EXPIRY_MARGIN_S > now else expiry
