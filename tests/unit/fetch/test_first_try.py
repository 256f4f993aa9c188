"""The first try at a small file: what ends there, and what is left to the patient way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from contentkit import MIB, NOISE, Content, Inline

from lightlyfs.api.calls import Attempt
from lightlyfs.api.contract import Request, Response, Timeouts
from lightlyfs.api.retry import Retrier
from lightlyfs.blocks import NO_OBJECT, ContentId, Span, etag_of_bytes
from lightlyfs.errors import RequestError, ShortBody, TimedOut, Unreachable
from lightlyfs.fetch.fetcher import MAX_BYTES_UNDER_WAY, FetchConfig, Fetcher, FirstTry, content_in
from lightlyfs.fetch.reader import Reader
from lightlyfs.fetch.transfers import NotBrought
from lightlyfs.fetch.urls import ReadUrls
from lightlyfs.readahead.within_file import HEAD_BYTES

A, B = "a" * 24, "b" * 24
BODY = bytes(range(256)) * 8
URL = b'"https://storage.test/o"'

Outcome = Response | RequestError


class FakeLoop:
    """Keeps the GETs that it is given until they are answered."""

    def __init__(self) -> None:
        self.sent: list[tuple[Request, Callable[[Outcome], None], bool]] = []

    def get(self, request: Request, done: Callable[[Outcome], None], *, urgent: bool) -> None:
        self.sent.append((request, done, urgent))

    def answer(self, outcome: Outcome) -> Request:
        request, done, _ = self.sent.pop(0)
        done(outcome)
        return request


class World:
    """A reader over a loop that does nothing by itself, and the patient way beside it."""

    def __init__(self, directory: Path) -> None:
        self.content = Content(directory)
        self.loop = FakeLoop()
        self.storage_retrier = Retrier(clock=self.content.clock, sleep=self.content.clock.sleep)
        self.api_retrier = Retrier(clock=self.content.clock, sleep=self.content.clock.sleep)
        self.counted: list[tuple[str, str]] = []
        self.urls = ReadUrls(self.content._resolve, wall_clock=self.content.clock)
        fetcher = Fetcher(
            self.urls,
            self.content.storage,
            FetchConfig(),
            self.storage_retrier,
            cancelled=lambda: False,
        )
        self.first_try = FirstTry(
            self.loop,
            self.urls,
            self._url_attempt,
            self.api_retrier,
            self.storage_retrier,
            lambda _method, operation, _seconds, outcome: self.counted.append((operation, outcome)),
            Timeouts(),
        )
        self.reader = Reader(self.content.cache, fetcher, Inline(), self.content._heard, None, self.first_try)

    def _url_attempt(self, sample_id: str) -> Attempt[str]:
        def outcome(answer: Outcome) -> str:
            if isinstance(answer, RequestError):
                self.api_retrier.note(answer)
                raise answer
            return answer.body.decode().strip('"')

        return Attempt("get_sample_read_url", Request("GET", f"https://api.test/{sample_id}"), outcome)

    def ask(self, sample: str = A, hint: int | None = len(BODY), **more: Any) -> Future[ContentId]:
        return self.reader.identify(sample, size_hint=hint, for_reading=True, **more)

    def patient(self) -> list[str]:
        """The GETs of the patient way."""
        return self.content.storage.requests


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def storage_says(body: bytes = BODY, total: int | None = None, **headers: str) -> Response:
    size = len(body) if total is None else total
    ranged = {"content-range": f"bytes 0-{len(body) - 1}/{size}", "content-length": str(len(body))}
    return Response(206, {"etag": '"v1"', **ranged, **headers}, body)


def test_a_small_file_takes_two_gets_and_no_thread(world: World) -> None:
    found = world.ask()
    assert world.loop.answer(Response(200, {}, URL)).url == f"https://api.test/{A}"
    request = world.loop.answer(storage_says())
    assert request.url == "https://storage.test/o"
    assert request.headers["Range"] == f"bytes=0-{4 * MIB - 1}"
    assert request.max_body_bytes == len(BODY)  # more would be odd, and memory that nobody counts
    content = found.result(0)
    assert content == ContentId(A, "ev1", len(BODY))
    assert world.reader.read(content, 0, 100, lambda future: future.result(0)) == BODY[:100]
    assert world.content.cache.has_whole(content)
    assert world.content.facts == [content]
    assert world.patient() == []
    assert world.counted == [("get_sample_read_url", "200"), ("storage_get", "206")]


def test_a_known_url_is_not_asked_for(world: World) -> None:
    world.urls.begin(A)
    world.urls.end(A, "https://storage.test/kept")
    world.ask()
    assert world.loop.answer(storage_says()).url == "https://storage.test/kept"


@pytest.mark.parametrize(
    "answer",
    [
        Unreachable("no route"),
        TimedOut("silent"),
        ShortBody("cut"),
        Response(403, {}, b"<Error><Code>AccessDenied</Code></Error>"),
        Response(404, {}, b""),
        Response(429, {"retry-after": "1"}, b""),
        Response(503, {}, b""),
        Response(200, {"content-length": "0"}, b""),
        Response(200, {"content-length": str(len(BODY)), "content-type": "text/html; charset=utf-8"}, BODY),
        storage_says(**{"content-encoding": "gzip"}),
        storage_says(BODY[:10], total=10),
        Response(206, {"etag": '"v1"', "content-range": "bytes 5-20/99"}, BODY[:15]),
        Response(206, {"etag": '"v1"'}, BODY),
    ],
    ids=str,
)
def test_whatever_is_odd_is_left_to_the_patient_way(world: World, answer: Outcome) -> None:
    """A refusal, a cut, another length, a web page: none of them is taken for the truth, nor shown."""
    world.content.storage.put(A, BODY)
    found = world.ask()
    world.loop.answer(Response(200, {}, URL))
    world.loop.answer(answer)
    assert found.result(10).size == len(BODY)
    assert world.patient() != []


@pytest.mark.parametrize("headers", [{}, {"content-type": "image/jpeg"}], ids=["bare", "typed"])
def test_an_object_without_a_version_is_named_by_its_bytes(world: World, headers: dict[str, str]) -> None:
    found = world.ask()
    world.loop.answer(Response(200, {}, URL))
    world.loop.answer(Response(200, {"content-length": str(len(BODY)), **headers}, BODY))
    assert found.result(0) == ContentId(A, etag_of_bytes(BODY), len(BODY))
    assert world.patient() == []


def test_a_refused_url_request_is_left_to_it_too(world: World) -> None:
    world.content.storage.put(A, BODY)
    found = world.ask()
    world.loop.answer(Unreachable("no route"))
    assert found.result(10).size == len(BODY)


def test_what_was_asked_ahead_and_failed_is_dropped(world: World) -> None:
    found = world.ask(ahead=True)
    assert not world.loop.sent[0][2]
    world.loop.answer(Unreachable("no route"))
    assert isinstance(found.exception(0), Unreachable)
    assert world.patient() == []


def test_a_reader_that_waits_for_it_is_not_dropped(world: World) -> None:
    world.content.storage.put(A, BODY)
    world.ask(ahead=True)
    found = world.ask()
    world.loop.answer(Unreachable("no route"))
    assert found.result(10).size == len(BODY)


def test_a_throttled_host_is_asked_by_the_patient_way_alone(world: World) -> None:
    world.content.storage.put(A, BODY)
    world.ask(B)
    world.loop.answer(Response(200, {}, URL))
    world.content.storage.put(B, BODY)
    world.loop.answer(Response(429, {"retry-after": "2"}, b""))
    world.storage_retrier.note(Unreachable("once more", retry_after_s=2.0))
    assert not world.first_try.may_ask(urgent=True)
    assert world.ask(A).result(10).size == len(BODY)
    assert world.loop.sent == []


KNOWN = ContentId(A, "ev1", len(BODY))


def ask_ahead(world: World) -> Future[bytes]:
    """The block of a content that is known and not here, fetched ahead of its readers."""
    found, *_ = world.reader.fetch(KNOWN, Span(0, 0), ahead=True)
    return found


def test_a_known_content_that_is_asked_ahead_and_fails_is_dropped(world: World) -> None:
    found = ask_ahead(world)
    world.loop.answer(Response(200, {}, URL))
    world.loop.answer(Unreachable("no route"))
    assert isinstance(found.exception(0), NotBrought)
    assert world.patient() == []
    assert not world.reader.transfers


def test_a_known_content_whose_answer_is_odd_is_left_to_the_patient_way(world: World) -> None:
    world.content.storage.put(A, BODY, "v1")
    found = ask_ahead(world)
    world.loop.answer(Response(200, {}, URL))
    world.loop.answer(storage_says(BODY[:-1]))
    assert found.result(0) == BODY
    assert world.patient()


def test_what_another_process_fetches_is_not_asked_ahead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.reader._once, "try_blocks", lambda _: None)
    assert isinstance(ask_ahead(world).exception(0), NotBrought)
    assert world.loop.sent == []
    assert world.patient() == []


def test_the_bytes_under_way_are_bounded(world: World) -> None:
    taken = [world.first_try.fetch(A, 1 << 20, MAX_BYTES_UNDER_WAY // 2, lambda _: None, urgent=True)]
    taken.append(world.first_try.fetch(B, 1 << 20, MAX_BYTES_UNDER_WAY // 2, lambda _: None, urgent=True))
    taken.append(world.first_try.fetch("c" * 24, 1 << 20, 1, lambda _: None, urgent=True))
    assert taken == [True, True, False]
    world.loop.answer(Unreachable("no route"))
    assert world.first_try.fetch("c" * 24, 1 << 20, 1, lambda _: None, urgent=True)


def test_a_part_is_taken_for_one_of_its_content() -> None:
    head = storage_says(BODY[:100], total=9_999)
    assert content_in(A, head) == ContentId(A, "ev1", 9_999)


# where programs read no more than the first bytes of files


def ask_head(world: World, size: int = 3 * MIB) -> ContentId:
    """A content of which only the first bytes came."""
    found = world.ask(hint=size, head_only=True)
    world.loop.answer(Response(200, {}, URL))
    request = world.loop.answer(storage_says(NOISE[:HEAD_BYTES], total=size))
    assert request.headers["Range"] == f"bytes=0-{HEAD_BYTES - 1}"
    assert request.max_body_bytes == HEAD_BYTES
    return found.result(0)


@pytest.mark.parametrize(
    ("offset", "size", "sent"),
    [
        (0, HEAD_BYTES, 0),
        (HEAD_BYTES - 10, 10, 0),
        (5, 100, 0),
        (0, HEAD_BYTES + 1, 1),
        (5, HEAD_BYTES - 1, 1),
        (HEAD_BYTES, 10, 1),
    ],
)
def test_the_head_of_a_file_is_read_without_another_request_and_all_else_with_one(
    world: World, offset: int, size: int, sent: int
) -> None:
    content = ask_head(world)
    world.content.storage.put(A, NOISE[: 3 * MIB], "v1")

    def wait(future: Future[Any]) -> Any:
        if world.loop.sent:
            world.loop.answer(storage_says(NOISE[: 3 * MIB]))
        return future.result(0)

    assert world.reader.read(content, offset, size, wait) == NOISE[offset : offset + size]
    assert world.counted.count(("storage_get", "206")) == 1 + sent
    assert world.patient() == []


def test_the_heads_in_memory_are_bounded_and_the_oldest_goes(world: World) -> None:
    """64 of them, 8 MiB."""
    samples = [f"{number:024x}" for number in range(65)]
    found = []
    for sample in samples:
        asked = world.ask(sample, hint=3 * MIB, head_only=True)
        world.loop.answer(Response(200, {}, URL))
        world.loop.answer(storage_says(NOISE[:HEAD_BYTES], total=3 * MIB))
        found.append(asked.result(0))
    world.content.storage.faults = [Unreachable("down")] * 1000
    for content in found[1:]:
        assert world.reader.read(content, 0, 10, lambda future: future.result(0)) == NOISE[:10]
    world.reader.begin(found[1], 0, 10)
    assert world.loop.sent == []
    world.reader.begin(found[0], 0, 10)
    assert len(world.loop.sent) == 1


@pytest.mark.parametrize("size", [100, MIB, MIB + 1, 3 * MIB])
def test_a_whole_content_is_fetched_ahead_by_one_request_and_once(world: World, size: int) -> None:
    content = ContentId(A, "ev1", size)
    asked = world.reader.fetch_whole(content)
    assert asked is not None
    world.loop.answer(Response(200, {}, URL))
    world.loop.answer(storage_says(NOISE[:size]))
    asked.result(0)
    assert world.reader.holds(content)
    assert world.reader.fetch_whole(content) is None
    assert world.loop.sent == []


@pytest.mark.parametrize("content", [ContentId(A, "ev1", 0), ContentId(A, NO_OBJECT, 0)])
def test_of_what_has_no_bytes_nothing_is_fetched_ahead(world: World, content: ContentId) -> None:
    assert world.reader.fetch_whole(content) is None
    assert world.loop.sent == []
    assert world.reader.holds(content) == content.has_object


@pytest.mark.parametrize("size", [1, 3 * MIB])
def test_what_may_be_ahead_of_its_readers_is_a_share_of_the_cache(world: World, size: int) -> None:
    assert world.reader.room_ahead(size) == world.content.cache.room.ahead_bytes // size


def test_a_url_alone_is_asked_for_once_and_kept(world: World) -> None:
    came: list[bool] = []
    assert world.first_try.url(A, came.append)
    assert not world.first_try.url(A, came.append)  # it is under way
    world.loop.answer(Response(200, {}, URL))
    assert came == [True]
    assert not world.first_try.url(A, came.append)
    assert world.first_try.url(B, came.append)
    world.loop.answer(Unreachable("no route"))
    assert came == [True, False]
    world.api_retrier.note(Unreachable("down", retry_after_s=5.0))
    assert not world.first_try.url(B, came.append)
    assert world.loop.sent == []
    assert world.counted == [("get_sample_read_url", "200"), ("get_sample_read_url", "Unreachable")]


def test_a_url_that_another_asks_for_is_waited_for(world: World) -> None:
    world.first_try.url(A, lambda _: None)
    found = world.ask()
    assert len(world.loop.sent) == 1
    world.loop.answer(Response(200, {}, URL))
    assert world.loop.answer(storage_says()).url == "https://storage.test/o"
    assert found.result(0).size == len(BODY)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {"content-length": "10"}, 10),
        (200, {}, None),
        (206, {"content-range": "bytes 0-9/10"}, 10),
        (206, {"content-range": "bytes 0-9/99"}, 99),
        (200, {"content-range": "bytes 0-9/99"}, 99),
        (206, {"content-range": "bytes 0-9/*"}, None),
        (206, {"content-range": "bytes 0-8/99"}, None),
        (206, {"content-range": "bytes 1-10/99"}, None),
        (206, {"content-length": "10"}, None),
        (200, {"transfer-encoding": "Chunked"}, 10),  # which says where it ends
        (200, {"content-length": "10", "content-encoding": "gzip"}, None),
        (200, {"content-length": "10", "content-encoding": "aws-chunked"}, 10),
        (206, {"content-range": "bytes 0-9/99", "content-encoding": "identity"}, 99),
        (206, {"content-range": "bytes 0-9/99", "etag": ""}, None),
        (200, {"content-length": "10", "etag": "", "content-type": "Text/HTML"}, None),
    ],
)
def test_a_content_is_named_only_where_nothing_is_odd(
    status: int, headers: dict[str, str], expected: int | None
) -> None:
    found = content_in(A, Response(status, {"etag": '"v1"', **headers}, BODY[:10]))
    assert found == (None if expected is None else ContentId(A, "ev1", expected))


def test_an_empty_file_may_bring_one_byte_for_no_limit_is_none_to_libcurl(world: World) -> None:
    world.ask(hint=0)
    world.loop.answer(Response(200, {}, URL))
    assert world.loop.sent[0][0].max_body_bytes == 1


def test_a_reader_that_waits_goes_before_what_is_fetched_ahead(world: World) -> None:
    urgent: list[bool] = []

    def wait(future: Future[Any]) -> Any:
        for answer in (Response(200, {}, URL), storage_says()):
            urgent.append(world.loop.sent[0][2])
            world.loop.answer(answer)
        return future.result(0)

    assert world.reader.read(KNOWN, 0, 10, wait) == BODY[:10]
    assert urgent == [True, True]

    ahead = ContentId(B, "ev1", len(BODY))
    world.reader.fetch(ahead, Span(0, 0), ahead=True)
    assert not world.loop.sent[0][2]
    world.loop.answer(Response(200, {}, URL))
    assert not world.loop.sent[0][2]
    world.loop.answer(storage_says())
    world.reader.begin(ahead._replace(etag="ev2"), 0, 10)
    assert world.loop.sent[0][2]


@pytest.mark.parametrize("etag", ['"v0"', '"v2"', ""])
def test_another_version_than_the_known_one_is_left_to_the_patient_way(world: World, etag: str) -> None:
    world.content.storage.put(A, BODY, "v1")
    found = ask_ahead(world)
    world.loop.answer(Response(200, {}, URL))
    world.loop.answer(storage_says(bytes(len(BODY)), etag=etag))
    assert found.result(0) == BODY
    assert world.patient()
    assert world.reader.read(KNOWN, 0, 10, lambda future: future.result(0)) == BODY[:10]


def test_while_an_api_has_not_answered_again_no_url_is_asked_for_ahead(world: World) -> None:
    world.api_retrier.note(Unreachable("down"))
    assert world.api_retrier.may_ask(urgent=True)
    assert not world.first_try.url(A, lambda _: None)
    assert world.loop.sent == []
