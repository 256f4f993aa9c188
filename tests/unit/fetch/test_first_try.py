"""The first try at a small file: what ends there, and what is left to the patient way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from contentkit import Content, Inline

from lightlyfs.api.calls import Attempt
from lightlyfs.api.contract import Request, Response, Timeouts
from lightlyfs.api.retry import Retrier
from lightlyfs.blocks import ContentId
from lightlyfs.errors import RequestError, ShortBody, TimedOut, Unreachable
from lightlyfs.fetch.fetcher import FetchConfig, Fetcher
from lightlyfs.fetch.first_try import MAX_BYTES_UNDER_WAY, FirstTry, content_in
from lightlyfs.fetch.reader import Reader
from lightlyfs.fetch.urls import ReadUrls

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
        Response(200, {"content-length": str(len(BODY))}, BODY),
        storage_says(etag=""),
        storage_says(**{"content-encoding": "gzip"}),
        storage_says(BODY[:10], total=10),
        Response(206, {"etag": '"v1"', "content-range": "bytes 5-20/99"}, BODY[:15]),
        Response(206, {"etag": '"v1"'}, BODY),
    ],
    ids=str,
)
def test_whatever_is_odd_is_left_to_the_patient_way(world: World, answer: Outcome) -> None:
    """A refusal, a cut, another length, no version: none of them is taken for the truth, nor shown."""
    world.content.storage.put(A, BODY)
    found = world.ask()
    world.loop.answer(Response(200, {}, URL))
    world.loop.answer(answer)
    assert found.result(10).size == len(BODY)
    assert world.patient() != []


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
