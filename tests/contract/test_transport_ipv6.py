"""Hosts and proxies that have IPv6 alone."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from raw_server import RawServer, answering

from lightlyfs.api.addresses import Proxies
from lightlyfs.api.contract import Request, Transport

Make = Callable[..., Transport]
Serve = Callable[..., RawServer]

echo = answering(lambda connection, received: connection.say("200 OK", received.target.encode()))


@pytest.fixture(autouse=True)
def ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")


def test_a_host_with_ipv6_alone_is_reached(make_transport: Make, serve: Serve) -> None:
    server = serve(echo, host="::1")
    transport = make_transport()
    assert transport.send(Request("GET", f"{server.url}/a%2b?x=[1]")).body == b"/a%2b?x=[1]"
    assert transport.send(Request("PUT", f"{server.url}/b", body=b"b")).body == b"/b"
    assert server.received[0].headers["host"] == f"[::1]:{server.port}"
    assert server.connections == 1


def test_a_proxy_with_ipv6_alone_is_used_but_for_what_no_proxy_names(
    make_transport: Make, serve: Serve
) -> None:
    proxy, server = serve(echo, host="::1"), serve(echo, host="::1")
    environ = {"http_proxy": proxy.url}
    transport = make_transport(proxies=Proxies.from_environ(environ))
    assert transport.send(Request("GET", f"{server.url}/x")).body == f"{server.url}/x".encode()
    direct = make_transport(proxies=Proxies.from_environ({**environ, "no_proxy": "[::]/64"}))
    assert direct.send(Request("GET", f"{server.url}/x")).body == b"/x"
    assert len(proxy.received) == 1
