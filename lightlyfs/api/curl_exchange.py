"""One GET of the network loop: a libcurl handle with what is set in it, and what came of it.

Used by the loop's thread alone. No Python of ours runs while an answer comes in.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import pycurl

from lightlyfs import errors
from lightlyfs.api import network
from lightlyfs.api.contract import (
    Request,
    Response,
    TransportConfig,
    origin_of,
    refused_address,
    whole_number,
    wire_headers,
    wire_target,
    wire_url,
)
from lightlyfs.api.curl import FAILURES, milliseconds, set_common_options

Done = Callable[[Response | errors.RequestError], None]


class Exchange:
    """One handle, used again for one GET after the other; the connections are the loop's."""

    def __init__(self, config: TransportConfig, ca_bundle: str) -> None:
        self._config = config
        self.curl = curl = pycurl.Curl()
        self.done: Done | None = None
        self.multi: pycurl.CurlMulti
        self.generation = self.answers_before = 0
        # the same request once more, on another connection
        self.twin: Exchange | None = None
        self.is_repeated = False
        self.host = ""
        self._lines: list[bytes] = []
        self._chunks: list[bytes] = []
        # what is set of the last request
        self._headers: Mapping[str, str] | None = None
        self._limits: object = None
        self._refusal: errors.RequestError | None = None
        self._proxy: str | None = ""
        setopt = curl.setopt
        set_common_options(curl)
        setopt(pycurl.CAINFO, ca_bundle)
        setopt(pycurl.PROXY_CAINFO, ca_bundle)
        setopt(pycurl.MAXLIFETIME_CONN, network.LIFETIME_S)
        # an empty value keeps libcurl from reading the environment
        setopt(pycurl.PROXY, "")
        setopt(pycurl.NOPROXY, "")
        # the methods of lists: no Python of ours runs while an answer comes in
        setopt(pycurl.HEADERFUNCTION, self._lines.append)
        setopt(pycurl.WRITEFUNCTION, self._chunks.append)
        setopt(pycurl.SOCKOPTFUNCTION, _guard)
        if config.guard is not None:
            setopt(pycurl.OPENSOCKETFUNCTION, self._opens)

    def prepare(self, request: Request, done: Done, now: float) -> None:
        url = wire_url(request.url)
        proxy = self._config.proxies.for_url(url)
        setopt = self.curl.setopt
        setopt(pycurl.URL, url)
        # libcurl normalises the path of the URL (%2b becomes %2B), which breaks signatures
        setopt(pycurl.REQUEST_TARGET, wire_target(url, proxy))
        if proxy != self._proxy:
            setopt(pycurl.PROXY, proxy or "")
            self._proxy = proxy
        if request.headers != self._headers:
            headers = wire_headers(request, self._config.user_agent)
            setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
            self._headers = request.headers
        limits = request.fresh, request.timeouts, request.max_body_bytes
        if limits != self._limits:
            self._limits = limits
            setopt(pycurl.FRESH_CONNECT, int(request.fresh))
            setopt(pycurl.CONNECTTIMEOUT_MS, milliseconds(request.timeouts.connect_s))
            setopt(pycurl.TIMEOUT_MS, milliseconds(request.timeouts.total_s))
            setopt(pycurl.MAXFILESIZE_LARGE, request.max_body_bytes)
        _, self.host, self._name = origin_of(url)
        guard = self._config.guard
        if guard is not None and proxy and not guard.allows_host(self._name):
            raise refused_address(self._name, self._name)
        self.done = done
        self.request = request
        self.since = self.moved_at = now
        self._seen = 0

    def clear(self) -> None:
        """Let go of the answer."""
        self._lines.clear()
        self._chunks.clear()
        self.done = self.twin = self._refusal = None
        self.is_repeated = False

    @property
    def is_coming(self) -> bool:
        """Whether the answer has begun."""
        return bool(self._lines)

    @property
    def is_doubtful(self) -> bool:
        """Whether it was sent on a connection that was used before, and nothing has come."""
        return not self._lines and self.is_on_kept

    @property
    def is_on_kept(self) -> bool:
        """Whether it was sent on a connection that was used before."""
        curl = self.curl
        return not curl.getinfo(pycurl.NUM_CONNECTS) and bool(curl.getinfo(pycurl.PRETRANSFER_TIME))

    def late(self, now: float, ways: network.Network) -> errors.RequestError | None:
        """Return why this GET is to be given up, None while it may go on."""
        seen = len(self._lines) + len(self._chunks)
        if seen != self._seen:
            self._seen, self.moved_at = seen, now
        silent_s = now - self.moved_at
        if silent_s <= ways.silence_s(self.host):
            return None
        return errors.TimedOut(f"no byte for {silent_s:.1f} s from {self.host}", request_sent=True)

    def outcome(self, failure: tuple[int, str] | None) -> Response | errors.RequestError:
        """The answer, or why there is none."""
        if self._refusal is not None:
            return self._refusal
        if failure is not None:
            kind = FAILURES.get(failure[0], errors.Unreachable)
            return kind(f"GET from {self.host}: libcurl error {failure[0]}", request_sent=True)
        status, headers = _parsed(self._lines)
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        if len(body) > self.request.max_body_bytes:
            return errors.TooLarge(f"over {self.request.max_body_bytes} bytes from {self.host}")
        if whole_number(headers.get("content-length", str(len(body)))) != len(body):
            return errors.ShortBody(f"{len(body)} bytes came from {self.host}")
        return Response(status, headers, body)

    def _opens(self, _purpose: int, address: Any) -> Any:
        family, kind, protocol, (text, *_) = address
        guard = self._config.guard
        assert guard is not None
        # behind a proxy the address is the proxy's
        if self._proxy or guard.is_api(self._name) or guard.allows(str(text)):
            return socket.socket(family, kind, protocol)
        self._refusal = refused_address(self._name, str(text))
        return pycurl.SOCKET_BAD


def _guard(descriptor: int, _purpose: int) -> int:
    network.guard(descriptor)
    return int(pycurl.SOCKOPT_OK)


def _parsed(lines: list[bytes]) -> tuple[int, dict[str, str]]:
    """The status and the headers, with lower-case names, of the last answer that begins in these lines."""
    status = 0
    headers: dict[str, str] = {}
    for line in lines:
        name, value = _header(line)
        if not name:
            if line[:5] == b"HTTP/":
                status, headers = int(line.split(None, 2)[1]), {}
        else:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return status, headers


# most headers are the same in one answer after the other
@lru_cache(256)
def _header(line: bytes) -> tuple[str, str]:
    """The name, in lower case, and the value of a header; an empty name for another line."""
    name, colon, value = line.decode("latin-1").partition(":")
    if not colon or line[:5] == b"HTTP/":
        return "", ""
    return name.strip().lower(), value.strip()
