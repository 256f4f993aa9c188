"""What may be shown: takes tokens, signatures and signed queries out of any text."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

HIDDEN = "***"

# Anything that grants access, by its name in a query, a header, JSON or `key=value` text.
_LONG_KEYS = (
    r"[\w-]*token|[\w-]*secret[\w-]*|sig|signature|password|passwd|api[_-]?key|account[_-]?key|credential|"
    r"x-amz-[\w-]+|x-goog-[\w-]+|x-ms-[\w-]+|x-obs-[\w-]+|awsaccesskeyid|googleaccessid|accesskeyid"
)
# The parameters of an Azure SAS are too short to be hidden outside a query.
_SAS_KEYS = r"se|sp|sv|st|sr|spr|ss|srt|sip|skoid|sktid|skt|ske|sks|skv|saoid|suoid|scid|sdd"

_JWT = re.compile(r"\beyJ[\w-]{4,}\.[\w-]+(?:\.[\w-]*)?")
_AUTH_HEADER = re.compile(r"(?i)((?:proxy-)?authorization[\"']?\s*[:=]\s*)[^\r\n]*")
_BEARER = re.compile(r"(?i)\b(bearer\s+)[^\s\"',;]+")
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s?#@\"'<>]*@")
_QUOTED = re.compile(
    rf"(?i)(?<![\w-])((?:{_LONG_KEYS})[\"']\s*[:=]\s*)(\"(?:[^\"\\]|\\.)*(?:\"|$)|'(?:[^'\\]|\\.)*(?:'|$))"
)
_PAIR = re.compile(rf"(?i)(?<![\w-])((?:{_LONG_KEYS})[\"']?\s*(?:=|:|%3[ad])\s*[\"']?)[^&\s\"'<>]+")
_SAS_PAIR = re.compile(rf"(?i)(?<![\w-])((?:{_SAS_KEYS})(?:=|%3d))[^&\s\"'<>]+")


def redact(text: str) -> str:
    """Return `text` with the value of everything that grants access replaced by `***`.

    Hides tokens, bearer headers, JWTs, `user:password@`, and all parameters of signed S3, GCS and
    Azure URLs. Pure; safe on any text, also on broken JSON or HTML.
    """
    text = _AUTH_HEADER.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", text)
    text = _JWT.sub(HIDDEN, text)
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    text = _QUOTED.sub(rf'\1"{HIDDEN}"', text)
    text = _PAIR.sub(rf"\1{HIDDEN}", text)
    return _SAS_PAIR.sub(rf"\1{HIDDEN}", text)


def shown_url(url: str) -> str:
    """Return `scheme://host/path` of `url`: what an error or a log line may show of it."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be parsed"
    return redact(f"{parts.scheme}://{host}{parts.path}")
