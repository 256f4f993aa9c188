"""The transport contract: what goes out, over which connection, through which proxy, and how it may fail."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from authority import Authority
from raw_server import Connection, RawServer, Received, answering, saying

from lightlyfs import errors
from lightlyfs.api.addresses import Proxies
from lightlyfs.api.contract import BodyFile, Request, Timeouts, Transport

Serve = Callable[..., RawServer]
Make = Callable[..., Transport]
SHORT = Timeouts(connect_s=2.0, idle_s=0.5, total_s=5.0)


def echo(connection: Connection, received: Received) -> None:
    connection.say("200 OK", received.target.encode())


SIGNED = [
    "/bucket/a%20b%2bc.jpg?X-Amz-Credential=A%2FB&X-Amz-Signature=ab%2b%2F%3d",
    "/a/../b/./c//d?x=~%7e&y='(!*)'",
    "/%e4%f6?sig=a+b%2Bc%3D&se=2026-01-01T00%3A00%3A00Z",
    "/?",
    "/a?b?c=d&&=&e",
    '/x[1]{2}|3^4`5"6<7>',
    "//double//slash",
    "/%zz%2",
]


@pytest.mark.parametrize("target", SIGNED)
def test_a_signed_address_is_sent_byte_for_byte(transport: Transport, serve: Serve, target: str) -> None:
    server = serve(answering(echo))
    assert transport.send(Request("GET", server.url + target)).body.decode() == target


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "/"),
        ("?a=b", "/?a=b"),
        ("/a#frag?x", "/a"),
        ("/my image.jpg", "/my%20image.jpg"),
        ("/ä", "/%C3%A4"),
    ],
)
def test_what_no_request_line_may_hold_is_encoded(
    transport: Transport, serve: Serve, given: str, sent: str
) -> None:
    server = serve(answering(echo))
    assert transport.send(Request("GET", server.url + given)).body.decode() == sent


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "file:///etc/passwd",
        "host/x",
        "http:///x",
        "http://user:pw@host/",
        "http://host/a\r\nX: y",
        "http://[::1/",
        "http://h:99999999/",
        "",
    ],
)
def test_an_unsafe_address_is_refused(transport: Transport, url: str) -> None:
    with pytest.raises(errors.UnsafeUrl) as caught:
        transport.send(Request("GET", url))
    assert "pw" not in str(caught.value)
    assert not caught.value.request_sent


@pytest.mark.parametrize("header", [{"X": "a\r\nY: b"}, {"X\n": "a"}, {"X": "\u20ac"}])
def test_a_header_that_cannot_be_sent_is_refused(transport: Transport, header: dict[str, str]) -> None:
    with pytest.raises(errors.BadRequest):
        transport.send(Request("GET", "http://127.0.0.1:9/", header))


def test_nothing_is_sent_that_was_not_asked_for(make_transport: Make, serve: Serve) -> None:
    server = serve(answering(echo))
    make_transport(user_agent="me/1").send(Request("GET", server.url, {"X-One": "1", "X-Empty": ""}))
    assert server.received[0].headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": "me/1",
        "x-one": "1",
        "x-empty": "",
    }


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_a_redirect_is_returned_not_followed(transport: Transport, serve: Serve, status: str) -> None:
    server = serve(answering(lambda connection, _: connection.say(status, b"", "Location: /elsewhere")))
    answer = transport.send(Request("GET", server.url + "/x", {"Authorization": "Bearer s"}))
    assert (answer.status, answer.headers["location"]) == (int(status[:3]), "/elsewhere")
    assert len(server.received) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 416, 429, 500, 503])
def test_an_error_status_is_an_answer(transport: Transport, serve: Serve, status: int) -> None:
    server = serve(answering(lambda connection, _: connection.say(f"{status} x", b"why")))
    answer = transport.send(Request("GET", server.url))
    assert (answer.status, answer.body) == (status, b"why")


def test_cookies_are_neither_kept_nor_sent(transport: Transport, serve: Serve) -> None:
    server = serve(answering(lambda connection, _: connection.say("200 OK", b"", "Set-Cookie: a=b; Path=/")))
    transport.send(Request("GET", server.url))
    transport.send(Request("GET", server.url))
    assert "cookie" not in server.received[1].headers


def test_netrc_is_not_read(
    transport: Transport, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = serve(answering(echo))
    transport.send(Request("GET", server.url))
    assert "authorization" not in server.received[0].headers


def test_a_refused_connection_is_unreachable_and_nothing_was_sent(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = "".join(["s", "ecret"])
    with pytest.raises(errors.Unreachable) as caught:
        transport.send(Request("POST", f"http://127.0.0.1:{port}/x?token={token}", body=b"x"))
    assert not caught.value.request_sent
    assert caught.value.__cause__ is not None
    assert "secret" not in str(caught.value)
    assert f"http://127.0.0.1:{port}/x" in str(caught.value)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


def test_a_name_that_does_not_resolve_is_unreachable(transport: Transport) -> None:
    with pytest.raises(errors.Unreachable) as caught:
        transport.send(Request("GET", "http://nowhere.invalid/x"))
    assert not caught.value.request_sent


def test_a_connection_nobody_accepts_times_out(transport: Transport) -> None:
    """The backlog is full, so that the handshake never completes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        started = time.monotonic()
        with pytest.raises(errors.TimedOut) as caught:
            transport.send(
                Request("GET", f"http://127.0.0.1:{address[1]}/", timeouts=Timeouts(connect_s=0.5))
            )
        assert time.monotonic() - started < 2.5
        assert not caught.value.request_sent
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH\r\n", b"\x00\x01\x02garbage\r\n\r\n"])
def test_an_answer_that_is_not_http_is_unreachable(transport: Transport, serve: Serve, said: bytes) -> None:
    server = serve(saying(said))
    with pytest.raises(errors.Unreachable) as caught:
        transport.send(Request("POST", server.url, body=b"x"))
    assert caught.value.request_sent


