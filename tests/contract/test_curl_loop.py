"""The network loop: many GETs from one thread, each answered or explained, however the other end behaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from authority import Authority
from raw_server import Connection, RawServer, Received, answering, saying
from trees import wait_until

from lightlyfs import errors
from lightlyfs.api.addresses import AddressGuard
from lightlyfs.api.contract import Request, Response, Timeouts, TransportConfig
from lightlyfs.api.curl_loop import CurlLoop
from lightlyfs.api.network import Network

Serve = Callable[..., RawServer]
Outcome = Response | errors.RequestError

echo = answering(lambda connection, received: connection.say("200 OK", received.target.encode()))


@pytest.fixture
def make_loop() -> Iterator[Callable[..., CurlLoop]]:
    made: list[CurlLoop] = []

    def make(keep_s: float | None = None, **config: Any) -> CurlLoop:
        made.append(CurlLoop(TransportConfig(**config), keep_s=keep_s))
        return made[-1]

    yield make
    for loop in made:
        loop.close()


class Answers:
    """What came of some GETs, in the order in which they ended."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._all: list[tuple[str, Outcome]] = []

    def taker(self, name: str) -> Callable[[Outcome], None]:
        def take(outcome: Outcome) -> None:
            with self._changed:
                self._all.append((name, outcome))
                self._changed.notify_all()

        return take

    def wait(self, count: int, limit_s: float = 10.0) -> list[tuple[str, Outcome]]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._all) >= count, limit_s)
            return list(self._all)


def get(loop: CurlLoop, url: str, **fields: Any) -> Outcome:
    answers = Answers()
    loop.get(Request("GET", url, **fields), answers.taker(url), urgent=True)
    return answers.wait(1)[0][1]


def test_many_gets_are_answered_over_few_connections(
    serve: Serve, make_loop: Callable[..., CurlLoop]
) -> None:
    server, loop, answers = serve(echo), make_loop(connections=8), Answers()
    for number in range(200):
        name = f"/{number}"
        loop.get(Request("GET", server.url + name), answers.taker(name), urgent=bool(number % 2))
    for name, outcome in answers.wait(200):
        assert isinstance(outcome, Response)
        assert (outcome.status, outcome.body) == (200, name.encode())
    assert server.connections <= 8
    assert loop.under_way == 0


@pytest.mark.parametrize("keep_s", [None, 0.2])
def test_connections_are_kept_while_anything_is_under_way(
    serve: Serve, make_loop: Callable[..., CurlLoop], keep_s: float | None
) -> None:
    """With a limit of few kept connections each answer closed one, while many were under way."""
    ended: list[None] = []

    def answer_all(connection: Connection) -> None:
        while (received := connection.read()) is not None:
            connection.say("200 OK", received.target.encode())
        ended.append(None)

    server, loop, answers = serve(answer_all), make_loop(connections=64, keep_s=keep_s), Answers()
    for number in range(1_000):
        loop.get(Request("GET", server.url + f"/{number}"), answers.taker(""), urgent=False)
    assert all(isinstance(outcome, Response) for _, outcome in answers.wait(1_000))
    assert server.connections <= 64
    if keep_s is None:
        assert not ended
        return
    wait_until(lambda: len(ended) == server.connections, 10)
    before = server.connections
    assert isinstance(get(loop, server.url + "/later"), Response)
    assert server.connections == before + 1


def test_an_urgent_one_goes_before_those_that_wait(serve: Serve, make_loop: Callable[..., CurlLoop]) -> None:
    go = threading.Event()

    def reply(connection: Connection, received: Received) -> None:
        if received.target == "/first":
            go.wait(10)
        connection.say("200 OK", b"")

    server, loop, answers = serve(answering(reply)), make_loop(connections=1), Answers()
    loop.get(Request("GET", server.url + "/first"), answers.taker("/first"), urgent=False)
    while not server.received:
        time.sleep(0.01)
    for name in ("/a", "/b"):
        loop.get(Request("GET", server.url + name), answers.taker(name), urgent=False)
    loop.get(Request("GET", server.url + "/urgent"), answers.taker("/urgent"), urgent=True)
    go.set()
    assert [name for name, _ in answers.wait(4)] == ["/first", "/urgent", "/a", "/b"]


