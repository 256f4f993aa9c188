"""No exception of a library leaves the transports: every class and code has its row."""

from __future__ import annotations

import pycurl
import pytest
import requests
import responses
import urllib3

from lightlyfs import errors
from lightlyfs.api import curl, over_requests
from lightlyfs.api.contract import Request, TransportConfig
from lightlyfs.api.over_requests import RequestsTransport

URL = "https://api.test/x?token=secret"

REQUESTS_ROWS = {
    "RequestException": errors.Unreachable,
    "InvalidJSONError": errors.Unreachable,
    "JSONDecodeError": errors.Unreachable,
    "HTTPError": errors.Unreachable,
    "ConnectionError": errors.Unreachable,
    "ProxyError": errors.Unreachable,
    "SSLError": errors.TlsFailed,
    "Timeout": errors.TimedOut,
    "ConnectTimeout": errors.TimedOut,
    "ReadTimeout": errors.TimedOut,
    "URLRequired": errors.UnsafeUrl,
    "TooManyRedirects": errors.Unreachable,
    "MissingSchema": errors.UnsafeUrl,
    "InvalidSchema": errors.UnsafeUrl,
    "InvalidURL": errors.UnsafeUrl,
    "InvalidHeader": errors.BadRequest,
    "InvalidProxyURL": errors.UnsafeUrl,
    "ChunkedEncodingError": errors.ShortBody,
    "ContentDecodingError": errors.ShortBody,
    "StreamConsumedError": errors.Unreachable,
    "RetryError": errors.Unreachable,
    "UnrewindableBodyError": errors.Unreachable,
}
URLLIB3_ROWS = {
    "HTTPError": errors.Unreachable,
    "PoolError": errors.Unreachable,
    "RequestError": errors.Unreachable,
    "SSLError": errors.TlsFailed,
    "ProxyError": errors.Unreachable,
    "DecodeError": errors.ShortBody,
    "ProtocolError": errors.Unreachable,
    "ConnectionError": errors.Unreachable,
    "MaxRetryError": errors.Unreachable,
    "HostChangedError": errors.Unreachable,
    "TimeoutStateError": errors.Unreachable,
    "TimeoutError": errors.TimedOut,
    "ReadTimeoutError": errors.TimedOut,
    "ConnectTimeoutError": errors.TimedOut,
    "NewConnectionError": errors.Unreachable,
    "NameResolutionError": errors.Unreachable,
    "EmptyPoolError": errors.Unreachable,
    "FullPoolError": errors.Unreachable,
    "ClosedPoolError": errors.Unreachable,
    "LocationValueError": errors.UnsafeUrl,
    "LocationParseError": errors.UnsafeUrl,
    "URLSchemeUnknown": errors.UnsafeUrl,
    "ResponseError": errors.Unreachable,
    "ResponseNotChunked": errors.Unreachable,
    "BodyNotHttplibCompatible": errors.Unreachable,
    "IncompleteRead": errors.ShortBody,
    "InvalidChunkLength": errors.ShortBody,
    "InvalidHeader": errors.BadRequest,
    "ProxySchemeUnknown": errors.UnsafeUrl,
    "ProxySchemeUnsupported": errors.Unreachable,
    "HeaderParsingError": errors.Unreachable,
    "UnrewindableBodyError": errors.Unreachable,
}
# Codes of other protocols, of the multi interface, and of options that are never set.
CURL_FOREIGN = [
    "FTP_",
    "TFTP_",
    "LDAP_",
    "RTSP_",
    "SSH",
    "MULTI_",
    "TELNET_",
    "UNKNOWN_TELNET",
    "REMOTE_",
    "QUOTE_",
    "CONV_",
    "FILE_",
    "SHARE_",
    "CALL_MULTI",
    "BAD_CALLING_ORDER",
    "BAD_PASSWORD",
    "MALFORMAT_USER",
    "URL_MALFORMAT_USER",
    "BAD_DOWNLOAD_RESUME",
    "ALREADY_COMPLETE",
    "FUNCTION_NOT_FOUND",
    "LIBRARY_NOT_FOUND",
    "OK",
    "RANGE_ERROR",
    "HTTP_NOT_FOUND",
    "HTTP_PORT_FAILED",
]


def _classes(module: object, base: type) -> set[str]:
    found = vars(module).items()
    return {name for name, value in found if isinstance(value, type) and issubclass(value, base)}


def test_every_exception_of_requests_has_a_row() -> None:
    assert _classes(requests.exceptions, requests.RequestException) == set(REQUESTS_ROWS)


def test_every_exception_of_urllib3_has_a_row() -> None:
    known = _classes(urllib3.exceptions, urllib3.exceptions.HTTPError)
    assert known - set(URLLIB3_ROWS) == set()


@pytest.mark.parametrize(("name", "failure"), REQUESTS_ROWS.items())
def test_an_exception_of_requests_becomes_ours(name: str, failure: type[errors.RequestError]) -> None:
    kind = getattr(requests.exceptions, name)
    raised = kind("https://h/?token=secret", "", 0) if name == "JSONDecodeError" else kind("token=secret")
    with responses.RequestsMock() as server:
        server.get(URL, body=raised)
        with pytest.raises(errors.RequestError) as caught:
            RequestsTransport(TransportConfig()).send(Request("GET", URL))
    assert type(caught.value) is failure
    assert caught.value.__cause__ is raised
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("name", "failure"), URLLIB3_ROWS.items())
def test_an_exception_of_urllib3_becomes_ours(name: str, failure: type[errors.RequestError]) -> None:
    kind = getattr(urllib3.exceptions, name, None)
    if kind is None:
        pytest.skip(f"this urllib3 has no {name}")
    assert over_requests.failure_class(kind) is failure


def test_every_code_of_libcurl_that_http_can_meet_has_a_row() -> None:
    names = [name[2:] for name in dir(pycurl) if name.startswith("E_")]
    missing = [name for name in names if getattr(pycurl, f"E_{name}") not in curl.FAILURES]
    assert [name for name in missing if not name.startswith(tuple(CURL_FOREIGN))] == []


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (6, errors.Unreachable),
        (7, errors.Unreachable),
        (18, errors.ShortBody),
        (28, errors.TimedOut),
        (35, errors.TlsFailed),
        (52, errors.Unreachable),
        (56, errors.Unreachable),
        (60, errors.TlsFailed),
        (77, errors.TlsFailed),
    ],
)
def test_the_codes_of_libcurl_that_matter(code: int, failure: type[errors.RequestError]) -> None:
    assert curl.FAILURES[code] is failure
