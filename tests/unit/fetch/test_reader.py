"""Reading: the true bytes to the true end, whatever storage, cache and pool do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import contentkit
import pytest
from contentkit import MIB, NOISE, STYLES, Answer, Content, sample_id

from lightlyfs.api.contract import Request, Response
from lightlyfs.blocks import NO_OBJECT, VERSION_BYTES, ContentId, Span
from lightlyfs.errors import Cancelled, ContentChanged, NoContent, NotFound, ServerFault, Unreachable
from lightlyfs.fetch.transfers import PROBE_BYTES

A = sample_id(1)
SIZES = [0, 1, 100_000, MIB, 4 * MIB + 1]
Style = Callable[[bytes, int, int], Answer]


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return Content(tmp_path)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("hint", [5, 1 << 50])
def test_a_read_gives_the_true_bytes(content: Content, style: Style, size: int, hint: int | None) -> None:
    content.storage.style = style
    content.storage.put(A, NOISE[:size], "v1")

    found = content.identify(A, hint)

    # 416 for an empty object names no version on some servers, and needs none
    assert found.size == size
    assert content.read(found, 0, size + 10) == NOISE[:size]
    assert content.read(found, size // 2, 1000) == NOISE[size // 2 : size][:1000]
    assert content.read(found, size, 5) == b""
    assert content.reader.stats().under_way == 0


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
def test_a_jump_into_a_large_file_gives_the_bytes_there(content: Content, style: Style) -> None:
    content.storage.style = style
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))

    assert content.read(found, 5 * MIB - 7, 20) == NOISE[5 * MIB - 7 : 5 * MIB + 13]
    assert content.read(found, 3 * MIB, MIB) == NOISE[3 * MIB : 4 * MIB]


@pytest.mark.parametrize("style", [contentkit.whole, contentkit.chunked, contentkit.gzipped])
def test_where_ranges_are_ignored_one_transfer_brings_all(content: Content, style: Style) -> None:
    content.storage.style = style
    content.storage.put(A, NOISE, "v1")

    found = content.identify(A, len(NOISE))
    for offset in range(0, len(NOISE), 128 << 10):
        assert content.read(found, offset, 128 << 10) == NOISE[offset : offset + (128 << 10)]

    assert len(content.storage.requests) == 1


def test_where_ranges_are_ignored_and_the_cache_is_too_small_only_what_is_asked_is_taken(
    tmp_path: Path,
) -> None:
    content = Content(tmp_path, budget_bytes=3 * MIB)
    content.storage.style = contentkit.whole
    content.storage.put(A, NOISE, "v1")

    found = content.identify(A, len(NOISE))
    assert content.storage.sent_bytes < 2 * MIB
    assert content.read(found, 2 * MIB, MIB) == NOISE[2 * MIB : 3 * MIB]

    assert content.storage.sent_bytes < 6 * MIB
    assert content.cache.stats().bytes <= 3 * MIB


@pytest.mark.parametrize("size", [70_000, 3 * MIB])
def test_a_small_file_costs_one_request(content: Content, size: int) -> None:
    content.storage.put(A, NOISE[:size], "v1")

    found = content.identify(A, size)
    content.read(found, 0, size)

    assert len(content.storage.requests) == 1


def test_a_probe_brings_the_whole_of_a_small_image(content: Content) -> None:
    content.storage.put(A, NOISE[:100_000], "v1")

    found = content.reader.identify(A, size_hint=None, for_reading=False).result(0)
    assert content.storage.requests == [f"bytes=0-{PROBE_BYTES - 1}"]

    assert content.read(found, 0, 100_000) == NOISE[:100_000]
    assert len(content.storage.requests) == 1


@pytest.mark.parametrize("size", [100_000, 6 * MIB])
def test_a_content_that_storage_still_has_is_confirmed_with_one_byte(content: Content, size: int) -> None:
    content.storage.put(A, NOISE[:size], "v1")
    found = content.identify(A, size)
    content.read(found, 0, size)
    content.storage.sent_bytes = 0

    assert content.identify(A, size, known=found) == found
    assert content.read(found, 0, size) == NOISE[:size]

    assert content.storage.sent_bytes == 1


@pytest.mark.parametrize("size", [100_000, 6 * MIB])
def test_an_object_without_a_version_is_confirmed_by_its_first_bytes(content: Content, size: int) -> None:
    """One that was replaced by another of the same length is found so, and nothing of the old one is read."""
    content.storage.put(A, NOISE[:size])
    found = content.identify(A, size)
    assert content.read(found, 0, size) == NOISE[:size]
    content.storage.sent_bytes = 0

    assert content.identify(A, size, known=found) == found
    assert content.storage.sent_bytes <= VERSION_BYTES

    other = NOISE[size - 1 :: -1]
    content.storage.put(A, other)
    replaced = content.identify(A, size, known=found)
    assert replaced != found
    assert content.read(replaced, 0, size) == other


def test_confirming_takes_no_body_where_ranges_are_ignored(content: Content) -> None:
    content.storage.style = contentkit.whole
    content.storage.put(A, NOISE[: 3 * MIB], "v1")
    found = content.identify(A)
    content.storage.sent_bytes = 0

    assert content.identify(A, known=found) == found
    assert content.storage.sent_bytes == 0


def test_a_content_that_is_here_is_not_fetched_again_though_nobody_knew(content: Content) -> None:
    content.storage.put(A, NOISE[: 3 * MIB], "v1")
    content.identify(A, 3 * MIB)
    content.storage.sent_bytes = 0

    content.identify(A, 3 * MIB)

    assert content.storage.sent_bytes == 0


def test_a_content_that_changed_is_found_by_the_confirmation_and_read_anew(content: Content) -> None:
    content.storage.put(A, NOISE[:100_000], "v1")
    old = content.identify(A, 100_000)
    content.storage.put(A, NOISE[100_000:200_000], "v2")

    new = content.identify(A, 100_000, known=old)

    assert new != old
    assert content.read(new, 0, 100_000) == NOISE[100_000:200_000]
    assert content.read(old, 0, 100_000) == NOISE[:100_000]  # from the cache, as it was


@pytest.mark.parametrize(
    "new",
    [NOISE[1000 : 1000 + 6 * MIB], NOISE[:MIB], NOISE[: 2 * MIB], b"", NOISE[: 6 * MIB]],
    ids=["other bytes", "shorter", "cut at a block", "empty", "other tag"],
)
@pytest.mark.parametrize("style", [contentkit.honest, contentkit.whole, contentkit.bare_416])
def test_a_change_under_a_reader_is_an_error_and_reported(content: Content, new: bytes, style: Style) -> None:
    content.storage.put(A, NOISE[: 6 * MIB], "v1")
    old = content.identify(A, 6 * MIB)
    content.storage.style = style
    content.storage.put(A, new, "v2")

    with pytest.raises(ContentChanged):
        content.read(old, 5 * MIB, 10)

    assert content.facts[-1].size == len(new)
    assert content.clock.now < (1_015 if not new or style is contentkit.bare_416 else 1_001)
    assert content.reader.stats().under_way == 0


def test_a_gone_object_is_an_error_to_its_reader(content: Content) -> None:
    content.storage.put(A, NOISE[: 6 * MIB], "v1")
    old = content.identify(A, 6 * MIB)
    del content.storage.objects[A]

    with pytest.raises(ContentChanged):
        content.read(old, 5 * MIB, 10)


def test_a_sample_without_an_object_is_a_content_without_bytes(content: Content) -> None:
    found = content.identify(A)

    assert not found.has_object
    assert found.size == 0
    with pytest.raises(NoContent):
        content.read(found, 0, 1)


def test_a_sample_the_api_does_not_know_is_no_content(content: Content) -> None:
    def resolve(sample: str) -> str:
        raise NotFound("gone", status=404, code="SAMPLE_UNKNOWN")

    content.fetcher._urls._resolve = resolve

    with pytest.raises(NotFound):
        content.identify(A)
    assert content.facts == []


def test_without_an_etag_the_time_and_the_size_are_the_version(content: Content) -> None:
    content.storage.put(A, NOISE[:1000])
    one = content.identify(A)
    content.storage.put(A, NOISE[:1001])

    assert content.identify(A) != one


@pytest.mark.parametrize("at", [0.0, 10.0, MIB + 5.0, 2.5 * MIB])
@pytest.mark.parametrize("style", [contentkit.honest, contentkit.whole, contentkit.short_ranges])
def test_a_body_that_breaks_off_is_continued(content: Content, at: float, style: Style) -> None:
    content.storage.style = style
    content.storage.put(A, NOISE[: 3 * MIB], "v1")
    content.storage.faults = [at]

    found = content.identify(A, 3 * MIB)

    assert content.read(found, 0, 3 * MIB) == NOISE[: 3 * MIB]


def test_a_transfer_that_breaks_off_again_and_again_ends_well_as_long_as_blocks_come(
    content: Content,
) -> None:
    content.storage.put(A, NOISE[: 4 * MIB], "v1")
    content.storage.faults = [fault for _ in range(3) for fault in (*[503] * 10, 1.5 * MIB)]

    found = content.identify(A, 4 * MIB)

    assert content.read(found, 0, 4 * MIB) == NOISE[: 4 * MIB]


def test_ranges_shorter_than_asked_for_are_continued_without_a_pause(content: Content) -> None:
    content.storage.style = contentkit.short_ranges
    content.storage.put(A, NOISE, "1")
    found = content.identify(A, len(NOISE))
    assert content.read(found, 0, found.size) == NOISE
    assert content.clock.now == contentkit.Clock().now


def test_a_storage_that_stays_down_fails_the_read_in_bounded_time(content: Content) -> None:
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    content.storage.faults = [503] * 1000

    with pytest.raises(ServerFault):
        content.read(found, 3 * MIB, 10)

    assert content.clock.now < 1_000 + 60
    assert content.reader.stats().under_way == 0
    content.storage.faults = []
    assert content.read(found, 3 * MIB, 10) == NOISE[3 * MIB : 3 * MIB + 10]


def test_a_kept_url_that_leads_nowhere_is_renewed_at_once_and_a_new_one_after_a_moment(
    content: Content,
) -> None:
    content.storage.put(A, NOISE[:1000], "v1")
    found = content.identify(A)
    content.cache.drop(found)
    content.storage.faults = [404]
    assert content.read(found, 0, 1000) == NOISE[:1000]
    assert content.clock.now > 1_000
    content.cache.drop(found)
    content.resolved.clear()

    content.clock.now += 100
    content.storage.faults = [404]
    before = content.clock.now
    assert content.read(found, 0, 1000) == NOISE[:1000]
    assert content.clock.now == before
    assert len(content.resolved) == 1


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_url_is_renewed(content: Content, status: int) -> None:
    content.storage.put(A, NOISE[:10], "v1")
    content.storage.faults = [status]

    assert content.identify(A).size == 10
    assert len(content.resolved) == 2

    assert content.clock.now == 1_000  # a URL may just have expired

    content.storage.faults = [status] * 5
    assert content.identify(A).size == 10

    content.storage.faults = [status] * 50
    with pytest.raises(Exception, match=str(status)):
        content.identify(A)
    assert content.clock.now < 1_010


def test_a_listener_that_fails_costs_no_byte(content: Content, caplog: pytest.LogCaptureFixture) -> None:
    def fail(found: ContentId) -> None:
        raise RuntimeError("no")

    content.on_facts = fail
    content.storage.put(A, NOISE[:10], "v1")

    assert content.read(content.identify(A), 0, 10) == NOISE[:10]
    assert "could not be passed on" in caplog.text


class Closed(Executor):
    """A pool that was shut down."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        raise RuntimeError("cannot schedule new futures after shutdown")