def test_the_address_and_the_headers_go_out_as_they_are(
    serve: Serve, make_loop: Callable[..., CurlLoop]
) -> None:
    server, loop = serve(echo), make_loop()
    target = "/a%2bb/../c?X-Amz-Signature=a%2Fb&x=1+2"
    outcome = get(loop, server.url + target, headers={"Range": "bytes=0-9"})
    assert isinstance(outcome, Response)
    assert outcome.body == target.encode()
    assert server.received[0].headers["range"] == "bytes=0-9"
    assert server.received[0].headers["accept-encoding"] == "identity"
    get(loop, server.url + target)
    assert "range" not in server.received[1].headers


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", errors.ShortBody),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, errors.TooLarge),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 2000, errors.TooLarge),
        (b"nothing like HTTP\r\n\r\n", errors.RequestError),
        (b"", errors.RequestError),
    ],
)
def test_an_answer_that_is_none_is_explained(
    serve: Serve, make_loop: Callable[..., CurlLoop], said: bytes, kind: type[Exception]
) -> None:
    assert isinstance(get(make_loop(), serve(saying(said)).url, max_body_bytes=1000), kind)


def test_any_status_is_an_answer(serve: Serve, make_loop: Callable[..., CurlLoop]) -> None:
    said = b"HTTP/1.1 429 Slow Down\r\nRetry-After: 7\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nno"
    outcome = get(make_loop(), serve(saying(said)).url)
    assert isinstance(outcome, Response)
    assert (outcome.status, outcome.body) == (429, b"no")
    assert (outcome.headers["retry-after"], outcome.headers["x-a"]) == ("7", "1, 2")


def test_a_server_that_is_not_there_is_unreachable(make_loop: Callable[..., CurlLoop]) -> None:
    assert isinstance(get(make_loop(), "http://127.0.0.1:1/"), errors.Unreachable)
    assert isinstance(get(make_loop(), "ftp://example.test/"), errors.UnsafeUrl)


