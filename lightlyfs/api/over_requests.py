"""The transport over `requests`, and the only importer of it.

`requests` is used below its session's `send`: the adapter alone, so that no cookie, redirect, netrc or
environment variable can act. Its connections are our own: they send the target byte for byte, and ask the
watch of the send whenever they wait.

`http.client` reads through a buffered file that is unusable after a time-out, so a short socket time-out
cannot interrupt a wait. `WatchedSocket` ends the time-out below that file.
"""

from __future__ import annotations

import base64
import io
import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from lightlyfs import errors
from lightlyfs.api import network
from lightlyfs.api.addresses import AddressGuard, untrusted_text
from lightlyfs.api.contract import (
    BodyFile,
    BodySink,
    Request,
    Response,
    TransportConfig,
    refused_address,
    wire_headers,
    wire_target,
    wire_url,
)
from lightlyfs.api.network import guard
from lightlyfs.api.redaction import Redacting, redact
from lightlyfs.api.watch import SLICE_S, Silent, Slots, Watch
from lightlyfs.forks import FORK_GATE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

# How much of an upload goes into one send: progress is noted between two of them.
_SEND_BYTES = 256 * 1024
_CHUNK_BYTES = 64 * 1024
# Pools kept, one per host: the API, a few buckets, proxies.
_HOSTS = 16

_REQUESTS = requests.exceptions
_URLLIB3 = urllib3.exceptions
# Looked up along the method resolution order: a class that is missing has the row of its parent.
FAILURES: Mapping[type[BaseException], type[errors.RequestError]] = {
    _REQUESTS.SSLError: errors.TlsFailed,
    _REQUESTS.ConnectTimeout: errors.TimedOut,
    _REQUESTS.Timeout: errors.TimedOut,
    _REQUESTS.ChunkedEncodingError: errors.ShortBody,
    _REQUESTS.ContentDecodingError: errors.ShortBody,
    _REQUESTS.URLRequired: errors.UnsafeUrl,
    _REQUESTS.InvalidURL: errors.UnsafeUrl,
    _REQUESTS.MissingSchema: errors.UnsafeUrl,
    _REQUESTS.InvalidSchema: errors.UnsafeUrl,
    _REQUESTS.InvalidHeader: errors.BadRequest,
    _REQUESTS.ConnectionError: errors.Unreachable,
    _REQUESTS.RequestException: errors.Unreachable,
    _URLLIB3.SSLError: errors.TlsFailed,
    _URLLIB3.IncompleteRead: errors.ShortBody,
    _URLLIB3.InvalidChunkLength: errors.ShortBody,
    _URLLIB3.DecodeError: errors.ShortBody,
    _URLLIB3.TimeoutError: errors.TimedOut,
    _URLLIB3.NewConnectionError: errors.Unreachable,
    _URLLIB3.LocationValueError: errors.UnsafeUrl,
    _URLLIB3.InvalidHeader: errors.BadRequest,
    _URLLIB3.HTTPError: errors.Unreachable,
    # Nothing else comes unwrapped: requests raises it for a CA bundle that is not there.
    OSError: errors.TlsFailed,
    ConnectionError: errors.Unreachable,
    ValueError: errors.Unreachable,
}


def failure_class(kind: type[BaseException]) -> type[errors.RequestError]:
    """Return the class of our tree for an exception of `requests` or urllib3."""
    return next((FAILURES[cls] for cls in kind.__mro__ if cls in FAILURES), errors.Unreachable)


# they log targets at DEBUG, and addresses with every failure; a filter is not inherited by loggers below
for _name in ("connectionpool", "connection", "poolmanager", "response", "util.retry"):
    logging.getLogger(f"urllib3.{_name}").addFilter(Redacting())
for _name in ("requests", "asyncio"):
    logging.getLogger(_name).addFilter(Redacting())


class WatchedSocket:
    """Wraps a connected socket (TLS or not); used by one thread at a time.

    `watch` is that of the request under way and is set before each request.
    """

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        self._sock = sock
        self.watch = watch
        sock.settimeout(SLICE_S)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def settimeout(self, timeout_s: float | None) -> None:
        """Do nothing: the limits are those of `watch`."""

    def sendall(self, data: ReadableBuffer) -> None:
        """Send all of `data`, asking the watch whenever the peer takes none for a while."""
        view = memoryview(data).cast("B")
        while view:
            try:
                sent = self._sock.send(view[:_SEND_BYTES])
            except TimeoutError:
                self.watch.check()
                continue
            except ssl.SSLError as exc:
                raise _broken(exc) from exc
            view = view[sent:]
            self.watch.progress()
            self.watch.check()

    def recv_into(self, buffer: WriteableBuffer) -> int:
        """Receive into `buffer`, 0 at the end; asks the watch while nothing comes and after each chunk."""
        while True:
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                self.watch.check()
                continue
            except ssl.SSLError as exc:
                raise _broken(exc) from exc
            self.watch.check()
            self.watch.progress()
            self.watch.answered()
            return count

    def makefile(self, *_args: Any, **_kwargs: Any) -> io.BufferedReader:
        """Return the buffered reader `http.client` parses from."""
        # The inner file keeps the socket open until it is closed, as `http.client` expects.
        return io.BufferedReader(_WatchedFile(self, self._sock.makefile("rb", buffering=0)), 64 * 1024)


