"""What a sink makes of the body of one answer, where nothing behind it asks again."""

from __future__ import annotations

import gzip
import random

import pytest

from lightlyfs.api.contract import StopTransfer
from lightlyfs.blocks import BLOCK_BYTES, VERSION_BYTES, ContentId, Span, etag_of_bytes
from lightlyfs.errors import ContentChanged, MalformedAnswer, ServerFault, ShortBody, TooLarge
from lightlyfs.fetch.answers import MAX_COLLECTED_BYTES, BlockSink, RangeUnusable

BODY = random.Random(3).randbytes(200_000)
PACKED = gzip.compress(BODY, 1)
ALL = Span(0, 1 << 40)


class Taken:
    """Takes all blocks, or those in `wanted`."""

    def __init__(self, wanted: Span | None = ALL) -> None:
        self.blocks: dict[int, bytes] = {}
        self.announced: list[tuple[int, int]] = []
        self._wanted = wanted

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        self.announced.append((first, last))
        return self._wanted

    def block(self, index: int, data: bytes) -> None:
        self.blocks[index] = data


def take(body: bytes, headers: dict[str, str], step: int = 9_000) -> bytes:
    """Send a body to a sink in chunks; what it handed out."""
    taken = Taken()
    sink = BlockSink("0" * 24, 0, None, taken)
    sink.headers(200, {"etag": '"a"'} | headers)
    for at in range(0, len(body), step):
        sink.write(body[at : at + step])
    assert sink.finish().size == len(BODY)
    return b"".join(taken.blocks[index] for index in sorted(taken.blocks))


@pytest.mark.parametrize("headers", [{}, {"content-length": str(len(PACKED))}], ids=["no length", "length"])
def test_a_compressed_body_is_what_was_stored(headers: dict[str, str]) -> None:
    assert take(PACKED, headers | {"content-encoding": "gzip"}) == BODY


