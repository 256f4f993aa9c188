"""Gets bytes from storage: a first try over the network loop, then with patience in a thread of the pool.

`FirstTry` is the read URL and the bytes of a small file, without a thread of their own; most reads end there.
It has no rules about failures: what is not plainly right is left to `Fetcher`, one ranged GET with its
retries. Neither knows the cache or the waiting readers; `Fetcher` passes each block to a `BlockTaker`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from lightlyfs.api.calls import Attempt
from lightlyfs.api.contract import Request, Response, Timeouts, Transport, content_encoding_of
from lightlyfs.api.retry import Retrier, RetryPolicy, raise_for_status
from lightlyfs.blocks import (
    BLOCK_BYTES,
    NO_OBJECT,
    SMALL_FILE_BYTES,
    VERSION_BYTES,
    ContentId,
    Span,
    byte_range,
    etag_of,
    etag_of_bytes,
    parse_content_range,
    range_header,
)
from lightlyfs.errors import (
    ContentChanged,
    MalformedAnswer,
    NotFound,
    OddAnswer,
    RequestError,
    Retryable,
    ShortBody,
)
from lightlyfs.fetch.answers import (
    BlockSink,
    BlockTaker,
    Doubt,
    HeldBlocks,
    Known,
    NoBlocks,
    RangeUnusable,
    is_web_page,
)
from lightlyfs.fetch.urls import ReadUrls
from lightlyfs.readahead.within_file import HEAD_BYTES

# an expired URL is 403 on S3 and Azure, 400 on GCS and some S3 clones, 401 on others
_URL_REFUSED = (400, 401, 403)
_NO_SUCH_OBJECT = (404, 410)
# with these the API says that there is no such sample, not that it has no image
_UNKNOWN = ("SAMPLE_UNKNOWN", "DATASET_UNKNOWN")
# equal answers in a row that confirm a doubted one, and how many are requested without a pause
_ENOUGH = 3
_MAX_AT_ONCE = 6
# how often answers may change, as of an object that is replaced while it is read; each is doubted for seconds
_MAX_CHANGES = 3
# blocks that are kept back, by each of the threads that fetch, until it is known of which version they are
_UNPROVEN_BLOCKS = 8
# after this many wrong hints, the hints of a dataset are no reason to doubt storage
_WRONG_HINTS = 3


@dataclass(frozen=True)
class FetchConfig:
    """Limits of one fetch; a transfer may take long as long as bytes keep coming."""

    # where ranges are ignored one transfer may bring gigabytes: only a stall ends it soon
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(connect_s=5.0, idle_s=20.0, total_s=3600.0))
    # the bound starts again whenever a block came
    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(budget_s=55.0))


class Fetcher:
    """Fetches parts of samples; any number of threads at once."""

    def __init__(
        self,
        urls: ReadUrls,
        transport: Transport,
        config: FetchConfig,
        retrier: Retrier,
        *,
        cancelled: Callable[[], bool],
    ) -> None:
        self._urls = urls
        self._transport = transport
        self._config = config
        self._retrier = retrier
        self._cancelled = cancelled
        self._wrong_hints = 0  # a lost race counts one less

    @property
    def trusts_hints(self) -> bool:
        """Whether an answer that speaks against a size hint is doubted."""
        return self._wrong_hints < _WRONG_HINTS

    def fetch_blocks(self, content: ContentId, span: Span, taker: BlockTaker) -> None:
        """Fetch blocks of a known content; raises ContentChanged where storage has another version."""
        try:
            if content.is_named:
                self._fetch(content.sample_id, _Progress(taker, content, *byte_range(span, content.size)))
            else:
                self._fetch_unnamed(content, span, taker)
        except NotFound as error:
            if not _names_no_object(error):
                raise
            raise ContentChanged("the stored object is gone") from error

    def _fetch_unnamed(self, content: ContentId, span: Span, taker: BlockTaker) -> None:
        """Fetch blocks of a content whose storage names no version, a few at a time.

        An answer from its middle does not tell what it is of: it counts once the first bytes, asked for after
        it, are still those of the content.
        """
        first = span.first
        while first <= span.last:
            # an answer from the beginning names itself
            last = first if not first else min(span.last, first + _UNPROVEN_BLOCKS - 1)
            held = HeldBlocks(taker)
            part = byte_range(Span(first, last), content.size)
            self._fetch(content.sample_id, _Progress(held, content, *part))
            if held.is_whole:
                return
            if (
                first
                and self.fetch_head(content.sample_id, VERSION_BYTES, NoBlocks(), Known(None, content))
                != content
            ):
                raise ContentChanged("the stored object changed while it was being read")
            held.hand_over()
            first = last + 1

    def fetch_head(
        self,
        sample_id: str,
        length: int,
        taker: BlockTaker,
        known: Known,
        on_doubtful: Callable[[], None] = lambda: None,
    ) -> ContentId:
        """Fetch the first `length` bytes of a sample, whatever it is, and say what it is.

        A sample without an object is a content of no bytes whose `has_object` is False. A response that
        contradicts what is `known` is requested again; if it stays the same and names no version,
        `on_doubtful` is called before the taker.
        """
        admission = _Admission(known, trust_hint=self.trusts_hints)
        progress = _Progress(taker, None, 0, length, admission)
        try:
            content = self._fetch_doubting(sample_id, progress, admission, on_doubtful)
        except NotFound as error:
            if not _names_no_object(error):
                raise
            if progress.content is not None:
                raise ContentChanged("the stored object went away while it was being read") from error
            content = ContentId(sample_id, NO_OBJECT, 0)
            taker.identified(content, 0, -1)
        self._wrong_hints += admission.hint_was_wrong
        return content

    def _fetch_doubting(
        self,
        sample_id: str,
        progress: _Progress,
        admission: _Admission,
        on_doubtful: Callable[[], None],
    ) -> ContentId:
        while True:
            try:
                return self._fetch(sample_id, progress)
            except OddAnswer:
                if admission.last is None or not admission.is_plausible:
                    raise
                if not admission.last.is_named:
                    on_doubtful()
                admission.accept()

    def _fetch(self, sample_id: str, progress: _Progress) -> ContentId:
        while True:
            before = progress.start
            try:
                return self._retrier.call(
                    lambda: self._attempt(sample_id, progress),
                    kind="storage",
                    what=sample_id,
                    policy=self._config.policy,
                )
            except Retryable:
                if progress.start <= before:
                    raise

    def _attempt(self, sample_id: str, progress: _Progress) -> ContentId:
        """Request what is still missing while each answer brings something; keep what came before."""
        while progress.content is None or not progress.complete:
            before = progress.start
            sink = BlockSink(sample_id, progress.start, progress.content, progress)
            try:
                response = self._get(sample_id, progress, sink)
                if response.status in _NO_SUCH_OBJECT and progress.may_have_no_object:
                    return progress.none(ContentId(sample_id, NO_OBJECT, 0))
                raise_for_status(response, what="the read of a sample", storage=True, reads=True)
            except RangeUnusable as error:
                if not progress.ranged:
                    raise MalformedAnswer(str(error)) from error
                progress.ranged = False
                continue
            except (OddAnswer, ContentChanged) as error:
                # the next request goes over another connection, with another URL
                progress.fresh = True
                self._urls.discard(sample_id, progress.url)
                if progress.asks_once_more(sink.actual):
                    continue
                if isinstance(error, ContentChanged):
                    error.settled = progress.is_another_version(sink.actual)
                raise
            sink.finish()
            if progress.start == before and not progress.complete:
                if not progress.ranged:
                    raise ShortBody("storage sent a shorter range than it was asked for")
                progress.ranged = False  # ranges of less than a block never bring one
        return progress.content

    def _get(self, sample_id: str, progress: _Progress, sink: BlockSink) -> Response:
        url = self._urls.get(sample_id)
        response = self._send(url, progress, sink)
        refused = response.status in _URL_REFUSED
        # a URL kept from before a rename may name an object that was moved since
        moved = response.status in _NO_SUCH_OBJECT and not self._urls.is_new(sample_id, url)
        if refused or moved:
            self._urls.discard(sample_id, url)
            url = self._urls.get(sample_id)
            response = self._send(url, progress, sink)
        if response.status in (*_URL_REFUSED, *_NO_SUCH_OBJECT):
            # a further try uses another URL and another connection
            progress.fresh = True
            self._urls.discard(sample_id, url)
        if response.status == 416 and sink.actual is not None:
            return Response(206, response.headers, b"")
        return response

    def _send(self, url: str, progress: _Progress, sink: BlockSink) -> Response:
        headers = {"Accept-Encoding": "identity"}
        if progress.ranged:
            headers["Range"] = range_header(progress.start, progress.range_end)
        progress.url, fresh, progress.fresh = url, progress.fresh, False
        return self._transport.send(
            Request(
                "GET",
                url,
                headers=headers,
                timeouts=self._config.timeouts,
                observer=sink,
                cancelled=self._cancelled,
                fresh=fresh,
            )
        )


def _names_no_object(error: NotFound) -> bool:
    return error.status in _NO_SUCH_OBJECT and error.code not in _UNKNOWN


class _Admission:
    """Decides whether what storage says of a sample counts; for one head."""

    def __init__(self, known: Known, *, trust_hint: bool) -> None:
        self.known = known
        self.last: ContentId | None = None
        self._times = 0
        self.doubt = Doubt.NONE
        self._changes = 0  # how often a doubted answer said something else than the one before
        self.hint_was_wrong = False
        self._trust_hint = trust_hint
        self._accepted: ContentId | None = None

    @property
    def is_plausible(self) -> bool:
        """Whether the answers changed so rarely that the object may have been replaced in between."""
        return self._changes <= _MAX_CHANGES

    def accept(self) -> None:
        """Doubt the last answer no longer."""
        self._accepted = self.last

    def admit(self, said: ContentId) -> None:
        """Raise OddAnswer for an answer that is to be asked for again."""
        self.doubt = self.known.doubt(said, trust_hint=self._trust_hint)
        self._times = self._times + 1 if said == self.last else 1
        enough = self.doubt is Doubt.SHORT and self._times >= _ENOUGH
        if self.doubt is Doubt.NONE or enough or said == self._accepted:
            self.hint_was_wrong = self.doubt is not Doubt.NONE and self.known.content is None
            return
        odd = OddAnswer(f"storage says that it has {said.size} bytes, which speaks against what is known")
        if self.last not in (None, said):
            self._changes += 1
            odd.differs = self.is_plausible
        self.last = said
        raise odd


class _Progress:
    """Passes blocks on, and remembers where a further try has to begin and end."""

    def __init__(
        self,
        taker: BlockTaker,
        content: ContentId | None,
        start: int,
        end: int,
        admission: _Admission | None = None,
    ) -> None:
        self._taker = taker
        self._admission = admission
        self._asked_once_more = 0
        # what the last answer that was not taken said, and how often in a row
        self._said: ContentId | None = None
        self._times = 0
        self._announced = False
        self._wanted: Span | None = None
        self.content = content
        self.start = start
        self.end = end
        self.ranged = True
        # the last URL, and whether the next request goes over a connection of its own
        self.url = ""
        self.fresh = False

    @property
    def may_have_no_object(self) -> bool:
        """Whether it is no surprise that storage has no object."""
        if self.content is not None or self._admission is None:
            return False
        return self._admission.known.may_have_no_object

    def asks_once_more(self, said: ContentId | None) -> bool:
        """Whether an answer that was not taken is asked for again at once."""
        self._times = self._times + 1 if said == self._said else 1
        self._said = said
        doubt = self._doubt(said)
        if doubt is not Doubt.SHORT or (self.content is not None and self._times >= _ENOUGH):
            return False
        self._asked_once_more += 1
        return self._asked_once_more < _MAX_AT_ONCE

    def is_another_version(self, said: ContentId | None) -> bool:
        """Whether enough answers in a row named another version than the one that is being read."""
        return self._doubt(said) is Doubt.SHORT and said == self._said and self._times >= _ENOUGH

    def _doubt(self, said: ContentId | None) -> Doubt:
        if said is None:
            return Doubt.LONG
        if self.content is not None:
            return Known(None, self.content).doubt(said, trust_hint=True)
        return Doubt.NONE if self._admission is None else self._admission.doubt

    def none(self, content: ContentId) -> ContentId:
        """Pass on that there is no object."""
        self._taker.identified(content, 0, -1)
        return content

    @property
    def complete(self) -> bool:
        """Whether every whole block of what was asked for, or is wanted of what came, is here."""
        if self.content is None:
            return False
        size = self.content.size
        return self.start >= (size if self.end >= size else self.end // BLOCK_BYTES * BLOCK_BYTES)

    @property
    def range_end(self) -> int:
        """Where the range to ask for ends; past what is wanted only while nothing is known."""
        return self.end if self.content is None else max(self.start + 1, min(self.end, self.content.size))

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        if self.content is None and self._admission is not None:
            self._admission.admit(content)
        self.content = content
        if not self._announced:
            self._announced = True
            self._wanted = self._taker.identified(content, first, last)
            if self._wanted is None:
                self.end = self.start
            else:
                self.end = max(self.end, (self._wanted.last + 1) * BLOCK_BYTES)
        if self._wanted is None:
            return None
        # a further answer may begin elsewhere, and end elsewhere, than the first one
        return Span(max(first, self._wanted.first), min(last, (self.end - 1) // BLOCK_BYTES))

    def block(self, index: int, data: bytes) -> None:
        self._taker.block(index, data)
        if index * BLOCK_BYTES == self.start:
            self.start += BLOCK_BYTES


# of all answers in flight; further ones go through the pool, or are not prefetched
MAX_BYTES_UNDER_WAY = 64 << 20

# the same for all, so that a reused handle has them set already; a longer object than expected is odd
_HEADERS = {"Range": range_header(0, SMALL_FILE_BYTES)}
_HEAD_HEADERS = {"Range": range_header(0, HEAD_BYTES)}

Done = Callable[[Response | None], None]


class Loop(Protocol):
    """Sends GETs without a thread for each; see `api.curl_loop.CurlLoop`."""

    def get(self, request: Request, done: Callable[[Response | RequestError], None], *, urgent: bool) -> None:
        """Send a GET and call `done` with what came of it, perhaps in another thread."""
        ...


class FirstTry:
    """Gets small objects whole; any thread may call.

    `url_attempt(sample_id)` is the request for a read URL; `api` and `storage` say who is in trouble.
    `count(method, operation, seconds, outcome)` is called after each request.
    """

    def __init__(
        self,
        loop: Loop,
        urls: ReadUrls,
        url_attempt: Callable[[str], Attempt[str]],
        api: Retrier,
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

        While some objects fail, others may succeed: their readers must not have to wait for a thread.
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

    None where something is odd: no length, an encoding, another range than was asked for, a web page.
    """
    headers = answer.headers
    if content_encoding_of(headers):
        return None
    length = len(answer.body)
    if answer.status == 206 or "content-range" in headers:
        part = parse_content_range(headers.get("content-range"))
        if part is None or (part.start, part.end) != (0, length) or part.total is None:
            return None
        length = part.total
    elif headers.get("transfer-encoding", "").lower() != "chunked" and "content-length" not in headers:
        return None
    etag = etag_of(headers)
    if not etag:
        if is_web_page(headers) or len(answer.body) < min(length, VERSION_BYTES) or not length:
            return None
        etag = etag_of_bytes(answer.body)
    return ContentId(sample_id, etag, length)
