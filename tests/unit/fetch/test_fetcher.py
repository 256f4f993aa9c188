"""What a fetch passes to its taker: which content, which blocks, each once, and what it asks storage for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import contentkit
import pytest
from contentkit import MIB, NOISE, Answer, Content, Style, sample_id

from lightlyfs.api.contract import Request, Response
from lightlyfs.blocks import NO_OBJECT, VERSION_BYTES, ContentId, Span
from lightlyfs.errors import ContentChanged, NotFound, ServerFault, ShortBody, Unreachable
from lightlyfs.fetch.answers import Known

A = sample_id(1)
NONE = ContentId(A, NO_OBJECT, 0)


class Taker:
    """Wants all that comes, or only some blocks."""

    def __init__(self, wanted: Span | str | None = "all") -> None:
        self.announced: list[tuple[ContentId, int, int]] = []
        self.blocks: list[int] = []
        self.bytes: dict[int, bytes] = {}
        self._wanted = wanted

    def identified(self, content: ContentId, first: int, last: int) -> Span | None:
        self.announced.append((content, first, last))
        return Span(first, last) if isinstance(self._wanted, str) else self._wanted

    def block(self, index: int, data: bytes) -> None:
        self.blocks.append(index)
        self.bytes[index] = data


@pytest.fixture
def content(tmp_path: Path) -> Iterator[Content]:
    subject = Content(tmp_path)
    yield subject
    subject.cache.close()


@pytest.mark.parametrize("known", [Known(), Known(0), Known(5), Known(5, NONE)], ids=str)
def test_a_sample_without_an_object_has_no_blocks(content: Content, known: Known) -> None:
    taker = Taker()
    assert content.fetcher.fetch_head(A, 10, taker, known) == NONE
    assert taker.announced == [(NONE, 0, -1)]
    assert taker.blocks == []


@pytest.mark.parametrize(("hint", "paused"), [(0, False), (None, True), (5, True)])
def test_an_object_that_is_missed_is_looked_for_with_patience(
    content: Content, hint: int | None, paused: bool
) -> None:
    content.fetcher.fetch_head(A, 10, Taker(), Known(hint))
    assert (content.clock.now > 1_000) == paused


@pytest.mark.parametrize(
    ("error", "is_none"),
    [
        (NotFound("no", status=404), True),
        (NotFound("no", status=410), True),
        (NotFound("no", status=404, code="SAMPLE_UNKNOWN"), False),
        (NotFound("no", status=404, code="DATASET_UNKNOWN"), False),
    ],
    ids=["404", "410", "sample", "dataset"],
)
def test_what_the_api_does_not_know_is_no_sample_without_an_object(
    content: Content, error: NotFound, is_none: bool
) -> None:
    def resolve(_sample: str) -> str:
        raise error

    content.fetcher._urls._resolve = resolve
    known = ContentId(A, "ev1", 10)
    if is_none:
        assert content.fetcher.fetch_head(A, 10, Taker(), Known()) == NONE
    else:
        with pytest.raises(NotFound):
            content.fetcher.fetch_head(A, 10, Taker(), Known())
    with pytest.raises(ContentChanged if is_none else NotFound):
        content.fetcher.fetch_blocks(known, Span(0, 0), Taker())


@pytest.mark.parametrize("style", contentkit.STYLES, ids=lambda style: style.__name__)
@pytest.mark.parametrize("span", [Span(0, 1), Span(2, 3)], ids=str)
def test_each_block_that_is_asked_for_comes_once_and_in_order(
    content: Content, style: Style, span: Span
) -> None:
    data = NOISE[: 3 * MIB + 5]
    content.storage.put(A, data, "v1")
    content.storage.style = style
    taker = Taker(span)
    content.fetcher.fetch_blocks(ContentId(A, "ev1", len(data)), span, taker)
    assert taker.blocks == list(range(span.first, span.last + 1))
    assert all(body == data[block * MIB :][:MIB] for block, body in taker.bytes.items())
    assert len(taker.announced) == 1


def test_only_whole_blocks_of_a_head_are_handed_over(content: Content) -> None:
    content.storage.put(A, NOISE, "v1")
    taker = Taker()
    found = content.fetcher.fetch_head(A, 2 * MIB + 100, taker, Known())
    assert taker.blocks == [0, 1]
    assert taker.announced == [(found, 0, 1)]
    assert content.storage.requests == [f"bytes=0-{2 * MIB + 99}"]


def test_nothing_more_is_asked_for_where_nothing_is_wanted(content: Content) -> None:
    content.storage.put(A, NOISE, "v1")
    content.storage.style = contentkit.tiny_ranges
    taker = Taker(None)
    assert content.fetcher.fetch_head(A, MIB, taker, Known()).size == len(NOISE)
    assert taker.blocks == []
    assert len(content.storage.requests) == 1


def test_a_fetch_that_broke_off_asks_for_the_rest(content: Content) -> None:
    content.storage.put(A, NOISE, "v1")
    content.storage.faults = [1.5 * MIB, Unreachable("down"), 2.0 * MIB]
    taker = Taker()
    content.fetcher.fetch_blocks(ContentId(A, "ev1", len(NOISE)), Span(1, 6), taker)
    assert taker.blocks == [1, 2, 3, 4, 5, 6]
    last = len(NOISE) - 1
    assert content.storage.requests == [f"bytes={start * MIB}-{last}" for start in (1, 2, 2, 4)]


def test_a_body_that_always_breaks_off_in_the_same_block_fails_in_bounded_time(content: Content) -> None:
    content.storage.put(A, NOISE, "v1")
    content.storage.faults = [100.0] * 1000
    with pytest.raises(ShortBody):
        content.fetcher.fetch_blocks(ContentId(A, "ev1", len(NOISE)), Span(1, 2), Taker())
    assert content.clock.now < 1_000 + 60


@pytest.mark.parametrize(("wrong", "trusted"), [(2, True), (3, False)])
def test_hints_are_trusted_until_three_of_them_were_wrong(
    content: Content, wrong: int, trusted: bool
) -> None:
    for number in range(1, 6):
        content.storage.put(sample_id(number), NOISE[:100], "v1")
    for number in range(1, 1 + wrong):
        assert content.fetcher.trusts_hints
        content.fetcher.fetch_head(sample_id(number), 200, Taker(), Known(99))
    content.fetcher.fetch_head(sample_id(5), 200, Taker(), Known(100))
    content.fetcher.fetch_head(sample_id(5), 200, Taker(), Known(99, ContentId(sample_id(5), "ev0", 99)))
    assert content.fetcher.trusts_hints == trusted


def test_an_answer_without_a_version_that_stays_odd_is_called_doubtful(content: Content) -> None:
    doubtful: list[int] = []
    content.storage.put(A, NOISE[:100])
    content.fetcher.fetch_head(A, 200, Taker(), Known(100), lambda: doubtful.append(1))
    content.fetcher.fetch_head(A, 200, Taker(), Known(50), lambda: doubtful.append(2))
    content.fetcher.fetch_head(A, 200, Taker(), Known(101), lambda: doubtful.append(3))
    assert doubtful == [3]
    content.storage.put(A, NOISE[:0], "v1")
    content.fetcher.fetch_head(A, 200, Taker(), Known(101), lambda: doubtful.append(4))
    assert doubtful == [3]


def test_a_transfer_may_take_an_hour_but_not_stand_still(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call on the mount is given up after 60 s, and a storage that stays silent well before that."""
    sent: list[Request] = []
    send = content.storage.send
    monkeypatch.setattr(content.storage, "send", lambda request: sent.append(request) or send(request))
    content.storage.put(A, NOISE[:100], "v1")
    content.fetcher.fetch_head(A, 200, Taker(), Known(100))
    (request,) = sent
    limits = request.timeouts
    assert limits is not None
    assert (limits.connect_s, limits.idle_s, limits.total_s) == (5.0, 20.0, 3600.0)
    assert request.headers == {"Accept-Encoding": "identity", "Range": "bytes=0-199"}
    assert (request.method, request.fresh) == ("GET", False)

    content.storage.faults = [503] * 1000
    with pytest.raises(ServerFault):
        content.fetcher.fetch_head(A, 200, Taker(), Known(100))
    assert 1_030 < content.clock.now < 1_060


