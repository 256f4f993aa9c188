"""The `pycurl` form of the transport, a tenth of the CPU of `requests` per GET; only importer of `pycurl`."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import certifi
import pycurl

from lightlyfs import errors
from lightlyfs.api import network
from lightlyfs.api.addresses import AddressGuard, untrusted_text
from lightlyfs.api.contract import (
    BodyFile,
    BodyMemory,
    BodyReader,
    BodySink,
    Request,
    Response,
    TransportConfig,
    body_length,
    refused_address,
    wire_headers,
    wire_target,
    wire_url,
)
from lightlyfs.api.network import guard
from lightlyfs.api.redaction import redact
from lightlyfs.api.watch import Silent, Slots, Watch
from lightlyfs.forks import FORK_GATE

# Connections one handle keeps: the API, a bucket or two, a proxy.
_KEPT_PER_HANDLE = 5
# A usual image in one callback: each one takes the interpreter lock.
BUFFER_BYTES = 128 * 1024
# libcurl's own for uploads, and one that takes a usual image whole: a quarter of the CPU of its PUT
_SMALL_UPLOAD_BYTES, _UPLOAD_BUFFER_BYTES = 64 * 1024, 256 * 1024
_SEEK_OK, _SEEK_FAIL = 0, 1
# the extra time that a failed request takes for its error to name who issued the certificate
_ISSUER_WAIT_MS = 3_000
# How OpenSSL words a peer that goes away: libcurl has no code for it.
_CUT = re.compile("eof|reset|syscall", re.IGNORECASE)

_TLS = (
    pycurl.E_SSL_CONNECT_ERROR,
    pycurl.E_PEER_FAILED_VERIFICATION,
    pycurl.E_SSL_CACERT,
    pycurl.E_SSL_CERTPROBLEM,
    pycurl.E_SSL_CIPHER,
    pycurl.E_SSL_CACERT_BADFILE,
    pycurl.E_SSL_ISSUER_ERROR,
    pycurl.E_SSL_INVALIDCERTSTATUS,
    pycurl.E_SSL_PINNEDPUBKEYNOTMATCH,
    pycurl.E_SSL_CRL_BADFILE,
    pycurl.E_SSL_ENGINE_NOTFOUND,
    pycurl.E_SSL_ENGINE_SETFAILED,
    pycurl.E_SSL_ENGINE_INITFAILED,
    pycurl.E_USE_SSL_FAILED,
)
# No connection, or it broke, or what came was not HTTP; a body that had begun is then short.
_BROKEN = (
    pycurl.E_UNSUPPORTED_PROTOCOL,
    pycurl.E_FAILED_INIT,
    pycurl.E_COULDNT_RESOLVE_PROXY,
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_FTP_WEIRD_SERVER_REPLY,  # the old name of "weird server reply", HTTP too
    pycurl.E_HTTP2,
    pycurl.E_HTTP_POST_ERROR,
    pycurl.E_HTTP_RANGE_ERROR,
    pycurl.E_HTTP_RETURNED_ERROR,
    pycurl.E_INTERFACE_FAILED,
    pycurl.E_OUT_OF_MEMORY,
    pycurl.E_GOT_NOTHING,
    pycurl.E_SEND_ERROR,
    pycurl.E_RECV_ERROR,
    pycurl.E_READ_ERROR,
    pycurl.E_WRITE_ERROR,
    pycurl.E_SEND_FAIL_REWIND,
    pycurl.E_ABORTED_BY_CALLBACK,
    pycurl.E_AGAIN,
    pycurl.E_LOGIN_DENIED,
    pycurl.E_SSL_SHUTDOWN_FAILED,
    pycurl.E_NO_CONNECTION_AVAILABLE,
    pycurl.E_TOO_MANY_REDIRECTS,
    pycurl.E_UPLOAD_FAILED,
    pycurl.E_BAD_FUNCTION_ARGUMENT,
    pycurl.E_UNKNOWN_OPTION,
    pycurl.E_NOT_BUILT_IN,
)
# A code that is missing here is of another protocol, and then `errors.Unreachable`.
FAILURES: Mapping[int, type[errors.RequestError]] = {
    **dict.fromkeys(_TLS, errors.TlsFailed),
    **dict.fromkeys(_BROKEN, errors.Unreachable),
    pycurl.E_URL_MALFORMAT: errors.UnsafeUrl,
    pycurl.E_PARTIAL_FILE: errors.ShortBody,
    pycurl.E_BAD_CONTENT_ENCODING: errors.ShortBody,
    pycurl.E_CHUNK_FAILED: errors.ShortBody,
    pycurl.E_OPERATION_TIMEDOUT: errors.TimedOut,
    pycurl.E_FILESIZE_EXCEEDED: errors.TooLarge,
}


class CurlTransport:
    """Sends over libcurl; see `contract.Transport`.

    Any number of threads may send; up to `config.connections` requests are under way at once. A handle
    is used by one thread at a time and the handle used last goes first, so that few connections
    stay warm however many threads there are. A PUT, too, goes out again by itself when its kept
    connection turns out closed; a POST does not, for its body is not given a second time.
    """

    def __init__(self, config: TransportConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._ca_bundle = config.ca_bundle or certifi.where()
        self._slots = Slots(config.connections)
        self._closed = threading.Event()
        # each with the generation of its connections
        self._idle: deque[tuple[int, pycurl.Curl]] = deque()

    def send(self, request: Request) -> Response:
        """Send `request` and return the answer; the contract is `contract.Transport.send`."""
        url = wire_url(request.url)
        headers = wire_headers(request, self._config.user_agent)
        watch = Watch(request, self._clock, self._closed, self._config.network)
        watch.check()
        with self._slots.taken(watch):
            try:
                try:
                    return self._exchange(request, watch, url, headers)
                except Silent:
                    watch.go_on()
                    return self._exchange(request, watch, url, headers)
            finally:
                watch.end()

    def _exchange(self, request: Request, watch: Watch, url: str, headers: Mapping[str, str]) -> Response:
        curl = self._take(watch.generation)
        exchange = _Exchange(request, watch, self._config.memory)
        try:
            exchange.prepare(curl, url, headers)
            self._route(curl, url, exchange)
            exchange.perform(curl)
            return exchange.sink.response()
        except errors.TlsFailed as error:
            if exchange.untrusted:
                raise self._named(error, url) from error
            raise
        finally:
            exchange.close()
            # Drops the callbacks, and with them the exchange; connections stay open.
            curl.reset()
            self._keep(watch.generation, curl)

    def _take(self, generation: int) -> pycurl.Curl:
        """A handle without connections of an earlier generation."""
        while True:
            try:
                made, curl = self._idle.pop()
            except IndexError:
                return pycurl.Curl()
            if made == generation:
                return curl
            with FORK_GATE:
                curl.close()

    def __repr__(self) -> str:
        slots = self._slots
        return f"CurlTransport(active={slots.active}, waiting={slots.waiting}, idle={len(self._idle)})"

    def _route(self, curl: pycurl.Curl, url: str, exchange: _Exchange) -> None:
        curl.setopt(pycurl.CAINFO, self._ca_bundle)
        curl.setopt(pycurl.MAXCONNECTS, _KEPT_PER_HANDLE)
        curl.setopt(pycurl.MAXLIFETIME_CONN, network.LIFETIME_S)
        proxy = self._config.proxies.for_url(url)
        # libcurl normalises the path of the URL (%2b becomes %2B), which breaks signatures.
        curl.setopt(pycurl.REQUEST_TARGET, wire_target(url, proxy))
        # Empty values keep libcurl from reading the environment on its own.
        curl.setopt(pycurl.PROXY, proxy or "")
        curl.setopt(pycurl.NOPROXY, "")
        guard = self._config.guard
        if guard is not None:
            host = urlsplit(url).hostname or ""
            if not proxy:
                exchange.guarded_by(curl, guard, host)
            elif not guard.allows_host(host):
                raise refused_address(host, host)
        if proxy:
            curl.setopt(pycurl.PROXY_CAINFO, self._ca_bundle)
            exchange.tunnelled = url[:5].lower() == "https"

    def _named(self, error: errors.TlsFailed, url: str) -> errors.TlsFailed:
        """The error with the name of who issued the certificate, which libcurl does not tell."""
        way_out = untrusted_text(self._issuer(url), str(error))
        return errors.TlsFailed(f"{error} ({way_out})", request_sent=False)

    def _issuer(self, url: str) -> str:
        """Who issued the certificate at an address; asks with a handshake alone, "" where that fails."""
        probe = pycurl.Curl()
        try:
            probe.setopt(pycurl.URL, url)
            probe.setopt(pycurl.CONNECT_ONLY, 1)
            probe.setopt(pycurl.NOSIGNAL, 1)
            probe.setopt(pycurl.SSL_VERIFYPEER, 0)
            probe.setopt(pycurl.SSL_VERIFYHOST, 0)
            probe.setopt(pycurl.OPT_CERTINFO, 1)
            probe.setopt(pycurl.TIMEOUT_MS, _ISSUER_WAIT_MS)
            probe.setopt(pycurl.PROXY, self._config.proxies.for_url(url) or "")
            probe.setopt(pycurl.NOPROXY, "")
            with FORK_GATE:
                probe.perform()
            for certificate in probe.getinfo(pycurl.INFO_CERTINFO):
                return str(dict(certificate).get("Issuer", ""))
        except pycurl.error:
            pass
        finally:
            probe.close()
        return ""

    def _keep(self, generation: int, curl: pycurl.Curl) -> None:
        self._idle.append((generation, curl))
        if self._config.idle is not None and len(self._idle) > self._config.idle:
            self._close_one()  # the one that was used last longest ago
        if self._closed.is_set():
            self.close()

    def close(self) -> None:
        """End transfers under way with `errors.Cancelled` and close all connections; idempotent."""
        self._closed.set()
        while self._close_one():
            pass

    def _close_one(self) -> bool:
        """Close the connections of the idle handle that was not used for longest; whether there was one."""
        try:
            _, curl = self._idle.popleft()
        except IndexError:
            return False
        with FORK_GATE:
            curl.close()
        return True


def set_common_options(curl: pycurl.Curl) -> None:
    """Set what every request of ours has: HTTP/1.1, the path as it is, no redirects, no signals."""
    setopt = curl.setopt
    setopt(pycurl.PATH_AS_IS, 1)
    setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    setopt(pycurl.HTTP09_ALLOWED, 0)
    setopt(pycurl.NOSIGNAL, 1)
    setopt(pycurl.BUFFERSIZE, BUFFER_BYTES)
    setopt(pycurl.FOLLOWLOCATION, 0)


class _Exchange:
    """One request and its answer: the callbacks of libcurl, none of which may raise."""

    def __init__(self, request: Request, watch: Watch, memory: BodyMemory) -> None:
        self.sink = BodySink(request, memory)
        self.tunnelled = False
        self._request = request
        self._watch = watch
        self._status = 0
        self._headers: dict[str, str] = {}
        self._moved = (0, 0)
        self._failure: BaseException | None = None
        self._refusal: errors.PrivateAddress | None = None
        self._ended = False
        self.untrusted = False  # the certificate, that is
        self._speaks_tls = request.url[:6].lower() == "https:"
        # from the connection on OpenSSL takes locks that a forked child would never see free again
        self._in_handshake = False
        self._reader: BodyReader | None = None
        # libcurl itself repeats any request that found a kept connection closed; a create must not be
        self._may_repeat = request.method != "POST"

    def prepare(self, curl: pycurl.Curl, url: str, headers: Mapping[str, str]) -> None:
        request, setopt = self._request, curl.setopt
        setopt(pycurl.URL, url)
        set_common_options(curl)
        if request.fresh:
            setopt(pycurl.FRESH_CONNECT, 1)
        setopt(pycurl.CONNECTTIMEOUT_MS, milliseconds(request.timeouts.connect_s))
        setopt(pycurl.TIMEOUT_MS, milliseconds(request.timeouts.total_s))
        # libcurl sends Content-Length itself, from the size of the upload.
        lines = [f"{name}: {value}" if value else f"{name};" for name, value in headers.items()]
        setopt(pycurl.HTTPHEADER, [*(line for line in lines if line[:15] != "Content-Length:"), "Expect:"])
        setopt(pycurl.HEADERFUNCTION, self._on_header)
        setopt(pycurl.WRITEFUNCTION, self._on_body)
        setopt(pycurl.NOPROGRESS, 0)
        setopt(pycurl.XFERINFOFUNCTION, self._on_progress)
        self._watch.on_connection(kept=True)
        setopt(pycurl.SOCKOPTFUNCTION, self._on_socket)
        if request.method == "HEAD":
            setopt(pycurl.NOBODY, 1)
        elif request.method != "GET" or request.body is not None:
            self._prepare_upload(curl)

    def guarded_by(self, curl: pycurl.Curl, guard: AddressGuard, host: str) -> None:
        """Connect to no address of a host that a guard does not allow."""

        def opens(_purpose: int, address: Any) -> Any:
            family, kind, protocol, (text, *_) = address
            try:
                if guard.is_api(host) or guard.allows(str(text)):
                    return socket.socket(family, kind, protocol)
                self._refusal = refused_address(host, str(text))
            except Exception as exc:
                self._failure = exc
            return pycurl.SOCKET_BAD

        curl.setopt(pycurl.OPENSOCKETFUNCTION, opens)

    def _prepare_upload(self, curl: pycurl.Curl) -> None:
        length = body_length(self._request)
        if length is not None:
            body = self._request.body
            self._reader = body.open() if isinstance(body, BodyFile) else None
            self._data = memoryview(body) if isinstance(body, bytes) else memoryview(b"")
            self._position = 0
            curl.setopt(pycurl.UPLOAD, 1)
            curl.setopt(pycurl.INFILESIZE_LARGE, length)
            if length > _SMALL_UPLOAD_BYTES:
                curl.setopt(pycurl.UPLOAD_BUFFERSIZE, _UPLOAD_BUFFER_BYTES)
            curl.setopt(pycurl.READFUNCTION, self._on_read)
            curl.setopt(pycurl.SEEKFUNCTION, self._on_seek)
        curl.setopt(pycurl.CUSTOMREQUEST, self._request.method)
        # nothing to refuse to give again
        if not self._may_repeat and not length:
            curl.setopt(pycurl.FRESH_CONNECT, 1)

    def perform(self, curl: pycurl.Curl) -> None:
        try:
            curl.perform()
        except pycurl.error as exc:
            if self._failure is not None:
                if isinstance(self._failure, errors.RequestError):
                    self._failure.request_sent = curl.getinfo(pycurl.REQUEST_SIZE) > 0
                raise self._failure from exc
            if self._ended:
                return
            if self._refusal is not None and not self.sink.started:
                raise self._refusal from exc
            raise self._translated(exc, curl) from exc
        if not self.sink.started:
            self._start()

    def close(self) -> None:
        self.sink.close()
        self._end_handshake()
        if self._reader is not None:
            self._reader.close()

    def _translated(self, exc: pycurl.error, curl: pycurl.Curl) -> errors.RequestError:
        code, text = int(exc.args[0]), str(exc.args[1] if len(exc.args) > 1 else "")
        failure = FAILURES.get(code, errors.Unreachable)
        self.untrusted = code in (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT)
        if code == pycurl.E_SSL_CONNECT_ERROR and _CUT.search(text):
            failure = errors.Unreachable  # cut in the handshake: the peer did not refuse
        if self.sink.started and failure is errors.Unreachable:
            failure = errors.ShortBody
        sent = curl.getinfo(pycurl.REQUEST_SIZE) > 0
        return failure(f"{self._watch.where()}: {redact(text) or f'libcurl error {code}'}", request_sent=sent)

    def _start(self) -> bool:
        return self.sink.start(self._status, self._headers)

    def _on_socket(self, descriptor: int, _purpose: int) -> int:
        guard(descriptor)
        self._watch.on_connection(kept=False)
        if self._speaks_tls and not self._in_handshake:
            self._in_handshake = True
            FORK_GATE.__enter__()
        return int(pycurl.SOCKOPT_OK)

    def _end_handshake(self) -> None:
        if self._in_handshake:
            self._in_handshake = False
            FORK_GATE.__exit__()

    def _on_header(self, line: bytes) -> int:
        self._watch.progress()
        if self.sink.started:
            return len(line)  # a trailer of a chunked body
        text = line.decode("latin-1").rstrip("\r\n")
        if text[:5] == "HTTP/":
            self._end_handshake()  # what comes with the first answer belongs to it
            self._watch.answered()
            self._headers = {}
            self._status = int(text.split(None, 2)[1])
        elif text:
            name, _, value = text.partition(":")
            name, value = name.strip().lower(), value.strip()
            known = self._headers.get(name)
            self._headers[name] = value if known is None else f"{known}, {value}"
        elif self._status >= 200 and not self.tunnelled and not self._start():
            self._ended = True
            return -1
        return len(line)

    def _on_body(self, chunk: bytes) -> int | None:
        if (self.sink.started or self._start()) and self.sink.write(chunk):
            return None
        self._ended = True
        return -1

    def _on_progress(self, _down_total: int, down: int, _up_total: int, up: int) -> int:
        if (down, up) != self._moved:
            self._moved = (down, up)
            self._watch.progress()
        try:
            self._failure = self._watch.failure_now_and_then()
        except BaseException as exc:
            self._failure = exc  # the caller's `cancelled`, or Ctrl-C: it arrives in a callback
        return 0 if self._failure is None else 1

    def _on_read(self, size: int) -> bytes | int:
        if self._reader is None:
            chunk = bytes(self._data[self._position : self._position + size])
            self._position += len(chunk)
            return chunk
        try:
            return self._reader.read(size)
        except Exception as exc:
            self._failure = exc
            return int(pycurl.READFUNC_ABORT)

    def _on_seek(self, offset: int, origin: int) -> int:
        if origin != 0 or not self._may_repeat:
            return _SEEK_FAIL
        if self._reader is not None:
            self._reader.seek(offset)
        self._position = offset
        return _SEEK_OK


def version() -> str:
    """Return the versions of libcurl and its TLS library, for people."""
    return " ".join(pycurl.version.split()[:3])


def milliseconds(seconds: float) -> int:
    # Zero would mean "no limit" to libcurl.
    return max(1, int(seconds * 1000))
