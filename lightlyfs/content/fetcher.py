"""Getting bytes from storage: one URL, one ranged GET, its retries, and the blocks that come of it.

Runs in the calling thread, which is one of the content pool's. Knows no cache and no waiting readers; it
hands out what arrives through a `BlockTaker`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lightlyfs.api.contract import Request, Response, Timeouts, Transport
from lightlyfs.api.retry import RetryPolicy, call_with_retries
from lightlyfs.api.status import raise_for_status
from lightlyfs.content.identity import NO_OBJECT, ContentId
from lightlyfs.content.ranges import BLOCK_BYTES, Span, byte_range, range_header
from lightlyfs.content.sink import BlockSink, BlockTaker, RangeUnusable
from lightlyfs.content.urls import ReadUrls
from lightlyfs.errors import MalformedAnswer, NotFound, Retryable, ShortBody

# an expired URL is 403 on S3 and Azure, 400 on GCS and some S3 clones, 401 on others
_URL_REFUSED = (400, 401, 403)
# with these the API says that there is no such sample, not that it has no image
_UNKNOWN = ("SAMPLE_UNKNOWN", "DATASET_UNKNOWN")


@dataclass(frozen=True)
class FetchConfig:
    """Limits of one fetch; a transfer may take long as long as bytes keep coming."""

    # where ranges are ignored one transfer may bring gigabytes: only standing still ends it soon
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(connect_s=5.0, idle_s=20.0, total_s=3600.0))
    # enough tries to sit out a storm of 429 and 503, within the time one call on the mount may take;
    # counted anew whenever a block came
    policy: RetryPolicy = field(
        default_factory=lambda: RetryPolicy(attempts=20, max_delay_s=8.0, budget_s=55.0)
    )


class Fetcher:
    """Fetches parts of samples; any number of threads at once."""

    def __init__(
        self,
        urls: ReadUrls,
        transport: Transport,
        config: FetchConfig,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        random: Callable[[], float],
        cancelled: Callable[[], bool],
    ) -> None:
        self._urls = urls
        self._transport = transport
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._cancelled = cancelled

    def fetch_blocks(self, content: ContentId, span: Span, taker: BlockTaker) -> None:
        """Fetch blocks of a known content; raises ContentChanged where storage has another version."""
        start, end = byte_range(span, content.size)
        self._fetch(content.sample_id, start, end, content, taker)

    def fetch_head(self, sample_id: str, length: int, taker: BlockTaker) -> ContentId:
        """Fetch the first `length` bytes of a sample, whatever it is, and say what it is.

        A sample without an object is a content of no bytes whose `has_object` is False.
        """
        try:
            return self._fetch(sample_id, 0, length, None, taker)
        except NotFound as error:
            if error.status != 404 or error.code in _UNKNOWN:
                raise
            content = ContentId(sample_id, NO_OBJECT, 0)
            taker.identified(content, 0, -1)
            return content

    def _fetch(
        self, sample_id: str, start: int, end: int, expected: ContentId | None, taker: BlockTaker
    ) -> ContentId:
        progress = _Progress(taker, expected, start, end)
        while True:
            before = progress.start
            try:
                return call_with_retries(
                    self._config.policy,
                    lambda: self._attempt(sample_id, progress),
                    clock=self._clock,
                    sleep=self._sleep,
                    random=self._random,
                    cancelled=self._cancelled,
                )
            except Retryable:
                if progress.start <= before:
                    raise

    def _attempt(self, sample_id: str, progress: _Progress) -> ContentId:
        """Ask for what is still missing, as long as that brings something; what came before is kept."""
        while progress.content is None or not progress.complete:
            before = progress.start
            sink = BlockSink(sample_id, progress.start, progress.content, progress)
            try:
                response = self._get(sample_id, progress, sink)
            except RangeUnusable as error:
                if not progress.ranged:
                    raise MalformedAnswer(str(error)) from error
                progress.ranged = False
                continue
            raise_for_status(response, what="the read of a sample from storage", storage=True)
            sink.finish()
            if progress.start == before and not progress.complete:
                raise ShortBody("storage sent a shorter range than it was asked for")
        return progress.content

    def _get(self, sample_id: str, progress: _Progress, sink: BlockSink) -> Response:
        url = self._urls.get(sample_id)
        response = self._send(url, progress, sink)
        if response.status == 404 and not self._urls.is_new(sample_id, url):
            # kept from before a rename, it may name an object that was moved since
            url = self._urls.renew(sample_id, url)
            response = self._send(url, progress, sink)
        if response.status in _URL_REFUSED:
            response = self._send(self._urls.renew(sample_id, url), progress, sink)
        if response.status == 416 and sink.actual is not None:
            return Response(206, response.headers, b"")
        return response

    def _send(self, url: str, progress: _Progress, sink: BlockSink) -> Response:
        headers = {"Accept-Encoding": "identity"}
        if progress.ranged:
            headers["Range"] = range_header(progress.start, progress.range_end)
        return self._transport.send(
            Request(
                "GET",
                url,
                headers=headers,
                timeouts=self._config.timeouts,
                observer=sink,
                cancelled=self._cancelled,
            )
        )


class _Progress:
    """Passes blocks on, and remembers where a further try has to begin and end."""

    def __init__(self, taker: BlockTaker, content: ContentId | None, start: int, end: int) -> None:
        self._taker = taker
        self._announced = False
        self._wanted: Span | None = None
        self.content = content
        self.start = start
        self.end = end
        self.ranged = True

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
