"""Faults on demand: while a fault is armed, it changes the response to each request that it matches.

    Latency     respond later                   Status             respond with 429, 500, 503...
    Stall       accept, then hang               Truncate           send less than Content-Length
    IgnoreRange respond to a range with 200     WrongContentRange  send a wrong Content-Range
    Gzip        compress the body               Chunked            send no Content-Length
    Expired     treat a signed URL as expired   ChangedEtag        present another version
    Html        a login page with status 200    BrokenJson         half a document
    DropReply   handle, send no response        Empty              status 200 with no content
    WrongTotal  send a wrong object length

A fault is a frozen record that wraps an ASGI application. Handlers do not depend on this module, and this
module does not depend on what an endpoint does.
"""

import asyncio
import gzip
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from lightlyfs.server.asgi import (
    TEXT,
    App,
    Headers,
    Message,
    Receive,
    Reply,
    Scope,
    Send,
    drain,
    error_body,
    find_header,
    send_reply,
)
from lightlyfs.server.object_endpoint import expired, xml_error

STALL_MAX_S = 3600.0
HANG_UP = "lightly.hang_up"
"""The message that closes the connection without a response."""

_POLL_S = 0.05

STORAGE_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    429: "SlowDown",
    500: "InternalError",
    503: "SlowDown",
}
"""The error codes of S3 for these statuses; clients check the code too."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """Base class of all faults.

    `target` is `any`, `api`, `storage`, or an endpoint name. A fault ends after `count` hits or `seconds`,
    the earlier of the two; `probability` is per request.
    """

    target: str = "any"
    count: int | None = None
    seconds: float | None = None
    probability: float = 1.0

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Return `app` with the fault."""
        raise NotImplementedError


class Latency(Fault, tag="latency", frozen=True, kw_only=True):
    """Delay the request."""

    delay_s: float

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Sleep first."""

        async def later(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(self.delay_s)
            await app(scope, receive, send)

        return later


class Status(Fault, tag="status", frozen=True, kw_only=True):
    """Respond with an error instead of handling the request, in the format of the API or of S3."""

    status: int
    retry_after_s: int | None = None
    code: str = "BAD_REQUEST"

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Replace the application."""

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            await drain(receive)
            headers: Headers = []
            if self.retry_after_s is not None:
                headers.append((b"retry-after", b"%d" % self.retry_after_s))
            if scope["raw_path"].startswith(b"/storage/"):
                code = STORAGE_CODES.get(self.status, "InvalidRequest")
                reply = xml_error(self.status, code, "injected fault", headers)
            else:
                reply = Reply(self.status, error_body(self.code, "injected fault"), headers=tuple(headers))
            await send_reply(send, reply, head=scope["method"] == "HEAD")

        return refuse


class Stall(Fault, tag="stall", frozen=True, kw_only=True):
    """Hang before the headers, after them, or after half of the body, until client or server disconnects."""

    at: Literal["accept", "headers", "half"] = "accept"
    hold_s: float = STALL_MAX_S

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Send the part before the stall, then wait."""

        async def stall(scope: Scope, receive: Receive, send: Send) -> None:
            start, body = await collected(app, scope, receive)
            if self.at != "accept":
                await send(start)
            if self.at == "half":
                await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            await held.wait(receive, self.hold_s)

        return stall


class Truncate(Fault, tag="truncate", frozen=True, kw_only=True):
    """Send the headers of the whole body and a part of it, then close the connection."""

    fraction: float = 0.5

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Return early: the HTTP server closes the connection of an incomplete response."""

        async def cut(scope: Scope, receive: Receive, send: Send) -> None:
            start, body = await collected(app, scope, receive)
            await send(start)
            kept = body[: int(len(body) * self.fraction)]
            await send({"type": "http.response.body", "body": kept, "more_body": True})

        return cut


class IgnoreRange(Fault, tag="ignore_range", frozen=True, kw_only=True):
    """Respond to a range request with 200 and the whole object, as the LOCAL datasource does."""

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Remove the `Range` header."""

        async def whole(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "headers": without(scope["headers"], b"range")}, receive, send)

        return whole


class WrongContentRange(Fault, tag="wrong_content_range", frozen=True, kw_only=True):
    """Send a `Content-Range` that is `shift` bytes too high."""

    shift: int = 1

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Rewrite `Content-Range` if there is one."""

        def change(headers: Headers) -> Headers:
            value = find_header(headers, b"content-range")
            if value is None or "*" in value:
                return headers
            span, _, total = value.removeprefix("bytes ").partition("/")
            first, last = (int(number) + self.shift for number in span.split("-"))
            wrong = f"bytes {first}-{last}/{total}".encode()
            return [*without(headers, b"content-range"), (b"content-range", wrong)]

        return with_headers(app, change)


