"""The first try at a small file: its read URL and its bytes, over the network loop.

Most reads end here, without a thread of their own. Whatever is not plainly right, an error or an odd answer,
is left to `Fetcher`, which asks again with patience, in a thread of the pool. This part has no rules
about failures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from lightlyfs.api.calls import Attempt
from lightlyfs.api.contract import Request, Response, Timeouts
from lightlyfs.api.retry import Retrier
from lightlyfs.api.status import raise_for_status
from lightlyfs.blocks import SMALL_FILE_BYTES, ContentId, etag_of, parse_content_range, range_header
from lightlyfs.errors import RequestError
from lightlyfs.fetch.urls import ReadUrls
from lightlyfs.readahead.heads import HEAD_BYTES

# of all answers on their way; further ones go through the pool, or are not fetched ahead
MAX_BYTES_UNDER_WAY = 64 << 20

# the same for all, so that a handle has them set already: an object that is longer than it should is odd
_HEADERS = {"Range": range_header(0, SMALL_FILE_BYTES)}
_HEAD_HEADERS = {"Range": range_header(0, HEAD_BYTES)}

Done = Callable[[Response | None], None]


class Loop(Protocol):
    """Sends GETs without a thread for each; see `api.curl_loop.CurlLoop`."""

    def get(self, request: Request, done: Callable[[Response | RequestError], None], *, urgent: bool) -> None:
        """Send a GET and call `done` with what came of it, perhaps in another thread."""
        ...


class Asked(Protocol):
    """Who is asked, and may want a pause."""

    def may_ask(self, *, urgent: bool) -> bool:
        """Whether a request may be sent now."""
        ...


class FirstTry:
    """Gets small objects whole; any thread may call.

    `url_attempt(sample_id)` is the request for a read URL.
    `count(method, operation, seconds, outcome)` is called after each request.
    """

    def __init__(
        self,
        loop: Loop,
        urls: ReadUrls,
        url_attempt: Callable[[str], Attempt[str]],
        api: Asked,
        storage: Retrier,
        count: Callable[[str, str, float, str], None] | None,
        timeouts: Timeouts,
    ) -> None:
        self._loop = loop
        self._urls = urls
        self._url_attempt = url_attempt
        self._api = api
        self._storage = storage
        self._count = count
        self._timeouts = timeouts
        self._lock = threading.Lock()
        # guarded by _lock
        self._bytes = 0

    def may_ask(self, *, urgent: bool) -> bool:
        """Whether storage and the API ask for no pause and, unless it is urgent, answered the last request.

        While some objects do not come, others may: readers of those are not to wait for a thread.
        """
        return self._storage.may_ask(urgent=urgent) and self._api.may_ask(urgent=urgent)

    def fetch(self, sample_id: str, length: int, expected: int, done: Done, *, urgent: bool) -> bool:
        """Get the first `length` bytes of a sample; False where this is not the time, and nothing is done.

        `expected` is how many come at most, unless something is odd. `done` gets the answer of storage where
        it is a 2xx, else None, in the loop's thread as a rule.
        """
        if not self.may_ask(urgent=urgent):
            return False
        with self._lock:
            if self._bytes + expected > MAX_BYTES_UNDER_WAY:
                return False
            self._bytes += expected
        fetch = _Fetch(self, sample_id, (length, expected), done, urgent)
        if fetch.begin():
            return True
        self._give_back(expected)
        return False

    def url(self, sample_id: str, done: Callable[[bool], None]) -> bool:
        """Get and keep the read URL of a sample; False where it has one, or this is not the time."""
        if not self._api.may_ask(urgent=False) or self._urls.begin(sample_id) is not None:
            return False
        self._ask(sample_id, lambda url: done(url is not None), urgent=False)
        return True

    def _ask(self, sample_id: str, then: Callable[[str | None], None], *, urgent: bool) -> None:
        """Ask for a URL that `urls.begin` left to us."""
        started = time.monotonic()
        try:
            attempt = self._url_attempt(sample_id)
        except RequestError:
            self._urls.end(sample_id, None)
            then(None)
            return

        def answered(answer: Response | RequestError) -> None:
            self._note(attempt.operation, started, answer)
            url = None
            try:
                url = attempt.outcome(answer)
            except RequestError:
                pass
            finally:  # whatever failed, those who wait for the URL are not left waiting
                self._urls.end(sample_id, url)
                then(url)

        self._loop.get(attempt.request, answered, urgent=urgent)

    def _note(self, operation: str, started: float, answer: Response | RequestError) -> None:
        outcome = str(answer.status) if isinstance(answer, Response) else type(answer).__name__
        if self._count is not None:
            self._count("GET", operation, time.monotonic() - started, outcome)

    def _give_back(self, length: int) -> None:
        with self._lock:
            self._bytes -= length


class _Fetch:
    """One small object on its way."""

    __slots__ = ("_done", "_expected", "_length", "_of", "_sample_id", "_started", "_urgent")

    def __init__(
        self, of: FirstTry, sample_id: str, lengths: tuple[int, int], done: Done, urgent: bool
    ) -> None:
        self._of = of
        self._sample_id = sample_id
        self._length, self._expected = lengths
        self._done = done
        self._urgent = urgent

    def begin(self) -> bool:
        found = self._of._urls.begin(self._sample_id)
        if found is None:
            if not self._of._api.may_ask(urgent=self._urgent):
                self._of._urls.end(self._sample_id, None)
                return False
            self._of._ask(self._sample_id, self._get, urgent=self._urgent)
        elif isinstance(found, Future):
            found.add_done_callback(self._after_another)
        else:
            self._get(found)
        return True

    def _after_another(self, asked: Future[str]) -> None:
        self._get(None if asked.cancelled() or asked.exception() is not None else asked.result())

    def _get(self, url: str | None) -> None:
        if url is None:
            self._end(None)
            return
        self._started = time.monotonic()
        request = Request(
            "GET",
            url,
            headers=_HEADERS if self._length > HEAD_BYTES else _HEAD_HEADERS,
            timeouts=self._of._timeouts,
            # a body longer than expected is suspect, and would take memory that is not accounted for
            max_body_bytes=max(1, self._expected),
        )
        self._of._loop.get(request, self._answered, urgent=self._urgent)

    def _answered(self, answer: Response | RequestError) -> None:
        self._of._note("storage_get", self._started, answer)
        good = None
        try:
            if isinstance(answer, RequestError):
                raise answer
            raise_for_status(answer, what="the read of a sample", storage=True, reads=True)
            good = answer
            self._of._storage.note(None)
        except RequestError as error:
            self._of._storage.note(error)
        finally:
            self._end(good)

    def _end(self, answer: Response | None) -> None:
        self._of._give_back(self._expected)
        self._done(answer)


def content_in(sample_id: str, answer: Response) -> ContentId | None:
    """Return which content an answer is of, where it is plainly all of it, or its first bytes.

    None where something is odd: no version, no length, an encoding, another range than was asked for.
    """
    headers = answer.headers
    if "content-encoding" in headers or not (etag := etag_of(headers)):
        return None
    length = len(answer.body)
    if answer.status == 206 or "content-range" in headers:
        part = parse_content_range(headers.get("content-range"))
        if part is None or (part.start, part.end) != (0, length) or part.total is None:
            return None
        length = part.total
    elif "content-length" not in headers:
        return None
    return ContentId(sample_id, etag, length)
