"""The transport contract: bodies that are whole, cut, chunked, stalled, too long, or taken by an observer."""

from __future__ import annotations

import contextlib
import gc
import gzip
import threading
import time
import weakref
from collections.abc import Callable, Mapping

import pytest
from raw_server import Connection, RawServer, Received, answering, saying

from lightlyfs import errors
from lightlyfs.api.contract import BodyMemory, Request, StopTransfer, Timeouts, Transport

Serve = Callable[..., RawServer]
SHORT = Timeouts(connect_s=2.0, idle_s=0.4, total_s=5.0)


class Recorder:
    """An observer that notes what it is told, in order."""

    def __init__(self, stop_after: int | None = None, fail: BaseException | None = None) -> None:
        self.told: list[str] = []
        self.status = 0
        self.seen: Mapping[str, str] = {}
        self.data = b""
        self._stop_after = stop_after
        self._fail = fail

    def headers(self, status: int, headers: Mapping[str, str]) -> None:
        self.told.append("headers")
        self.status, self.seen = status, headers

    def write(self, chunk: bytes | memoryview) -> None:
        self.told.append("write")
        self.data += bytes(chunk)
        if self._fail is not None:
            raise self._fail
        if self._stop_after is not None and len(self.data) >= self._stop_after:
            raise StopTransfer


def test_a_body_comes_whole_with_its_status_and_lower_case_headers(
    transport: Transport, serve: Serve
) -> None:
    body = bytes(range(256)) * 4000

    def reply(connection: Connection, _received: Received) -> None:
        connection.say("206 Partial Content", body, 'ETag: "x"', "X-Amz-Id: A", "X-Amz-Id: B")

    server = serve(answering(reply))
    answer = transport.send(Request("GET", server.url + "/a"))
    assert (answer.status, answer.body) == (206, body)
    assert answer.headers["etag"] == '"x"'
    assert answer.headers["x-amz-id"] == "A, B"


def test_a_range_header_arrives_as_it_was_given(transport: Transport, serve: Serve) -> None:
    server = serve(answering(lambda connection, got: connection.say("206 x", got.headers["range"].encode())))
    answer = transport.send(Request("GET", server.url, {"Range": "bytes=0-131071"}))
    assert answer.body == b"bytes=0-131071"


def test_gzip_is_neither_asked_for_nor_decoded(transport: Transport, serve: Serve) -> None:
    packed = gzip.compress(b"x" * 1000)
    server = serve(
        answering(lambda connection, _: connection.say("200 OK", packed, "Content-Encoding: gzip"))
    )
    answer = transport.send(Request("GET", server.url))
    assert answer.body == packed
    assert answer.headers["content-encoding"] == "gzip"
    assert server.received[0].headers["accept-encoding"] == "identity"


def test_an_accept_encoding_of_the_request_is_kept(transport: Transport, serve: Serve) -> None:
    server = serve(answering(lambda connection, _: connection.say("200 OK")))
    transport.send(Request("GET", server.url, {"accept-encoding": "*"}))
    lines = [line.lower() for line in server.received[0].lines]
    assert [line for line in lines if line.startswith("accept-encoding")] == ["accept-encoding: *"]


@pytest.mark.parametrize("cut", [0, 1, 5000, 99_999])
def test_a_body_shorter_than_announced_is_short(transport: Transport, serve: Serve, cut: int) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * cut))
    with pytest.raises(errors.ShortBody):
        transport.send(Request("GET", server.url))


