"""Which proxy a URL goes through: pure decisions over what the environment said once, at start."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of one process, and the hosts that are reached without them.

    `http` and `https` are proxy URLs or None, kept out of the repr as they may hold a password;
    `no_proxy` are the entries of NO_PROXY: a host, a domain (with or without a leading dot or `*.`),
    either with a port, an IP address, a network in CIDR form, or `*`.
    """

    http: str | None = field(default=None, repr=False)
    https: str | None = field(default=None, repr=False)
    no_proxy: tuple[str, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Proxies:
        """Read HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, lower case before upper case.

        An empty variable counts as unset. A proxy without a scheme is taken as `http://`.
        """

        def value(name: str) -> str:
            return (environ.get(name) or environ.get(name.upper()) or "").strip()

        def proxy(name: str) -> str | None:
            url = value(name) or value("all_proxy")
            if not url:
                return None
            return url if "://" in url else f"http://{url}"

        entries = value("no_proxy").replace(",", " ").split()
        return cls(proxy("http_proxy"), proxy("https_proxy"), tuple(entries))

    def for_url(self, url: str) -> str | None:
        """Return the proxy for `url`, or None when it is reached directly."""
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        proxy = self.https if scheme == "https" else self.http
        if proxy is None:
            return None
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or (443 if scheme == "https" else 80)
        if any(_matches(entry.lower(), host, port) for entry in self.no_proxy):
            return None
        return proxy


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    if address is not None and "/" in entry:
        try:
            return address in ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)
        except ValueError:
            return False
    name, entry_port = _split_port(entry)
    if entry_port is not None and entry_port != port:
        return False
    if address is not None:
        return address == _address(name)
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _split_port(entry: str) -> tuple[str, int | None]:
    if entry.count(":") > 1 and not entry.startswith("["):
        return entry, None
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit():
        return name, int(port)
    return entry, None
