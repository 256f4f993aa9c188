"""Connections to the API and to storage: client, transports, credentials and request counters."""

from __future__ import annotations

import bisect
import itertools
import logging
import resource
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightlyfs.api.addresses import AddressGuard, Proxies, trust_of
from lightlyfs.api.calls import Credentials
from lightlyfs.api.client import LightlyClient
from lightlyfs.api.contract import BodyMemory, Request, Response, Transport, TransportConfig
from lightlyfs.api.network import Network
from lightlyfs.api.retry import Retrier, RetryPolicy
from lightlyfs.errors import RequestError, Retryable, SettingsError, Unauthorized
from lightlyfs.settings import Secrets, Settings, read_token

if TYPE_CHECKING:
    from lightlyfs.api.curl_loop import CurlLoop

log = logging.getLogger(__name__)

# requests of the catalogue: pages, single samples, checks; apart from content, so that neither waits for
# the other
METADATA_THREADS = 16
# downloads at once that have a thread each: large files, and what went wrong on the network loop
CONTENT_THREADS = 32
# idle connections to the API that are kept in a host program; to storage it is one a download
_IDLE_OF_GUEST = 16
# how long the network loop keeps idle connections there: longer than the pause between two epochs, shorter
# than most servers do
_KEEP_S = 15.0


class Connections(NamedTuple):
    """The API client, and the transports to storage: one for reading, one for uploads. A `ServerState`.

    `fingerprint` stands for the credential that read URLs are got with; `token_file` is where the token
    comes from, if that is a file. `requests` counts what is sent.
    """

    client: LightlyClient
    storage: Transport
    uploads: Transport
    fingerprint: str
    requests: RequestCounter
    token_file: TokenFile | None = None
    loop: CurlLoop | None = None

    def outage(self) -> Retryable | None:
        """Return the error of the requests if none was answered for some seconds; otherwise None."""
        return self.client.retrier.outage()

    def outage_s(self) -> float:
        """Return for how long no request was answered; 0 if the last one was."""
        return self.client.retrier.outage_s()

    def has_new_token(self) -> bool:
        """Return whether the token file holds another token than the last time this was asked."""
        return self.token_file is not None and self.token_file.look()


def connect(
    settings: Settings,
    secrets: Secrets,
    environ: Mapping[str, str],
    requests: RequestCounter | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    keep_few: bool = False,
    token: Callable[[], str] | None = None,
) -> Connections:
    """Make the client and its transports; no request is sent yet.

    With `keep_few`, few idle connections are kept for the next burst of requests, and those of the network
    loop for some seconds. `token` gives the token to send, in place of that of `secrets`.
    """
    config = TransportConfig(
        connections=min(settings.jobs, CONTENT_THREADS) + METADATA_THREADS,
        ca_bundle=trust_of(environ, settings.ca_certs).bundle,
        proxies=Proxies.from_environ(environ),
        network=Network(),
        memory=BodyMemory(settings.memory.share(2, 128 << 20)),
    )
    guard = AddressGuard(settings.server, settings.allow_private_storage)
    guarded = replace(config, guard=guard)
    requests = requests or RequestCounter()
    fallback = _OnFirstUse(lambda: _requests_transport(guarded))

    def transport(limits: TransportConfig, idle: int) -> Transport:
        return _hot_transport(replace(limits, idle=idle) if keep_few else limits) or fallback

    # one for each end: a handle that has just talked to the API has no warm connection to storage; and those
    # that change something apart from those that read, so that neither waits for the other
    to_api, to_storage = transport(config, _IDLE_OF_GUEST), transport(guarded, CONTENT_THREADS)
    changes, uploads = transport(config, _IDLE_OF_GUEST), transport(guarded, _IDLE_OF_GUEST)
    token_file = None
    if token is None and settings.token_file is not None and secrets.token is not None:
        token_file = TokenFile(settings.token_file, secrets.token)
    client = LightlyClient(
        settings.server,
        Credentials(
            token=token_file or (secrets.token if token is None else asked(token)),
            bearer=secrets.bearer,
            public_token=secrets.public_token,
        ),
        changes,
        hot_transport=to_api,
        retrier=Retrier(cancelled=cancelled),
        on_request=requests,
    )
    return Connections(
        client,
        CountedTransport(to_storage, requests),
        CountedTransport(uploads, requests),
        secrets.fingerprint(settings.read_mode),
        requests,
        token_file,
        _loop(guarded, settings.jobs, keep_few=keep_few),
    )


class _OnFirstUse:
    """A transport that is made when the first request is sent: a worker that only reads needs none of it."""

    def __init__(self, make: Callable[[], Transport]) -> None:
        self._make = make
        self._lock = threading.Lock()
        # guarded by _lock
        self._made: Transport | None = None
        self._closed = False

    def send(self, request: Request) -> Response:
        """Send a request; the contract is `contract.Transport.send`."""
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make()
                    if self._closed:
                        self._made.close()
        return self._made.send(request)

    def close(self) -> None:
        """End transfers under way; idempotent."""
        with self._lock:
            self._closed = True
            if self._made is not None:
                self._made.close()


def _requests_transport(config: TransportConfig) -> Transport:
    from lightlyfs.api.over_requests import RequestsTransport

    return RequestsTransport(config)


def _hot_transport(config: TransportConfig) -> Transport | None:
    """pycurl, or None where no wheel of it exists and the requests form has to do."""
    try:
        from lightlyfs.api.curl import CurlTransport
    except ImportError:
        return None
    return CurlTransport(config)


