"""Getting bytes from storage: one URL, one ranged GET, its retries, and the blocks that come of it.

Runs in the calling thread, which is one of the content pool's. Knows no cache and no waiting readers; it
hands out what arrives through a `BlockTaker`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lightlyfs.api.retry import RetryPolicy, call_with_retries
from lightlyfs.api.transport import Request, Response, Timeouts, Transport, raise_for_status
from lightlyfs.content.identity import NO_OBJECT, ContentId
from lightlyfs.content.ranges import BLOCK_BYTES, Span, byte_range, range_header
from lightlyfs.content.sink import BlockSink, BlockTaker
from lightlyfs.content.urls import ReadUrls
from lightlyfs.errors import NotFound

# an expired URL is 403 on S3 and Azure, 400 on GCS and some S3 clones, 401 on others
_URL_REFUSED = (400, 401, 403)


@dataclass(frozen=True)
class FetchConfig:
    """Limits of one fetch; a transfer may take long as long as bytes keep coming."""

    timeouts: Timeouts = field(default_factory=lambda: Timeouts(connect_s=5.0, idle_s=20.0, total_s=300.0))
    # enough tries to sit out a storm of 429 and 503, within the time one call on the mount may take
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
            if error.status != 404:
                raise
            content = ContentId(sample_id, NO_OBJECT, 0)
            taker.identified(content, 0, -1)
            return content

    def _fetch(
        self, sample_id: str, start: int, end: int, expected: ContentId | None, taker: BlockTaker
    ) -> ContentId:
        progress = _Progress(taker, expected, start)

        def attempt() -> ContentId:
            # what came before a body broke off is kept; the next try goes on behind it
            sink = BlockSink(sample_id, progress.start, progress.content, progress)
            response = self._get(sample_id, progress.start, end, sink)
            raise_for_status(response, what="the read of a sample from storage", storage=True)
            return sink.finish()

        return call_with_retries(
            self._config.policy,
            attempt,
            clock=self._clock,
            sleep=self._sleep,
            random=self._random,
            cancelled=self._cancelled,
        )

    def _get(self, sample_id: str, start: int, end: int, sink: BlockSink) -> Response:
        url = self._urls.get(sample_id)
        response = self._send(url, start, end, sink)
        if response.status in _URL_REFUSED:
            response = self._send(self._urls.renew(sample_id, url), start, end, sink)
        if response.status == 416 and sink.actual is not None:
            return Response(206, response.headers, b"")
        return response

    def _send(self, url: str, start: int, end: int, sink: BlockSink) -> Response:
        return self._transport.send(
            Request(
                "GET",
                url,
                headers={"Range": range_header(start, end), "Accept-Encoding": "identity"},
                timeouts=self._config.timeouts,
                observer=sink,
                cancelled=self._cancelled,
            )
        )


class _Progress:
    """Passes blocks on, and remembers where a further try has to begin."""

    def __init__(self, taker: BlockTaker, content: ContentId | None, start: int) -> None:
        self._taker = taker
        self.content = content
        self.start = start
        self._announced = False

    def identified(self, content: ContentId, first: int, last: int) -> None:
        self.content = content
        if not self._announced:
            self._announced = True
            self._taker.identified(content, first, last)

    def block(self, index: int, data: bytes) -> None:
        self._taker.block(index, data)
        if index * BLOCK_BYTES == self.start:
            self.start += BLOCK_BYTES
