"""One call of the API: URL and credentials, the transport that carries it, retries, the status checked.

Owns where credentials go: to the API host alone, the token as the last query parameter, the bearer
token as a header, the public token only to the redirect endpoint.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from lightlyfs import errors
from lightlyfs.api.contract import (
    ERROR_BODY_BYTES,
    MAX_ANSWER_BYTES,
    Inflater,
    Request,
    Response,
    Timeouts,
    Transport,
    content_encoding_of,
    wire_url,
)
from lightlyfs.api.models import parse, shown
from lightlyfs.api.redaction import conceal
from lightlyfs.api.retry import Failure, Retrier, RetryPolicy, raise_for_status

Query = Sequence[tuple[str, str | int | bool]]
MayRetry = Callable[[Failure], bool]
T = TypeVar("T")

# how often one request goes out again with another token; twice is a token that changed twice meanwhile
_RENEWALS = 2
# pages of thousands of samples: the server may take longer for one than for any other request
_SLOW = {"list_samples", "list_samples_partial", "list_page", "list_full_page", "get_mappings"}
_REDIRECTS = (301, 302, 303, 307, 308)


# The token to send, asked for each request; the argument is the one that was just refused, or None.
TokenSource = Callable[[str | None], str]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What opens the API; at least `token` or `bearer` for all but the redirect. Its repr shows nothing."""

    token: str | TokenSource | None = field(default=None, repr=False)
    bearer: str | None = field(default=None, repr=False)
    public_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        conceal(*self.secrets())

    def secrets(self) -> tuple[str, ...]:
        """Return every credential that is set: what no text may hold."""
        return tuple(
            secret for secret in (self.token, self.bearer, self.public_token) if isinstance(secret, str)
        )

    def resolved(self, refused: Credentials | None = None) -> Credentials:
        """Return what to send now, after the server `refused` what was sent before."""
        if self.token is None or isinstance(self.token, str):
            return self
        before = None if refused is None else refused.token
        return replace(self, token=self.token(before if isinstance(before, str) else None))


class Call(NamedTuple):
    """One request to the API, before credentials. `operation` names it in errors and counters."""

    operation: str
    method: str
    path: str
    query: Query = ()
    body: bytes | None = None
    redirect: bool = False
    """The answer is a redirect, which is returned, and the public token opens it."""


class Attempt(NamedTuple, Generic[T]):
    """One request for another part to send; `outcome` returns what its answer says, or raises why not."""

    operation: str
    request: Request
    outcome: Callable[[Response | errors.RequestError], T]


def surely_unsent(exc: Failure) -> bool:
    """True where the server has not acted on the request: what is not idempotent may go out again."""
    if not isinstance(exc, errors.RequestError):
        return False
    refused = exc.status is not None and 400 <= exc.status < 500 and exc.status != 408
    return refused or not exc.request_sent


