"""The single faults, as frozen records that can wrap an ASGI application."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from .asgi import TEXT, App, Headers, Message, Receive, Reply, Scope, Send, drain, find_header, send_reply
from .errors import error_body
from .objects import expired_reply, xml_error
from .transport import HANG_UP, Connections

STALL_MAX_S = 3600.0

STORAGE_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    429: "SlowDown",
    500: "InternalError",
    503: "SlowDown",
}
"""What S3 calls these statuses; clients look at the code too."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """What all faults share.

    `target` is `any`, `api`, `storage`, or an endpoint name. A fault ends after `count` hits or `seconds`,
    whichever is first; `probability` is per request.
    """

    target: str = "any"
    count: int | None = None
    seconds: float | None = None
    probability: float = 1.0

    def wrap(self, app: App, connections: Connections) -> App:
        """Return `app` with the fault around it."""
        raise NotImplementedError


class Latency(Fault, tag="latency", frozen=True, kw_only=True):
    """Wait before the request is handled."""

    delay_s: float

    def wrap(self, app: App, connections: Connections) -> App:
        """Sleep first."""

        async def later(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.sleep(self.delay_s)
            await app(scope, receive, send)

        return later


class Status(Fault, tag="status", frozen=True, kw_only=True):
    """Answer with an error and do no work; API and storage each in their own format."""

    status: int
    retry_after_s: int | None = None
    code: str = "BAD_REQUEST"

    def wrap(self, app: App, connections: Connections) -> App:
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
    """Hang before the headers, after them, or after half of the body, until client or server leaves."""

    at: Literal["accept", "headers", "half"] = "accept"
    hold_s: float = STALL_MAX_S

    def wrap(self, app: App, connections: Connections) -> App:
        """Let through what comes before the stall, then wait."""

        async def stall(scope: Scope, receive: Receive, send: Send) -> None:
            start, body = await collected(app, scope, receive)
            if self.at != "accept":
                await send(start)
            if self.at == "half":
                await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            await connections.wait_for_end(receive, self.hold_s)

        return stall


class Truncate(Fault, tag="truncate", frozen=True, kw_only=True):
    """Announce the whole body, send a part, hang up."""

    fraction: float = 0.5

    def wrap(self, app: App, connections: Connections) -> App:
        """Return early: the HTTP server closes an answer that stays incomplete."""

        async def cut(scope: Scope, receive: Receive, send: Send) -> None:
            start, body = await collected(app, scope, receive)
            await send(start)
            kept = body[: int(len(body) * self.fraction)]
            await send({"type": "http.response.body", "body": kept, "more_body": True})

        return cut


class IgnoreRange(Fault, tag="ignore_range", frozen=True, kw_only=True):
    """Answer 200 with the whole object to a ranged request, as the LOCAL datasource does."""

    def wrap(self, app: App, connections: Connections) -> App:
        """Hide the header."""

        async def whole(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "headers": without(scope["headers"], b"range")}, receive, send)

        return whole


class WrongContentRange(Fault, tag="wrong_content_range", frozen=True, kw_only=True):
    """Say that the bytes sent are those `shift` later."""

    shift: int = 1

    def wrap(self, app: App, connections: Connections) -> App:
        """Rewrite `Content-Range` where there is one."""

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
    """Compress the body although nobody asked."""

    def wrap(self, app: App, connections: Connections) -> App:
        """Collect, compress, label."""

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

    def wrap(self, app: App, connections: Connections) -> App:
        """Drop the header."""
        return with_headers(app, lambda headers: without(headers, b"content-length"))


class Expired(Fault, tag="expired", frozen=True, kw_only=True):
    """Answer a storage request as if its URL had expired."""

    target: str = "storage"

    def wrap(self, app: App, connections: Connections) -> App:
        """Replace the application."""

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            await drain(receive)
            await send_reply(send, expired_reply(), head=scope["method"] == "HEAD")

        return refuse


class ChangedEtag(Fault, tag="changed_etag", frozen=True, kw_only=True):
    """Be another version of the object: another ETag, and 412 to conditions on the old one."""

    target: str = "storage"
    suffix: str = "-changed"

    def wrap(self, app: App, connections: Connections) -> App:
        """Run the request without its conditions, then judge them by the changed ETag."""

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


class Html(Fault, tag="html", frozen=True, kw_only=True):
    """Answer 200 with a web page, as captive portals and proxies do."""

    def wrap(self, app: App, connections: Connections) -> App:
        """Replace the application."""

        async def page(scope: Scope, receive: Receive, send: Send) -> None:
            await drain(receive)
            body = b"<!DOCTYPE html><html><body><h1>Please sign in</h1></body></html>"
            reply = Reply(200, body, TEXT.replace(b"plain", b"html"))
            await send_reply(send, reply, head=scope["method"] == "HEAD")

        return page


class BrokenJson(Fault, tag="broken_json", frozen=True, kw_only=True):
    """Send the first half of the document as a complete answer."""

    target: str = "api"

    def wrap(self, app: App, connections: Connections) -> App:
        """Collect, cut, announce the cut length."""

        async def broken(scope: Scope, receive: Receive, send: Send) -> None:
            start, body = await collected(app, scope, receive)
            half = body[: (len(body) + 1) // 2]
            headers = [*without(start["headers"], b"content-length"), (b"content-length", b"%d" % len(half))]
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": half})

        return broken


class Empty(Fault, tag="empty", frozen=True, kw_only=True):
    """Answer 200 with nothing: storage without a version, a list without items, any other without a body."""

    def wrap(self, app: App, connections: Connections) -> App:
        """Run the application for the kind of its answer only."""

        async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
            _, body = await collected(app, scope, receive)
            is_list = not scope["raw_path"].startswith(b"/storage/") and body[:1] == b"["
            reply = Reply(200, b"[]" if is_list else b"")
            await send_reply(send, reply, head=scope["method"] == "HEAD")

        return nothing


class WrongTotal(Fault, tag="wrong_total", frozen=True, kw_only=True):
    """Name another length of the whole object than it has."""

    target: str = "storage"
    more: int = 1000

    def wrap(self, app: App, connections: Connections) -> App:
        """Rewrite `Content-Range` where there is one."""

        def change(headers: Headers) -> Headers:
            value = find_header(headers, b"content-range")
            span, _, total = (value or "").partition("/")
            if not total.isdigit():
                return headers
            wrong = f"{span}/{int(total) + self.more}".encode()
            return [*without(headers, b"content-range"), (b"content-range", wrong)]

        return with_headers(app, change)


class DropReply(Fault, tag="drop_reply", frozen=True, kw_only=True):
    """Do the work, then close the connection without a word."""

    def wrap(self, app: App, connections: Connections) -> App:
        """Run the application for its effect only."""

        async def drop(scope: Scope, receive: Receive, send: Send) -> None:
            await collected(app, scope, receive)
            await send({"type": HANG_UP})
            await connections.wait_for_end(receive, 1.0)

        return drop


class HungUp(Exception):
    """A fault within another one hangs up, so that there is nothing to change."""


async def collected(app: App, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    """Run `app` and return its answer: the start message and the whole body."""
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
    """Return `app` with its answer's headers changed, body untouched."""

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