class Gzip(Fault, tag="gzip", frozen=True, kw_only=True):
    """Compress the body although the client does not accept it."""

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Compress the body and set `Content-Encoding`."""

        async def compress(scope: Scope, receive: Receive, send: Send) -> None:
            start, body = await collected(app, scope, receive)
            packed = gzip.compress(body, 1)
            headers = without(start["headers"], b"content-length")
            headers += [(b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(packed))]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": packed})

        return compress


class Chunked(Fault, tag="chunked", frozen=True, kw_only=True):
    """Send no Content-Length; the HTTP server then chunks the body."""

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Remove the `Content-Length` header."""
        return with_headers(app, lambda headers: without(headers, b"content-length"))


class Expired(Fault, tag="expired", frozen=True, kw_only=True):
    """Respond to a storage request as if its URL had expired."""

    target: str = "storage"

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Replace the application."""

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            await drain(receive)
            await send_reply(send, expired().reply, head=scope["method"] == "HEAD")

        return refuse


class ChangedEtag(Fault, tag="changed_etag", frozen=True, kw_only=True):
    """Present another version of the object: another ETag, and 412 to conditions on the old one."""

    target: str = "storage"
    suffix: str = "-changed"

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Run the request without its conditions, then check them against the changed ETag."""

        async def changed(scope: Scope, receive: Receive, send: Send) -> None:
            condition = find_header(scope["headers"], b"if-match")
            bare = {**scope, "headers": without(scope["headers"], b"if-match")}
            start, body = await collected(app, bare, receive)
            etag = (find_header(start["headers"], b"etag") or '""')[:-1] + f'{self.suffix}"'
            if condition not in (None, "*", etag):
                await send_reply(send, xml_error(412, "PreconditionFailed", "injected fault", []))
                return
            headers = [*without(start["headers"], b"etag"), (b"etag", etag.encode())]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return changed


class NoVersion(Fault, tag="no_version", frozen=True, kw_only=True):
    """Name no version of the object: neither ETag nor Last-Modified, as some proxies and small servers do."""

    target: str = "storage"

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Run the request, and leave the two headers out."""

        async def unnamed(scope: Scope, receive: Receive, send: Send) -> None:
            start, body = await collected(app, scope, receive)
            bare = without(start["headers"], b"etag")
            await send({**start, "headers": without(bare, b"last-modified")})
            await send({"type": "http.response.body", "body": body})

        return unnamed


class Html(Fault, tag="html", frozen=True, kw_only=True):
    """Respond with 200 and a web page, as captive portals and proxies do."""

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Replace the application."""

        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            await drain(receive)
            body = b"<!DOCTYPE html><html><body><h1>Please sign in</h1></body></html>"
            reply = Reply(200, body, TEXT.replace(b"plain", b"html"))
            await send_reply(send, reply, head=scope["method"] == "HEAD")

        return page


class BrokenJson(Fault, tag="broken_json", frozen=True, kw_only=True):
    """Send the first half of the document as a complete response."""

    target: str = "api"

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Cut the body in half and set its length."""

        async def broken(scope: Scope, receive: Receive, send: Send) -> None:
            start, body = await collected(app, scope, receive)
            half = body[: (len(body) + 1) // 2]
            headers = [*without(start["headers"], b"content-length"), (b"content-length", b"%d" % len(half))]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": half})

        return broken


class Empty(Fault, tag="empty", frozen=True, kw_only=True):
    """Respond with 200 and nothing: an empty JSON list to a list request, else an empty body."""

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Run the application to see whether its response is a list."""

        async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
            _, body = await collected(app, scope, receive)
            is_list = not scope["raw_path"].startswith(b"/storage/") and body[:1] == b"["
            reply = Reply(200, b"[]" if is_list else b"")
            await send_reply(send, reply, head=scope["method"] == "HEAD")

        return nothing


