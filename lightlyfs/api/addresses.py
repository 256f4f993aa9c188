"""Where requests may go: the addresses that storage may be at, the proxy of a URL, the authorities to trust.

Read and write URLs come from the API. One that leads to this machine, to its own network or to the metadata
service of a cloud would make a mount fetch what its user never meant to show. `AddressGuard` checks the
address that is connected to, not the text of the URL, because a name may resolve differently a moment later.

`Proxies` holds what the environment said at start; it decides without I/O. Certificate authorities are those
of the environment, else the system's, else certifi's.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import string
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urlsplit

import certifi

from lightlyfs.errors import SettingsError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 addresses that stand for one of IPv4 behind a translator (RFC 6052)
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
# how long the resolved addresses of the API are kept
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
        """Return whether this host is that of the API, which the user named."""
        return host.strip("[]").lower() == self._api_host

    def allows(self, address: str) -> bool:
        """Return whether storage may be at an address, given as text."""
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
        """Return whether a URL's host may be asked through a proxy, which alone resolves names."""
        try:
            ipaddress.ip_address(host.strip("[]").partition("%")[0])
        except ValueError:
            return True
        return self.allows(host.strip("[]"))

    def _api_near(self) -> bool:
        """Return whether the API is at a loopback or private address."""
        if self._clock() - self._asked_at >= _RESOLVED_S:
            texts = [text.partition("%")[0] for text in self._resolve(self._api_host)]
            found = [_plain(ipaddress.ip_address(text)) for text in texts]
            self._api_is_near = any(one.is_loopback or one.is_private for one in found)
            self._asked_at = self._clock()
        return self._api_is_near


def _plain(address: Address) -> Address:
    """Return the address that is reached, where another form of one stands for it."""
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


# which proxy a URL goes through


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

        An empty variable counts as unset. A proxy without a scheme is taken as `http://`. A password may
        hold any character; only `%` has to be written `%25`.
        """

        def value(name: str) -> str:
            return (environ.get(name) or environ.get(name.upper()) or "").strip()

        def proxy(name: str) -> str | None:
            url = value(name) or value("all_proxy")
            return _as_url(url) if url else None

        entries = value("no_proxy").replace(",", " ").split()
        return cls(proxy("http_proxy"), proxy("https_proxy"), tuple(entries))

    def for_url(self, url: str) -> str | None:
        """Return the proxy for `url`, or None when it is reached directly."""
        if self.http is None and self.https is None:
            return None
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


def _as_url(proxy: str) -> str:
    """Return a proxy as a URL in ASCII; its user name and password may be given as they are typed."""
    scheme, _, rest = proxy.partition("://") if "://" in proxy else ("http", "", proxy)
    user, at, host = rest.rpartition("@")
    # what would end a password, or hide from the redaction of errors that it is one, is encoded
    user = quote(user.encode("utf-8", "surrogateescape"), safe="%:!$&()*+,;=")
    return f"{scheme}://{user}{at}" + quote(host.encode("utf-8", "surrogateescape"), safe=string.punctuation)


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = _parsed_address(host)
    if address is not None and "/" in entry:
        try:
            return address in ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)
        except ValueError:
            return False
    name, entry_port = _split_port(entry)
    if entry_port is not None and entry_port != port:
        return False
    if address is not None:
        return address == _parsed_address(name)
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _parsed_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
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


# the first one that is set counts, as in requests and curl; each names a file or a directory
_VARIABLES = (("REQUESTS_CA_BUNDLE",), ("CURL_CA_BUNDLE",), ("SSL_CERT_FILE", "SSL_CERT_DIR"))
# where distributions keep theirs: Debian and Alpine, Red Hat (old and new), SUSE, BSD and macOS
SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_BEGIN = b"-----BEGIN CERTIFICATE-----"
# a certificate takes some 2 KB; what is larger in a directory of them is none
_MAX_FILE_BYTES = 4 << 20


@dataclass(frozen=True)
class Trust:
    """A PEM file of authorities, and where they come from, for people."""

    bundle: str
    origin: str


def trust_of(environ: Mapping[str, str], ca_certs: Path | None) -> Trust:
    """Return the authorities to trust; SettingsError names the variable whose file has none."""
    sources = [*_sources(environ), *([] if ca_certs is None else [("--ca-certs", ca_certs)])]
    origin = " and ".join(f"{name} ({path})" for name, path in sources)
    # unlike `Path.is_file`, which raises below a directory that this user may not search
    if len(sources) == 1 and os.path.isfile(sources[0][1]):
        return Trust(str(sources[0][1]), origin)
    return Trust(_put_together(tuple(sources)), origin)


# what TLS libraries say of a certificate that no option mends, and what does: OpenSSL, Python, GnuTLS
_WAYS_OUT = (
    (re.compile("not yet valid|not activated"), "check the clock of this machine"),
    (
        re.compile("has expired|expiration date has passed"),
        "who runs the server has to renew it, unless the clock of this machine is wrong",
    ),
    (
        re.compile("subject name|does not match|mismatch", re.IGNORECASE),
        "it is for another host: the address is wrong, or a network's sign-in page answers",
    ),
)


def untrusted_text(issuer: str, reason: str) -> str:
    """Return the way out of a certificate that was refused, for an error; `issuer` is "" if unknown."""
    fitting = (way_out for said, way_out in _WAYS_OUT if said.search(reason))
    way_out = next(fitting, "trust it with --ca-certs FILE or LIGHTLY_CA_CERTS")
    return f"issued by {issuer}; {way_out}" if issuer else way_out


def _sources(environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    for names in _VARIABLES:
        given = [(name, path) for name in names for path in _paths(name, environ.get(name, ""))]
        if given:
            return given
    system = next((path for path in map(Path, SYSTEM_BUNDLES) if os.path.isfile(path)), None)
    return [("certifi", Path(certifi.where()))] if system is None else [("the system's", system)]


def _paths(name: str, text: str) -> list[Path]:
    # OpenSSL takes a list of directories, and passes over those that are not there
    if name == "SSL_CERT_DIR":
        return [Path(one) for one in text.split(os.pathsep) if os.path.isdir(one)]
    return [Path(text)] if text else []


@lru_cache(maxsize=8)
def _put_together(sources: tuple[tuple[str, Path], ...]) -> str:
    """Return the path of one file with the certificates of several; it lasts as long as this process."""
    pem = b"".join(dict.fromkeys(text for name, path in sources for text in _read(name, path)))
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("lightlyfs-authorities", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{descriptor}"
    else:
        descriptor, path = tempfile.mkstemp(prefix="lightlyfs-authorities-", suffix=".pem")
    while pem:
        pem = pem[os.write(descriptor, pem) :]
    return path


def _read(name: str, path: Path) -> Iterator[bytes]:
    """Yield the files with certificates at a path."""
    found = False
    try:
        path.stat()
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file() and file.stat().st_size <= _MAX_FILE_BYTES:
                text = file.read_bytes()
                if _BEGIN in text:
                    found = True
                    yield text.rstrip() + b"\n"
    except OSError as error:
        raise SettingsError(f"{name} is {path}, which cannot be read: {error.strerror}") from None
    if not found:
        raise SettingsError(f"{name} is {path}, which holds no certificate in PEM form")