@pytest.mark.parametrize("at", [12, len(PACKED) // 2, len(PACKED) - 6], ids=["begin", "middle", "checksum"])
def test_a_damaged_compressed_body_is_one_that_did_not_come(at: int) -> None:
    damaged = PACKED[:at] + bytes([PACKED[at] ^ 0xFF]) + PACKED[at + 1 :]
    with pytest.raises(ShortBody):
        take(damaged, {"content-encoding": "gzip"})


@pytest.mark.parametrize("left", [0, 5, len(PACKED) - 1])
def test_a_compressed_body_that_breaks_off_is_short(left: int) -> None:
    with pytest.raises(ShortBody, match="breaks off"):
        take(PACKED[:left], {"content-encoding": "gzip"})


def test_an_encoding_that_is_not_known_is_named() -> None:
    with pytest.raises(MalformedAnswer, match="br"):
        take(BODY, {"content-encoding": "br"})


def sink_of(
    start: int = 0, expected: ContentId | None = None, taken: Taken | None = None
) -> tuple[BlockSink, Taken]:
    taken = taken or Taken()
    return BlockSink("0" * 24, start, expected, taken), taken


def ranged(start: int, end: int, total: int | str, **more: str) -> dict[str, str]:
    """The headers of a part [start, end)."""
    return {"etag": '"a"', "content-range": f"bytes {start}-{end - 1}/{total}"} | more


def test_an_empty_body_that_names_neither_version_nor_length_is_no_answer() -> None:
    sink, taken = sink_of()
    sink.headers(200, {})
    with pytest.raises(MalformedAnswer):
        sink.finish()
    assert taken.announced == []


@pytest.mark.parametrize("headers", [{"etag": '"a"'}, {"content-length": "0"}], ids=["version", "length"])
def test_an_empty_body_that_says_what_it_is_is_an_empty_object(headers: dict[str, str]) -> None:
    sink, taken = sink_of()
    sink.headers(200, headers)
    assert sink.finish().size == 0
    assert taken.announced == [(0, -1)]


# where storage names no version


def unnamed(start: int, end: int, total: int) -> dict[str, str]:
    return {"content-range": f"bytes {start}-{end - 1}/{total}"}


def test_without_a_version_the_first_bytes_are_one() -> None:
    sink, taken = sink_of()
    sink.headers(206, unnamed(0, len(BODY), len(BODY)))
    sink.write(BODY[: VERSION_BYTES - 1])
    assert (sink.actual, taken.announced) == (None, [])
    sink.write(BODY[VERSION_BYTES - 1 : VERSION_BYTES])
    named = ContentId("0" * 24, etag_of_bytes(BODY), len(BODY))
    assert sink.actual == named
    sink.write(BODY[VERSION_BYTES:])
    assert sink.finish() == named
    assert not named.is_named
    assert taken.blocks == {0: BODY}


def test_a_later_part_without_a_version_is_of_the_content_that_is_read() -> None:
    content = ContentId("0" * 24, etag_of_bytes(BODY), 2 * BLOCK_BYTES)
    sink, taken = sink_of(BLOCK_BYTES, content)
    sink.headers(206, unnamed(BLOCK_BYTES, 2 * BLOCK_BYTES, 2 * BLOCK_BYTES))
    sink.write(bytes(BLOCK_BYTES))
    assert sink.finish() == content
    assert list(taken.blocks) == [1]


def test_other_first_bytes_of_the_same_length_are_another_version() -> None:
    sink, taken = sink_of(0, ContentId("0" * 24, etag_of_bytes(BODY), len(BODY)))
    sink.headers(206, unnamed(0, len(BODY), len(BODY)))
    with pytest.raises(ContentChanged):
        sink.write(bytes(len(BODY)))
    assert taken.blocks == {}


def test_a_part_too_short_to_name_a_version_is_taken_as_it_was_told() -> None:
    content = ContentId("0" * 24, etag_of_bytes(BODY), len(BODY))
    sink, _ = sink_of(0, content)
    sink.headers(206, unnamed(0, 1, len(BODY)))
    sink.write(BODY[:1])
    assert sink.actual == content


def test_a_body_that_ends_before_its_version_is_known_is_short() -> None:
    sink, taken = sink_of()
    sink.headers(200, {"content-length": "100"})
    sink.write(BODY[:99])
    with pytest.raises(ShortBody):
        sink.finish()
    assert taken.announced == []


def test_what_is_missing_of_a_body_is_named() -> None:
    sink, _ = sink_of()
    sink.headers(200, {"etag": '"a"', "content-length": "100"})
    sink.write(b"x" * 60)
    with pytest.raises(ShortBody, match="sent 60 bytes and 100 are missing"):
        sink.finish()


@pytest.mark.parametrize("headers", [{}, {"content-encoding": "gzip"}], ids=["plain", "gzip"])
def test_a_body_without_a_length_is_collected_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    assert MAX_COLLECTED_BYTES == 256 << 20  # as the error says
    monkeypatch.setattr("lightlyfs.fetch.answers.MAX_COLLECTED_BYTES", len(BODY))
    body = PACKED if headers else BODY
    assert take(body, headers) == BODY
    monkeypatch.setattr("lightlyfs.fetch.answers.MAX_COLLECTED_BYTES", len(BODY) - 1)
    with pytest.raises(TooLarge, match="256 MiB"):
        take(body, headers)


def test_more_bytes_than_were_announced_are_an_error() -> None:
    sink, _ = sink_of()
    sink.headers(200, {"etag": '"a"', "content-length": "100"})
    sink.write(b"x" * 60)
    with pytest.raises(MalformedAnswer):
        sink.write(b"x" * 41)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_part_gives_its_whole_blocks_and_no_others(offset: int) -> None:
    """A range that ends within a block gives nothing of that block, unless the content ends there."""
    start, size = offset * BLOCK_BYTES, 6 * BLOCK_BYTES + 7
    sink, taken = sink_of(start)
    sink.headers(206, ranged(start, start + 2 * BLOCK_BYTES + 5, size))
    assert taken.announced == [(offset, offset + 1)]
    sink.write(b"a" * BLOCK_BYTES)
    sink.write(b"b" * (BLOCK_BYTES - 1))
    assert list(taken.blocks) == [offset]
    sink.write(b"b" + b"c" * 5)
    assert sink.finish() == ContentId("0" * 24, "ea", size)
    assert taken.blocks == {offset: b"a" * BLOCK_BYTES, offset + 1: b"b" * BLOCK_BYTES}


def test_the_last_part_gives_the_last_block() -> None:
    sink, taken = sink_of(2 * BLOCK_BYTES)
    sink.headers(206, ranged(2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 9, 2 * BLOCK_BYTES + 9))
    sink.write(b"x" * 9)
    sink.finish()
    assert taken.announced == [(2, 2)]
    assert taken.blocks == {2: b"x" * 9}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-range": "bytes */100"},
        ranged(1, 11, 100),
        ranged(0, 10, "*"),
        ranged(0, 10, 9),
        ranged(0, 10, 100) | {"content-encoding": "gzip"},
    ],
    ids=["no range", "no place", "another place", "of how much", "of less", "compressed"],
)
def test_a_part_that_cannot_be_placed_is_not_used(headers: dict[str, str]) -> None:
    sink, taken = sink_of()
    with pytest.raises(RangeUnusable):
        sink.headers(206, headers)
    assert taken.announced == []


def test_a_part_of_a_known_content_need_not_say_of_how_much() -> None:
    expected = ContentId("0" * 24, "ea", 100)
    sink, taken = sink_of(0, expected)
    sink.headers(206, ranged(0, 100, "*"))
    sink.write(b"x" * 100)
    assert sink.finish() == expected
    assert taken.blocks == {0: b"x" * 100}


@pytest.mark.parametrize("other", [{"etag": '"b"'}, {"content-range": "bytes 0-99/101"}], ids=["tag", "size"])
def test_another_version_than_the_expected_one_is_named_and_not_taken(other: dict[str, str]) -> None:
    sink, taken = sink_of(0, ContentId("0" * 24, "ea", 100))
    with pytest.raises(ContentChanged):
        sink.headers(206, ranged(0, 100, 100) | other)
    assert sink.actual is not None
    assert taken.announced == []


