"""From a status and an error body to an error class."""

from __future__ import annotations

import errno
import json

import pytest

from lightlyfs import errors
from lightlyfs.api.contract import Response
from lightlyfs.api.retry import raise_for_status, retry_after_s
from lightlyfs.errors import errno_of

XML = b"""<?xml version="1.0"?><Error><Code>%s</Code><Message>No such thing</Message>
<RequestId>R1</RequestId></Error>"""


def caught(response: Response, **more: object) -> errors.RequestError:
    with pytest.raises(errors.RequestError) as info:
        raise_for_status(response, what="doing it", **more)  # type: ignore[arg-type]
    return info.value


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (300, errors.Refused),
        (307, errors.Refused),
        (400, errors.BadRequest),
        (401, errors.Unauthorized),
        (402, errors.QuotaExceeded),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (405, errors.Refused),
        (408, errors.ServerFault),
        (409, errors.Conflict),
        (412, errors.Conflict),
        (413, errors.TooLarge),
        (416, errors.Refused),
        (418, errors.Refused),
        (429, errors.Throttled),
        (500, errors.ServerFault),
        (502, errors.ServerFault),
        (503, errors.ServerFault),
        (504, errors.ServerFault),
        (507, errors.QuotaExceeded),
        (599, errors.ServerFault),
    ],
)
def test_a_status_has_its_class(status: int, kind: type[errors.RequestError]) -> None:
    error = caught(Response(status, {}, b""))
    assert type(error) is kind
    assert error.status == status
    assert str(error).partition("; ")[0] == f"doing it: {status}"
    assert ("; " in str(error)) == (status in (401, 403))  # what can be done about it


@pytest.mark.parametrize("status", [200, 201, 204, 206])
def test_success_raises_nothing(status: int) -> None:
    raise_for_status(Response(status, {}, b"<html>"), what="x")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("DATASET_AT_MAX_CAPACITY", errors.QuotaExceeded),
        ("ACCOUNT_SUBSCRIPTION_INSUFFICIENT", errors.QuotaExceeded),
        ("ONPREM_SUBSCRIPTION_INSUFFICIENT", errors.QuotaExceeded),
        ("TEAM_ACCOUNT_PLAN_INSUFFICIENT", errors.QuotaExceeded),
        ("CUSTOM_METADATA_AT_MAX_SIZE", errors.TooLarge),
        ("PAYLOAD_TOO_LARGE", errors.TooLarge),
        ("DATASET_UNKNOWN", errors.NotFound),
        ("SAMPLE_UNKNOWN", errors.NotFound),
        ("CONFLICT", errors.Conflict),
        ("MALFORMED_REQUEST", errors.BadRequest),
        ("SOMETHING_NEW", errors.BadRequest),
    ],
)
def test_a_code_says_more_than_its_status(code: str, kind: type[errors.RequestError]) -> None:
    body = json.dumps({"code": code, "error": "text", "requestId": "abc"}).encode()
    error = caught(Response(400, {}, body))
    assert type(error) is kind
    assert (error.code, error.request_id, error.status) == (code, "abc", 400)
    assert str(error) == f"doing it: 400 {code}: text"


def test_the_older_key_message_is_read() -> None:
    error = caught(Response(404, {}, b'{"code":"X","message":"gone"}'))
    assert str(error) == "doing it: 404 X: gone"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "doing it: 500"),
        (b"<html><head><title>502 Bad Gateway</title></head></html>", "doing it: 500: 502 Bad Gateway"),
        (b"<!DOCTYPE html><p>x", "doing it: 500: an HTML or XML page"),
        (b'{"code": "X", "err', 'doing it: 500: {"code": "X", "err'),
        (b'{"code": {"a": 1}, "error": ["x"], "requestId": null}', "doing it: 500"),
        (b'{"code": 17, "error": "x"}', "doing it: 500 17: x"),
        (b"[1, 2]", "doing it: 500: [1, 2]"),
        (b'"only text"', "doing it: 500: only text"),
        (b"plain\r\n\ttext", "doing it: 500: plain text"),
        (b"\xff\xfe broken", "doing it: 500: \ufffd\ufffd broken"),
        (b"bell\x07\x1b[31m", "doing it: 500: bell?[31m".replace("?", "??")),
    ],
)
def test_any_body_gives_one_readable_line(body: bytes, text: str) -> None:
    assert str(caught(Response(500, {}, body))) == text


def test_a_long_text_is_cut() -> None:
    assert len(str(caught(Response(500, {}, b"x" * 60_000)))) < 330


