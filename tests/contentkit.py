"""A storage in memory for tests of `content`: honest, odd or broken, and counting what it is asked."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from lightlyfs.api.contract import BodyMemory, BodySink, Request, Response
from lightlyfs.api.retry import Retrier
from lightlyfs.blocks import ContentId
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.cache.block_files import CacheConfig
from lightlyfs.cache.fetch_once import FetchOnce
from lightlyfs.errors import ShortBody
from lightlyfs.fetch.fetcher import FetchConfig, Fetcher
from lightlyfs.fetch.reader import Reader
from lightlyfs.fetch.urls import ReadUrls
from lightlyfs.locks import SharedLocks

MIB = 1 << 20
NOISE = random.Random(7).randbytes(6 * MIB + 12345)
CHUNK = 300_000  # no divisor of a block, so that chunks straddle blocks


def sample_id(number: int) -> str:
    return f"{number:024x}"


def recorded_bytes(cache: BlockCache) -> int:
    """The bytes of all blocks that the index of a cache holds, counted one by one."""
    cache._index.write()
    (total,) = cache._index._db.execute("SELECT coalesce(sum(bytes), 0) FROM block").fetchone()
    return int(total)


class Inline(Executor):
    """Runs at once, in the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


Answer = tuple[int, dict[str, str], bytes]
Style = Callable[[bytes, int, int], Answer]


class Storage:
    """Objects by URL path; `style` is how ranges are answered, `faults` what comes before an answer.

    A fault is a status, an exception, or a number of body bytes after which the connection breaks.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str | None]] = {}
        self.style: Style = honest
        self.faults: list[int | BaseException | float] = []
        self.requests: list[str] = []
        self.sent_bytes = 0

    def put(self, sample: str, data: bytes, etag: str | None = None) -> None:
        self.objects[sample] = (data, f'"{etag}"' if etag else None)

    def send(self, request: Request) -> Response:
        wanted = request.headers.get("Range", "")
        self.requests.append(wanted)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, BaseException):
            raise fault
        status, headers, body = (fault, {}, b"") if isinstance(fault, int) else self._answer(request, wanted)
        return self._deliver(request, status, headers, body, fault if isinstance(fault, float) else None)

    def close(self) -> None:
        """Nothing to close."""

    def _answer(self, request: Request, wanted: str) -> Answer:
        found = self.objects.get(request.url.partition("?")[0].rpartition("/")[2])
        if found is None:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        data, etag = found
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if match:
            start, last = int(match[1]), int(match[2])
            assert start <= last, f"no valid range: {wanted}"
            status, headers, body = self.style(data, start, last + 1)
        else:
            assert not wanted
            status, headers, body = whole(data, 0, 0)
        if etag is not None:
            headers = headers | {"etag": etag}
        return status, headers, body

    def _deliver(
        self, request: Request, status: int, headers: dict[str, str], body: bytes, broken_after: float | None
    ) -> Response:
        sink = BodySink(request, BodyMemory())
        going = sink.start(status, headers)
        end = len(body) if broken_after is None else int(broken_after)
        for at in range(0, end, CHUNK):
            if not going:
                break
            chunk = body[at : min(at + CHUNK, end)]
            self.sent_bytes += len(chunk)
            going = sink.write(memoryview(chunk))
        if going and end < len(body):
            raise ShortBody("the connection broke")
        return sink.response()


def honest(data: bytes, start: int, end: int) -> Answer:
    """206 as RFC 9110 has it."""
    if start >= len(data):
        return 416, {"content-range": f"bytes */{len(data)}"}, b""
    end = min(end, len(data))
    headers = {"content-range": f"bytes {start}-{end - 1}/{len(data)}", "content-length": str(end - start)}
    return 206, headers, data[start:end]


def whole(data: bytes, start: int, end: int) -> Answer:
    """The Range is ignored."""
    return 200, {"content-length": str(len(data))}, data


def chunked(data: bytes, start: int, end: int) -> Answer:
    """The Range is ignored, and the length shows at the end only."""
    return 200, {}, data


def called_200(data: bytes, start: int, end: int) -> Answer:
    """A part with the status of a whole, as rclone's S3 server has it."""
    status, headers, body = honest(data, start, end)
    return (200 if status == 206 else status), headers, body


