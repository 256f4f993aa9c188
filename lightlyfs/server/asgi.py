"""The HTTP layer over ASGI: `ApiCall`, `Reply`, the errors of the API, a router, and the connections below.

The router is our own, not Starlette's, for three reasons. It matches the raw path, so an encoded slash in a
name stays inside its segment, and a path that is not UTF-8 gets a 404 or a 400, never a 500. A general
framework costs more per request than the whole handler of `readurl`, and a server used for benchmarks must
cost less than the client it measures. And `lightlyfs serve` needs no further dependency. Handlers are plain
coroutines from `ApiCall` to `Reply`.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from .serve_options import ConnectionLimits


class LocalServerError(Exception):
    """The server cannot start; the message names the cause and the remedy."""


class ApiError(Exception):
    """An error response of the API, whose body is an ApiErrorResponse document."""

    def __init__(self, status: int, code: str, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.code = code
        self.error = error

    def body(self) -> bytes:
        """Return the JSON body, with a fresh `requestId`."""
        return error_body(self.code, self.error)


def error_body(code: str, error: str) -> bytes:
    """Return an ApiErrorResponse document."""
    return json.dumps({"code": code, "error": error, "requestId": secrets.token_hex(16)}).encode("ascii")


def malformed(error: str) -> ApiError:
    """Return the error for a request that does not match the schema of the API."""
    return ApiError(400, "MALFORMED_REQUEST", error)


def not_found(code: str, what: str) -> ApiError:
    """Return the error for an id that does not exist."""
    return ApiError(404, code, f"{what} does not exist")


Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Report = Callable[[int, int], None]

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
BODY_MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Reply:
    """One complete response; `send_reply` adds `Content-Length`."""

    status: int
    body: bytes = b""
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_reply(value: Any, status: int = 200) -> Reply:
    """Return `value` as JSON; lone surrogates are written as `\\udXXX` escapes."""
    return Reply(status, json.dumps(value, separators=(",", ":")).encode("ascii"))


class ApiCall:
    """One request, for a handler. Not shared between tasks."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.path: dict[str, str] = scope["path_params"]
        self.query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        self._receive = receive

    def header(self, name: bytes) -> str | None:
        """Return the first header called `name` (lower case), or None."""
        return find_header(self.scope["headers"], name)

    async def json(self) -> Any:
        """Return the body parsed as JSON; lone surrogates and NUL in strings are allowed."""
        body = await read_body(self._receive)
        try:
            return json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise malformed(f"request body is not JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is larger than any number")
    return number


Handler = Callable[[ApiCall], Awaitable[Reply]]
Route = tuple[str, str, Handler]
"""Method, path template and handler of one endpoint."""


def find_header(headers: Any, name: bytes) -> str | None:
    """Return the first value of header `name` (lower case), or None."""
    for key, value in headers:
        if key == name:
            return str(value, "latin-1")
    return None


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body, up to `BODY_MAX_BYTES`."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "BAD_REQUEST", "the request ended early")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > BODY_MAX_BYTES:
            raise ApiError(413, "PAYLOAD_TOO_LARGE", f"request bodies end at {BODY_MAX_BYTES} bytes")
        if not message.get("more_body", False):
            return b"".join(chunks)


async def drain(receive: Receive) -> None:
    """Read the request body to its end and discard it.

    A client that still writes when the error response is sent may see a broken connection instead.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


async def send_reply(send: Send, reply: Reply, *, head: bool = False) -> None:
    """Send `reply` as one message; with `head`, its headers only."""
    headers = [(b"content-length", b"%d" % len(reply.body)), *reply.headers]
    if reply.body:
        headers.append((b"content-type", reply.content_type))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else reply.body})


class ReportedSend:
    """An ASGI `send` that reports the status and the body size of one response, once.

    It reports before it sends the last message, so a client that has the response finds it reported.
    """

    def __init__(self, send: Send, report: Report) -> None:
        self._send = send
        self._report: Report | None = report
        self._status = self._sent = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        else:
            self._sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.finish()
        await self._send(message)

    def finish(self) -> None:
        """Report a response that ended early; the status is 0 if no response was sent."""
        report, self._report = self._report, None
        if report is not None:
            report(self._status, self._sent)


def endpoint(handler: Handler, authorize: Callable[[ApiCall], None]) -> App:
    """Return `handler` as an ASGI application that authorizes first and turns `ApiError` into a response."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = ApiCall(scope, receive)
            authorize(call)
            reply = await handler(call)
        except ApiError as error:
            reply = Reply(error.status, error.body())
        except RecursionError:
            # a document that can be parsed may still be too deep to be written
            refusal = malformed("the request body is nested too deeply")
            reply = Reply(refusal.status, refusal.body())
        except Exception as error:
            # uvicorn prints no traceback here
            traceback.print_exc(file=sys.stderr)
            reply = Reply(500, error_body("BAD_REQUEST", f"the local server failed: {type(error).__name__}"))
        await send_reply(send, reply, head=scope["method"] == "HEAD")

    return app


@dataclass
class _Node:
    """The continuations of a path: literal segments, any one segment, or the rest of the path."""

    literal: dict[str, _Node] = field(default_factory=dict)
    one: _Node | None = None
    rest: _Node | None = None
    methods: dict[str, tuple[App, list[str]]] = field(default_factory=dict)

    def child(self, segment: str) -> _Node:
        """Return the node for a segment of a template; create it if needed."""
        if segment.startswith("{*"):
            self.rest = self.rest or _Node()
            return self.rest
        if segment.startswith("{"):
            self.one = self.one or _Node()
            return self.one
        return self.literal.setdefault(segment, _Node())


