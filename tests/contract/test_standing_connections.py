"""Connections that stand still, as after sleep or a change of networks: a GET goes out again on a new one."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from freezing_proxy import FreezingProxy
from raw_server import Connection, RawServer, Received, answering

from lightlyfs import errors
from lightlyfs.api import network as network_module
from lightlyfs.api.contract import Request, Timeouts, Transport
from lightlyfs.api.network import Network

Make = Callable[..., Transport]
Serve = Callable[..., RawServer]

echo = answering(lambda connection, received: connection.say("200 OK", received.target.encode()))


@pytest.fixture
def proxy() -> Iterator[FreezingProxy]:
    with FreezingProxy() as running:
        yield running


def get(transport: Transport, url: str, **limits: float) -> bytes:
    return transport.send(Request("GET", url, timeouts=Timeouts(**limits))).body


def test_a_get_on_a_connection_that_stands_still_goes_out_again(
    make_transport: Make, serve: Serve, proxy: FreezingProxy
) -> None:
    """Within 5 s, and all that follow at once, on the other connections of the pool, too."""
    proxy.back = serve(echo).port
    transport = make_transport()
    threads = [threading.Thread(target=get, args=(transport, f"{proxy.url}/{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proxy.freeze()
    started = time.monotonic()
    assert get(transport, f"{proxy.url}/first") == b"/first"
    first_s = time.monotonic() - started
    for number in range(20):
        assert get(transport, f"{proxy.url}/next/{number}") == f"/next/{number}".encode()
    assert first_s < 5
    assert time.monotonic() - started - first_s < 1


def test_a_server_that_is_slow_is_asked_twice_at_most_once(
    make_transport: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new connection is not doubted, and an answer that took long makes patient."""
    monkeypatch.setattr("lightlyfs.api.network.SILENCE_S", 0.3)
    monkeypatch.setattr("lightlyfs.api.watch.SILENCE_S", 0.3)
    slow_s = 0.0

    def reply(connection: Connection, received: Received) -> None:
        time.sleep(slow_s)
        connection.say("200 OK", b"")

    server = serve(answering(reply))
    transport = make_transport()
    get(transport, server.url)
    slow_s = 1.6
    for _ in range(2):
        get(transport, server.url, idle_s=20.0)
    assert len(server.received) == 4


def test_a_request_that_may_take_long_is_not_doubted(
    make_transport: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of thousands of samples: asking twice would cost the server as much again."""
    monkeypatch.setattr("lightlyfs.api.network.SILENCE_S", 0.2)
    monkeypatch.setattr("lightlyfs.api.watch.SILENCE_S", 0.2)

    def reply(connection: Connection, received: Received) -> None:
        time.sleep(1.5 if received.target == "/page" else 0)
        connection.say("200 OK", b"")

    server = serve(answering(reply))
    transport = make_transport()
    get(transport, server.url)
    transport.send(Request("GET", f"{server.url}/page", slow=True))
    assert len(server.received) == 2


def test_what_changes_something_does_not_go_out_again(
    make_transport: Make, serve: Serve, proxy: FreezingProxy
) -> None:
    server = serve(echo)
    proxy.back = server.port
    transport = make_transport()
    get(transport, f"{proxy.url}/a")
    transport.send(Request("PUT", f"{proxy.url}/b", body=b"b"))
    proxy.freeze()
    with pytest.raises(errors.TimedOut):
        transport.send(Request("PUT", f"{proxy.url}/c", body=b"c", timeouts=Timeouts(idle_s=1.0)))
    assert [received.target for received in server.received] == ["/a", "/b"]


def test_a_change_of_the_network_drops_kept_connections_at_once(make_transport: Make, serve: Serve) -> None:
    server = serve(echo)
    network = Network()
    transport = make_transport(network=network)
    for _ in range(2):
        get(transport, server.url)
    assert server.connections == 1
    network.drop(network.generation, "a test")
    for _ in range(2):
        get(transport, server.url)
    assert server.connections == 2


def test_a_body_that_stops_when_the_network_changes_is_given_up_early(
    make_transport: Make, serve: Serve
) -> None:
    network = Network()

    def half(connection: Connection) -> None:
        connection.read()
        connection.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        network.drop(network.generation, "a test")
        connection.wait_closed()

    transport = make_transport(network=network)
    started = time.monotonic()
    with pytest.raises(errors.TimedOut, match="may be dead"):
        get(transport, serve(half).url, idle_s=20.0)
    assert time.monotonic() - started < 5


def test_new_connections_are_guarded_by_the_kernel(
    make_transport: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded: list[tuple[int, int]] = []

    def look(descriptor: int) -> None:
        original(descriptor)
        sock = socket.socket(fileno=descriptor)
        timeout = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        guarded.append((timeout, sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)))
        sock.detach()

    original = network_module.guard
    for form in ("curl", "over_requests"):
        monkeypatch.setattr(f"lightlyfs.api.{form}.guard", look)
    get(make_transport(), serve(echo).url)
    assert guarded == [(network_module.USER_TIMEOUT_MS, 1)]


def test_a_connection_has_an_end_so_that_a_name_may_lead_elsewhere(
    make_transport: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "LIFETIME_S", 1)
    server = serve(echo)
    transport = make_transport()
    ends = time.monotonic() + 2.5
    while time.monotonic() < ends:
        get(transport, server.url)
        time.sleep(0.1)  # the connection is never idle for long
    assert 2 <= server.connections <= 4


# what the kernel tells


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize(
    ("kind", "body", "changes"),
    [
        (20, b"\x02\x18\x00\x00" + bytes(4), True),  # an address that others reach came
        (21, b"\x02\x18\x00\x00" + bytes(4), True),  # or went
        (20, b"\x0a\x40\x00\xfd" + bytes(4), False),  # one of the link alone, as each container's has
        (24, b"\x02\x00" + bytes(10), True),  # a default route
        (25, b"\x02\x01" + bytes(10), True),  # half of one, as a VPN takes
        (24, b"\x02\x20" + bytes(10), False),  # the way to one host
        (16, b"\x02\x00" + bytes(10), False),  # a link
    ],
)
def test_which_messages_of_the_kernel_are_a_change(kind: int, body: bytes, changes: bool) -> None:
    assert network_module._tells_a_change(message(16, bytes(4)) + message(kind, body)) is changes


def test_sleep_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s = 0.0
    clock = time.clock_gettime
    monkeypatch.setattr(network_module, "_sleep_clock", lambda: clock(time.CLOCK_BOOTTIME) + slept_s)
    monkeypatch.setattr(network_module, "_CLOCK_EVERY_S", 0.0)
    network = Network()
    assert network.look() == network.look() == 0
    slept_s = 60.0
    assert network.look() == network.look() == 1


def test_a_new_address_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "_CLOCK_EVERY_S", 0.0)
    network = Network()
    before = network.look()
    command = ["ip", "address", "add", "198.51.100.77/32", "dev", "lo"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the command ip")
    if done.returncode:
        pytest.skip("may not change addresses")
    try:
        assert network.look() > before
    finally:
        subprocess.run([*command[:2], "del", *command[3:]], check=True)
