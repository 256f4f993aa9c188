"""The way to the API and to storage: client, transports, credentials, counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lightlyfs.api.calls import Credentials
from lightlyfs.api.client import LightlyClient
from lightlyfs.api.proxies import Proxies
from lightlyfs.api.retry import RetryPolicy
from lightlyfs.api.transport import RequestsTransport, Transport, TransportConfig
from lightlyfs.settings import Secrets, Settings

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
    on_request: Callable[[str, str, float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Connections:
    """Make the client and its transports; no request is sent yet."""
    config = TransportConfig(
        connections=settings.jobs + METADATA_THREADS + URL_THREADS,
        ca_bundle=None if settings.ca_certs is None else str(settings.ca_certs),
        proxies=Proxies.from_environ(environ),
    )
    requests = RequestsTransport(config)
    # one for each end: a handle that has just talked to the API has no warm connection to storage
    to_api, to_storage = _hot_transport(config) or requests, _hot_transport(config) or requests
    client = LightlyClient(
        settings.server,
        Credentials(token=secrets.token, bearer=secrets.bearer, public_token=secrets.public_token),
        requests,
        hot_transport=to_api,
        on_request=on_request,
        cancelled=cancelled,
    )
    return Connections(client, to_storage, requests, secrets.fingerprint(settings.read_mode))


def _hot_transport(config: TransportConfig) -> Transport | None:
    """pycurl, or None where no wheel of it exists and the requests form has to do."""
    try:
        from lightlyfs.api.curl import CurlTransport
    except ImportError:
        return None
    return CurlTransport(config)


class RequestCounter:
    """Counts API requests by operation, for `status`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def __call__(self, method: str, operation: str, seconds: float) -> None:
        with self._lock:
            self._counts[operation] = self._counts.get(operation, 0) + 1

    def counts(self) -> dict[str, int]:
        """Requests so far by operation."""
        with self._lock:
            return dict(sorted(self._counts.items()))


def quick_policy() -> RetryPolicy:
    """For the checks at start: somebody waits, and the answer to a failure is to try again."""
    return RetryPolicy(attempts=3, budget_s=10.0)