def without_total(data: bytes, start: int, end: int) -> Answer:
    """The total is a star."""
    status, headers, body = honest(data, start, end)
    return status, headers | {"content-range": re.sub(r"/\d+$", "/*", headers["content-range"])}, body


def starting_early(data: bytes, start: int, end: int) -> Answer:
    """The range begins before what was asked for."""
    return honest(data, max(0, start - 1000), end)


def starting_late(data: bytes, start: int, end: int) -> Answer:
    """The range begins after what was asked for."""
    return honest(data, start + 1 if start + 1 < len(data) else start, end)


def without_range(data: bytes, start: int, end: int) -> Answer:
    """206 that does not say what it is a part of."""
    status, headers, body = honest(data, start, end)
    return status, {k: v for k, v in headers.items() if k != "content-range"}, body


def multipart(data: bytes, start: int, end: int) -> Answer:
    """A multipart/byteranges body."""
    status, _, body = honest(data, start, end)
    return status, {"content-type": "multipart/byteranges; boundary=x"}, b"--x\r\n" + body + b"\r\n--x--"


def short_ranges(data: bytes, start: int, end: int) -> Answer:
    """At most a block and a half at a time."""
    return honest(data, start, min(end, start + 3 * MIB // 2))


def tiny_ranges(data: bytes, start: int, end: int) -> Answer:
    """Less than a block at a time."""
    return honest(data, start, min(end, start + 50_000))


def gzipped(data: bytes, start: int, end: int) -> Answer:
    """Compressed though nobody asked for it."""
    return 200, {"content-encoding": "gzip"}, gzip.compress(data, 1)


def gzipped_members(data: bytes, start: int, end: int) -> Answer:
    """Compressed in several members, with zeros behind them."""
    half = len(data) // 2
    body = gzip.compress(data[:half], 1) + gzip.compress(data[half:], 1) + b"\0" * 16
    return 200, {"content-encoding": "x-gzip", "content-length": str(len(body))}, body


def gzipped_part(data: bytes, start: int, end: int) -> Answer:
    """A part of a compressed body."""
    status, headers, body = honest(gzip.compress(data, 1), start, end)
    return status, headers | {"content-encoding": "gzip"}, body


def bare_416(data: bytes, start: int, end: int) -> Answer:
    """416 without a word of why."""
    return honest(data, start, end) if start < len(data) else (416, {}, b"")


STYLES = [
    honest,
    whole,
    chunked,
    called_200,
    without_total,
    starting_early,
    starting_late,
    without_range,
    multipart,
    short_ranges,
    tiny_ranges,
    gzipped,
    gzipped_members,
    gzipped_part,
    bare_416,
]


class Content:
    """A reader over a storage and a cache on disk, with time that does not pass by itself."""

    def __init__(
        self,
        directory: Path,
        *,
        budget_bytes: int = 1 << 30,
        executor: Executor | None = None,
        storage: Storage | None = None,
        locks: SharedLocks | None = None,
    ) -> None:
        self.clock = Clock()
        self.storage = storage or Storage()
        self.facts: list[ContentId] = []
        self.certain: list[bool] = []
        self.resolved: list[str] = []
        self.on_facts: Callable[[ContentId], None] = self.facts.append
        self.cache = BlockCache(directory, CacheConfig(budget_bytes, min_free_bytes=0), locks=locks)
        self.fetcher = Fetcher(
            ReadUrls(self._resolve, wall_clock=self.clock),
            self.storage,
            FetchConfig(),
            Retrier(clock=self.clock, sleep=self.clock.sleep, random=lambda: 0.5),
            cancelled=lambda: False,
        )
        once = locks and FetchOnce(self.cache, locks, publish_facts=lambda _: None, cancelled=lambda: False)
        self.reader = Reader(self.cache, self.fetcher, executor or Inline(), self._heard, once)

    def _heard(self, found: ContentId, certain: bool) -> None:
        self.certain.append(certain)
        self.on_facts(found)

    def _resolve(self, sample: str) -> str:
        self.resolved.append(sample)
        return f"https://storage.test/{sample}?n={len(self.resolved)}"

    def identify(self, sample: str, hint: int | None = None, known: ContentId | None = None) -> ContentId:
        future = self.reader.identify(sample, size_hint=hint, for_reading=True, known=known)
        return future.result(10)

    def read(self, content: ContentId, offset: int, size: int) -> bytes:
        return self.reader.read(content, offset, size, lambda future: future.result(10))