def test_connections_are_kept(transport: Transport, serve: Serve) -> None:
    server = serve(answering(echo))
    for _ in range(5):
        transport.send(Request("GET", server.url + "/x"))
    assert server.connections == 1


def closing_after_one(connection: Connection) -> None:
    """Answer one request as if the connection would stay, then close it."""
    received = connection.read()
    if received is not None:
        echo(connection, received)


def test_a_kept_connection_that_was_closed_is_replaced(transport: Transport, serve: Serve) -> None:
    server = serve(closing_after_one)
    for _ in range(3):
        assert transport.send(Request("GET", server.url + "/x")).body == b"/x"
        time.sleep(0.05)
    assert len(server.received) == 3


def closing_at_the_second(connection: Connection) -> None:
    """Answer one request; drop the connection when the next has arrived, before any answer."""
    received = connection.read()
    if received is None:
        return
    echo(connection, received)
    connection.read()


def test_a_get_whose_kept_connection_dies_under_it_goes_out_again(transport: Transport, serve: Serve) -> None:
    """The server closed an idle connection at the very moment it was used."""
    server = serve(closing_at_the_second)
    for _ in range(3):
        assert transport.send(Request("GET", server.url + "/x")).body == b"/x"


def test_a_post_is_never_sent_twice(transport: Transport, serve: Serve) -> None:
    """Creating a sample twice would leave two of them, which cannot be deleted."""
    server = serve(closing_at_the_second)
    transport.send(Request("GET", server.url + "/x"))
    with pytest.raises(errors.Unreachable) as caught:
        transport.send(Request("POST", server.url + "/x", body=b"{}"))
    assert caught.value.request_sent
    assert [received.method for received in server.received].count("POST") == 1


def test_posts_share_a_connection(transport: Transport, serve: Serve) -> None:
    """A handshake for each sample would be a round trip more, over TLS three."""
    server = serve(answering(echo))
    for _ in range(3):
        transport.send(Request("POST", server.url + "/x", body=b"{}"))
    assert server.connections == 1


def test_a_put_whose_kept_connection_dies_is_whole_or_unreachable(
    transport: Transport, serve: Serve, big_file: Path
) -> None:
    """Where it goes out again, the file starts from its beginning."""
    server = serve(closing_at_the_second)
    transport.send(Request("GET", server.url + "/x"))
    body = BodyFile(big_file, 300_000)
    with contextlib.suppress(errors.Unreachable):
        assert transport.send(Request("PUT", server.url + "/x", body=body)).status == 200
    puts = [received.body for received in server.received if received.method == "PUT"]
    assert puts in ([big_file.read_bytes()[:300_000]] * len(puts),)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_has_its_length_and_no_chunks(transport: Transport, serve: Serve, method: str) -> None:
    server = serve(answering(echo))
    transport.send(Request(method, server.url, {"Content-Type": "application/json"}, b'{"a":1}'))
    received = server.received[0]
    assert (received.method, received.body) == (method, b'{"a":1}')
    assert received.headers["content-length"] == "7"
    assert not {"transfer-encoding", "expect"} & set(received.headers)


