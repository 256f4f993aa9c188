"""The client over both transports and a real socket: what only the wire can show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from raw_server import Connection, RawServer, Received, answering

from lightlyfs import errors
from lightlyfs.api.client import Credentials, LightlyClient
from lightlyfs.api.contract import Request, Transport
from lightlyfs.api.models import ListedSample, SampleCreate
from lightlyfs.api.retry import NO_RETRIES, Retrier, RetryPolicy, raise_for_status

Serve = Callable[..., RawServer]
D, S = "d" * 24, "5" * 24
CREDENTIALS = Credentials(token="t0ken", bearer="jwt", public_token="pub")


def client(server: RawServer, transport: Transport) -> LightlyClient:
    return LightlyClient(server.url, CREDENTIALS, transport, retrier=Retrier(sleep=lambda _s: None))


def test_a_page_arrives_after_a_server_fault(transport: Transport, serve: Serve) -> None:
    answers = iter([("503 Busy", b"<html>"), ("200 OK", b'[{"id":"%s","fileName":"a"}]' % S.encode())])
    server = serve(answering(lambda connection, _: connection.say(*next(answers))))
    assert client(server, transport).list_page(D, 0, 10) == [ListedSample(S, "a")]
    target = f"/v1/datasets/{D}/samples/partial?mode=full&pageSize=10&pageOffset=0&token=t0ken"
    assert [received.target for received in server.received] == [target, target]
    assert server.received[0].headers["authorization"] == "Bearer jwt"


def test_a_redirect_keeps_every_byte_and_no_credential_follows(transport: Transport, serve: Serve) -> None:
    storage = serve(answering(lambda connection, got: connection.say("200 OK", got.target.encode())))
    signed = "/b/x%2b.jpg?X-Amz-Signature=ab%2b%2F"

    def reply(connection: Connection, _received: Received) -> None:
        connection.say("307 Temporary Redirect", b"", f"Location: {storage.url}{signed}")

    api = serve(answering(reply))
    url = client(api, transport).get_sample_redirect_url(D, S)
    assert transport.send(Request("GET", url)).body.decode() == signed
    assert api.received[0].target.endswith("readurlRedirect?type=full&publicToken=pub")
    assert not {"authorization", "cookie", "referer"} & set(storage.received[0].headers)


def test_a_chain_of_redirects_ends_after_the_first_and_carries_nothing(
    transport: Transport, serve: Serve
) -> None:
    def reply(connection: Connection, received: Received) -> None:
        connection.say("307 Temporary Redirect", b"", f"Location: {received.target.partition('?')[0]}x")

    api = serve(answering(reply))
    url = client(api, transport).get_sample_redirect_url(D, S)
    answer = transport.send(Request("GET", url))
    with pytest.raises(errors.Refused):
        raise_for_status(answer, what="the read of a sample", storage=True, reads=True)
    first, second = api.received
    assert "publicToken=pub" in first.target
    assert "token" not in second.target.lower()
    assert "authorization" not in second.headers


@pytest.mark.parametrize("read", ["get_dataset", "get_tags"])
def test_an_api_that_redirects_is_not_followed_with_the_token(
    transport: Transport, serve: Serve, read: str
) -> None:
    elsewhere = serve(answering(lambda connection, _: connection.say("200 OK", b"[]")))

    def reply(connection: Connection, _received: Received) -> None:
        connection.say("302 Found", b"", f"Location: {elsewhere.url}/v1/")

    with pytest.raises(errors.Refused):
        getattr(client(serve(answering(reply)), transport), read)(D, policy=NO_RETRIES)
    assert elsewhere.received == []


def test_a_create_whose_answer_is_lost_is_sent_once(transport: Transport, serve: Serve) -> None:
    def handler(connection: Connection) -> None:
        connection.read()

    server = serve(handler)
    with pytest.raises(errors.Unreachable) as caught:
        client(server, transport).create_sample(D, SampleCreate(file_name="x"))
    assert caught.value.request_sent
    assert len(server.received) == 1


def test_a_server_that_is_down_is_asked_as_often_as_the_policy_says(
    transport: Transport, serve: Serve
) -> None:
    server = serve(answering(lambda connection, _: connection.say("500 x")))
    with pytest.raises(errors.ServerFault):
        client(server, transport).get_dataset(D, policy=RetryPolicy(attempts=3))
    assert len(server.received) == 3