def _broken(exc: ssl.SSLError) -> ConnectionResetError:
    # The handshake is over: this is a connection that broke, not a server that is not trusted.
    return ConnectionResetError(f"the TLS connection broke: {exc.reason or exc}")


class _WatchedFile(io.RawIOBase):
    def __init__(self, sock: WatchedSocket, inner: io.RawIOBase) -> None:
        self._watched = sock
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._watched.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


class _Call(threading.local):
    """The send under way in this thread; neither library can hand it down to its connections."""

    watch: Watch | None = None
    target: str = ""
    guard: AddressGuard | None = None  # where the host itself is connected to, and not a proxy


_CALL = _Call()


def _request_on(conn: Any, base: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    watch = _CALL.watch
    assert watch is not None
    if conn.sock is None:
        conn.connect()
        if _CALL.guard is not None and not _CALL.guard.is_api(conn.host):
            address = str(conn.sock.getpeername()[0])  # type: ignore[attr-defined]
            if not _CALL.guard.allows(address):
                conn.close()
                raise refused_address(conn.host, address)
    watch.on_connection(kept=conn.is_kept)
    conn.is_kept = True
    if isinstance(conn.sock, WatchedSocket):
        conn.sock.watch = watch
    else:
        conn.sock = WatchedSocket(conn.sock, watch)
    watch.progress()
    watch.sent = True
    # urllib3 normalises the target it was given (%2b becomes %2B), which breaks signatures.
    base.request(conn, method, _CALL.target, *args, **kwargs)


class _Aging:
    """A connection that knows its age; the part of both kinds that the two have in common."""

    made_at = 0.0
    is_kept = False

    def note_made(self, sock: Any) -> None:
        self.made_at, self.is_kept = time.monotonic(), False
        guard(sock.fileno())

    @property
    def is_old(self) -> bool:
        return time.monotonic() - self.made_at >= network.LIFETIME_S


class _Connection(_Aging, HTTPConnection):
    def connect(self) -> None:
        super().connect()
        self.note_made(self.sock)

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        _request_on(self, HTTPConnection, method, args, kwargs)


class _TlsConnection(_Aging, HTTPSConnection):
    def connect(self) -> None:
        with FORK_GATE:  # OpenSSL takes locks that a forked child would never see free again
            super().connect()
        self.note_made(self.sock)

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        _request_on(self, HTTPSConnection, method, args, kwargs)


class _Renewing:
    """A pool that closes connections that are old, which then connect again by themselves."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        conn = super()._get_conn(timeout)  # type: ignore[misc]
        if conn.sock is not None and conn.is_old:
            conn.close()
        return conn


class _Pool(_Renewing, HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(_Renewing, HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _Pool, "https": _TlsPool}


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        given, at, _ = urlsplit(proxy).netloc.rpartition("@")
        if not at:
            return {}
        user, _, password = given.partition(":")
        # the bytes that libcurl sends: requests would make Latin-1 of them, or fail
        token = base64.b64encode(unquote_to_bytes(f"{user}:{password}"))
        return {"Proxy-Authorization": f"Basic {token.decode()}"}

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return _CALL.target


class RequestsTransport:
    """Sends over `requests` and its urllib3 pool; see `contract.Transport`.

    Any number of threads may send; up to `config.connections` requests are under way at once. While it
    connects (at most `connect_s` an address) it notices no cancellation, and no limit covers the time
    the system takes to resolve a name.
    """

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self._verify = config.ca_bundle or certifi.where()
        self._slots = Slots(config.connections)
        self._closed = threading.Event()
        self._generation = config.network.generation
        self._adapter = _Adapter(
            pool_connections=_HOSTS, pool_maxsize=config.connections, max_retries=0, pool_block=True
        )

    def send(self, request: Request) -> Response:
        """Send `request` and return the answer; the contract is `contract.Transport.send`."""
        url = wire_url(request.url)
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = url
        prepared.headers = CaseInsensitiveDict(wire_headers(request, self._config.user_agent))
        watch = Watch(request, time.monotonic, self._closed, self._config.network)
        self._drop_outdated(watch.generation)
        watch.check()
        proxy = self._config.proxies.for_url(url)
        with self._slots.taken(watch):
            # An observer may itself send in this thread.
            outer = _CALL.watch, _CALL.target, _CALL.guard
            _CALL.watch, _CALL.target = watch, wire_target(url, proxy)
            _CALL.guard = None if proxy else self._config.guard
            try:
                return self._exchange(request, prepared, watch, proxy)
            finally:
                _CALL.watch, _CALL.target, _CALL.guard = outer
                watch.end()

    def __repr__(self) -> str:
        return f"RequestsTransport(active={self._slots.active}, waiting={self._slots.waiting})"

    def _exchange(
        self, request: Request, prepared: requests.PreparedRequest, watch: Watch, proxy: str | None
    ) -> Response:
        reader = request.body.open() if isinstance(request.body, BodyFile) else None
        prepared.body = reader if reader is not None else request.body  # type: ignore[assignment]
        sink = BodySink(request, self._config.memory)
        try:
            raw = self._headers_of(request, prepared, watch, proxy).raw
            try:
                _read(raw, sink)
            except BaseException:
                raw.close()
                raise
            finally:
                raw.release_conn()
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
        ) as exc:
            raise _translated(exc, watch, sink) from exc
        else:
            return sink.response()
        finally:
            sink.close()
            if reader is not None:
                reader.close()

    def _drop_outdated(self, generation: int) -> None:
        """Close the connections of an earlier generation; those in use are closed after their request."""
        if generation != self._generation:
            self._generation = generation
            for manager in (self._adapter.poolmanager, *self._adapter.proxy_manager.values()):
                manager.clear()

    def _headers_of(
        self, request: Request, prepared: requests.PreparedRequest, watch: Watch, proxy: str | None
    ) -> requests.Response:
        proxies = {"http": proxy, "https": proxy} if proxy else {}
        timeout = (min(request.timeouts.connect_s, request.timeouts.total_s), None)

        def attempt() -> requests.Response:
            return self._adapter.send(
                prepared, stream=True, timeout=timeout, verify=self._verify, cert=None, proxies=proxies
            )

        try:
            return attempt()
        except Silent:
            watch.go_on()
            self._drop_outdated(watch.generation)
            return attempt()
        except requests.exceptions.ConnectionError as exc:
            repeatable = request.method in ("GET", "HEAD") and request.body is None
            if not repeatable or not _was_dropped(exc):
                raise
            return attempt()

    def close(self) -> None:
        """End transfers under way with `errors.Cancelled` and close all connections; idempotent."""
        self._closed.set()
        self._adapter.close()


def _read(raw: Any, sink: BodySink) -> None:
    """Read the body of `raw` into `sink`; leaves the connection reusable only after a complete body."""
    more = sink.start(raw.status, {name.lower(): raw.headers[name] for name in raw.headers})
    while more:
        chunk = raw.read(_CHUNK_BYTES, decode_content=False)
        if not chunk:
            # urllib3 gives a cut body without an error when the cut falls on a read's end.
            if missing := sink.missing():
                raise urllib3.exceptions.ProtocolError(missing)
            return
        more = sink.write(chunk)
    raw.close()


def _chain(exc: BaseException) -> list[BaseException]:
    """Return `exc` and every exception it wraps, the outermost first."""
    found: list[BaseException] = []
    queue: list[object] = [exc]
    while queue:
        item = queue.pop(0)
        if isinstance(item, BaseException) and item not in found:
            found.append(item)
            queue += [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]
    return found


def _was_dropped(exc: BaseException) -> bool:
    """True when the server closed the connection before any byte of an answer."""
    return any(isinstance(item, (ConnectionResetError, BrokenPipeError)) for item in _chain(exc))


def _translated(exc: BaseException, watch: Watch, sink: BodySink) -> errors.RequestError:
    """Return the error of our tree that `exc` stands for."""
    found = _chain(exc)
    for item in found:
        # The libraries put whole addresses into their texts, and a traceback shows the cause.
        item.args = tuple(redact(arg) if isinstance(arg, str) else arg for arg in item.args)
    failure = failure_class(type(exc))
    if any(isinstance(item, ssl.SSLEOFError) for item in found):
        failure = errors.Unreachable  # cut in the handshake: the peer did not refuse
    if failure is errors.Unreachable and sink.started:
        failure = errors.ShortBody
    reason = redact(str(found[-1]) or type(found[-1]).__name__)
    if any(isinstance(item, ssl.SSLCertVerificationError) for item in found):
        reason += f" ({untrusted_text('', reason)})"
    return failure(f"{watch.where()}: {reason}", request_sent=watch.sent)
