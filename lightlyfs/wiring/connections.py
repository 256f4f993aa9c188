"""The way to the API and to storage: client, transports, credentials."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lightlyfs.api.calls import Credentials
from lightlyfs.api.client import LightlyClient
from lightlyfs.api.contract import Request, Response, Transport, TransportConfig
from lightlyfs.api.proxies import Proxies
from lightlyfs.api.retry import RetryPolicy
from lightlyfs.settings import Secrets, Settings
from lightlyfs.wiring.counting import CountedTransport, RequestCounter

# requests of the catalogue: pages, single samples, checks; apart from content, so that neither waits for
# the other
METADATA_THREADS = 16
# requests for read URLs that nobody waits for yet: 16 of 20 ms are 800 a second, what 2 cores can do
URL_THREADS = 16


class Connections(NamedTuple):
    """The API client, and the transports to storage: one for reading, one for uploads.

    `fingerprint` stands for the credential that read URLs are got with.
    """

    client: LightlyClient
    storage: Transport
    uploads: Transport
    fingerprint: str


def connect(
    settings: Settings,
    secrets: Secrets,
    environ: Mapping[str, str],
    on_request: RequestCounter | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Connections:
    """Make the client and its transports; no request is sent yet."""
    config = TransportConfig(
        connections=settings.jobs + METADATA_THREADS + URL_THREADS,
        ca_bundle=None if settings.ca_certs is None else str(settings.ca_certs),
        proxies=Proxies.from_environ(environ),
    )
    requests = _Others(config)
    # one for each end: a handle that has just talked to the API has no warm connection to storage
    to_api = _hot_transport(config) or requests
    to_storage: Transport = _hot_transport(config) or requests
    client = LightlyClient(
        settings.server,
        credentials_of(secrets),
        requests,
        hot_transport=to_api,
        on_request=on_request,
        cancelled=cancelled,
    )
    uploads: Transport = requests
    if on_request is not None:
        to_storage, uploads = CountedTransport(to_storage, on_request), CountedTransport(requests, on_request)
    return Connections(client, to_storage, uploads, secrets.fingerprint(settings.read_mode))


class _Others:
    """The form of the transport that keeps its connections over POST; loaded with its first request.

    It takes 8 MB of memory, and a mount that is only read from needs none of it.
    """

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        # guarded by _lock
        self._made: Transport | None = None

    def send(self, request: Request) -> Response:
        """As the transport's own."""
        with self._lock:
            if self._made is None:
                from lightlyfs.api.transport import RequestsTransport

                self._made = RequestsTransport(self._config)
        return self._made.send(request)

    def close(self) -> None:
        """As the transport's own."""
        with self._lock:
            if self._made is not None:
                self._made.close()


def _hot_transport(config: TransportConfig) -> Transport | None:
    """pycurl, or None where no wheel of it exists and the requests form has to do."""
    try:
        from lightlyfs.api.curl import CurlTransport
    except ImportError:
        return None
    return CurlTransport(config)


def credentials_of(secrets: Secrets) -> Credentials:
    """What requests bear."""
    return Credentials(token=secrets.token, bearer=secrets.bearer, public_token=secrets.public_token)


def quick_policy() -> RetryPolicy:
    """For the checks at start: somebody waits, and the answer to a failure is to try again."""
    return RetryPolicy(attempts=3, budget_s=10.0)