def test_a_body_without_a_length_ends_with_the_connection(transport: Transport, serve: Serve) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\n\r\nall there is"))
    assert transport.send(Request("GET", server.url)).body == b"all there is"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_chunked_body_comes_joined_and_trailers_are_ignored(transport: Transport, serve: Serve) -> None:
    server = serve(saying(CHUNKED + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n"))
    answer = transport.send(Request("GET", server.url))
    assert answer.body == b"abcdefg"
    assert "x-trailer" not in answer.headers


@pytest.mark.parametrize("rest", [b"", b"3\r\nabc\r\n", b"5\r\nab", b"3\r\nabc\r\nzz\r\n"])
def test_a_broken_chunked_body_is_short(transport: Transport, serve: Serve, rest: bytes) -> None:
    server = serve(saying(CHUNKED + rest))
    with pytest.raises(errors.ShortBody):
        transport.send(Request("GET", server.url))


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_statuses_without_a_body_do_not_wait_for_one(transport: Transport, serve: Serve, status: str) -> None:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: 10\r\n\r\n".encode()
        if status[0] == "3"
        else (f"HTTP/1.1 {status}\r\n\r\n".encode())
    )
    server = serve(saying(head, then_wait=True))
    answer = transport.send(Request("GET", server.url, timeouts=SHORT))
    assert (answer.status, answer.body) == (int(status[:3]), b"")


def test_a_head_has_headers_and_no_body(transport: Transport, serve: Serve) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", then_wait=True))
    answer = transport.send(Request("HEAD", server.url, timeouts=SHORT))
    assert (answer.headers["content-length"], answer.body) == ("10", b"")
    assert server.received[0].method == "HEAD"


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"],
    ids=["before the status", "before the end of the headers", "in the body"],
)
def test_a_stall_ends_at_the_idle_limit(transport: Transport, serve: Serve, said: bytes) -> None:
    server = serve(saying(said, then_wait=True))
    started = time.monotonic()
    with pytest.raises(errors.TimedOut, match=r"no byte for 0\.4 s") as caught:
        transport.send(Request("GET", server.url, timeouts=SHORT))
    assert 0.4 <= time.monotonic() - started < 2.5
    assert caught.value.request_sent


def test_a_trickle_ends_at_the_total_limit(transport: Transport, serve: Serve) -> None:
    def handler(connection: Connection) -> None:
        connection.read()
        connection.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        while not connection.server.stopping.wait(0.1):
            connection.raw(b"x")

    server = serve(handler)
    started = time.monotonic()
    with pytest.raises(errors.TimedOut):
        transport.send(Request("GET", server.url, timeouts=Timeouts(idle_s=5.0, total_s=0.8)))
    assert 0.7 <= time.monotonic() - started < 2.5


def test_a_cancelled_send_ends_within_a_second_or_so(transport: Transport, serve: Serve) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", then_wait=True))
    gone = threading.Event()
    timer = threading.Timer(0.3, gone.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(errors.Cancelled):
        transport.send(Request("GET", server.url, cancelled=gone.is_set))
    assert time.monotonic() - started < 2.0
    timer.join()


def test_a_send_cancelled_before_it_starts_opens_no_connection(transport: Transport, serve: Serve) -> None:
    server = serve(saying(b""))
    with pytest.raises(errors.Cancelled):
        transport.send(Request("GET", server.url, cancelled=lambda: True))
    assert server.connections == 0


def test_closing_the_transport_ends_a_send_under_way(transport: Transport, serve: Serve) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\n", then_wait=True))
    timer = threading.Timer(0.3, transport.close)
    timer.start()
    with pytest.raises(errors.Cancelled):
        transport.send(Request("GET", server.url))
    timer.join()
    with pytest.raises(errors.Cancelled):
        transport.send(Request("GET", server.url))


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_a_body_over_the_limit_is_too_large(transport: Transport, serve: Serve, head: bytes) -> None:
    server = serve(saying(head + b"x" * 101))
    with pytest.raises(errors.TooLarge):
        transport.send(Request("GET", server.url, max_body_bytes=100))


def test_a_body_of_exactly_the_limit_is_fine(transport: Transport, serve: Serve) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100))
    assert len(transport.send(Request("GET", server.url, max_body_bytes=100)).body) == 100