@pytest.mark.parametrize("times", [1, 2, 3])
def test_another_version_under_a_reader_counts_when_three_answers_in_a_row_name_it(
    content: Content, times: int
) -> None:
    content.storage.put(A, NOISE, "v1")
    other = NOISE[::-1]
    left = [times]

    def style(data: bytes, start: int, end: int) -> Answer:
        left[0] -= 1
        status, headers, body = contentkit.honest(other if left[0] >= 0 else data, start, end)
        return status, headers | ({"etag": '"v2"'} if left[0] >= 0 else {"etag": '"v1"'}), body

    content.storage.style = style
    content.storage.objects[A] = (NOISE, None)
    taker = Taker()
    known = ContentId(A, "ev1", len(NOISE))
    if times < 3:
        content.fetcher.fetch_blocks(known, Span(1, 1), taker)
        assert taker.bytes == {1: NOISE[MIB : 2 * MIB]}
    else:
        with pytest.raises(ContentChanged) as caught:
            content.fetcher.fetch_blocks(known, Span(1, 1), taker)
        assert caught.value.settled
        assert taker.bytes == {}
    assert content.clock.now == 1_000
    assert len(content.storage.requests) == min(3, times + 1)


def test_answers_that_name_one_version_after_the_other_are_asked_for_with_patience(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = [0]

    def style(data: bytes, start: int, end: int) -> Answer:
        number[0] += 1
        status, headers, body = contentkit.honest(data, start, end)
        return status, headers | {"etag": f'"other{number[0]}"'}, body

    content.storage.objects[A] = (NOISE, None)
    content.storage.style = style
    asked_at: list[float] = []
    send = content.storage.send
    monkeypatch.setattr(
        content.storage, "send", lambda request: asked_at.append(content.clock.now) or send(request)
    )
    with pytest.raises(ContentChanged):
        content.fetcher.fetch_blocks(ContentId(A, "ev1", len(NOISE)), Span(1, 1), Taker())
    assert asked_at.count(1_000) == 6
    assert 1_000 < asked_at[6] < 1_010


OTHER = NOISE[::-1]


def unnamed(content: Content, data: bytes = NOISE) -> ContentId:
    """What storage has, of which it names no version."""
    content.storage.put(A, data)
    return content.fetcher.fetch_head(A, 2 * MIB, Taker(), Known())


def test_a_part_counts_once_the_first_bytes_are_seen_to_be_the_same(content: Content) -> None:
    """Storage names no version, so that a part does not tell what it is of."""
    known = unnamed(content)
    content.storage.requests.clear()
    taker = Taker()
    content.fetcher.fetch_blocks(known, Span(0, 6), taker)
    assert taker.blocks == list(range(7))
    assert all(body == NOISE[block * MIB :][:MIB] for block, body in taker.bytes.items())
    last = len(NOISE) - 1
    first_bytes = f"bytes=0-{VERSION_BYTES - 1}"
    assert content.storage.requests == [f"bytes=0-{MIB - 1}", f"bytes={MIB}-{last}", first_bytes]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_no_block_of_another_object_is_handed_over_whenever_it_was_replaced(
    content: Content, after: int
) -> None:
    """By one of the same length; a part of it was asked for before, or broke off in between."""
    known = unnamed(content)
    taker = Taker()
    send, sent = content.storage.send, itertools.count()
    content.storage.faults = [1.5 * MIB]

    def replace_then_send(request: Request) -> Response:
        if next(sent) == after:
            content.storage.put(A, OTHER)
        return send(request)

    content.storage.send = replace_then_send  # type: ignore[method-assign]
    with pytest.raises(ContentChanged):
        content.fetcher.fetch_blocks(known, Span(1, 6), taker)
    assert taker.blocks == []


def test_where_ranges_are_ignored_an_unnamed_object_comes_once(content: Content) -> None:
    known = unnamed(content)
    content.storage.style = contentkit.whole
    content.storage.requests.clear()
    taker = Taker()
    content.fetcher.fetch_blocks(known, Span(2, 6), taker)
    assert taker.blocks == list(range(7))
    assert len(content.storage.requests) == 1
