"""The transport contract: what goes into a send and what comes out, whatever library carries it.

Everything both forms must do alike lives here: the check of a URL, the headers that are always sent,
what becomes of the bytes of a body. Imports no HTTP library.
"""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit

import msgspec

from lightlyfs import errors
from lightlyfs.api.addresses import AddressGuard, Proxies
from lightlyfs.api.network import Network
from lightlyfs.api.redaction import shown_url

MIB = 1 << 20
# The longest error page that is read: enough for any message, small enough never to matter.
ERROR_BODY_BYTES = 64 * 1024
# the API's largest answer
MAX_ANSWER_BYTES = 32 * MIB

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# 9 petabytes have 16 digits; `str.isdigit` also takes what `int` does not
_WHOLE_NUMBER = re.compile("[0-9]{1,16}")
_NEEDS_QUOTING = re.compile(r"[^\x21-\x7e]")
# scheme, host and port; matches any text
_ORIGIN = re.compile(r"(?:[^:/?#]*:)?(?://)?[^/?#]*")
_MAX_ORIGINS = 64


class Timeouts(msgspec.Struct, frozen=True):
    """Limits of one send in seconds: to connect, between two bytes either way, and for all of it.

    The forms notice within one second; resolving a name counts as connecting only in the pycurl form.
    """

    connect_s: float = 5.0  # a TCP and TLS handshake across the world takes well under one
    idle_s: float = 20.0  # longer than a slow first byte from storage, shorter than patience
    total_s: float = 60.0  # the longest any call on the mount may take


class StopTransfer(Exception):
    """Raised by an observer that has all it wants: the transfer ends early, without an error."""


