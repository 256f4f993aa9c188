"""The way to the API and to storage: client, transports, credentials."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from lightlyfs.api.addresses import AddressGuard
from lightlyfs.api.calls import Credentials, TokenSource
from lightlyfs.api.certificates import trust_of
from lightlyfs.api.client import LightlyClient
from lightlyfs.api.contract import Request, Response, Transport, TransportConfig
from lightlyfs.api.network import Network
from lightlyfs.api.proxies import Proxies
from lightlyfs.api.retry import RetryPolicy
from lightlyfs.settings import Secrets, Settings
from lightlyfs.wiring.counting import CountedTransport, RequestCounter
from lightlyfs.wiring.tokens import TokenFile, asked

# requests of the catalogue: pages, single samples, checks; apart from content, so that neither waits for
# the other
METADATA_THREADS = 16
# requests for read URLs that nobody waits for yet: 16 of 20 ms are 800 a second, what 2 cores can do
URL_THREADS = 16
# what a program's guest keeps of idle connections to the API; of those to storage it keeps one a download
_IDLE_OF_GUEST = 16


class Connections(NamedTuple):
    """The API client, and the transports to storage: one for reading, one for uploads.

    `fingerprint` stands for the credential that read URLs are got with; `token_file` is where the token
    comes from, if that is a file.
    """

    client: LightlyClient
    storage: Transport
    uploads: Transport
    fingerprint: str
    token_file: TokenFile | None = None


def connect(
    settings: Settings,
    secrets: Secrets,
    environ: Mapping[str, str],
    on_request: RequestCounter | None = None,
    cancelled: Callable[[], bool] | None = None,
    *,
    keep_few: bool = False,
    token: Callable[[], str] | None = None,
) -> Connections:
    """Make the client and its transports; no request is sent yet.

    With `keep_few` idle connections are closed rather than kept for the next burst of requests. `token` gives
    the token to send, in place of that of `secrets`.
    """
    config = TransportConfig(
        connections=settings.jobs + METADATA_THREADS + URL_THREADS,
        ca_bundle=trust_of(environ, settings.ca_certs).bundle,
        proxies=Proxies.from_environ(environ),
        network=Network(),
    )
    guard = AddressGuard(settings.server, settings.allow_private_storage)
    guarded = replace(config, guard=guard)
    requests = _OnFirstUse(lambda: _requests_transport(guarded))
    # one for each end: a handle that has just talked to the API has no warm connection to storage
    to_api = _hot_transport(replace(config, idle=_IDLE_OF_GUEST) if keep_few else config) or requests
    to_storage: Transport = (
        _hot_transport(replace(guarded, idle=settings.jobs) if keep_few else guarded) or requests
    )
    token_file = None
    if token is None and settings.token_file is not None and secrets.token is not None:
        token_file = TokenFile(settings.token_file, secrets.token)
    client = LightlyClient(
        settings.server,
        _credentials(secrets, token_file or (secrets.token if token is None else asked(token))),
        requests,
        hot_transport=to_api,
        on_request=on_request,
        cancelled=cancelled,
    )
    uploads: Transport = requests
    if on_request is not None:
        to_storage, uploads = CountedTransport(to_storage, on_request), CountedTransport(requests, on_request)
    return Connections(client, to_storage, uploads, secrets.fingerprint(settings.read_mode), token_file)


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


def _credentials(secrets: Secrets, token: str | TokenSource | None) -> Credentials:
    """What requests bear."""
    return Credentials(token=token, bearer=secrets.bearer, public_token=secrets.public_token)


def quick_policy() -> RetryPolicy:
    """For the checks at start: somebody waits, and the answer to a failure is to try again."""
    return RetryPolicy(attempts=3, budget_s=10.0, doubt_s=0.0)
