"""Which addresses storage may be at: a server that names the addresses of others' machines is not followed.

Read and write URLs come from the API. One that leads to this machine, to its own network or to a cloud's
metadata service would make a mount fetch what its user never meant to show. Checked is the address that is
connected to, not the text of the URL: names may change what they stand for in between.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 addresses that stand for one of IPv4 behind a translator (RFC 6052)
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
# how long it is known which addresses the API has
_RESOLVED_S = 60.0


class AddressGuard:
    """Says whether storage may be at an address; any thread may ask.

    Public addresses are allowed, and those within `networks`. Loopback and private addresses are also allowed
    where the API itself is at one.
    """

    def __init__(
        self,
        server: str,
        networks: Iterable[Network] = (),
        *,
        resolve: Callable[[str], list[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api_host = urlsplit(server).hostname or ""
        self._networks = tuple(networks)
        self._resolve = resolve or _resolved
        self._clock = clock
        self._api_is_near = False
        self._asked_at = float("-inf")

    def is_api(self, host: str) -> bool:
        """Whether this host is that of the API, which the user named."""
        return host.strip("[]").lower() == self._api_host

    def allows(self, address: str) -> bool:
        """Whether storage may be at an address, given as text."""
        try:
            found = _plain(ipaddress.ip_address(address.partition("%")[0]))
        except ValueError:
            return False
        if any(found in network for network in self._networks if network.version == found.version):
            return True
        if found.is_multicast or found.is_unspecified or found.is_link_local:
            return False
        return found.is_global or ((found.is_loopback or found.is_private) and self._api_near())

    def allows_host(self, host: str) -> bool:
        """Whether the host of a URL may be asked through a proxy, which alone knows where a name leads."""
        try:
            ipaddress.ip_address(host.strip("[]").partition("%")[0])
        except ValueError:
            return True
        return self.allows(host.strip("[]"))

    def _api_near(self) -> bool:
        """Whether the API is at a loopback or private address."""
        if self._clock() - self._asked_at >= _RESOLVED_S:
            texts = [text.partition("%")[0] for text in self._resolve(self._api_host)]
            found = [_plain(ipaddress.ip_address(text)) for text in texts]
            self._api_is_near = any(one.is_loopback or one.is_private for one in found)
            self._asked_at = self._clock()
        return self._api_is_near


def _plain(address: Address) -> Address:
    """The address that is reached, where another form of one stands for it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _TRANSLATED:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _resolved(host: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []
