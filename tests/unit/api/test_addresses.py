"""Which addresses storage may be at."""

from __future__ import annotations

import ipaddress

import pytest

from lightlyfs.api.addresses import AddressGuard

PUBLIC = ["52.216.1.1", "8.8.8.8", "2600:1f18::1"]
NEAR = [
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "fd00::1",
    "::ffff:127.0.0.1",
]
NEVER = [
    "169.254.169.254",
    "fe80::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2130706433",
    "not an address",
    "",
]


def guard(api: str, *networks: str) -> AddressGuard:
    found = tuple(ipaddress.ip_network(text) for text in networks)
    return AddressGuard("https://api.test:8080/x", found, resolve=lambda _: [api])


@pytest.mark.parametrize("address", PUBLIC)
@pytest.mark.parametrize("api", ["52.1.1.1", "127.0.0.1"])
def test_public_addresses_are_allowed(address: str, api: str) -> None:
    assert guard(api).allows(address)


@pytest.mark.parametrize("address", NEAR)
def test_near_addresses_are_allowed_where_the_api_is_near(address: str) -> None:
    assert not guard("52.1.1.1").allows(address)
    assert guard("10.0.0.7").allows(address)
    assert guard("::1").allows(address)


@pytest.mark.parametrize("address", NEVER)
def test_others_are_never_allowed_by_themselves(address: str) -> None:
    for api in ("52.1.1.1", "127.0.0.1", "169.254.169.254"):
        assert not guard(api).allows(address)


def test_networks_that_are_named_are_allowed() -> None:
    subject = guard("52.1.1.1", "10.0.0.0/8", "fd00::/8", "169.254.0.0/16")
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "169.254.169.254"):
        assert subject.allows(address)
    assert not subject.allows("192.168.0.1")


def test_through_a_proxy_only_plain_addresses_can_be_told() -> None:
    subject = guard("52.1.1.1")
    assert subject.allows_host("storage.test")
    assert not subject.allows_host("10.0.0.1")
    assert not subject.allows_host("[::1]")


def test_the_api_is_asked_for_once_a_minute() -> None:
    asked: list[str] = []
    now = 0.0

    def resolve(host: str) -> list[str]:
        asked.append(host)
        return ["10.0.0.1"]

    subject = AddressGuard("https://api.test", resolve=resolve, clock=lambda: now)
    for _ in range(5):
        assert subject.allows("10.0.0.2")
    now = 61.0
    assert subject.allows("10.0.0.2")
    assert asked == ["api.test"] * 2