class WrongTotal(Fault, tag="wrong_total", frozen=True, kw_only=True):
    """Send a wrong length of the whole object in `Content-Range`."""

    target: str = "storage"
    more: int = 1000

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Rewrite `Content-Range` if there is one."""

        def change(headers: Headers) -> Headers:
            value = find_header(headers, b"content-range")
            span, _, total = (value or "").partition("/")
            if not total.isdigit():
                return headers
            wrong = f"{span}/{int(total) + self.more}".encode()
            return [*without(headers, b"content-range"), (b"content-range", wrong)]

        return with_headers(app, change)


class DropReply(Fault, tag="drop_reply", frozen=True, kw_only=True):
    """Handle the request, then close the connection without a response."""

    def wrap(self, app: App, held: "HeldRequests") -> App:
        """Run the application and discard its response."""

        async def drop(scope: Scope, receive: Receive, send: Send) -> None:
            await collected(app, scope, receive)
            await send({"type": HANG_UP})
            await held.wait(receive, 1.0)

        return drop


class HeldRequests:
    """The requests that faults hold open. `wait` runs on the loop; any thread may call `release`."""

    def __init__(self) -> None:
        self._released = False

    def release(self) -> None:
        """End all waits, now and later: the server stops."""
        self._released = True

    async def wait(self, receive: Receive, at_most_s: float) -> None:
        """Return once the client is gone, the server stops, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + at_most_s
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            while not gone.done() and not self._released and loop.time() < deadline:
                await asyncio.wait([gone], timeout=_POLL_S)
        finally:
            gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class HungUp(Exception):
    """An inner fault closed the connection, so the outer fault has no response to change."""


async def collected(app: App, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    """Run `app` and return its response: the start message and the whole body."""
    start: Message = {}
    body = bytearray()

    async def keep(message: Message) -> None:
        if message["type"] == HANG_UP:
            raise HungUp
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            body.extend(message.get("body", b""))

    await app(scope, receive, keep)
    return start, bytes(body)


def with_headers(app: App, change: Callable[[Headers], Headers]) -> App:
    """Return `app` with changed response headers and the same body."""

    async def changed(scope: Scope, receive: Receive, send: Send) -> None:
        def sender(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message = {**message, "headers": change(message["headers"])}
            return send(message)

        await app(scope, receive, sender)

    return changed


def without(headers: Headers, name: bytes) -> Headers:
    """Return headers except those called `name`."""
    return [(key, value) for key, value in headers if key != name]


AnyFault = (
    Latency
    | Status
    | Stall
    | Truncate
    | IgnoreRange
    | WrongContentRange
    | Gzip
    | Chunked
    | Expired
    | ChangedEtag
    | NoVersion
    | Html
    | BrokenJson
    | DropReply
    | Empty
    | WrongTotal
)


@dataclass
class _Armed:
    fault: Fault
    left: int | None
    until: float | None


class Faults:
    """The faults that are armed. Any thread may arm and clear; requests already wrapped keep their faults."""

    def __init__(self) -> None:
        self.held = HeldRequests()
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._random = random.Random(7)

    def add(self, *faults: AnyFault) -> None:
        """Arm faults after those already armed; the first one armed is the outermost wrapper."""
        now = time.monotonic()
        with self._lock:
            for fault in faults:
                until = None if fault.seconds is None else now + fault.seconds
                self._armed.append(_Armed(fault, fault.count, until))

    def add_plain(self, document: Any) -> None:
        """Arm faults from `[{"kind": "status", "status": 503, "count": 2}, ...]`, parsed."""
        self.add(*msgspec.convert(document, list[AnyFault]))

    def clear(self) -> None:
        """Disarm all faults."""
        with self._lock:
            self._armed = []

    def armed(self) -> list[Fault]:
        """Return the faults that are armed and not used up."""
        with self._lock:
            return [one.fault for one in self._armed if self._alive_locked(one)]

    def left(self) -> list[int | None]:
        """Return the remaining count of each armed fault, None for a fault without a count."""
        with self._lock:
            return [one.left for one in self._armed if self._alive_locked(one)]

    def wrap_request(self, area: str, name: str, app: App) -> App:
        """Return `app` inside the faults that hit this request, each counted as used."""
        if not self._armed:
            return app
        for fault in reversed(self._take(area, name)):
            app = fault.wrap(app, self.held)
        return app

    def _take(self, area: str, name: str) -> list[Fault]:
        taken = []
        with self._lock:
            for one in self._armed:
                hit = one.fault.target in ("any", area, name) and self._alive_locked(one)
                if hit and self._random.random() < one.fault.probability:
                    taken.append(one.fault)
                    one.left = None if one.left is None else one.left - 1
            self._armed = [one for one in self._armed if self._alive_locked(one)]
        return taken

    def _alive_locked(self, one: _Armed) -> bool:
        return one.left != 0 and (one.until is None or time.monotonic() < one.until)
