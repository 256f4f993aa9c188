"""One storage answer turned into blocks, whatever the storage does with ranges and encodings.

Takes the headers and chunks of a GET, says which content it is, and hands out whole blocks. Survives a
Range that was ignored (200), bodies of unannounced length and bodies that come compressed although we
asked for plain ones; finds truncated and misplaced ones. No I/O of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Protocol

from lightlyfs.content.identity import ContentId, etag_of
from lightlyfs.content.ranges import BLOCK_BYTES, ContentRange, block_count, block_length, parse_content_range
from lightlyfs.errors import ContentChanged, MalformedAnswer, ServerFault, ShortBody, TooLarge

# bodies whose length shows only at their end are collected in memory, up to here
MAX_COLLECTED_BYTES = 256 << 20


class BlockTaker(Protocol):
    """Receives what a `BlockSink` finds out, in the thread of the transfer."""

    def identified(self, content: ContentId, first: int, last: int) -> None:
        """The content is known, and blocks first to last (none if last < first) are to come."""

    def block(self, index: int, data: bytes) -> None:
        """A whole block is here."""


class BlockSink:
    """Takes the answer to a GET for the bytes from `start` on, which is a block's first byte.

    With `expected`, an answer of another version raises ContentChanged. `actual` is then what came.
    """

    def __init__(self, sample_id: str, start: int, expected: ContentId | None, taker: BlockTaker) -> None:
        self._sample_id = sample_id
        self._start = start
        self._expected = expected
        self._taker = taker
        self._buffer = bytearray()
        self._position = start  # of the first byte in the buffer
        self._end: int | None = None  # where the answer ends; None while that is unknown
        self._received = 0
        self._inflater: _Inflater | None = None
        self._etag = ""
        self.actual: ContentId | None = None

    def headers(self, status: int, headers: Mapping[str, str]) -> None:
        """Note where the answer starts and ends, and which content it is."""
        self._etag = etag_of(headers)
        if status == 206:
            self._partial(parse_content_range(headers.get("content-range")), headers)
        elif status == 416:
            self._unsatisfiable(parse_content_range(headers.get("content-range")))
        elif 200 <= status < 300:
            self._whole(headers)

    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the body, handing out each block that is now whole."""
        self._received += len(chunk)
        if self._inflater is not None:
            chunk = self._inflater.inflate(chunk)
        self._buffer += chunk
        if self.actual is None:
            if len(self._buffer) > MAX_COLLECTED_BYTES:
                raise TooLarge("storage sends a body of unannounced length that is over 256 MiB")
        else:
            self._hand_out()

    def finish(self) -> ContentId:
        """The transfer ended without error: check that it was whole, and say what it was."""
        if self._inflater is not None:
            self._inflater.check_end()
        if self.actual is None:
            if not self._etag and not self._received and self._end is None:
                raise MalformedAnswer("storage answered with neither a body nor a range")
            self._identify(self._position + len(self._buffer))
            self._end = self._position + len(self._buffer)
            self._hand_out()
        assert self.actual is not None
        if self._end is not None and self._position < self._end:
            raise ShortBody(
                f"storage sent {self._received} bytes and {self._end - self._position} are missing"
            )
        return self.actual

    def _partial(self, answer: ContentRange | None, headers: Mapping[str, str]) -> None:
        if answer is None or answer.start is None or answer.end is None:
            raise MalformedAnswer("storage answered 206 without a valid Content-Range", status=206)
        if answer.start != self._start:
            raise ServerFault(
                f"storage answered with another range: {answer.start}, not {self._start}", status=206
            )
        if _encoding_of(headers):
            raise ServerFault("storage answered with a compressed range", status=206)
        total = answer.total if answer.total is not None else self._expected and self._expected.size
        if total is None or total < answer.end:
            raise MalformedAnswer("storage answered 206 with a range past its own total", status=206)
        self._end = answer.end
        self._identify(total)

    def _whole(self, headers: Mapping[str, str]) -> None:
        self._position = 0
        encoding = _encoding_of(headers)
        if encoding:
            self._inflater = _Inflater(encoding)
            return
        length = headers.get("content-length", "")
        if length.isdigit():
            self._end = int(length)
            self._identify(self._end)

    def _unsatisfiable(self, answer: ContentRange | None) -> None:
        # only an empty object has no first byte
        total = 0 if self._start == 0 else answer and answer.total
        if total is None:
            raise ServerFault("storage refused the range and does not say why", status=416)
        self._end = self._position
        self._identify(total)

    def _identify(self, total: int) -> None:
        self.actual = ContentId(self._sample_id, self._etag, total)
        if self._expected is not None and self.actual != self._expected:
            raise ContentChanged("the stored object changed while it was being read")
        first = self._position // BLOCK_BYTES
        end = total if self._end is None else self._end
        whole = block_count(total) if end == total else end // BLOCK_BYTES
        self._taker.identified(self.actual, first, whole - 1)

    def _hand_out(self) -> None:
        assert self.actual is not None
        while self._buffer:
            index = self._position // BLOCK_BYTES
            if index >= block_count(self.actual.size):
                raise MalformedAnswer("storage sent more bytes than it announced")
            length = block_length(index, self.actual.size)
            if len(self._buffer) < length:
                break
            # one copy; a slice of the bytearray would be a second
            with memoryview(self._buffer) as view:
                data = bytes(view[:length])
            del self._buffer[:length]
            self._position += length
            self._taker.block(index, data)
        if self._end is not None and self._position + len(self._buffer) == self._end:
            # the tail of a range that ends inside a block is of no use
            self._position += len(self._buffer)
            self._buffer.clear()


def _encoding_of(headers: Mapping[str, str]) -> str:
    encoding = headers.get("content-encoding", "").strip().lower()
    return "" if encoding in ("", "identity", "aws-chunked") else encoding


class _Inflater:
    """Undoes a Content-Encoding that storage, or a proxy before it, applied to the whole body."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise MalformedAnswer(f"storage sends its bodies in an encoding we did not ask for: {encoding}")
        self._encoding = encoding
        self._stream = zlib.decompressobj(wbits=47)  # gzip or zlib, whichever it is

    def inflate(self, chunk: bytes | memoryview) -> bytes:
        try:
            return self._stream.decompress(chunk, MAX_COLLECTED_BYTES)
        except zlib.error as error:
            raise ShortBody(f"storage sent a damaged {self._encoding} body") from error

    def check_end(self) -> None:
        if not self._stream.eof:
            raise ShortBody(f"storage sent a {self._encoding} body that breaks off")
