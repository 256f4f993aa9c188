"""Makes text safe to show: removes secrets from it, and what would act on a terminal or break a log line.

Names of files and datasets, and the text of a server's errors, may hold escape sequences that overwrite a
terminal, line breaks that forge a line of a log, and characters that reverse the reading order.
"""

from __future__ import annotations

import base64
import logging
import re
from urllib.parse import quote, quote_plus, urlsplit

HIDDEN = "***"
# in shorter ones too much of harmless text would be hidden
_CONCEALED_CHARS = 8

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


class _Concealed:
    """The secrets of this process, in every form they may take in a text; it grows when they are rotated."""

    forms: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None


def conceal(*secrets: str) -> None:
    """Hide these secrets wherever they stand from now on, also percent-encoded and in base64."""
    fresh = {secret for secret in secrets if len(secret) >= _CONCEALED_CHARS} - _Concealed.forms
    if not fresh:
        return
    forms = _Concealed.forms.union(*map(forms_of, fresh))
    # the longest first: one form may begin another
    ordered = sorted(forms, key=len, reverse=True)
    _Concealed.pattern = re.compile("|".join(map(re.escape, ordered)), re.IGNORECASE)
    _Concealed.forms = forms


def forms_of(secret: str) -> set[str]:
    """Return how a secret may be spelled: as it is, in a URL, and in base64 behind 0, 1 or 2 other bytes."""
    raw = secret.encode("utf-8", "surrogatepass")
    forms = {secret, quote(raw, safe=""), quote(raw), quote_plus(raw), repr(secret)[1:-1]}
    for ahead in range(3):
        # the first and the last characters hold bits of what stands around it
        whole = base64.b64encode(b"\0" * ahead + raw)[(0, 2, 3)[ahead] :].rstrip(b"=")[:-1]
        forms |= {whole.decode(), whole.translate(bytes.maketrans(b"+/", b"-_")).decode()}
    return forms


def redact(text: str) -> str:
    """Return `text` with the value of everything that grants access replaced by `***`.

    Hides what was concealed, tokens, bearer headers, JWTs, `user:password@`, and all parameters of signed
    S3, GCS and Azure URLs. Safe on any text, also on broken JSON or HTML.
    """
    if _Concealed.pattern is not None:
        text = _Concealed.pattern.sub(HIDDEN, text)
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


class Redacting(logging.Filter):
    """A filter that removes secrets from log records and their tracebacks before any handler sees them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a record; it always passes."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redact(record.exc_text or logging.Formatter().formatException(record.exc_info))
        return True


# text from outside, on one line


def visible(text: str) -> str:
    """Return text on one line, with all that does not print as escapes (`\\x1b`, `\\u202e`)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class LineFormatter(logging.Formatter):
    """Formats each record as one line, and a traceback as lines of its own; no secret, nothing that acts."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        record.message = visible(redact(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        """Return the lines of a traceback."""
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(visible(redact(line)) for line in text.splitlines())

    def formatStack(self, stack_info: str) -> str:
        """Return the lines of a stack."""
        return "\n".join(visible(redact(line)) for line in stack_info.splitlines())