def _loop(config: TransportConfig, jobs: int, *, keep_few: bool) -> CurlLoop | None:
    """The network loop, or None without pycurl."""
    try:
        from lightlyfs.api.curl_loop import CurlLoop
    except ImportError:
        return None
    if not keep_few:
        return CurlLoop(replace(config, connections=jobs))
    # the descriptors are the program's
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = jobs if soft == resource.RLIM_INFINITY else max(1, min(jobs, soft // 8))
    return CurlLoop(replace(config, connections=most), keep_s=_KEEP_S)


# one odd answer is not the truth, but a wrong token has to be reported at once
QUICK_DOUBT_S = 0.5


def quick_policy() -> RetryPolicy:
    """Return the policy of the checks at start: a user is waiting, and can repeat a failed command."""
    return RetryPolicy(attempts=3, budget_s=10.0, doubt_s=QUICK_DOUBT_S)


# counting requests, for `status` and for metrics

_STORAGE = "storage_"
# from a cached answer of a near server to a call that reached its time limit
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Latencies(NamedTuple):
    """How long requests of one operation took: how many took at most each of LATENCY_BUCKETS_S, and the
    sum in seconds.
    """

    buckets: tuple[int, ...]
    sum_s: float


class RequestCounter:
    """Counts requests by operation and outcome, and how long they took; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock
        self._outcomes: dict[tuple[str, str], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._sums_s: dict[str, float] = {}

    def __call__(self, method: str, operation: str, seconds: float, outcome: str) -> None:
        bucket = bisect.bisect_left(LATENCY_BUCKETS_S, seconds)
        with self._lock:
            key = (operation, outcome)
            self._outcomes[key] = self._outcomes.get(key, 0) + 1
            self._buckets.setdefault(operation, [0] * (len(LATENCY_BUCKETS_S) + 1))[bucket] += 1
            self._sums_s[operation] = self._sums_s.get(operation, 0.0) + seconds

    def counts(self) -> dict[str, int]:
        """Requests so far by operation, those to storage left out."""
        found: dict[str, int] = {}
        for (operation, _), count in self.outcomes().items():
            if not operation.startswith(_STORAGE):
                found[operation] = found.get(operation, 0) + count
        return dict(sorted(found.items()))

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Requests so far by operation and outcome: a status, or the name of the error."""
        with self._lock:
            return dict(self._outcomes)

    def latencies(self) -> dict[str, Latencies]:
        """Return how long the requests of each operation took."""
        with self._lock:
            return {
                operation: Latencies(tuple(itertools.accumulate(buckets)), self._sums_s[operation])
                for operation, buckets in self._buckets.items()
            }


class CountedTransport:
    """A transport to storage whose requests are counted."""

    def __init__(self, transport: Transport, counter: RequestCounter) -> None:
        self._transport = transport
        self._counter = counter

    def send(self, request: Request) -> Response:
        """Send a request, and count it; see `Transport.send`."""
        started = time.monotonic()
        outcome = "failed"
        try:
            answer = self._transport.send(request)
            outcome = str(answer.status)
        except RequestError as error:
            outcome = type(error).__name__
            raise
        else:
            return answer
        finally:
            operation = _STORAGE + request.method.lower()
            self._counter(request.method, operation, time.monotonic() - started, outcome)

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()


# the API token in a file, which is rotated while programs run


_Stamp = tuple[int, int, int]


class TokenFile:
    """The token in a file; any thread may call. A `TokenSource` of the client.

    The file is looked at for each request, which costs two microseconds, and read when it is another one.
    While it cannot be read, or is empty, the last token counts. `on_change` is called after a change.
    """

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._token = token
        self._lock = threading.Lock()
        # guarded by _lock; nothing read yet, for the file may have changed since `token` was read from it
        self._stamp: _Stamp | None = None
        self.on_change: Callable[[], object] = lambda: None

    def __call__(self, refused: str | None = None) -> str:
        """Return the token to send. One that was `refused` is read again although the file looks the same."""
        self.look(refused is not None)
        return self._token

    def look(self, closely: bool = False) -> bool:
        """Read the file if it changed, or is to be looked at closely; whether the token is another one."""
        before = self._token
        with self._lock:
            stamp = self._stamp_now()
            if (stamp != self._stamp or closely) and not self._read_locked(stamp):
                return False
        return self._tell_change(before)

    def reload(self) -> bool:
        """Read the file because a person says so; False where that fails."""
        before = self._token
        with self._lock:
            done = self._read_locked(self._stamp_now())
        if done and not self._tell_change(before):
            log.info("the token was read again from %s: it is the same", self._path)
        return done

    def _read_locked(self, stamp: _Stamp | None) -> bool:
        self._stamp = stamp
        try:
            self._token = read_token(self._path)
        except SettingsError as error:
            log.error("%s; the old token stays in use", error)
            return False
        return True

    def _tell_change(self, before: str) -> bool:
        if self._token == before:
            return False
        log.info("the token was read again from %s", self._path)
        self.on_change()
        return True

    def _stamp_now(self) -> _Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def asked(token: Callable[[], str]) -> Callable[[str | None], str]:
    """Return a `TokenSource` of a program's own function; what that raises is a missing token."""

    def ask(_refused: str | None) -> str:
        try:
            return token()
        except Exception as error:
            text = f"the function that gives the token failed: {error!r}"
            raise Unauthorized(text, request_sent=False) from error

    return ask
