"""Both transports connect to no address that the guard does not allow, whatever the URL looks like."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest
from raw_server import RawServer, answering

from lightlyfs.api.addresses import AddressGuard
from lightlyfs.api.contract import Request, Transport
from lightlyfs.errors import PrivateAddress, RequestError

PUBLIC_API = "https://api.test"


def guard(*networks: str) -> AddressGuard:
    found = tuple(ipaddress.ip_network(text) for text in networks)
    return AddressGuard(PUBLIC_API, found, resolve=lambda _: ["52.1.1.1"])


@pytest.fixture
def server(serve: Callable[..., RawServer]) -> RawServer:
    return serve(answering(lambda connection, _: connection.say("200 OK", b"secret")))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_near_address_is_not_connected_to(
    make_transport: Callable[..., Transport], server: RawServer, host: str, method: str
) -> None:
    transport = make_transport(guard=guard())
    url = server.url.replace("127.0.0.1", host)
    # odd forms are not looked up everywhere
    kind = RequestError if host in ("[::ffff:127.0.0.1]", "0x7f.1", "2130706433") else PrivateAddress
    with pytest.raises(kind):
        transport.send(Request(method, url + "/x", body=b"y" if method == "PUT" else None))
    assert server.received == []


def test_a_network_that_is_named_is(make_transport: Callable[..., Transport], server: RawServer) -> None:
    transport = make_transport(guard=guard("127.0.0.0/8"))
    assert transport.send(Request("GET", server.url + "/x")).body == b"secret"
    assert transport.send(Request("PUT", server.url + "/x", body=b"y")).status == 200


def test_the_host_of_the_api_is_the_users_choice(
    make_transport: Callable[..., Transport], server: RawServer
) -> None:
    transport = make_transport(guard=AddressGuard(server.url))
    assert transport.send(Request("GET", server.url + "/x")).body == b"secret"
