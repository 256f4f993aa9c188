"""Parses responses of storage into blocks, and decides which responses to doubt.

Takes the headers and chunks of a GET, identifies the content, and returns whole blocks. Accepts an ignored
Range (200), partial responses with status 200, bodies of unannounced length and bodies that are compressed
although identity was requested; detects truncated and misplaced bodies. Does no I/O.

Middleboxes send an empty 200, the length of another object, or no ETag. `Known.doubt` says which responses
contradict what is known, and have to be requested again before they are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple, Protocol

from lightlyfs.api.contract import Inflater, StopTransfer, content_encoding_of, whole_number
from lightlyfs.blocks import (
    BLOCK_BYTES,
    VERSION_BYTES,
    ContentId,
    ContentRange,
    Span,
    block_count,
    block_length,
    etag_of,
    etag_of_bytes,
    parse_content_range,
)
from lightlyfs.errors import ContentChanged, MalformedAnswer, ServerFault, ShortBody, TooLarge

# bodies whose length shows only at their end are collected in memory, up to here
MAX_COLLECTED_BYTES = 256 << 20
# the rest of an unwanted body is read up to here: a new connection would take longer
_WORTH_READING_BYTES = 256 << 10


class RangeUnusable(Exception):
    """The answer to a ranged GET tells too little to be used; one without a Range may do better."""


class BlockTaker(Protocol):
    """Receives what a `BlockSink` finds out, in the thread of the transfer."""

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        """Note the content, and that blocks first to last (none if last < first) will follow.

        Returns those of them that are wanted; None ends the transfer as soon as that pays.
        """

    def block(self, index: int, data: bytes) -> None:
        """Take a whole block that is wanted."""


class HeldBlocks:
    """Keeps blocks back until they are proven; those of an answer that begins at the first byte are."""

    def __init__(self, taker: BlockTaker) -> None:
        self._taker = taker
        self._blocks: list[tuple[int, bytes]] = []
        self.is_whole = False

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        """Return what is wanted; of an answer with more than the first block, at once."""
        wanted = self._taker.identified(content, first, last)
        self.is_whole = wanted is not None and not first and last > 0
        return wanted

    def block(self, index: int, data: bytes) -> None:
        """Keep a block, or pass it on."""
        if self.is_whole:
            self._taker.block(index, data)
        else:
            self._blocks.append((index, data))

    def hand_over(self) -> None:
        """Pass on the blocks that were kept: they are proven."""
        for index, data in self._blocks:
            self._taker.block(index, data)


class NoBlocks:
    """Wants no block."""

    def identified(self, content: ContentId, first: int, last: int) -> None:
        """Want none."""

    def block(self, index: int, data: bytes) -> None:
        """Never called."""
        raise AssertionError("no block was wanted")


class BlockSink:
    """Takes the answer to a GET for the bytes from `start` on, which is a block's first byte.

    With `expected`, an answer of another version raises ContentChanged. `actual` is then what came, and
    `stopped` says that the transfer was ended because nothing more was wanted.
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
        self._inflater: Inflater | None = None
        self._etag = ""
        self._unnamed: int | None = None  # the size of a content whose first bytes are to name its version
        self._wanted: Span | None = None
        self.actual: ContentId | None = None
        self.stopped = False

    def headers(self, status: int, headers: Mapping[str, str]) -> None:
        """Note where the answer starts and ends, and which content it is."""
        self._etag = etag_of(headers)
        answer = parse_content_range(headers.get("content-range"))
        if status == 416:
            self._unsatisfiable(answer)
        elif status == 206 or (200 <= status < 300 and _is_part(answer, headers)):
            self._partial(answer, headers)
        elif 200 <= status < 300:
            self._whole(headers)

    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the body, handing out each block that is now whole."""
        self._received += len(chunk)
        if self._inflater is not None:
            chunk = self._inflater.inflate(chunk)
        self._buffer += chunk
        if self._unnamed is not None and len(self._buffer) >= min(self._unnamed, VERSION_BYTES):
            self._name_by_bytes()
        if self.actual is None:
            if len(self._buffer) > MAX_COLLECTED_BYTES:
                raise TooLarge("storage sends a body of unannounced length that is over 256 MiB")
        else:
            self._hand_out()

    def finish(self) -> ContentId:
        """Check that a transfer that ended without error is complete, and return its content."""
        if self.stopped:
            assert self.actual is not None
            return self.actual
        if self._inflater is not None:
            self._inflater.check_end()
        if self._unnamed is not None:
            raise ShortBody(f"storage sent {self._received} bytes of {self._end}")
        if self.actual is None:
            self._identify_at_end()
        assert self.actual is not None
        if self._end is not None and self._position < self._end:
            raise ShortBody(
                f"storage sent {self._received} bytes and {self._end - self._position} are missing"
            )
        return self.actual

    def _identify_at_end(self) -> None:
        if not self._etag and not self._received:
            raise MalformedAnswer("storage answered with neither a body nor a range")
        self._end = self._position + len(self._buffer)
        self._identify(self._end)
        self._hand_out()

    def _partial(self, answer: ContentRange | None, headers: Mapping[str, str]) -> None:
        if answer is None or answer.start is None or answer.end is None:
            raise RangeUnusable("storage answered 206 without a valid Content-Range")
        if content_encoding_of(headers):
            raise RangeUnusable("storage answered with a part of a compressed body")
        if answer.start != self._start:
            # a larger range that holds ours cannot be told from a wrong label on ours
            raise RangeUnusable(f"storage answered with another range: {answer.start}, not {self._start}")
        total = answer.total if answer.total is not None else self._expected and self._expected.size
        if total is None or total < answer.end:
            raise RangeUnusable("storage answered with a range and does not say of how much")
        self._end = answer.end
        self._identify(total)

    def _whole(self, headers: Mapping[str, str]) -> None:
        if not self._etag and is_web_page(headers):
            # storage names the version of what it sends; proxies and sign-in pages do not
            raise ServerFault("a web page came in the place of a sample", status=200)
        self._position = 0
        encoding = content_encoding_of(headers)
        if encoding:
            self._inflater = Inflater(encoding, "storage", MAX_COLLECTED_BYTES)
            return
        self._end = whole_number(headers.get("content-length"))
        if self._end is not None:
            self._identify(self._end)

    def _unsatisfiable(self, answer: ContentRange | None) -> None:
        total = None if answer is None else answer.total
        if total is None and self._start == 0:
            total = 0  # only an empty object has no first byte
        if total is None:
            raise ContentChanged("the stored object became shorter while it was being read")
        if total > self._start:
            raise RangeUnusable("storage refused a range within the object")
        self._end = self._position
        self._identify(total)

    def _identify(self, total: int) -> None:
        """Note what the answer is of; where storage names no version, once its first bytes are here."""
        if not self._etag:
            known = self._expected
            assert self._end is not None
            tells = not self._position and self._end >= min(total, VERSION_BYTES) > 0
            if known is not None and not known.is_named and not (tells and known.etag):
                self._etag = known.etag  # a part tells nothing of its version
            elif tells:
                self._unnamed = total
                if len(self._buffer) >= min(total, VERSION_BYTES):
                    self._name_by_bytes()
                return
        self._settle(total)

    def _name_by_bytes(self) -> None:
        assert self._unnamed is not None
        total, self._unnamed = self._unnamed, None
        self._etag = etag_of_bytes(self._buffer)
        self._settle(total)

    def _settle(self, total: int) -> None:
        self.actual = ContentId(self._sample_id, self._etag, total)
        if self._expected is not None and self.actual != self._expected:
            raise ContentChanged("the stored object changed while it was being read")
        end = total if self._end is None else self._end
        blocks = block_count(total) if end == total else end // BLOCK_BYTES
        self._wanted = self._taker.identified(self.actual, self._position // BLOCK_BYTES, blocks - 1)
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        """End the transfer where what is still to come is not wanted and is much."""
        assert self._end is not None
        after_last = 0 if self._wanted is None else (self._wanted.last + 1) * BLOCK_BYTES
        left = self._end - self._position - len(self._buffer)
        if self._position >= after_last and left > _WORTH_READING_BYTES:
            self.stopped = True
            raise StopTransfer

    def _hand_out(self) -> None:
        assert self.actual is not None
        assert self._end is not None
        if self._position + len(self._buffer) > self._end:
            raise MalformedAnswer("storage sent more bytes than it announced")
        while self._buffer:
            index = self._position // BLOCK_BYTES
            length = block_length(index, self.actual.size)
            if len(self._buffer) < length:
                break
            self._hand_out_block(index, length)
            self._stop_if_done()
        if self._position + len(self._buffer) == self._end:
            # the tail of a range that ends inside a block is of no use
            self._position += len(self._buffer)
            self._buffer.clear()

    def _hand_out_block(self, index: int, length: int) -> None:
        wanted = self._wanted is not None and self._wanted.first <= index <= self._wanted.last
        if wanted:
            # one copy; a slice of the bytearray would be a second
            with memoryview(self._buffer) as view:
                data = bytes(view[:length])
        del self._buffer[:length]
        self._position += length
        if wanted:
            self._taker.block(index, data)


def is_web_page(headers: Mapping[str, str]) -> bool:
    """Return whether an answer says that it is a web page."""
    return headers.get("content-type", "").strip().lower().startswith("text/html")


def _is_part(answer: ContentRange | None, headers: Mapping[str, str]) -> bool:
    """Whether an answer of status 200 is a part all the same, as some S3 servers call theirs."""
    if answer is None or answer.start is None or answer.end is None:
        return False
    return headers.get("content-length", str(answer.end - answer.start)) == str(answer.end - answer.start)


class Doubt(Enum):
    """How far an answer is doubted."""

    NONE = 0
    SHORT = 1  # it counts when three answers in a row say the same
    LONG = 2  # it counts when all answers of some seconds say the same


class Known(NamedTuple):
    """What is known of a sample before storage is asked.

    `hint` is the size that is shown, `content` what storage last said.
    """

    hint: int | None = None
    content: ContentId | None = None

    @property
    def may_have_no_object(self) -> bool:
        """Whether it is no surprise that storage has no object."""
        return self.hint == 0 or (self.content is not None and not self.content.has_object)

    @property
    def size(self) -> int | None:
        """The size that is shown, in bytes; None where none is known."""
        return self.hint if self.content is None else self.content.size

    def doubt(self, said: ContentId, *, trust_hint: bool) -> Doubt:
        """Return how far an answer is doubted; without `trust_hint` a size that is only a hint is not one."""
        before = self.content if self.content is not None and self.content.has_object else None
        if said == before:
            return Doubt.NONE
        size = self.hint if before is None else before.size
        if said.size == 0 and (size or (size is None and not said.is_named)):
            return Doubt.LONG
        if not said.is_named and before is not None and before.is_named:
            return Doubt.LONG
        if not said.is_named and said.size < (size or 0):
            return Doubt.LONG if trust_hint else Doubt.SHORT
        if before is not None:
            # no storage gives one version two lengths
            return Doubt.LONG if said.etag == before.etag else Doubt.SHORT
        return Doubt.SHORT if trust_hint and size not in (None, said.size) else Doubt.NONE
