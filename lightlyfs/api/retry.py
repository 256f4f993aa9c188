"""Which error an answer is, when a failed request is sent again, and how long to wait before.

Two kinds of failure are repeated. One that may pass (`errors.Retryable`) is repeated until the bound of the
call. A refusal, which usually stays, is doubted: it is repeated for some seconds and believed when every
answer in that time was one. What was believed is remembered for a while, so that the next call for the same
thing does not wait.

A host that throttles (429, or any answer with Retry-After) is left alone by all calls together: until the
time that it named nothing is sent, then one call at a time is the probe, and its success lets all others go.
"""

from __future__ import annotations

import email.utils
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import random as random_fraction
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from cachetools import TTLCache

from lightlyfs import errors
from lightlyfs.api.contract import Response
from lightlyfs.api.models import STRICT_REFUSALS
from lightlyfs.api.redaction import HIDDEN, redact

T = TypeVar("T")
Failure = errors.RequestError | errors.ContentError

# A cancelled wait is noticed this soon, and so is the end of a throttling.
_NAP_S = 0.25
# The last try begins this long before the bound of a call, or a tenth of the bound.
_LAST_TRY_S = 3.0
# A throttled host is probed this often, where it names no time itself, and left alone for at most that long.
_PROBE_EVERY_S, _MAX_THROTTLED_S = 0.5, 60.0
# A host that has answered nothing for this long counts as away.
_OUTAGE_S = 3.0
# A refusal that lasted for the whole time of doubt is believed at once for this long.
_BELIEVED_S = 60.0
# Refusals of one kind that make the next ones of it likely: they are doubted for a fraction of the time. One
# is enough where an account is full, for that is no matter of what was sent, until a request of the kind
# succeeds.
_MANY = 3
_MANY_S = 600.0
_SHORT_DOUBT = 0.05
_QUOTA = errors.QuotaExceeded.__name__
_FIRST_DOUBT_S, _MAX_DOUBT_S = 0.1, 1.5