class Caller:
    """Sends calls to one server; any number of threads may share one."""

    def __init__(
        self,
        server: str,
        credentials: Credentials,
        transport: Transport,
        hot_transport: Transport,
        retrier: Retrier,
        *,
        timeouts: Timeouts,
        on_request: Callable[[str, str, float, str], None] | None,
    ) -> None:
        self.server = server.strip().rstrip("/")
        wire_url(self.server)
        self._credentials = credentials
        self._transport = transport
        self._hot = hot_transport
        self._retrier = retrier
        self._timeouts = timeouts
        self._on_request = on_request

    def send(
        self,
        call: Call,
        read: Callable[[Response], T],
        policy: RetryPolicy | None = None,
        may_retry: MayRetry | None = None,
    ) -> T:
        """Send `call`, again where policy and `may_retry` allow, and return what `read` makes of the answer.

        An answer that `read` refuses is a failed try. All tries together end within the policy's budget.
        """
        policy = policy or self._retrier.policy
        deadline_s = self._retrier.clock() + policy.budget_s
        what = call.path if call.body is None else f"{call.path} {hashlib.sha1(call.body).hexdigest()}"
        return self._retrier.call(
            lambda: read(self._once_or_renewed(call, deadline_s)),
            kind=call.operation,
            what=what,
            policy=policy,
            may_retry=may_retry,
        )

    def attempt(self, call: Call, read: Callable[[Response], T]) -> Attempt[T]:
        """Return one attempt of `call`, which another part sends; its answer has at most 64 KiB."""
        credentials = self._credentials.resolved()

        def outcome(answer: Response | errors.RequestError) -> T:
            try:
                if isinstance(answer, errors.RequestError):
                    raise answer
                found = read(self._checked(call, answer, credentials))
            except errors.RequestError as error:
                self._retrier.note(error)
                raise
            self._retrier.note(None)
            return found

        request = self._request(call, self._timeouts, credentials)
        request = msgspec.structs.replace(request, max_body_bytes=ERROR_BODY_BYTES)
        return Attempt(call.operation, request, outcome)

    def _once_or_renewed(self, call: Call, deadline_s: float) -> Response:
        credentials = self._credentials.resolved()
        for _ in range(_RENEWALS):
            try:
                return self._once(call, deadline_s, credentials)
            except errors.Unauthorized:
                renewed = self._credentials.resolved(credentials)
                if call.redirect or renewed == credentials:
                    raise
                credentials = renewed
                self._retrier.forget_refusals()
        return self._once(call, deadline_s, credentials)

    def _once(self, call: Call, deadline_s: float, credentials: Credentials) -> Response:
        left_s = max(0.001, deadline_s - self._retrier.clock())
        timeouts = msgspec.structs.replace(self._timeouts, total_s=min(self._timeouts.total_s, left_s))
        request = self._request(call, timeouts, credentials)
        transport = self._hot if call.method == "GET" else self._transport
        started_s = self._retrier.clock()
        outcome = "failed"
        try:
            answer = transport.send(request)
            outcome = str(answer.status)
        except errors.RequestError as error:
            outcome = type(error).__name__
            raise
        finally:
            if self._on_request is not None:
                seconds = self._retrier.clock() - started_s
                self._on_request(call.method, call.operation, seconds, outcome)
        return self._checked(call, answer, credentials)

    def _checked(self, call: Call, answer: Response, credentials: Credentials) -> Response:
        """Return an answer that is one to the call; raises what else it stands for."""
        if call.redirect and answer.status in _REDIRECTS:
            return answer
        what = f"{call.operation} {call.path}"
        answer = _inflated(answer)
        if not 200 <= answer.status < 300:
            reads = call.method == "GET"
            raise_for_status(answer, what=what, reads=reads, secrets=credentials.secrets())
        if answer.headers.get("content-type", "").lower().startswith("text/html"):
            # a sign-in page, or a proxy's notice; the API itself sends none, and may be behind it soon
            raise errors.ServerFault(f"{what}: a web page instead of an answer", status=answer.status)
        if call.redirect:
            raise errors.MalformedAnswer(
                f"{what}: {answer.status} instead of a redirect", status=answer.status
            )
        return answer

    def _request(self, call: Call, timeouts: Timeouts, credentials: Credentials) -> Request:
        headers = {"Accept": "application/json"}
        query = [*call.query]
        if call.redirect:
            if credentials.public_token:
                query.append(("publicToken", credentials.public_token))
        else:
            if credentials.bearer:
                headers["Authorization"] = f"Bearer {credentials.bearer}"
            if isinstance(credentials.token, str) and credentials.token:
                query.append(("token", credentials.token))
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        url = self.server + call.path + _encoded(query)
        slow = call.operation in _SLOW
        cancelled = self._retrier.cancelled
        return Request(call.method, url, headers, call.body, timeouts, cancelled=cancelled, slow=slow)


def _inflated(answer: Response) -> Response:
    """Return an answer without the Content-Encoding that a proxy put on it, although none was asked for."""
    encoding = content_encoding_of(answer.headers)
    if not encoding or not answer.body:
        return answer
    try:
        inflater = Inflater(encoding, "the API", MAX_ANSWER_BYTES)
        body = inflater.inflate(answer.body)
    except (errors.MalformedAnswer, errors.ShortBody):
        return answer  # the encoding is another one, or was undone and still named: what it is shows next
    if 200 <= answer.status < 300:
        inflater.check_end()
    return Response(answer.status, answer.headers, body)


def _encoded(pairs: Query) -> str:
    if not pairs:
        return ""
    # Booleans go as True and False, blanks as %20, `/` as it is: as the official client sends them.
    return "?" + "&".join(f"{name}={_quoted(str(value))}" for name, value in pairs)


# requests for read URLs repeat the same values
@lru_cache(64)
def _quoted(text: str) -> str:
    return quote(text, errors="surrogatepass")


def address_in(body: bytes, where: str) -> str:
    """Return the address of an answer that is a JSON string or, from older servers, raw text."""
    # a mark that other answers may have too, for json.loads passes over it
    text = body.removeprefix(codecs.BOM_UTF8).strip()
    found = parse(text, where) if text[:1] == b'"' else text.decode("utf-8", "replace")
    if not isinstance(found, str) or "://" not in found or found[:1] in "<{[":
        raise errors.MalformedAnswer(f"{where} is not an address: {shown(str(found)[:40])}")
    return checked_url(found)


def checked_url(url: str) -> str:
    """Return `url`, or raise `errors.UnsafeUrl` when it is not one to follow."""
    try:
        wire_url(url)
    except errors.UnsafeUrl as exc:
        exc.request_sent = True  # the one that was answered by this address
        raise
    return url