@pytest.mark.parametrize("length", ["10", "11"])
def test_a_200_with_a_range_is_a_part_only_where_the_length_is_that_of_the_part(length: str) -> None:
    sink, taken = sink_of()
    sink.headers(200, ranged(0, 10, 100, **{"content-length": length}))
    assert sink.actual is not None
    assert sink.actual.size == (100 if length == "10" else 11)
    assert taken.announced == [(0, -1 if length == "10" else 0)]


def test_a_200_with_a_range_and_no_length_is_a_part() -> None:
    sink, _ = sink_of()
    sink.headers(200, ranged(0, 10, 100))
    sink.write(b"x" * 10)
    assert sink.finish().size == 100


@pytest.mark.parametrize("status", [199, 300, 404, 500])
def test_an_answer_that_is_none_is_not_looked_at(status: int) -> None:
    sink, taken = sink_of()
    sink.headers(status, ranged(0, 10, 10, **{"content-length": "10"}))
    assert sink.actual is None
    assert taken.announced == []


@pytest.mark.parametrize(
    ("start", "total", "size"),
    [(0, "*/0", 0), (0, None, 0), (BLOCK_BYTES, f"*/{BLOCK_BYTES}", BLOCK_BYTES), (BLOCK_BYTES, "*/9", 9)],
)
def test_a_range_past_the_end_says_where_the_end_is(start: int, total: str | None, size: int) -> None:
    sink, taken = sink_of(start)
    sink.headers(416, {} if total is None else {"content-range": f"bytes {total}"})
    assert sink.finish().size == size
    assert taken.blocks == {}


def test_a_range_refused_without_a_reason_is_a_change_or_not_used() -> None:
    sink, _ = sink_of(BLOCK_BYTES)
    with pytest.raises(ContentChanged):
        sink.headers(416, {})
    with pytest.raises(RangeUnusable):
        sink.headers(416, {"content-range": f"bytes */{BLOCK_BYTES + 1}"})


@pytest.mark.parametrize("kind", ["text/html", " TEXT/HTML; charset=utf-8"])
def test_a_web_page_is_no_sample_unless_storage_names_its_version(kind: str) -> None:
    page = {"content-type": kind, "content-length": "4"}
    sink, _ = sink_of()
    with pytest.raises(ServerFault) as caught:
        sink.headers(200, page)
    assert caught.value.status == 200
    sink.headers(200, page | {"etag": '"a"'})
    sink.write(b"<a/>")
    assert sink.finish().size == 4


@pytest.mark.parametrize("encoding", ["identity", "aws-chunked", "AWS-Chunked, identity", ""])
def test_encodings_that_change_nothing_are_passed_by(encoding: str) -> None:
    assert take(BODY, {"content-encoding": encoding, "content-length": str(len(BODY))}) == BODY


def test_a_compressed_body_that_was_sent_in_signed_chunks_is_inflated() -> None:
    assert take(PACKED, {"content-encoding": "aws-chunked, GZIP"}) == BODY


REST = 256 << 10  # read on rather than open another connection


@pytest.mark.parametrize(
    ("wanted", "size", "stops_after"),
    [
        (None, REST, None),
        (None, REST + 1, 0),
        (Span(0, 0), BLOCK_BYTES + REST, None),
        (Span(0, 0), BLOCK_BYTES + REST + 1, 1),
        (Span(0, 1), 4 * BLOCK_BYTES, 2),
        (Span(1, 1), 4 * BLOCK_BYTES, 2),
    ],
)
def test_a_transfer_ends_when_much_is_left_that_nobody_wants(
    wanted: Span | None, size: int, stops_after: int | None
) -> None:
    sink, taken = sink_of(taken=Taken(wanted))
    blocks = -1
    try:
        sink.headers(200, {"etag": '"a"', "content-length": str(size)})
        for at in range(0, size, BLOCK_BYTES):
            blocks = at // BLOCK_BYTES
            sink.write(b"x" * min(BLOCK_BYTES, size - at))
    except StopTransfer:
        assert blocks + 1 == stops_after
        assert sink.stopped
    else:
        assert stops_after is None
        assert not sink.stopped
    assert sink.finish() == ContentId("0" * 24, "ea", size)
    assert list(taken.blocks) == ([] if wanted is None else list(range(wanted.first, wanted.last + 1)))


@pytest.mark.parametrize("wanted", [None, Span(0, 1)])
def test_a_part_that_nobody_wants_ends_at_once(wanted: Span | None) -> None:
    sink, taken = sink_of(5 * BLOCK_BYTES, taken=Taken(wanted))
    with pytest.raises(StopTransfer):
        sink.headers(206, ranged(5 * BLOCK_BYTES, 9 * BLOCK_BYTES, 20 * BLOCK_BYTES))
    assert sink.stopped
    assert sink.finish().size == 20 * BLOCK_BYTES
    assert taken.blocks == {}