@pytest.mark.parametrize("body", [b"", None])
def test_an_empty_put_says_so(transport: Transport, serve: Serve, body: bytes | None) -> None:
    server = serve(answering(echo))
    transport.send(Request("PUT", server.url, body=body))
    assert server.received[0].headers["content-length"] == "0"
    assert "transfer-encoding" not in server.received[0].headers


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(1 << 16) * 64)
    return path


def test_a_large_file_is_sent_with_its_length(transport: Transport, serve: Serve, big_file: Path) -> None:
    server = serve(answering(lambda connection, _: connection.say("200 OK")))
    size = big_file.stat().st_size
    transport.send(Request("PUT", server.url, {"x-ms-blob-type": "BlockBlob"}, BodyFile(big_file, size)))
    received = server.received[0]
    assert received.body == big_file.read_bytes()
    assert received.headers["content-length"] == str(size)
    assert not {"transfer-encoding", "expect"} & set(received.headers)


def test_a_file_body_starts_anew_on_every_send(transport: Transport, serve: Serve, big_file: Path) -> None:
    """Also from a shared descriptor, whose position stays where it is."""
    server = serve(answering(lambda connection, _: connection.say("503 Busy")))
    fd = os.open(big_file, os.O_RDONLY)
    try:
        os.lseek(fd, 5, os.SEEK_SET)
        body = BodyFile(fd, 1000, offset=10)
        transport.send(Request("PUT", server.url, body=body))
        transport.send(Request("PUT", server.url, body=body))
        assert os.lseek(fd, 0, os.SEEK_CUR) == 5
    finally:
        os.close(fd)
    assert [received.body for received in server.received] == [big_file.read_bytes()[10:1010]] * 2