def test_secrets_in_an_error_body_are_hidden() -> None:
    body = json.dumps({"code": "X", "error": "bad request /v1?token=s3cr3t1 and s3cr3t2"}).encode()
    text = str(caught(Response(400, {}, body), secrets=("s3cr3t2",)))
    assert "s3cr3t" not in text


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, b"AccessDenied", errors.Forbidden),
        (404, b"NoSuchKey", errors.NotFound),
        (400, b"ExpiredToken", errors.BadRequest),
        (503, b"SlowDown", errors.Throttled),
        (400, b"RequestTimeout", errors.ServerFault),
        (400, b"EntityTooLarge", errors.TooLarge),
        (409, b"BlobAlreadyExists", errors.Conflict),
    ],
)
def test_storage_says_its_code_in_xml(status: int, code: bytes, kind: type[errors.RequestError]) -> None:
    error = caught(Response(status, {}, XML % code), storage=True)
    assert type(error) is kind
    assert (error.code, error.request_id) == (code.decode(), "R1")


def test_the_codes_of_the_api_mean_nothing_to_storage() -> None:
    error = caught(Response(403, {}, b'{"code": "CONFLICT"}'), storage=True)
    assert type(error) is errors.Forbidden


@pytest.mark.parametrize("header", ["x-request-id", "x-amz-request-id", "x-ms-request-id"])
def test_the_request_id_may_come_in_a_header(header: str) -> None:
    assert caught(Response(500, {header: "R2"}, b"")).request_id == "R2"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("-5", 0.0),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_the_forms_of_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value}, lambda: 1000.0) == seconds
    error = caught(Response(503, {"retry-after": value}, b""), now=lambda: 1000.0)
    assert error.retry_after_s == seconds


CODES = [
    "CONFLICT",
    "DATASET_UNKNOWN",
    "SAMPLE_UNKNOWN",
    "TAG_UNKNOWN",
    "PAYLOAD_TOO_LARGE",
    "CUSTOM_METADATA_AT_MAX_SIZE",
    "DATASET_AT_MAX_CAPACITY",
    "SOMETHING_NEW",
    "",
]
# what a body cannot turn into something else
BY_STATUS_ALONE = {
    401: errors.Unauthorized,
    403: errors.Forbidden,
    408: errors.ServerFault,
    429: errors.Throttled,
    500: errors.ServerFault,
    502: errors.ServerFault,
    503: errors.ServerFault,
    504: errors.ServerFault,
    507: errors.QuotaExceeded,
}


@pytest.mark.parametrize("status", BY_STATUS_ALONE)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("storage", [False, True])
def test_the_status_decides_and_the_code_only_refines(status: int, code: str, storage: bool) -> None:
    body = XML % code.encode() if storage else json.dumps({"code": code}).encode()
    assert type(caught(Response(status, {}, body), storage=storage)) is BY_STATUS_ALONE[status]


@pytest.mark.parametrize("status", [402, 403])
@pytest.mark.parametrize("code", ["TEAM_ACCOUNT_PLAN_INSUFFICIENT", "ACCOUNT_SUBSCRIPTION_INSUFFICIENT"])
def test_an_account_that_may_not_have_more_is_full(status: int, code: str) -> None:
    body = json.dumps({"code": code}).encode()
    assert type(caught(Response(status, {}, body))) is errors.QuotaExceeded


@pytest.mark.parametrize("status", [*range(300, 310), *range(400, 432), 451, *range(500, 512)])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("storage", [False, True])
def test_nothing_that_is_read_exists_already(status: int, code: str, storage: bool) -> None:
    body = XML % code.encode() if storage else json.dumps({"code": code}).encode()
    error = caught(Response(status, {}, body), storage=storage, reads=True)
    assert errno_of(error)[0] not in (errno.EEXIST, errno.EPERM)
    if status not in (404, 410):
        assert storage or errno_of(error)[0] != errno.ENOENT or code.endswith("_UNKNOWN")


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("https://t0k.test/x?X-Amz-Signature=s3cret&token=s3cret", "redirects to https://t0k.test, which"),
        ("http://[::1]:81/", "redirects to http://::1:81, which"),
        ("/elsewhere?token=s3cret", "redirects, which"),
        ("https://[broken/s3cret", "redirects, which"),
        ("", "redirects, which"),
    ],
)
def test_a_redirect_names_where_to_and_no_secret_on_the_way(location: str, said: str) -> None:
    text = str(caught(Response(302, {"location": location})))
    assert f"doing it: 302; it {said} is not followed" in text
    assert "s3cret" not in text