class Stuck(Executor):
    """A pool whose queue never moves, until it is thrown away."""

    def __init__(self) -> None:
        self.queue: list[Future[Any]] = []
        self.jobs: list[Callable[..., Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.queue.append(Future())
        self.jobs.append(fn)
        return self.queue[-1]


def test_what_comes_next_is_asked_for_while_a_read_waits(tmp_path: Path) -> None:
    content = Content(tmp_path)
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    pool = content.reader._executor = Stuck()
    content.read(found, 0, 10)
    assert len(pool.jobs) == 1  # the next block

    def wait(future: Future[bytes]) -> bytes:
        assert len(pool.jobs) > 2
        while pool.jobs:
            pool.jobs.pop(0)()
        return future.result(0)

    assert content.reader.read(found, MIB, 10, wait) == NOISE[MIB : MIB + 10]


def test_a_closed_pool_ends_every_wait(tmp_path: Path) -> None:
    content = Content(tmp_path, executor=Closed())

    with pytest.raises(Cancelled):
        content.identify(A)
    with pytest.raises(Cancelled):
        content.read(ContentId(A, "ev1", 10 * MIB), 0, 10)
    content.reader.ensure(ContentId(A, "ev1", 10 * MIB), Span(0, 3))
    assert content.reader.stats().under_way == 0


def test_jobs_that_are_thrown_away_end_every_wait(tmp_path: Path) -> None:
    pool = Stuck()
    content = Content(tmp_path, executor=pool)
    head = content.reader.identify(A, size_hint=None, for_reading=True)
    blocks = content.reader._claim(ContentId(A, "ev1", 10 * MIB), Span(0, 2))
    assert content.reader.stats().under_way == 2

    for task in pool.queue:
        assert task.cancel()

    assert isinstance(head.exception(0), Cancelled)
    assert [type(future.exception(0)) for future in blocks.values()] == [Cancelled] * 3
    assert content.reader.stats().under_way == 0


def test_blocks_that_came_while_a_fetch_was_queued_are_not_fetched_again(tmp_path: Path) -> None:
    pool = Stuck()
    content = Content(tmp_path, executor=pool)
    found = ContentId(A, "ev1", len(NOISE))
    content.storage.put(A, NOISE, "v1")
    futures = content.reader._claim(found, Span(0, 2))
    content.cache.write(found, 1, NOISE[MIB : 2 * MIB])

    pool.jobs[0]()

    assert [future.result(0) for future in futures.values()] == [NOISE[n * MIB :][:MIB] for n in range(3)]
    assert content.storage.requests == [f"bytes=0-{MIB - 1}", f"bytes={2 * MIB}-{3 * MIB - 1}"]


def test_a_web_page_in_the_place_of_a_sample_is_no_sample(content: Content) -> None:
    page = b"<html>please sign in</html>"
    content.storage.style = lambda data, start, end: (200, {"content-type": "text/html; charset=utf-8"}, page)
    content.storage.put(A, NOISE[:10])

    with pytest.raises(ServerFault):
        content.identify(A)
    assert content.facts == []


def test_a_failed_head_is_not_remembered(content: Content) -> None:
    content.storage.put(A, NOISE[:10], "v1")
    content.storage.faults = [Unreachable("down")] * 1000
    with pytest.raises(Unreachable):
        content.identify(A)
    content.storage.faults = []

    assert content.identify(A).size == 10


def test_reading_on_fetches_ahead_and_a_jump_does_not(content: Content) -> None:
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    content.storage.requests.clear()

    content.read(found, 4 * MIB, 10)
    assert content.storage.requests == [f"bytes={4 * MIB}-{5 * MIB - 1}"]

    content.read(found, 0, MIB)
    content.read(found, MIB, MIB)
    content.storage.requests.clear()
    content.read(found, 2 * MIB, MIB)
    assert f"bytes={2 * MIB}-{3 * MIB - 1}" not in content.storage.requests


def test_fetches_and_their_bytes_are_counted(content: Content) -> None:
    assert content.reader.stats() == (0, 0, 0, 0)
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    assert content.reader.stats() == (1, MIB, 0, 0)
    content.read(found, 3 * MIB, 10)
    assert content.reader.stats() == (2, 2 * MIB, 0, 0)
    content.storage.faults = [503] * 1000
    with pytest.raises(ServerFault):
        content.read(found, 5 * MIB, 10)
    assert content.reader.stats() == (2, 2 * MIB, 0, 1)
    with pytest.raises(ServerFault):
        content.identify(sample_id(2))
    assert content.reader.stats() == (2, 2 * MIB, 0, 2)


def test_only_what_is_asked_again_goes_over_a_connection_of_its_own(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh: list[bool] = []
    send = content.storage.send

    def noted(request: Request) -> Response:
        fresh.append(request.fresh)
        return send(request)

    monkeypatch.setattr(content.storage, "send", noted)
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    content.read(found, 5 * MIB, 10)
    assert fresh == [False, False]
    content.storage.faults = [403, 403]
    content.read(found, 3 * MIB, 10)
    assert fresh[2:] == [False, False, True]
    content.read(found, MIB, 10)
    assert fresh[5:] == [False]


def test_an_object_that_keeps_coming_in_blocks_may_break_off_any_number_of_times(content: Content) -> None:
    """What came before a failure counts, and the time limit begins again with each block."""
    content.storage.put(A, NOISE[: 4 * MIB], "v1")
    content.storage.faults = [fault for _ in range(3) for fault in (*[503] * 5, MIB + 5.0)]
    found = content.identify(A, 4 * MIB)
    assert content.read(found, 0, 4 * MIB) == NOISE[: 4 * MIB]
    starts = [int(wanted.partition("=")[2].partition("-")[0]) for wanted in content.storage.requests]
    assert starts == sorted(starts)
    assert starts[-1] == 3 * MIB


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB])
def test_a_content_is_held_once_all_of_it_is_here(content: Content, size: int) -> None:
    whole = ContentId(A, "ev1", size)
    assert content.reader.holds(whole) == (size == 0)
    assert content.reader.has_start(whole) == (size == 0)
    for block in range(-(-size // MIB)):
        assert not content.reader.holds(whole)
        content.cache.write(whole, block, NOISE[block * MIB : min((block + 1) * MIB, size)])
        assert content.reader.has_start(whole)
    assert content.reader.holds(whole)
    assert not content.reader.holds(whole._replace(etag=NO_OBJECT))


@pytest.mark.parametrize(
    ("offset", "size", "asked"),
    [
        (0, 1, ["bytes=0-1048575"]),
        (MIB - 1, 2, ["bytes=0-2097151"]),
        (2 * MIB, 2 * MIB, ["bytes=2097152-4194303"]),
        (len(NOISE) - 1, 100, [f"bytes={6 * MIB}-{len(NOISE) - 1}"]),
        (len(NOISE), 10, []),
        (0, 0, []),
    ],
)
def test_what_is_begun_is_fetched_once(content: Content, offset: int, size: int, asked: list[str]) -> None:
    found = ContentId(A, "ev1", len(NOISE))
    content.storage.put(A, NOISE, "v1")
    content.reader.begin(found, offset, size)
    content.reader.begin(found, offset, size)
    assert content.storage.requests == asked
    content.reader.begin(found._replace(etag=NO_OBJECT), offset, size)
    assert content.storage.requests == asked


def test_blocks_that_are_lost_as_they_come_are_read_past_the_cache(content: Content) -> None:
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    content.cache.read = lambda *_: None  # type: ignore[method-assign]
    content.cache.missing = lambda *_: [3]  # type: ignore[method-assign]
    content.storage.requests.clear()

    assert content.read(found, 3 * MIB + 5, MIB) == NOISE[3 * MIB + 5 : 4 * MIB + 5]
    assert f"bytes={3 * MIB}-{5 * MIB - 1}" in content.storage.requests
    assert f"bytes={5 * MIB}-{6 * MIB - 1}" not in content.storage.requests


@pytest.mark.parametrize(("size", "whole"), [(4 * MIB, True), (4 * MIB + 1, False)])
def test_a_file_of_up_to_four_mib_comes_whole_with_the_first_request(
    content: Content, size: int, whole: bool
) -> None:
    content.storage.put(A, NOISE[:size], "v1")
    found = content.identify(A, size)
    assert content.read(found, 0, 2 * MIB) == NOISE[: 2 * MIB]
    assert (len(content.storage.requests) == 1) == whole


@pytest.mark.parametrize("offset", [0, 1, 49_999, 50_000, 60_000, 65_536, 99_999])
@pytest.mark.parametrize("more", [0, 1, 100_000])
def test_a_read_past_the_end_gives_what_is_before_it(content: Content, offset: int, more: int) -> None:
    content.storage.put(A, NOISE[:100_000], "v1")
    found = content.identify(A, 100_000)
    assert content.read(found, offset, 100_000 - offset + more) == NOISE[offset:100_000]


def test_of_a_content_that_the_cache_cannot_hold_whole_what_was_asked_for_is_taken(tmp_path: Path) -> None:
    """Three quarters of the budget: it would displace nearly all else, but its bytes are on their way."""
    content = Content(tmp_path, budget_bytes=6 * MIB)
    content.storage.put(A, NOISE[: 4 * MIB], "v1")
    found = content.identify(A, 4 * MIB)
    assert content.read(found, 0, 4 * MIB) == NOISE[: 4 * MIB]
    assert len(content.storage.requests) == 1


@pytest.mark.parametrize("shared", [False, True])
def test_what_another_process_found_out_meanwhile_is_not_asked_again(content: Content, shared: bool) -> None:
    known = ContentId(A, "ev1", 100)
    content.storage.put(A, NOISE[:100], "v1")
    told: list[bool] = []

    @contextmanager
    def head(_sample: str) -> Iterator[bool]:
        yield shared

    def by_others(others: bool) -> ContentId | None:
        told.append(others)
        return known if others else None

    content.reader._once.head = head  # type: ignore[method-assign]
    found = content.reader.identify(A, size_hint=100, for_reading=True, told=by_others)
    assert found.result(0) == known
    assert told == ([False, True] if shared else [False])
    assert content.storage.requests == ([] if shared else [f"bytes=0-{4 * MIB - 1}"])
    assert not content.reader.is_asked(A)


def test_what_this_process_found_out_meanwhile_is_not_asked_again(content: Content) -> None:
    known = ContentId(A, "ev1", 100)
    found = content.reader.identify(A, size_hint=100, for_reading=True, told=lambda others: known)
    assert found.result(0) == known
    assert content.storage.requests == []
    assert not content.reader.is_asked(A)


@pytest.mark.parametrize(("budget", "ahead"), [(8 * MIB, [1, 2, 2, 2]), (1 << 30, [1, 5, 4, 3])])
def test_what_is_read_ahead_in_a_file_is_a_share_of_the_cache(
    tmp_path: Path, budget: int, ahead: list[int]
) -> None:
    content = Content(tmp_path, budget_bytes=budget)
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    blocks = []
    for block in range(4):
        content.read(found, block * MIB, MIB)
        ends = [int(wanted.rpartition("-")[2]) + 1 for wanted in content.storage.requests]
        blocks.append(-(-max(ends) // MIB) - block - 1)
    assert blocks == ahead


def test_where_ranges_are_ignored_and_the_cache_is_too_small_the_last_block_alone_is_taken(
    tmp_path: Path,
) -> None:
    content = Content(tmp_path, budget_bytes=3 * MIB)
    content.storage.style = contentkit.whole
    content.storage.put(A, NOISE, "v1")
    found = content.identify(A, len(NOISE))
    assert content.read(found, 6 * MIB, 100) == NOISE[6 * MIB :][:100]
    assert content.cache.missing(found, Span(1, 6)) == [1, 2, 3, 4, 5]
