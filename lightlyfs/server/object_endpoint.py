"""The storage endpoint: signed GET and PUT of objects, compatible with S3 as far as clients can see.

A URL is valid for one method, one key and a limited time. Errors are XML documents, as on S3.
"""

from __future__ import annotations

import asyncio
import errno
import re
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import parse_qsl, unquote_to_bytes

from .asgi import Headers, Receive, Reply, Scope, Send, drain, find_header, send_reply
from .request_checks import UrlSigner
from .storage import Blob, FolderUpload, LocalStorage

ONE_PIECE_BYTES = 1 << 20
"""Up to this size, one read and one send cost less than a loop."""

CHUNK_BYTES = 1 << 18
LAST_DATE_S = 253_402_300_799
"""The end of the year 9999."""
_ONE_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
_DIGITS_MAX = 20  # more than the digits of any size


class ObjectError(Exception):
    """An error response of S3."""

    def __init__(self, status: int, code: str, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.reply = xml_error(status, code, message, headers or [])


def xml_error(status: int, code: str, message: str, headers: Headers) -> Reply:
    """Return an error response of S3."""
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'
    return Reply(status, body.encode(), b"application/xml", tuple(headers))


def expired() -> ObjectError:
    """Return the error for a signed URL that has expired."""
    return ObjectError(403, "AccessDenied", "Request has expired")


class ObjectEndpoint:
    """ASGI application for `/storage/{key}`."""

    def __init__(self, store: LocalStorage, signer: UrlSigner) -> None:
        self._store = store
        self._signer = signer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        try:
            key = self._authorized_key(scope)
        except ObjectError as error:
            await drain(receive)
            await send_reply(send, error.reply, head=method == "HEAD")
            return
        try:
            if method == "PUT":
                await self._put(key, receive, send)
            else:
                await self._get(key, scope, send)
        except ObjectError as error:
            await send_reply(send, error.reply, head=method == "HEAD")

    def _authorized_key(self, scope: Scope) -> str:
        key = unquote_to_bytes(scope["path_params"]["key"]).decode("utf-8", "surrogateescape")
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        expires = query.get("expires", "")
        if not self._signer.is_signed(scope["method"], key, expires, query.get("sig", "")):
            raise ObjectError(
                403, "SignatureDoesNotMatch", "The URL is not signed for this method and object"
            )
        if self._signer.is_expired(expires):
            raise expired()
        return key

    async def _get(self, key: str, scope: Scope, send: Send) -> None:
        try:
            blob = self._store.open_blob(key)
        except OSError as error:
            raise ObjectError(503, "SlowDown", f"cannot open: {error.strerror}") from error
        if blob is None:
            raise ObjectError(404, "NoSuchKey", "The specified key does not exist.")
        try:
            status, wanted, headers = answer_to(blob, scope["headers"])
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send_range(blob, wanted, send)
        finally:
            blob.close()

    async def _put(self, key: str, receive: Receive, send: Send) -> None:
        try:
            upload = self._store.begin_upload(key)
        except OSError as error:
            await drain(receive)
            raise not_stored(error) from error
        try:
            if await received_whole(upload, receive):
                etag = upload.commit()
                await send_reply(send, Reply(200, headers=((b"etag", etag.encode()),)))
        except OSError as error:
            raise not_stored(error) from error
        finally:
            upload.abort()


def not_stored(error: OSError) -> ObjectError:
    """Return the error for a failed write: 403 if it is not permitted, else 503."""
    text = f"cannot store: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ObjectError(403, "AccessDenied", text)
    return ObjectError(503, "SlowDown", text)


async def received_whole(upload: FolderUpload, receive: Receive) -> bool:
    """Write the request body into `upload`; return False if the client disconnects first."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        upload.write(message.get("body", b""))
        if not message.get("more_body", False):
            return True


def answer_to(blob: Blob, request: Headers) -> tuple[int, ByteRange, Headers]:
    """Return status, bytes to send and headers for a GET of `blob`."""
    etag = blob.etag.encode()
    headers = [
        (b"etag", etag),
        (b"last-modified", http_date(blob.modified_s)),
        (b"accept-ranges", b"bytes"),
        (b"content-type", b"application/octet-stream"),
    ]
    if not matches(find_header(request, b"if-match"), blob.etag, absent=True):
        raise ObjectError(412, "PreconditionFailed", "At least one of the pre-conditions did not hold")
    if matches(find_header(request, b"if-none-match"), blob.etag, absent=False):
        return 304, ByteRange(0, 0), headers[:2]
    wanted = requested_range(blob, request)
    if wanted is None:
        return 200, ByteRange(0, blob.size), [(b"content-length", b"%d" % blob.size), *headers]
    last = wanted.start + wanted.length - 1
    content_range = b"bytes %d-%d/%d" % (wanted.start, last, blob.size)
    return (
        206,
        wanted,
        [(b"content-length", b"%d" % wanted.length), (b"content-range", content_range), *headers],
    )


def requested_range(blob: Blob, request: Headers) -> ByteRange | None:
    """Return the range to send, or None for the whole object, as when `If-Range` names another version."""
    condition = find_header(request, b"if-range")
    if condition is not None and not is_current(condition, blob):
        return None
    try:
        return parse_range(find_header(request, b"range"), blob.size)
    except Unsatisfiable:
        headers = [(b"content-range", b"bytes */%d" % blob.size)]
        raise ObjectError(416, "InvalidRange", "The requested range is not satisfiable", headers) from None


def matches(header: str | None, etag: str, *, absent: bool) -> bool:
    """Return whether a list of ETags contains `etag`; `absent` is the result without a header."""
    if header is None:
        return absent
    return header.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in header.split(","))


def is_current(condition: str, blob: Blob) -> bool:
    """Return whether an `If-Range` value, ETag or date, names this version."""
    if condition.startswith(('"', "W/")):
        return condition == blob.etag
    try:
        return int(blob.modified_s) <= parsedate_to_datetime(condition).timestamp()
    except (ValueError, OverflowError):
        return False


def http_date(seconds: float) -> bytes:
    """Return a time as an HTTP date, which allows years of four digits only; other times are clamped."""
    return formatdate(max(0, min(seconds, LAST_DATE_S)), usegmt=True).encode()


async def send_range(blob: Blob, wanted: ByteRange, send: Send) -> None:
    """Send the bytes of `wanted`: a small range in one message, a large one in chunks."""
    if wanted.length <= ONE_PIECE_BYTES:
        body = blob.read_at(wanted.start, wanted.length) if wanted.length else b""
        # if the file shrank since fstat, the response stays incomplete and the client sees an error
        await send({"type": "http.response.body", "body": body, "more_body": len(body) < wanted.length})
        return
    position, end = wanted.start, wanted.start + wanted.length
    while position < end:
        chunk = blob.read_at(position, min(CHUNK_BYTES, end - position))
        if not chunk:
            return
        position += len(chunk)
        await send({"type": "http.response.body", "body": chunk, "more_body": position < end})
        # let other requests run, and notice a disconnect
        await asyncio.sleep(0)


@dataclass(frozen=True)
class ByteRange:
    """`length` bytes from `start`, inside the object."""

    start: int
    length: int


class Unsatisfiable(Exception):
    """The range is outside the object: status 416."""


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the one requested range, or None for the whole object.

    As on S3, several ranges or a malformed header select the whole object. Raises `Unsatisfiable`
    when the range starts at or past the end, which for an empty object is always.
    """
    match = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = min(number(last), size)
        if length == 0:
            raise Unsatisfiable
        return ByteRange(size - length, length)
    start = number(first)
    if last and number(last) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    end = min(number(last), size - 1) if last else size - 1
    return ByteRange(start, end - start + 1)


def number(digits: str) -> int:
    """Return digits as an int, truncated beyond any size; Python refuses to convert thousands of digits."""
    return int(digits.lstrip("0")[:_DIGITS_MAX] or "0")
