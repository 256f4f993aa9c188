"""No secret survives redaction, whatever stands around it, and harmless text stays readable."""

from __future__ import annotations

import base64
import json
import logging
import string
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightlyfs.api import over_requests  # noqa: F401 - its libraries are what is redacted
from lightlyfs.api.calls import Credentials
from lightlyfs.api.redaction import redact, shown_url

KEYS = [
    "token",
    "publicToken",
    "access_token",
    "secret",
    "client_secret",
    "password",
    "Signature",
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "x-amz-security-token",
    "X-Goog-Signature",
    "X-Goog-Credential",
    "AWSAccessKeyId",
    "GoogleAccessId",
    "AccountKey",
    "sig",
]
SAS = ["se", "sp", "sv", "st", "sr", "spr", "ss", "srt", "skoid", "sktid", "ske"]

secrets = st.text(string.ascii_letters + string.digits + "-_.~%+/=", min_size=1, max_size=40).map(
    lambda text: f"Zq{text}7Q"
)
around = st.text(string.printable, max_size=30)
few = settings(max_examples=60, deadline=None)


@few
@given(st.sampled_from(KEYS + SAS), secrets, st.sampled_from(["?", "&", ";", " ", "(", '"', ""]), around)
def test_no_query_value_survives(key: str, secret: str, before: str, after: str) -> None:
    assert secret not in redact(f"https://h/p{before if before else ' '}{key}={secret}&x={after}")


@few
@given(st.sampled_from(KEYS), secrets, around, around)
def test_no_json_value_survives(key: str, secret: str, before: str, after: str) -> None:
    text = json.dumps({"a": before, key: secret, "b": after})
    assert secret not in redact(text)
    assert secret not in redact(text[: text.index(secret) + len(secret)])


@few
@given(
    st.sampled_from(KEYS), secrets, st.sampled_from([": ", ":", " = ", "=", "%3D", "%3A", "='", '="', "': '"])
)
def test_no_pair_survives(key: str, secret: str, separator: str) -> None:
    assert secret not in redact(f"failed with {key}{separator}{secret} and so on")


@few
@given(
    secrets, st.sampled_from(["Bearer ", "bearer ", "Basic ", "AWS4-HMAC-SHA256 Credential=a, Signature="])
)
def test_no_authorization_survives(secret: str, scheme: str) -> None:
    assert secret not in redact(f"Authorization: {scheme}{secret}\r\nHost: h")
    assert secret not in redact(f"{{'authorization': '{scheme}{secret}'}}")


@few
@given(secrets)
def test_no_bearer_token_survives_anywhere(secret: str) -> None:
    assert secret not in redact(f"sent Bearer {secret} to the server")


@few
@given(st.text(string.ascii_letters + string.digits + "-_", min_size=8, max_size=40))
def test_no_jwt_survives_anywhere(part: str) -> None:
    assert part not in redact(f"got eyJhbGciOi.{part}.{part} back")


@few
@given(secrets.filter(lambda text: "/" not in text))
def test_no_password_of_an_address_survives(secret: str) -> None:
    assert secret not in redact(f"proxy http://me:{secret}@proxy:3128/ refused")


@few
@given(st.text(string.printable, max_size=200))
def test_redaction_is_stable(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "listing the dataset: 404 DATASET_UNKNOWN: Dataset does not exist",
        "list_samples /v1/datasets/5f/samples: 500",
        "the token is not known",
        "no byte for 20 s: GET https://api.lightly.ai/v1/datasets",
        "step=3 and size=5 of user=me",
    ],
)
def test_harmless_text_is_kept(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://api.test/v1/x?token=abc", "https://api.test/v1/x"),
        ("https://me:pw@h:8/x#frag", "https://h:8/x"),
        ("http://h", "http://h"),
        ("http://[::1/", "an address that cannot be parsed"),
    ],
)
def test_an_address_is_shown_without_its_query(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize("level", [logging.DEBUG, logging.ERROR])
@pytest.mark.parametrize(
    "name", ["urllib3.connectionpool", "urllib3.util.retry", "urllib3.poolmanager", "requests", "asyncio"]
)
def test_a_concealed_secret_is_in_no_record_of_a_library(
    name: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "Zq9/s3cret+tok=en%41&x7Q"
    Credentials(token=secret)
    encoded = base64.b64encode(b"me:" + secret.encode()).decode()
    logger = logging.getLogger(name)
    caplog.set_level(logging.DEBUG)
    try:
        raise OSError(f"{secret} failed")
    except OSError:
        logger.log(level, "to %s and %r: %s", quote(secret, safe=""), secret, encoded, exc_info=True)
    assert "failed" in caplog.text
    for form in (secret, quote(secret, safe=""), encoded[6:-4]):
        assert form not in caplog.text
