"""From a status and an error body to an error class; the only place that knows what statuses mean."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from lightlyfs import errors
from lightlyfs.api.contract import Response
from lightlyfs.api.models import STRICT_REFUSALS
from lightlyfs.api.redaction import HIDDEN, redact

_TEXT_CHARS = 300  # one readable line of a log

_BY_STATUS: Mapping[int, type[errors.RequestError]] = {
    400: errors.BadRequest,
    401: errors.Unauthorized,
    402: errors.QuotaExceeded,
    403: errors.Forbidden,
    404: errors.NotFound,
    408: errors.ServerFault,
    409: errors.Conflict,
    410: errors.NotFound,
    412: errors.Conflict,
    413: errors.TooLarge,
    422: errors.BadRequest,
    429: errors.Throttled,
    507: errors.QuotaExceeded,
}

# A code refines a refusal, and only one that it can stand for: whatever a body says, a 429 or a 5xx may pass,
# and a 401 or a 403 is one of access.
_REFINED = frozenset({400, 402, 404, 405, 406, 409, 410, 412, 413, 415, 422})
# The API does not publish which status a code comes with.
_BY_CODE: Mapping[str, type[errors.RequestError]] = {
    "CUSTOM_METADATA_AT_MAX_SIZE": errors.TooLarge,
    "DATASET_DATASOURCE_FILE_TOO_LARGE": errors.TooLarge,
    "PAYLOAD_TOO_LARGE": errors.TooLarge,
    "DATASET_AT_MAX_CAPACITY": errors.QuotaExceeded,
    "CONFLICT": errors.Conflict,
    "DATASET_UNKNOWN": errors.NotFound,
    "SAMPLE_UNKNOWN": errors.NotFound,
    "TAG_UNKNOWN": errors.NotFound,
}
# Codes of an account that may not have more: they come with 402 or 403.
_QUOTA_CODE = re.compile(r".*_(SUBSCRIPTION|PLAN)_INSUFFICIENT")
# What storage says in XML, of refusals and of requests that would succeed later.
_BY_STORAGE_CODE: Mapping[str, type[errors.RequestError]] = {
    "RequestTimeout": errors.ServerFault,
    "EntityTooLarge": errors.TooLarge,
    "QuotaExceeded": errors.QuotaExceeded,
}
# A 503 that asks for fewer requests, not for another try.
_THROTTLING_CODES = ("SlowDown", "ServerBusy")

_XML_CODE = re.compile(r"<Code>\s*([^<]{1,100}?)\s*</Code>", re.IGNORECASE)
_XML_TEXT = re.compile(r"<Message>\s*([^<]*?)\s*</Message>", re.IGNORECASE)
_XML_REQUEST = re.compile(r"<RequestId>\s*([^<]{1,200}?)\s*</RequestId>", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>\s*([^<]*?)\s*</title>", re.IGNORECASE)
_REQUEST_ID_HEADERS = ("x-request-id", "x-amz-request-id", "x-ms-request-id", "x-guploader-uploadid")

# what a person can do about it, wherever the text is shown
_WAYS_OUT = {
    401: "check LIGHTLY_TOKEN, or the file of --token-file",
    403: "the token may not do this: ask the owner of the dataset, or use another token",
}


def raise_for_status(
    response: Response,
    *,
    what: str,
    storage: bool = False,
    reads: bool = False,
    secrets: Sequence[str] = (),
    now: Callable[[], float] = time.time,
) -> None:
    """Raise the error class that the status and the body of `response` stand for; return on a 2xx.

    `what` names the request in the text ("listing the dataset 5f..."). With `storage` the answer is
    from S3, GCS or Azure, whose codes come as XML; with `reads` it is that to a GET. `secrets` are also
    hidden where they stand alone. A redirect counts as refused. `now` (unix seconds) is for a Retry-After
    that is a date.
    API: ApiErrorResponse `{code, error, requestId}`, before 2023 `{code, message}`.
    """
    status = response.status
    if 200 <= status < 300:
        return
    code, text, request_id = _said(response)
    for secret in secrets:
        text = text.replace(secret, HIDDEN) if secret else text
    for name in _REQUEST_ID_HEADERS:
        request_id = request_id or response.headers.get(name, "")
    line = f"{what}: {status}" + (f" {code}" if code else "") + (f": {text}" if text else "")
    if not storage and status in _WAYS_OUT:
        line += f"; {_WAYS_OUT[status]}"
    raise _error_class(status, code, storage, reads)(
        redact(line),
        status=status,
        code=code,
        request_id=request_id,
        retry_after_s=retry_after_s(response.headers, now),
    )


def _error_class(status: int, code: str, storage: bool, reads: bool) -> type[errors.RequestError]:
    if status == 503 and storage and code in _THROTTLING_CODES:
        return errors.Throttled
    found = _BY_STATUS.get(status) or (errors.ServerFault if status >= 500 else errors.Refused)
    if status in _REFINED:
        found = (_BY_STORAGE_CODE if storage else _BY_CODE).get(code, found)
    if status in (*_REFINED, 403) and not storage and _QUOTA_CODE.fullmatch(code):
        found = errors.QuotaExceeded
    # nothing that is only read "exists already"
    return errors.Refused if reads and found is errors.Conflict else found


def retry_after_s(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds of a Retry-After header (a number or an HTTP date), None without a usable one."""
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def _said(response: Response) -> tuple[str, str, str]:
    """Return code, text and request id of an error body, each "" where it does not say."""
    body = response.body.strip()
    if body[:1] in (b"{", b'"'):
        try:
            parsed: Any = msgspec.json.decode(body)
        except STRICT_REFUSALS:
            parsed = None
        if isinstance(parsed, dict):
            return (
                _trimmed(parsed.get("code"), 100),
                _trimmed(parsed.get("error") or parsed.get("message")),
                _trimmed(parsed.get("requestId"), 200),
            )
        if isinstance(parsed, str):
            return "", _trimmed(parsed), ""
    text = body.decode("utf-8", "replace")
    code = _XML_CODE.search(text)
    if code:
        message, request = _XML_TEXT.search(text), _XML_REQUEST.search(text)
        return code[1], _trimmed(message and message[1]), _trimmed(request and request[1], 200)
    if text.startswith("<"):
        title = _TITLE.search(text)
        return "", _trimmed(title[1]) if title else "an HTML or XML page", ""
    return "", _trimmed(text), ""


def _trimmed(value: object, limit: int = _TEXT_CHARS) -> str:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        return ""
    text = " ".join(str(value)[: 4 * limit].split())
    text = "".join(char if char.isprintable() else "?" for char in redact(text))
    return text if len(text) <= limit else text[: limit - 3] + "..."