def test_a_file_that_ends_early_is_an_error_of_the_content(
    transport: Transport, serve: Serve, tmp_path: Path
) -> None:
    server = serve(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    path = tmp_path / "short"
    path.write_bytes(b"abc")
    with pytest.raises(errors.ContentError, match="3 of 10 bytes"):
        transport.send(Request("PUT", server.url, body=BodyFile(path, 10), timeouts=SHORT))
    with pytest.raises(errors.ContentError):
        transport.send(Request("PUT", server.url, body=BodyFile(tmp_path / "none", 10)))


def test_an_upload_refused_early_gives_the_answer(transport: Transport, serve: Serve, big_file: Path) -> None:
    def handler(connection: Connection) -> None:
        connection.read_head()
        connection.say("403 Forbidden", b"<Code>AccessDenied</Code>", "Connection: close")
        connection.wait_closed()

    server = serve(handler)
    body = BodyFile(big_file, big_file.stat().st_size)
    answer = transport.send(Request("PUT", server.url, body=body, timeouts=Timeouts(idle_s=3.0)))
    assert (answer.status, answer.body) == (403, b"<Code>AccessDenied</Code>")


def test_an_upload_nobody_reads_ends(transport: Transport, serve: Serve, tmp_path: Path) -> None:
    """At the idle limit; libcurl fills the kernel's buffers slowly, so there the total may end it."""

    def handler(connection: Connection) -> None:
        connection.server.stopping.wait(10)

    server = serve(handler)
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    limits = Timeouts(connect_s=2.0, idle_s=0.5, total_s=2.0)
    started = time.monotonic()
    with pytest.raises(errors.TimedOut):
        transport.send(Request("PUT", server.url, body=BodyFile(path, 64 << 20), timeouts=limits))
    assert time.monotonic() - started < 3.5


def test_an_upload_can_be_cancelled(transport: Transport, serve: Serve, tmp_path: Path) -> None:
    def handler(connection: Connection) -> None:
        connection.server.stopping.wait(10)

    server = serve(handler)
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    started = time.monotonic()
    with pytest.raises(errors.Cancelled):
        transport.send(
            Request(
                "PUT",
                server.url,
                body=BodyFile(path, 64 << 20),
                cancelled=lambda: time.monotonic() - started > 0.3,
            )
        )
    assert time.monotonic() - started < 2.0


def test_many_threads_share_one_transport(make_transport: Make, serve: Serve) -> None:
    """Each gets its own answer, and no more requests are under way than the configuration says."""
    running, most, lock = 0, 0, threading.Lock()

    def reply(connection: Connection, received: Received) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        echo(connection, received)

    server = serve(answering(reply))
    transport = make_transport(connections=4)
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(5):
            target = f"/{number}/{turn}"
            if transport.send(Request("GET", server.url + target)).body.decode() != target:
                wrong.append(target)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not wrong
    assert len(server.received) == 60
    assert 2 <= most <= 4
    assert server.connections <= 4


def test_a_send_that_waits_for_a_free_connection_keeps_its_limits(make_transport: Make, serve: Serve) -> None:
    server = serve(saying(b"", then_wait=True))
    transport = make_transport(connections=1)

    def hold() -> None:
        with contextlib.suppress(errors.TimedOut):
            transport.send(Request("GET", server.url, timeouts=Timeouts(idle_s=1.2)))

    slow = threading.Thread(target=hold)
    slow.start()
    while not server.received:
        time.sleep(0.01)
    with pytest.raises(errors.TimedOut):
        transport.send(Request("GET", server.url, timeouts=Timeouts(idle_s=0.3)))
    slow.join(5)


def test_a_certificate_of_a_known_authority_is_accepted(
    make_transport: Make, serve: Serve, authority: Authority
) -> None:
    server = serve(answering(echo), authority.server)
    transport = make_transport(ca_bundle=authority.bundle)
    assert transport.send(Request("GET", server.url + "/a%2b")).body == b"/a%2b"
    assert transport.send(Request("PUT", server.url + "/b", body=b"x" * 500_000)).body == b"/b"
    assert server.connections == 1


def test_an_unknown_authority_is_refused(make_transport: Make, serve: Serve, authority: Authority) -> None:
    server = serve(answering(echo), authority.server)
    with pytest.raises(errors.TlsFailed) as caught:
        make_transport().send(Request("GET", server.url))
    assert not caught.value.request_sent
    assert server.received == []


def test_a_certificate_for_another_host_is_refused(
    make_transport: Make, serve: Serve, authority: Authority
) -> None:
    server = serve(answering(echo), authority.server)
    with pytest.raises(errors.TlsFailed):
        make_transport(ca_bundle=authority.bundle).send(Request("GET", f"https://localhost:{server.port}/"))


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_environment_cannot_change_the_authorities(
    make_transport: Make, serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    server = serve(answering(echo), authority.server)
    monkeypatch.setenv(variable, authority.bundle)
    with pytest.raises(errors.TlsFailed):
        make_transport().send(Request("GET", server.url))


def test_a_bundle_that_does_not_exist_is_named(
    make_transport: Make, serve: Serve, authority: Authority
) -> None:
    server = serve(answering(echo), authority.server)
    with pytest.raises(errors.TlsFailed, match=r"none\.pem"):
        make_transport(ca_bundle="/nowhere/none.pem").send(Request("GET", server.url))


def test_tls_to_a_plain_server_fails_as_tls(transport: Transport, serve: Serve) -> None:
    server = serve(lambda connection: connection.raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises((errors.TlsFailed, errors.Unreachable)) as caught:
        transport.send(Request("GET", server.url.replace("http:", "https:")))
    assert not caught.value.request_sent


@pytest.mark.parametrize("cut", [True, False])
def test_a_tls_handshake_that_breaks_is_unreachable(transport: Transport, serve: Serve, cut: bool) -> None:
    """A server that is being restarted: worth another try, unlike a certificate that is not trusted."""

    def handler(connection: Connection) -> None:
        connection.sock.recv(100)
        if cut:
            connection.cut()

    server = serve(handler)
    with pytest.raises(errors.Unreachable) as caught:
        transport.send(Request("GET", server.url.replace("http:", "https:")))
    assert not caught.value.request_sent


def test_a_tls_handshake_nobody_answers_ends_at_the_connect_limit(transport: Transport, serve: Serve) -> None:
    server = serve(lambda connection: connection.wait_closed())
    limits = Timeouts(connect_s=0.5, idle_s=5.0)
    with pytest.raises(errors.TimedOut) as caught:
        transport.send(Request("GET", server.url.replace("http:", "https:"), timeouts=limits))
    assert not caught.value.request_sent


def test_a_stall_under_tls_ends_at_the_idle_limit(
    make_transport: Make, serve: Serve, authority: Authority
) -> None:
    server = serve(
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", then_wait=True), authority.server
    )
    transport = make_transport(ca_bundle=authority.bundle)
    with pytest.raises(errors.TimedOut):
        transport.send(Request("GET", server.url, timeouts=SHORT))


def test_a_kept_tls_connection_that_was_cut_is_replaced(
    make_transport: Make, serve: Serve, authority: Authority
) -> None:
    """Cut without a farewell, as a load balancer does: that is no failure of TLS."""

    def handler(connection: Connection) -> None:
        closing_at_the_second(connection)
        connection.cut()

    server = serve(handler, authority.server)
    transport = make_transport(ca_bundle=authority.bundle)
    for _ in range(3):
        assert transport.send(Request("GET", server.url + "/x")).body == b"/x"


def test_a_tls_body_that_was_cut_is_short(make_transport: Make, serve: Serve, authority: Authority) -> None:
    def handler(connection: Connection) -> None:
        connection.read()
        connection.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        connection.cut()

    server = serve(handler, authority.server)
    with pytest.raises(errors.ShortBody):
        make_transport(ca_bundle=authority.bundle).send(Request("GET", server.url))


def test_a_plain_request_through_a_proxy_keeps_its_address(make_transport: Make, serve: Serve) -> None:
    proxy = serve(answering(echo))
    transport = make_transport(proxies=Proxies(http=f"http://me:pw@127.0.0.1:{proxy.port}"))
    url = "http://storage.test/a%2bb/../c?sig=x%2b"
    assert transport.send(Request("GET", url)).body.decode() == url
    assert proxy.received[0].headers["host"] == "storage.test"
    assert proxy.received[0].headers["proxy-authorization"] == "Basic bWU6cHc="


def test_the_password_of_a_proxy_may_be_given_as_it_is_typed(make_transport: Make, serve: Serve) -> None:
    proxy = serve(answering(echo))
    proxies = Proxies.from_environ({"HTTP_PROXY": f"http://me:p\u00e9%40 /@w@127.0.0.1:{proxy.port}"})
    make_transport(proxies=proxies).send(Request("GET", "http://storage.test/"))
    sent = proxy.received[0].headers["proxy-authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent).decode() == "me:p\u00e9@ /@w"


def test_a_tls_request_through_a_proxy_is_tunnelled(
    make_transport: Make, serve: Serve, authority: Authority
) -> None:
    """The observer hears the answer of the far end, not that of the proxy."""

    def handler(connection: Connection) -> None:
        assert connection.read_head() is not None
        connection.raw(b"HTTP/1.1 200 Connection established\r\nVia: proxy\r\n\r\n")
        answering(lambda far, got: far.say("206 x", got.target.encode()))(
            connection.upgrade(authority.server)
        )

    proxy = serve(handler)
    transport = make_transport(
        ca_bundle=authority.bundle, proxies=Proxies(https=f"http://127.0.0.1:{proxy.port}")
    )
    told: list[int] = []

    class Observer:
        def headers(self, status: int, headers: object) -> None:
            told.append(status)

        def write(self, chunk: bytes | memoryview) -> None:
            told.append(len(chunk))

    answer = transport.send(Request("GET", "https://signed.test/a%2b", observer=Observer()))
    assert (answer.status, told) == (206, [206, 5])
    assert "via" not in answer.headers
    assert [received.target for received in proxy.received] == ["signed.test:443", "/a%2b"]
    assert transport.send(Request("GET", "https://signed.test/b")).body == b"/b"


def test_a_proxy_that_refuses_the_tunnel_is_unreachable(make_transport: Make, serve: Serve) -> None:
    proxy = serve(saying(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"))
    transport = make_transport(proxies=Proxies(https=f"http://127.0.0.1:{proxy.port}"))
    with pytest.raises(errors.Unreachable) as caught:
        transport.send(Request("POST", "https://signed.test/", body=b"x"))
    assert not caught.value.request_sent


def test_a_host_of_no_proxy_is_reached_directly(make_transport: Make, serve: Serve) -> None:
    server = serve(answering(echo))
    proxies = Proxies.from_environ({"ALL_PROXY": "http://127.0.0.1:9", "no_proxy": "other.test, 127.0.0.0/8"})
    assert make_transport(proxies=proxies).send(Request("GET", server.url + "/x")).body == b"/x"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_the_environment_alone_changes_nothing(
    transport: Transport, serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = serve(answering(echo))
    assert transport.send(Request("GET", server.url + "/x")).body == b"/x"


def test_no_proxy_in_the_environment_does_not_bypass_the_given_proxy(
    make_transport: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "storage.test")
    monkeypatch.setenv("NO_PROXY", "storage.test")
    proxy = serve(answering(echo))
    transport = make_transport(proxies=Proxies(http=f"http://127.0.0.1:{proxy.port}"))
    assert transport.send(Request("GET", "http://storage.test/x")).body == b"http://storage.test/x"