def test_the_memory_of_all_answers_together_is_bounded(
    make_transport: Callable[..., Transport], serve: Serve
) -> None:
    """Each is within its limit; those that come when there is no room left are refused while they come in."""
    half = b"x" * 2**18  # whole reads of both forms
    memory = BodyMemory(limit=1_100_000)
    came = threading.Barrier(4)

    def handler(connection: Connection) -> None:
        connection.read()
        connection.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.raw(b"%x\r\n%s\r\n" % (len(half), half))
        while memory.taken < 4 * len(half) and not came.n_waiting:
            time.sleep(0.001)
        came.wait(10)
        with contextlib.suppress(OSError):
            connection.raw(b"%x\r\n%s\r\n0\r\n\r\n" % (len(half), half))

    server = serve(handler)
    transport = make_transport(memory=memory)
    found: list[int | str] = []

    def get() -> None:
        try:
            found.append(len(transport.send(Request("GET", server.url)).body))
        except errors.TooLarge as error:
            found.append(str(error))

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    refused = [text for text in found if isinstance(text, str)]
    assert refused
    assert all("take over 1100000 bytes of memory" in text for text in refused)
    assert [size for size in found if not isinstance(size, str)] == [2**19] * (4 - len(refused))
    # what was let go of counts no more
    again = serve(answering(lambda connection, _: connection.say("200 OK", b"x" * 1_050_000)))
    assert len(transport.send(Request("GET", again.url)).body) == 1_050_000


def test_a_long_error_page_is_cut_and_keeps_its_status(transport: Transport, serve: Serve) -> None:
    server = serve(answering(lambda connection, _: connection.say("403 Forbidden", b"x" * 1_000_000)))
    answer = transport.send(Request("GET", server.url, max_body_bytes=100))
    assert (answer.status, len(answer.body)) == (403, 64 * 1024)


def test_an_observer_gets_headers_first_then_all_bytes(transport: Transport, serve: Serve) -> None:
    body = b"0123456789" * 50_000
    server = serve(answering(lambda connection, _: connection.say("200 OK", body, "ETag: e")))
    observer = Recorder()
    answer = transport.send(Request("GET", server.url, observer=observer, max_body_bytes=1))
    assert observer.told[0] == "headers"
    assert observer.told.count("headers") == 1
    assert (observer.status, observer.seen["etag"], observer.data) == (200, "e", body)
    assert (answer.status, answer.body) == (200, b"")


def test_an_observer_hears_of_headers_before_the_body_arrives(transport: Transport, serve: Serve) -> None:
    """The size of a file is known as soon as the headers are in, though its bytes may take long."""
    heard = threading.Event()

    class Early(Recorder):
        def headers(self, status: int, headers: Mapping[str, str]) -> None:
            super().headers(status, headers)
            heard.set()

    def handler(connection: Connection) -> None:
        connection.read()
        connection.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        assert heard.wait(5)
        connection.raw(b"ok")

    server = serve(handler)
    observer = Early()
    transport.send(Request("GET", server.url, observer=observer))
    assert observer.data == b"ok"


def test_an_interim_answer_is_not_the_answer(transport: Transport, serve: Serve) -> None:
    server = serve(
        saying(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok")
    )
    observer = Recorder()
    transport.send(Request("GET", server.url, observer=observer))
    assert (observer.told, observer.status, observer.data) == (["headers", "write"], 200, b"ok")


def test_an_observer_gets_no_body_of_an_error(transport: Transport, serve: Serve) -> None:
    server = serve(
        answering(lambda connection, _: connection.say("404 Not Found", b"<Code>NoSuchKey</Code>"))
    )
    observer = Recorder()
    answer = transport.send(Request("GET", server.url, observer=observer))
    assert (observer.told, observer.status) == (["headers"], 404)
    assert answer.body == b"<Code>NoSuchKey</Code>"


def test_an_observer_sees_an_empty_body_as_headers_alone(transport: Transport, serve: Serve) -> None:
    server = serve(answering(lambda connection, _: connection.say("200 OK")))
    observer = Recorder()
    transport.send(Request("GET", server.url, observer=observer))
    assert observer.told == ["headers"]


def test_stop_transfer_ends_early_without_an_error(transport: Transport, serve: Serve) -> None:
    ended = threading.Event()

    def handler(connection: Connection) -> None:
        connection.read()
        connection.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 300_000)
        connection.wait_closed()
        ended.set()

    server = serve(handler)
    observer = Recorder(stop_after=1000)
    answer = transport.send(Request("GET", server.url, observer=observer, timeouts=SHORT))
    assert (answer.status, answer.body) == (200, b"")
    assert len(observer.data) >= 1000
    assert ended.wait(5)