# Refusals, and answers that make no sense: they usually stay, and sometimes pass.
DOUBTED = (
    errors.BadRequest,
    errors.Unauthorized,
    errors.Forbidden,
    errors.NotFound,
    errors.Conflict,
    errors.QuotaExceeded,
    errors.Refused,
    errors.MalformedAnswer,
    errors.UnsafeUrl,
    errors.TlsFailed,
    errors.ContentChanged,
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently: `attempts` in all, within `budget_s` from the first one's start.

    The wait before retry n (from 0) is drawn from `[cap * (1 - jitter), cap]` with
    `cap = min(max_delay_s, first_delay_s * 2**n)`; full jitter, so that many clients of a server
    that comes back do not come back at one moment. A refusal is doubted for `doubt_s`.
    """

    attempts: int = 1_000
    first_delay_s: float = 0.2
    max_delay_s: float = 8.0
    budget_s: float = 57.0  # any call on the mount may take a minute
    jitter: float = 1.0
    doubt_s: float = 6.0  # longer than the restart of a server or a proxy

    def delay_s(self, retry: int, random: Callable[[], float]) -> float:
        """Return the wait before retry number `retry`, from 0."""
        cap = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(retry, 60))
        return cap * (1.0 - self.jitter * random())


NO_RETRIES = RetryPolicy(attempts=1, doubt_s=0.0)


class Retrier:
    """Repeats requests to one host under a policy; any number of threads may share one."""

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = random_fraction,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Make one without memory of failures; `cancelled` ends every wait, with `errors.Cancelled`.

        The requests that it repeats ask the same `cancelled`, None where nothing ends them.
        """
        self.policy = policy or RetryPolicy()
        self.clock = clock
        self.sleep = sleep
        self.random = random
        self.cancelled = cancelled
        self._lock = threading.Lock()
        # guarded by _lock: since when nothing was answered, and when a throttled host may be asked again
        self._failing_since: float | None = None
        self._failure: errors.Retryable | None = None
        self._throttled_until: float | None = None
        # guarded by _lock: the class of refusal that is believed of a request, or that its failure stays;
        # refusals of each kind
        self._believed: TTLCache[tuple[str, str], str] = TTLCache(10_000, _BELIEVED_S, timer=clock)
        self._confirmed: TTLCache[tuple[str, str, str], None] = TTLCache(1_000, _MANY_S, timer=clock)
        self._full: TTLCache[str, None] = TTLCache(100, _MANY_S, timer=clock)

    def for_another_host(self) -> Retrier:
        """Return one with the same time, and nothing remembered."""
        return Retrier(
            self.policy, clock=self.clock, sleep=self.sleep, random=self.random, cancelled=self.cancelled
        )

    def call(
        self,
        fn: Callable[[], T],
        *,
        kind: str = "",
        what: str = "",
        policy: RetryPolicy | None = None,
        may_retry: Callable[[Failure], bool] | None = None,
    ) -> T:
        """Call `fn` until it succeeds, and return what it returned.

        `kind` and `what` name the request, for what is remembered of refusals. Only those failures are
        repeated that `may_retry` allows. Raises the last error, whose `settled` is set where it was repeated
        as often as it may be, or `errors.Cancelled`.
        """
        tries = _Tries(self, policy or self.policy, kind, what)
        while True:
            try:
                self._await_host(tries)
                result = fn()
            except errors.Retryable as exc:
                if exc.settled:
                    raise
                self._note_failure(exc)
                if may_retry is not None and not may_retry(exc):
                    raise
                pause_s = tries.pause_after_failure(exc)
                self._wait_or_raise(exc if pause_s is not None else tries.told_by(exc), pause_s, tries)
            except DOUBTED as exc:
                if exc.settled:
                    raise
                self._note_answer()
                if may_retry is not None and not may_retry(exc):
                    raise
                self._wait_or_raise(exc, tries.pause_after_refusal(exc), tries)
            else:
                self._note_answer()
                self._note_success(kind, what)
                return result

    def forget_refusals(self) -> None:
        """Doubt every refusal again, as after a change of credentials."""
        with self._lock:
            self._believed.clear()
            self._confirmed.clear()
            self._full.clear()

    # what all calls know of the host

    def outage_s(self) -> float:
        """Return for how long no request was answered; 0 if the last one was."""
        since = self._failing_since
        return 0.0 if since is None else self.clock() - since

    def outage(self) -> errors.Retryable | None:
        """Return the error of the requests if none was answered for some seconds; otherwise None."""
        return self._failure if self.outage_s() >= _OUTAGE_S else None

    def may_ask(self, *, urgent: bool) -> bool:
        """Whether the host asks for no pause and, unless it is urgent, answered the last request."""
        return self._throttled_until is None and (urgent or self._failing_since is None)

    def note(self, failure: errors.RequestError | None) -> None:
        """Take note of a request that another part sent: why it failed, None where it was answered well."""
        if isinstance(failure, errors.Retryable):
            self._note_failure(failure)
        else:
            self._note_answer()

    def _await_host(self, tries: _Tries) -> None:
        """Wait while the host is throttled, unless this call is its probe, or at its end."""
        while self._throttled_until is not None:
            with self._lock:
                now, until = self.clock(), self._throttled_until
                if until is None:
                    return
                if now >= until:
                    self._throttled_until = now + _PROBE_EVERY_S
                    return
            if tries.policy.attempts == 1:
                paused = errors.Throttled("the server asked for a pause", request_sent=False)
                paused.settled = True
                raise paused
            if now >= tries.last_try_at:
                return
            self._wait(min(until, tries.last_try_at) - now, None)

    def _note_failure(self, exc: errors.Retryable) -> None:
        with self._lock:
            now = self.clock()
            self._failure = exc
            if self._failing_since is None:
                self._failing_since = now
            if isinstance(exc, errors.Throttled) or exc.retry_after_s is not None:
                pause_s = min(_MAX_THROTTLED_S, max(_PROBE_EVERY_S, exc.retry_after_s or 0.0))
                self._throttled_until = max(self._throttled_until or now, now + pause_s)

    def _note_answer(self) -> None:
        if self._failing_since is None and self._throttled_until is None:
            return
        with self._lock:
            self._failing_since = self._failure = self._throttled_until = None

    # what is known of refusals

    def _note_success(self, kind: str, what: str) -> None:
        if not self._believed and not self._full:
            return
        with self._lock:
            self._full.pop(kind, None)
            self._believed.pop((kind, what), None)
            self._believed.pop(_ANY, None)

    def _is_believed(self, key: tuple[str, str], name: str) -> bool:
        with self._lock:
            return self._believed.get(key) == name

    def _is_common(self, kind: str, name: str) -> bool:
        with self._lock:
            if name == _QUOTA and kind in self._full:
                return True
            return sum(known[:2] == (kind, name) for known in self._confirmed) >= _MANY

    def _note_lasting(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._believed[key] = _STAYS

    def _believe(self, key: tuple[str, str], name: str) -> None:
        with self._lock:
            self._believed[key] = name
            self._confirmed[key[0], name, key[1]] = None
            if name == _QUOTA:
                self._full[key[0]] = None

    def _disbelieve(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._believed.pop(key, None)

    # waiting

    def _wait_or_raise(self, exc: Failure, pause_s: float | None, tries: _Tries) -> None:
        if pause_s is None:
            exc.settled = tries.is_patient
            raise exc
        self._wait(pause_s, exc)

    def _wait(self, pause_s: float, cause: Exception | None) -> None:
        if self.cancelled is None:
            self.sleep(pause_s)
            return
        while not self.cancelled():
            if pause_s <= 0:
                return
            self.sleep(min(pause_s, _NAP_S))
            pause_s -= _NAP_S
        sent = cause.request_sent if isinstance(cause, errors.RequestError) else False
        raise errors.Cancelled("given up while waiting to try again", request_sent=sent) from cause


class _Tries:
    """The tries of one call, and how long to pause before the next one."""

    def __init__(self, retrier: Retrier, policy: RetryPolicy, kind: str, what: str) -> None:
        self.policy = policy
        self._retrier = retrier
        self._kind = kind
        self._what = what
        self._started = retrier.clock()
        self._failures = 0
        self._refusals = 0
        self._refusal: Failure | None = None
        self._doubted_since: float | None = None
        self.last_try_at = self._started + policy.budget_s - min(_LAST_TRY_S, policy.budget_s / 10)

    @property
    def is_patient(self) -> bool:
        """Whether the policy lets failures pass, so that no outer loop has to."""
        return self.policy.doubt_s > 0

    def pause_after_failure(self, exc: errors.Retryable) -> float | None:
        """Return the pause before the next try, None where there is to be none."""
        self._failures += 1
        now = self._retrier.clock()
        key = (self._kind, self._what)
        if self._retrier.outage_s() > self.policy.budget_s or self._retrier._is_believed(key, _STAYS):
            # it does not pass within the bound of a call: later calls find that out sooner
            self.last_try_at = min(self.last_try_at, self._started + self.policy.doubt_s)
        if now >= self.last_try_at and self._what and not isinstance(exc, errors.Throttled):
            self._retrier._note_lasting(key)
        if self._failures >= self.policy.attempts or now >= self.last_try_at:
            return None
        pause_s = self.policy.delay_s(self._failures - 1, self._retrier.random)
        return min(pause_s, self.last_try_at - now)

    def told_by(self, exc: errors.Retryable) -> Failure:
        """Return what a call ends with: the doubted refusal, where its own bound cut off the last try."""
        is_over = isinstance(exc, errors.TimedOut) and self._retrier.clock() >= self.last_try_at
        return self._refusal if is_over and self._refusal is not None else exc

    def pause_after_refusal(self, exc: Failure) -> float | None:
        """Return the pause before the request is sent again, None where its refusal is to be believed."""
        # what this machine itself refuses to send stays so; a portal's certificate does not
        if (
            isinstance(exc, errors.RequestError)
            and not exc.request_sent
            and not isinstance(exc, errors.TlsFailed)
        ):
            return None
        name = type(exc).__name__
        key = _ANY if isinstance(exc, errors.Unauthorized) else (self._kind, self._what)
        starts_over = isinstance(exc, errors.OddAnswer) and exc.differs
        if not self.policy.doubt_s or (not starts_over and self._retrier._is_believed(key, name)):
            return None
        now = self._retrier.clock()
        if starts_over:
            self._retrier._disbelieve(key)
        if starts_over or self._doubted_since is None:
            self._doubted_since, self._refusals = now, 0
        share = _SHORT_DOUBT if self._retrier._is_common(key[0], name) else 1.0
        left_s = self._doubted_since + self.policy.doubt_s * share - now
        if left_s <= 0:
            self._retrier._believe(key, name)
            return None
        self._refusals += 1
        self._refusal = exc
        return min(left_s, share * min(_MAX_DOUBT_S, _FIRST_DOUBT_S * 2.0 ** (self._refusals - 1)))


# a refused token applies to every request
_ANY = ("", "")
# in the place of a class: a failure that may pass did not within the bound of a call
_STAYS = "stays"


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
    407: "check the user name and the password in HTTPS_PROXY and HTTP_PROXY",
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
    if status in _WAYS_OUT and (status == 407 or not storage):
        line += f"; {_WAYS_OUT[status]}"
    if 300 <= status < 400 and "location" in response.headers:
        line += f"; it redirects{_target_of(response.headers)}, which is not followed"
    raise _error_class(status, code, storage, reads)(
        redact(line),
        status=status,
        code=code,
        request_id=request_id,
        retry_after_s=retry_after_s(response.headers, now),
    )


def _target_of(headers: Mapping[str, str]) -> str:
    """Return " to scheme://host" of a redirect, "" where it names no host; the rest of it may be signed."""
    try:
        parts = urlsplit(headers.get("location", "").strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if not host:
        return ""
    where = f"{_trimmed(parts.scheme, 10)}://{_trimmed(host, 100)}"
    return f" to {where}:{port}" if port else f" to {where}"


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