def test_one_that_stays_silent_is_given_up_and_others_are_not(
    serve: Serve, make_loop: Callable[..., CurlLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.api.network.SILENCE_S", 0.5)

    def reply(connection: Connection, received: Received) -> None:
        if received.target == "/silent":
            connection.wait_closed()
        else:
            connection.say("200 OK", b"")

    server, loop, answers = serve(answering(reply)), make_loop(), Answers()
    started = time.monotonic()
    loop.get(Request("GET", server.url + "/silent"), answers.taker("/silent"), urgent=True)
    for number in range(20):
        loop.get(Request("GET", f"{server.url}/{number}"), answers.taker("other"), urgent=True)
    found = answers.wait(21)
    assert [name for name, outcome in found if not isinstance(outcome, Response)] == ["/silent"]
    assert isinstance(found[-1][1], errors.TimedOut)
    assert time.monotonic() - started < 5


def test_one_that_takes_long_is_sent_once_more_and_the_first_answer_counts(
    serve: Serve, make_loop: Callable[..., CurlLoop]
) -> None:
    """A tail: most are answered at once, and one in a hundred not for half a minute."""
    held: list[str] = []

    def reply(connection: Connection, received: Received) -> None:
        if int(received.target[1:]) % 100 == 50 and received.target not in held:
            held.append(received.target)
            connection.wait_closed(30.0)
        else:
            connection.say("200 OK", received.target.encode())

    server, loop, answers = serve(answering(reply)), make_loop(connections=8), Answers()
    started = time.monotonic()
    for number in range(400):
        loop.get(Request("GET", f"{server.url}/{number}"), answers.taker(f"/{number}"), urgent=True)
    for name, outcome in answers.wait(400):
        assert isinstance(outcome, Response)
        assert outcome.body == name.encode()
    assert len(held) == 4
    assert time.monotonic() - started < 4 * 1.0 + 2.0
    assert len(server.received) == 404


def test_two_answers_to_one_get_count_once(
    serve: Serve, make_loop: Callable[..., CurlLoop], caplog: pytest.LogCaptureFixture
) -> None:
    """Both come in one round of the loop, which took the second for one that it did not know."""
    both = threading.Barrier(2)

    def reply(connection: Connection, received: Received) -> None:
        if received.target.startswith("/slow"):
            both.wait(10)
        connection.say("200 OK", b"")

    server, loop, answers = serve(answering(reply)), make_loop(connections=8), Answers()
    for number in range(40):
        loop.get(Request("GET", f"{server.url}/{number}"), answers.taker("quick"), urgent=True)
    answers.wait(40)
    for number in range(5):
        loop.get(Request("GET", f"{server.url}/slow{number}"), answers.taker(f"slow{number}"), urgent=True)
        assert isinstance(answers.wait(41 + number)[-1][1], Response)
    assert isinstance(get(loop, server.url), Response)
    assert len(answers.wait(45)) == 45
    assert "failed" not in caplog.text


def test_a_host_in_trouble_is_not_sent_anything_twice(
    serve: Serve, make_loop: Callable[..., CurlLoop]
) -> None:
    def reply(connection: Connection, received: Received) -> None:
        if received.target == "/slow":
            time.sleep(1.2)
        connection.say("503 Busy" if received.target == "/busy" else "200 OK", b"")

    server, loop, answers = serve(answering(reply)), make_loop(), Answers()
    for number in range(40):
        loop.get(Request("GET", f"{server.url}/{number}"), answers.taker("any"), urgent=True)
    answers.wait(40)
    loop.get(Request("GET", server.url + "/busy"), answers.taker("busy"), urgent=True)
    answers.wait(41)
    loop.get(Request("GET", server.url + "/slow"), answers.taker("slow"), urgent=True)
    assert isinstance(answers.wait(42)[-1][1], Response)
    assert len(server.received) == 42


def test_another_network_drops_all_connections(serve: Serve, make_loop: Callable[..., CurlLoop]) -> None:
    ways = Network()
    server, loop = serve(echo), make_loop(network=ways)
    assert isinstance(get(loop, server.url), Response)
    ways.drop(ways.generation, "a test")
    assert isinstance(get(loop, server.url), Response)
    assert server.connections == 2


def test_what_is_under_way_goes_on_when_connections_are_no_longer_trusted(
    serve: Serve, make_loop: Callable[..., CurlLoop]
) -> None:
    """One silent object told the loop to end all others, which were fetched a second time."""
    go = threading.Event()

    def reply(connection: Connection, received: Received) -> None:
        if received.target == "/slow":
            go.wait(10)
        connection.say("200 OK", received.target.encode())

    ways, answers = Network(), Answers()
    server, loop = serve(answering(reply)), make_loop(network=ways)
    loop.get(Request("GET", server.url + "/slow"), answers.taker("/slow"), urgent=True)
    while not server.received:
        time.sleep(0.01)
    ways.drop(ways.generation, "a test")
    assert isinstance(get(loop, server.url + "/next"), Response)
    go.set()
    ((_, outcome),) = answers.wait(1)
    assert isinstance(outcome, Response)
    assert outcome.body == b"/slow"
    assert [one.target for one in server.received] == ["/slow", "/next"]


def test_silence_on_a_kept_connection_is_told_to_all(
    serve: Serve, make_loop: Callable[..., CurlLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a second request was answered in time: the first is left to show whether its way is gone."""
    monkeypatch.setattr("lightlyfs.api.network.SILENCE_S", 1.5)
    frozen: set[Connection] = set()
    seen: set[Connection] = set()

    def reply(connection: Connection, received: Received) -> None:
        seen.add(connection)
        if connection in frozen:
            connection.wait_closed(30.0)
        else:
            connection.say("200 OK", b"")

    ways, answers = Network(), Answers()
    server, loop = serve(answering(reply)), make_loop(connections=64, network=ways)
    for number in range(40):
        loop.get(Request("GET", f"{server.url}/{number}"), answers.taker("quick"), urgent=True)
    answers.wait(40)
    frozen |= seen
    before, started = ways.generation, time.monotonic()
    for number in range(20):
        assert isinstance(get(loop, f"{server.url}/next{number}"), Response)
    assert time.monotonic() - started < 1.4
    while ways.generation == before:
        assert time.monotonic() - started < 10
        time.sleep(0.05)


def test_one_slow_object_among_many_costs_no_connection(
    serve: Serve, make_loop: Callable[..., CurlLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slow one had all connections made again, which takes a handshake each."""
    monkeypatch.setattr("lightlyfs.api.network.SILENCE_S", 0.8)

    def reply(connection: Connection, received: Received) -> None:
        if received.target.startswith("/slow"):
            connection.wait_closed(30.0)
        else:
            time.sleep(0.002)
            connection.say("200 OK", b"")

    ways, answers = Network(), Answers()
    server, loop = serve(answering(reply)), make_loop(connections=16, network=ways)
    for number in range(40):
        loop.get(Request("GET", f"{server.url}/{number}"), answers.taker("quick"), urgent=True)
    answers.wait(40)
    before = ways.generation
    loop.get(Request("GET", f"{server.url}/slow"), answers.taker("slow"), urgent=True)
    while len(found := answers.wait(40)) == 40:
        assert isinstance(get(loop, f"{server.url}/other"), Response)
    assert isinstance(found[-1][1], errors.TimedOut)
    assert [one.target for one in server.received].count("/slow") == 2  # once more, and then it is given up
    assert ways.generation == before


def test_addresses_that_are_not_allowed_are_not_connected_to(
    serve: Serve, make_loop: Callable[..., CurlLoop]
) -> None:
    server = serve(echo)
    loop = make_loop(guard=AddressGuard("https://api.example.test", ()))
    assert isinstance(get(loop, server.url), errors.PrivateAddress)
    assert server.connections == 0


def test_a_certificate_is_checked(
    serve: Serve, make_loop: Callable[..., CurlLoop], authority: Authority
) -> None:
    server = serve(echo, authority.server)
    assert isinstance(get(make_loop(), server.url), errors.TlsFailed)
    trusting = make_loop(ca_bundle=authority.bundle)
    for _ in range(3):
        assert isinstance(get(trusting, server.url), Response)


def test_the_end_of_the_loop_ends_what_is_under_way(serve: Serve, make_loop: Callable[..., CurlLoop]) -> None:
    server = serve(answering(lambda connection, _: connection.wait_closed()))
    loop, answers = make_loop(connections=2), Answers()
    for number in range(5):
        loop.get(Request("GET", server.url), answers.taker(str(number)), urgent=False)
    while len(server.received) < 2:
        time.sleep(0.01)
    loop.close()
    assert all(isinstance(outcome, errors.Cancelled) for _, outcome in answers.wait(5))
    assert isinstance(get(loop, server.url, timeouts=Timeouts()), errors.Cancelled)


def test_a_caller_that_fails_does_not_end_the_loop(
    serve: Serve, make_loop: Callable[..., CurlLoop], caplog: pytest.LogCaptureFixture
) -> None:
    server, loop = serve(echo), make_loop()

    called = threading.Event()

    def fails(_outcome: Outcome) -> None:
        called.set()
        raise RuntimeError("a fault of the caller")

    loop.get(Request("GET", server.url), fails, urgent=True)
    assert called.wait(10)
    for number in range(5):
        assert isinstance(get(loop, f"{server.url}/{number}"), Response)
    assert "a fault of the caller" in caplog.text