class BodyObserver(Protocol):
    """Takes an answer as it arrives, in the thread that called `send`.

    `headers` is called once, before any body byte, with lower-case keys. `write` gets each chunk of a
    2xx body; the chunk may be a memoryview that is valid only during the call. `StopTransfer` from
    either ends the transfer without error; any other exception ends it and leaves `send`.
    """

    def headers(self, status: int, headers: Mapping[str, str]) -> None:
        """Note the status and the headers of the final answer."""

    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of a 2xx body."""


@dataclass(frozen=True, slots=True)
class BodyFile:
    """A request body on disk: `length` bytes of a path or an open descriptor, from `offset`.

    Each attempt reads it again from `offset` (with pread, so a shared descriptor keeps its position). The
    length is sent as Content-Length, never chunked. Reading raises `errors.ContentError` when the
    file ends early or cannot be read.
    """

    source: str | os.PathLike[str] | int
    length: int
    offset: int = 0

    def open(self) -> BodyReader:
        """Return a fresh reader at the start of the body; the caller closes it."""
        return BodyReader(self)


class BodyReader:
    """Reads one `BodyFile` or bytes body for one attempt; used by one thread."""

    def __init__(self, body: BodyFile) -> None:
        self._body = body
        self._position = 0
        self._owned = not isinstance(body.source, int)
        try:
            self._fd = body.source if isinstance(body.source, int) else os.open(body.source, os.O_RDONLY)
        except OSError as exc:
            raise errors.ContentError(f"the file to send cannot be opened: {exc.strerror}") from exc

    def __len__(self) -> int:
        return self._body.length

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, b"" at the end of the body."""
        left = self._body.length - self._position
        if left <= 0 or size == 0:
            return b""
        wanted = left if size < 0 else min(size, left)
        try:
            data = os.pread(self._fd, wanted, self._body.offset + self._position)
        except OSError as exc:
            raise errors.ContentError(f"the file to send cannot be read: {exc.strerror}") from exc
        if not data:
            raise errors.ContentError(
                f"the file to send ended after {self._position} of {self._body.length} bytes"
            )
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset` within the body; only from its start (`os.SEEK_SET`)."""
        if whence != os.SEEK_SET:
            raise ValueError("a request body is sought from its start only")
        self._position = offset
        return offset

    def tell(self) -> int:
        """Return the position within the body."""
        return self._position

    def close(self) -> None:
        """Close the file if this reader opened it."""
        if self._owned:
            os.close(self._fd)
            self._owned = False


class Request(msgspec.Struct, frozen=True):
    """One HTTP request.

    `url` is sent byte for byte; only blanks and non-ASCII characters, which no request line may hold,
    are percent-encoded, and a fragment is left out. A 2xx body longer than `max_body_bytes` raises
    `errors.TooLarge` unless an observer takes it. `cancelled` is asked at least once a second, from the
    sending thread. A `fresh` one goes over a connection of its own, where the form can do that; one that is
    `slow` may take the server long, so that silence means nothing yet. Its repr shows no query and no header.
    """

    method: str
    url: str
    headers: Mapping[str, str] = _NO_HEADERS
    body: bytes | BodyFile | None = None
    timeouts: Timeouts = Timeouts()
    max_body_bytes: int = 2 * MAX_ANSWER_BYTES
    observer: BodyObserver | None = None
    cancelled: Callable[[], bool] | None = None
    fresh: bool = False
    slow: bool = False

    def __repr__(self) -> str:
        return f"Request({self.method} {shown_url(self.url)})"


class Response(msgspec.Struct, frozen=True):
    """One HTTP answer: any status, lower-case header names, the raw body.

    `body` is empty when an observer took it; the body of a status other than 2xx is kept up to 64 KiB.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    def __repr__(self) -> str:
        # Neither is for eyes: a Location may be signed, and so may what a body says.
        return f"Response({self.status}, {len(self.body)} bytes)"


class Transport(Protocol):
    """Sends requests; any number of threads may share one."""

    def send(self, request: Request) -> Response:
        """Send `request` and return the answer, whatever its status.

        Never follows a redirect, never decodes Content-Encoding, keeps no cookies. Raises only
        `errors.Unreachable`, `TimedOut`, `ShortBody`, `TlsFailed`, `UnsafeUrl`, `TooLarge`, `Cancelled`,
        `BadRequest` (a header that cannot be sent), `ContentError` (a `BodyFile` that cannot be
        read), and what the observer raises. Sends once, except that a GET or
        HEAD on a kept connection which the server has closed meanwhile goes out again on a fresh one.
        """

    def close(self) -> None:
        """End transfers under way with `errors.Cancelled` and close all connections; idempotent."""


class BodyMemory:
    """Counts the memory of all bodies that are coming in, in bytes; any thread may call."""

    def __init__(self, limit: int = 128 * MIB) -> None:
        """Answers of the API take 3 MB, and a few come at once; eight of 64 MiB are no dataset."""
        self.limit = limit
        self._lock = threading.Lock()
        self.taken = 0

    def take(self, size: int) -> bool:
        """Count some bytes; returns whether all together are within the limit."""
        with self._lock:
            self.taken += size
            return self.taken <= self.limit

    def give(self, size: int) -> None:
        """Stop counting some bytes."""
        with self._lock:
            self.taken -= size


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """What all requests of one transport share.

    `connections` bounds the requests under way; further ones wait, within their own total limit. `idle`
    bounds what is kept of them for later, None stands for all; each takes some three descriptors.
    `ca_bundle` is a PEM file, None means certifi's. `network` and `memory` are shared by the transports of a
    process.
    Nothing is read from the environment here: pass
    `Proxies.from_environ(os.environ)`. `guard` says which addresses may be connected to, None stands for all.
    """

    connections: int = 64
    idle: int | None = None
    ca_bundle: str | None = None
    proxies: Proxies = field(default_factory=Proxies)
    network: Network = field(default_factory=Network)
    memory: BodyMemory = field(default_factory=BodyMemory)
    guard: AddressGuard | None = None
    user_agent: str = "lightlyfs/0.1"


class Origin(NamedTuple):
    """What a URL says of the server: `netloc` is its host, and its port if the URL has one."""

    scheme: str
    netloc: str
    host: str


def origin_of(url: str) -> Origin:
    """Return the origin of a URL, or raise `errors.UnsafeUrl` as `wire_url` does."""
    return _origin(_ORIGIN.match(url)[0])  # type: ignore[index]


@lru_cache(_MAX_ORIGINS)
def _origin(url: str) -> Origin:
    """The origin of a URL without a path, as signed ones share it by the thousands."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError as exc:
        raise _unsafe("the address cannot be parsed") from exc
    if scheme not in ("http", "https"):
        raise _unsafe(f"only http and https are followed, not {scheme or 'an address without a scheme'}")
    if not host or port == 0 or _CONTROL.search(url) or "\\" in parts.netloc:
        raise _unsafe("the address has no usable host or holds control characters")
    if "@" in parts.netloc:
        raise _unsafe(f"an address with a user name is not followed: {shown_url(url)}")
    return Origin(scheme, parts.netloc, host)


def wire_url(url: str) -> str:
    """Return `url` as it goes out, or raise `errors.UnsafeUrl`.

    Refused: a scheme other than http and https, no host, a user name, control characters (they would
    split the request line), a port that is none. The fragment is dropped.
    """
    origin_of(url)
    if url.isascii() and url.isprintable() and not (" " in url or "#" in url):
        return url
    if _CONTROL.search(url):
        raise _unsafe("the address holds control characters")
    url = url.partition("#")[0]
    return _NEEDS_QUOTING.sub(lambda match: quote(match[0], errors="surrogatepass"), url)


def put_headers(url: str, s3_sse_kms_key: str) -> dict[str, str]:
    """Return the headers a storage wants with a PUT, by whose URL it is; anything more would be refused.

    Azure wants the kind of blob; S3 is asked for encryption where that is set: `true` for its own keys,
    anything else names a key (as the official client does with LIGHTLY_S3_SSE_KMS_KEY).
    """
    parts = urlsplit(url)
    host, query = parts.hostname or "", parts.query.lower()
    if host.endswith((".windows.net", ".chinacloudapi.cn", ".usgovcloudapi.net")):
        return {"x-ms-blob-type": "BlockBlob"}
    if not s3_sse_kms_key or "x-amz-signature=" not in query:
        return {}
    if s3_sse_kms_key.lower() == "true":
        return {"x-amz-server-side-encryption": "AES256"}
    return {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": s3_sse_kms_key,
    }


def wire_target(url: str, proxy: str | None) -> str:
    """Return the request target: the whole URL for a plain request through a proxy, else from the path on."""
    if proxy and url[:5].lower() == "http:" and not proxy.lower().startswith("socks"):
        return url
    path = url[_ORIGIN.match(url).end() :]  # type: ignore[union-attr]
    return path if path.startswith("/") else f"/{path}"


def _unsafe(text: str) -> errors.UnsafeUrl:
    return errors.UnsafeUrl(text, request_sent=False)


def wire_headers(request: Request, user_agent: str) -> dict[str, str]:
    """Return the headers to send: the request's own, then what every request carries.

    A body, even an empty one of a PUT or POST, gets Content-Length.
    """
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": user_agent}
    own = {name.lower() for name in request.headers}
    headers = {name: value for name, value in headers.items() if name.lower() not in own}
    for name, value in request.headers.items():
        if not name.isascii() or not value.isascii() or _CONTROL.search(name + value):
            raise errors.BadRequest(f"the header {name!r} holds what no header may hold", request_sent=False)
        headers[name] = value
    length = body_length(request)
    if length is not None and "content-length" not in own:
        headers["Content-Length"] = str(length)
    return headers


def body_length(request: Request) -> int | None:
    """Return the bytes of the request's body, None where it has none and needs no Content-Length."""
    body = request.body
    if isinstance(body, BodyFile):
        return body.length
    if body is not None:
        return len(body)
    return 0 if request.method in ("POST", "PUT", "PATCH") else None


def whole_number(text: str | None) -> int | None:
    """Return the number of bytes that a header names; None where it names none that can be."""
    return int(text) if text is not None and _WHOLE_NUMBER.fullmatch(text.strip()) else None


class BodySink:
    """Takes one answer for one request: observer, memory limits, cut error pages.

    Used by one thread, and to be closed. `start` and `write` never raise: they return False when the transfer
    is to end, the transport then closes the connection and calls `response`, which raises what made it
    end, if that was an error.
    """

    __slots__ = (
        "_chunks",
        "_failure",
        "_memory",
        "_observer",
        "_request",
        "_size",
        "_to_observer",
        "headers",
        "status",
    )

    def __init__(self, request: Request, memory: BodyMemory) -> None:
        self._request = request
        self._memory = memory
        self._observer = request.observer
        self._to_observer = False
        self._failure: BaseException | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self.status = 0
        self.headers: Mapping[str, str] = _NO_HEADERS

    @property
    def started(self) -> bool:
        """True once the headers of the final answer were given."""
        return self.status != 0

    def start(self, status: int, headers: Mapping[str, str]) -> bool:
        """Note the headers of the final answer and show them to the observer."""
        self.status, self.headers = status, headers
        if self._observer is not None:
            self._to_observer = 200 <= status < 300
            return self._told(lambda observer: observer.headers(status, headers))
        announced = whole_number(headers.get("content-length"))
        if not 200 <= status < 300 or self._request.method == "HEAD" or announced is None:
            return True
        return self._fits(announced)

    def write(self, chunk: bytes | memoryview) -> bool:
        """Take the next bytes of the body."""
        self._size += len(chunk)
        if self._to_observer:
            return self._told(lambda observer: observer.write(chunk))
        self._chunks.append(bytes(chunk))
        if not self._memory.take(len(chunk)):
            return self._too_large(f"the answers under way take over {self._memory.limit} bytes of memory")
        if 200 <= self.status < 300:
            return self._fits(self._size)
        return self._size < ERROR_BODY_BYTES

    def _told(self, tell: Callable[[BodyObserver], None]) -> bool:
        assert self._observer is not None
        try:
            tell(self._observer)
        except StopTransfer:
            return False
        except BaseException as exc:
            # A callback of libcurl must not raise, and no library may take an observer's OSError for its own.
            self._failure = exc
            return False
        return True

    def _fits(self, size: int) -> bool:
        limit = self._request.max_body_bytes
        return size <= limit or self._too_large(f"the answer is longer than {limit} bytes")

    def _too_large(self, text: str) -> bool:
        where = shown_url(self._request.url)
        self._failure = errors.TooLarge(f"{text}: {where}", status=self.status)
        return False

    def close(self) -> None:
        """Let go of the memory; idempotent."""
        self._memory.give(sum(map(len, self._chunks)))
        self._chunks = []

    def missing(self) -> str:
        """Return what is missing of a body that ended ("3 of 9 bytes came"), "" when nothing is."""
        announced = whole_number(self.headers.get("content-length"))
        bodiless = self._request.method == "HEAD" or self.status in (204, 304)
        if bodiless or announced is None or "transfer-encoding" in self.headers:
            return ""
        return f"{self._size} of {announced} bytes came" if self._size < announced else ""

    def response(self) -> Response:
        """Return the answer, complete as far as it was read, or raise what ended it."""
        if self._failure is not None:
            raise self._failure
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        if not 200 <= self.status < 300:
            body = body[:ERROR_BODY_BYTES]
        return Response(self.status, self.headers, body)


def refused_address(host: str, address: str) -> errors.PrivateAddress:
    """Return the error for an address that the guard does not allow."""
    return errors.PrivateAddress(
        f"storage at {host} has the address {address}, which is not public; if it is yours, name its network "
        "with --allow-private-storage",
        request_sent=False,
    )


def content_encoding_of(headers: Mapping[str, str]) -> str:
    """Return the encodings that an answer names, with its lower-case headers; "" where it has none."""
    if "content-encoding" not in headers:
        return ""
    # aws-chunked is left behind by uploads and says nothing of the stored bytes
    named = [part.strip().lower() for part in headers["content-encoding"].split(",")]
    return ", ".join(part for part in named if part not in ("", "identity", "aws-chunked"))


class Inflater:
    """Decompresses one body, of any number of gzip members.

    `sender` is who sends it, for errors. A body that comes to more than `max_bytes` at once is TooLarge, a
    damaged one a ShortBody, an encoding other than gzip or deflate a MalformedAnswer.
    """

    def __init__(self, encoding: str, sender: str, max_bytes: int) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise errors.MalformedAnswer(
                f"{sender} sends its bodies in an encoding we did not ask for: {encoding}"
            )
        self._encoding = encoding
        self._sender = sender
        self._max_bytes = max_bytes
        self._stream = _new_stream()

    def inflate(self, chunk: bytes | memoryview) -> bytes:
        """Return what the next bytes of the body stand for."""
        parts = []
        rest = bytes(chunk)
        while rest:
            if self._stream.eof:
                # a gzip body may have several members, and zeros behind the last one
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                self._stream = _new_stream()
            try:
                parts.append(self._stream.decompress(rest, self._max_bytes))
            except zlib.error as error:
                raise errors.ShortBody(f"{self._sender} sent a damaged {self._encoding} body") from error
            if self._stream.unconsumed_tail:
                raise errors.TooLarge(
                    f"{self._sender} sends a compressed body that is over {self._max_bytes >> 20} MiB"
                )
            rest = self._stream.unused_data
        return b"".join(parts)

    def check_end(self) -> None:
        """Raise ShortBody unless the body is complete."""
        if not self._stream.eof:
            raise errors.ShortBody(f"{self._sender} sent a {self._encoding} body that breaks off")


def _new_stream() -> zlib._Decompress:
    return zlib.decompressobj(wbits=47)  # detects gzip or zlib