class Router:
    """A table of path templates, matched segment by segment; literal segments precede `{named}` ones.

    It is read-only once built, so any task may resolve a path.
    """

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, method: str, template: str, app: App) -> None:
        """Register `app`; `{*name}` as the last segment matches the rest of the path."""
        node = self._root
        names = []
        for segment in template.strip("/").split("/"):
            node = node.child(segment)
            if segment.startswith("{"):
                names.append(segment.strip("{*}"))
        node.methods[method] = (app, names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            app = self._resolve(scope)
        except ApiError as error:
            await send_reply(send, Reply(error.status, error.body()), head=scope["method"] == "HEAD")
            return
        await app(scope, receive, send)

    def _resolve(self, scope: Scope) -> App:
        node, values = self._walk(scope["raw_path"].decode("latin-1").lstrip("/"))
        if node is None or not node.methods:
            raise ApiError(404, "NOT_FOUND", f"no such endpoint: {scope['path']}")
        method = scope["method"]
        found = node.methods.get(method) or (node.methods.get("GET") if method == "HEAD" else None)
        if found is None:
            raise ApiError(405, "BAD_REQUEST", f"{method} is not possible on {scope['path']}")
        app, names = found
        scope["path_params"] = dict(zip(names, values, strict=True))
        return app

    def _walk(self, raw: str) -> tuple[_Node | None, list[str]]:
        node = self._root
        values: list[str] = []
        segments = raw.split("/")
        for position, segment in enumerate(segments):
            if segment in node.literal:
                node = node.literal[segment]
            elif node.one is not None:
                values.append(unquote(segment))
                node = node.one
            elif node.rest is not None:
                values.append("/".join(segments[position:]))
                return node.rest, values
            else:
                return None, values
        return node, values


_CHECK_S = 1.0
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class ClientConnections:
    """Open connections by client address. Lives on the loop.

    A check of all connections once a second closes those that take too long; a request costs a time stamp.
    """

    def __init__(self, limits: ConnectionLimits, on_connect: Callable[[], None] | None = None) -> None:
        self._open: dict[tuple[str, int], ClientConnection] = {}
        self._on_connect = on_connect
        self._limits = limits
        self._watch: asyncio.TimerHandle | None = None

    def made(self, client: ClientConnection) -> bool:
        """Register a connection; return False after a 503 if there are too many."""
        if len(self._open) >= self._limits.connections:
            client.transport.write(_TOO_MANY)
            client.transport.close()
            return False
        self._open[self._address(client.transport.get_extra_info("peername"))] = client
        if self._on_connect is not None:
            self._on_connect()
        if self._watch is None:
            self._check()
        return True

    def lost(self, client: ClientConnection) -> None:
        """Unregister a connection."""
        address = self._address(client.transport.get_extra_info("peername"))
        if self._open.get(address) is client:
            del self._open[address]

    def abort(self, scope: Scope) -> None:
        """Close the connection of a request immediately and discard unsent bytes."""
        client = self._open.get(self._address(scope["client"]))
        if client is not None:
            client.transport.abort()

    def _check(self) -> None:
        for client in list(self._open.values()):
            if client.is_too_slow(self._limits):
                client.transport.abort()
        every_s = min(_CHECK_S, self._limits.headers_s / 4, self._limits.body_s / 4)
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(every_s, self._check) if self._open else None

    @staticmethod
    def _address(peer: Any) -> tuple[str, int]:
        return (str(peer[0]), int(peer[1])) if peer else ("", 0)


class ClientConnection:
    """The pace of one connection; a mixin of the protocol class of uvicorn."""

    transport: Any
    cycle: Any
    flow: Any

    def begin(self) -> None:
        """Start the timer for the headers of the first request."""
        self._headers_since: float | None = time.monotonic()
        self._moved = self._unsent_since = time.monotonic()
        self._unsent = 0

    def is_at_rest(self) -> bool:
        """Return whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def note_bytes(self) -> None:
        """Record that bytes arrived, and whether they complete the headers of a request."""
        self._moved = time.monotonic()
        if not self.is_at_rest():
            self._headers_since = None
        elif self._headers_since is None:
            self._headers_since = self._moved

    def is_too_slow(self, limits: ConnectionLimits) -> bool:
        """Return whether the client exceeds a limit for headers, for a body, or for reading a response."""
        now = time.monotonic()
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent or not unsent:
            self._unsent_since = now
        self._unsent = unsent
        if now - self._unsent_since > limits.body_s:
            return True
        if self.is_at_rest():
            return self._headers_since is not None and now - self._headers_since > limits.headers_s
        owed = self.cycle.more_body and not self.flow.read_paused
        return owed and now - self._moved > limits.body_s


def watched_protocol(base: type[Any], connections: ClientConnections) -> type[Any]:
    """Return a subclass of a uvicorn HTTP protocol class that registers its connections."""

    class WatchedProtocol(ClientConnection, base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.begin()
            self._refused = not connections.made(self)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.lost(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                super().data_received(data)
                self.note_bytes()

    return WatchedProtocol
