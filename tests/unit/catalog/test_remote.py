"""Which list the catalogue asks for: the partial one, unless the server has none."""

from __future__ import annotations

from typing import Any

import pytest
from contentkit import Clock

from lightlyfs.api.models import ListedSample
from lightlyfs.catalog.remote import ApiRemote
from lightlyfs.errors import BadRequest, Forbidden, NotFound, Refused, RequestError, ServerFault

REFUSALS: list[RequestError] = [
    NotFound("x", status=404),
    BadRequest("x", status=400),
    Refused("x", status=405),
    ServerFault("x", status=501),
]


class Client:
    """The API: refuses partial lists with `refusal`, and counts what it was asked."""

    def __init__(self) -> None:
        self.refusal: RequestError | None = None
        self.asked: list[str] = []

    def list_page(self, *_: Any, partial: bool = True, **__: Any) -> list[ListedSample]:
        self.asked.append("partial" if partial else "plain")
        if partial and self.refusal is not None:
            raise self.refusal
        return [ListedSample("a" * 24, "x.jpg", 0, 0, 1)]


@pytest.fixture
def client() -> Client:
    return Client()


def remote(client: Client, clock: Clock) -> ApiRemote:
    return ApiRemote(client, "d" * 24, clock=clock)  # type: ignore[arg-type]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: str(error.status))
def test_a_refusal_that_passes_costs_one_plain_page(client: Client, refusal: RequestError) -> None:
    subject = remote(client, Clock())
    client.refusal = refusal
    assert len(subject.page(0, 10)) == 1
    client.refusal = None
    assert len(subject.page(0, 10)) == 1
    assert client.asked == ["partial", "plain", "partial"]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: str(error.status))
def test_a_server_without_partial_lists_is_asked_for_them_every_ten_minutes(
    client: Client, refusal: RequestError
) -> None:
    clock = Clock()
    subject = remote(client, clock)
    client.refusal = refusal
    for _ in range(10):
        assert len(subject.page(0, 10)) == 1
    assert client.asked.count("partial") == 3
    clock.sleep(601)
    client.refusal = None
    client.asked.clear()
    subject.page(0, 10)
    assert client.asked == ["partial"]


def test_another_refusal_says_nothing_of_partial_lists(client: Client) -> None:
    client.refusal = Forbidden("x", status=403)
    with pytest.raises(Forbidden):
        remote(client, Clock()).page(0, 10)
    assert client.asked == ["partial", "partial"]  # as it comes, and then with patience