def test_stop_transfer_at_the_headers_reads_no_body(transport: Transport, serve: Serve) -> None:
    class Refusing(Recorder):
        def headers(self, status: int, headers: Mapping[str, str]) -> None:
            super().headers(status, headers)
            raise StopTransfer

    server = serve(answering(lambda connection, _: connection.say("200 OK", b"x" * 100_000)))
    observer = Refusing()
    answer = transport.send(Request("GET", server.url, observer=observer))
    assert (answer.status, answer.headers["content-length"], observer.told) == (200, "100000", ["headers"])


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), ValueError("mine"), KeyError("x")]
)
def test_what_an_observer_raises_leaves_send_unchanged(
    transport: Transport, serve: Serve, failure: Exception
) -> None:
    server = serve(answering(lambda connection, _: connection.say("200 OK", b"x" * 100_000)))
    with pytest.raises(type(failure)) as caught:
        transport.send(Request("GET", server.url, observer=Recorder(fail=failure)))
    assert caught.value is failure
    assert transport.send(Request("GET", server.url)).status == 200


def test_a_short_body_is_short_for_an_observer_too(transport: Transport, serve: Serve) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"))
    with pytest.raises(errors.ShortBody):
        transport.send(Request("GET", server.url, observer=Recorder()))


def test_nothing_of_a_send_outlives_it(transport: Transport, serve: Serve) -> None:
    """A kept connection holds neither observer nor body."""
    server = serve(answering(lambda connection, _: connection.say("200 OK", b"x")))
    observer = Recorder()
    cancelled = Recorder().told.__len__
    transport.send(Request("GET", server.url, observer=observer, cancelled=lambda: cancelled() > 0))
    gone = weakref.ref(observer)
    del observer
    gc.collect()
    assert gone() is None


def test_an_observer_may_send_itself(transport: Transport, serve: Serve) -> None:
    server = serve(answering(lambda connection, got: connection.say("200 OK", got.target.encode())))
    inner: list[bytes] = []

    class Asking(Recorder):
        def headers(self, status: int, headers: Mapping[str, str]) -> None:
            inner.append(transport.send(Request("GET", server.url + "/inner")).body)

    observer = Asking()
    transport.send(Request("GET", server.url + "/outer", observer=observer))
    assert (inner, observer.data) == ([b"/inner"], b"/outer")


def test_what_cancelled_raises_leaves_send(transport: Transport, serve: Serve) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\n", then_wait=True))
    calls = iter([False])

    def cancelled() -> bool:
        try:
            return next(calls)
        except StopIteration:
            raise KeyError("mine") from None

    with pytest.raises(KeyError, match="mine"):
        transport.send(Request("GET", server.url, cancelled=cancelled))


def test_a_transport_shows_its_state(transport: Transport, serve: Serve) -> None:
    server = serve(answering(lambda connection, _: connection.say("200 OK")))
    seen: list[str] = []

    class Looking(Recorder):
        def headers(self, status: int, headers: Mapping[str, str]) -> None:
            seen.append(repr(transport))

    transport.send(Request("GET", server.url, observer=Looking()))
    assert "active=1" in seen[0]
    assert "active=0" in repr(transport)
