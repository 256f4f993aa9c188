"""The storage endpoint: signed GET and PUT of objects, answering as S3 does where clients can tell.

A URL is good for one method, one key and a limited time. Errors are S3's XML.
"""

import asyncio
import errno
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import parse_qsl, unquote_to_bytes

from .asgi import Headers, Receive, Reply, Scope, Send, drain, find_header, send_reply
from .ranges import ByteRange, Unsatisfiable, parse_range
from .signing import UrlSigner
from .storage import Blob, BlobStore, Upload

ONE_PIECE_BYTES = 1 << 20
"""Up to this size one read and one send cost less than a loop, and memory stays small."""

CHUNK_BYTES = 1 << 18
LAST_DATE_S = 253_402_300_799
"""The end of the year 9999."""


class ObjectError(Exception):
    """A refusal in S3's terms."""

    def __init__(self, status: int, code: str, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.reply = xml_error(status, code, message, headers or [])


def xml_error(status: int, code: str, message: str, headers: Headers) -> Reply:
    """Return an error answer as S3 writes it."""
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'
    return Reply(status, body.encode(), b"application/xml", tuple(headers))


def expired_reply() -> Reply:
    """Return the answer to a signed URL whose time is over."""
    return xml_error(403, "AccessDenied", "Request has expired", [])


class ObjectEndpoint:
    """ASGI application for `/storage/{key}`."""

    def __init__(self, store: BlobStore, signer: UrlSigner) -> None:
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
            raise ObjectError(403, "AccessDenied", "Request has expired")
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
    """Return the answer to a PUT that the disk refuses: for good where it may not, else for now."""
    text = f"cannot store: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ObjectError(403, "AccessDenied", text)
    return ObjectError(503, "SlowDown", text)


async def received_whole(upload: Upload, receive: Receive) -> bool:
    """Write the request body into `upload`; False if the client went away first."""
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
    """Return the range to send; None for the whole object, also if `If-Range` names another version."""
    condition = find_header(request, b"if-range")
    if condition is not None and not is_current(condition, blob):
        return None
    try:
        return parse_range(find_header(request, b"range"), blob.size)
    except Unsatisfiable:
        headers = [(b"content-range", b"bytes */%d" % blob.size)]
        raise ObjectError(416, "InvalidRange", "The requested range is not satisfiable", headers) from None


def matches(header: str | None, etag: str, *, absent: bool) -> bool:
    """Say whether a list of ETags names this one; `absent` is the answer without a header."""
    if header is None:
        return absent
    return header.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in header.split(","))


def is_current(condition: str, blob: Blob) -> bool:
    """Say whether an `If-Range` value, ETag or date, names this version."""
    if condition.startswith(('"', "W/")):
        return condition == blob.etag
    try:
        return int(blob.modified_s) <= parsedate_to_datetime(condition).timestamp()
    except (ValueError, OverflowError):
        return False


def http_date(seconds: float) -> bytes:
    """Return a time as HTTP writes it, whose years have four digits; a file's may be any."""
    return formatdate(max(0, min(seconds, LAST_DATE_S)), usegmt=True).encode()


async def send_range(blob: Blob, wanted: ByteRange, send: Send) -> None:
    """Send the bytes of `wanted`: small ones at once, large ones in chunks that follow the client's pace."""
    if wanted.length <= ONE_PIECE_BYTES:
        body = blob.read_at(wanted.start, wanted.length) if wanted.length else b""
        # A file that shrank since fstat: sending less than announced makes the client see a broken answer.
        await send({"type": "http.response.body", "body": body, "more_body": len(body) < wanted.length})
        return
    position, end = wanted.start, wanted.start + wanted.length
    while position < end:
        chunk = blob.read_at(position, min(CHUNK_BYTES, end - position))
        if not chunk:
            return
        position += len(chunk)
        await send({"type": "http.response.body", "body": chunk, "more_body": position < end})
        # other requests come in between, and a client that left is noticed
        await asyncio.sleep(0)
