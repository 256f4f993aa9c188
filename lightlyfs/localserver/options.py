"""What a local server is asked to be: one frozen record, with no behaviour.

Every other module here receives the values it needs from this record; none reads the environment.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FileNameFilter = Literal["exact", "ignored", "prefix"]
SizeReport = Literal["true", "omitted", "wrong"]

RESPONSE_CAP_BYTES = 32 * 1024 * 1024
"""The client's history names a 32 MB restriction on fetching everything at once."""

URL_LIFETIME_S = 3600.0
"""Short enough that a long session meets an expiry, as it does with role sessions on S3."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may take: connections in all, seconds for headers, and between bytes of a body."""

    connections: int = 480  # with a file each they fit into the 1,024 descriptors that are usual
    headers_s: float = 10.0
    body_s: float = 30.0


@dataclass(frozen=True)
class ServerOptions:
    """One local server: what it serves, where it listens, and how strict it is.

    `source` is a folder, an `s3://bucket/prefix` URL, or None together with `fake_samples`. With `state` None
    the catalogue lives in memory: sample ids still survive a restart (they derive from names), metadata and
    tags do not.
    """

    source: str | Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    public_url: str | None = None
    token: str | None = field(default=None, repr=False)
    state: Path | None = None
    dataset_id: str | None = None
    dataset_name: str | None = None
    url_lifetime_s: float = URL_LIFETIME_S
    s3_endpoint: str | None = None

    fake_samples: int | None = None
    fake_bytes: int = 100_000
    fake_per_directory: int | None = 1000
    fake_prefix: str = "fake"

    page_size_max: int | None = None
    response_cap_bytes: int = RESPONSE_CAP_BYTES
    file_name_filter: FileNameFilter = "exact"
    reported_sizes: SizeReport = "true"
    rescan_s: float | None = 2.0
    limits: ConnectionLimits = ConnectionLimits()

    api_latency_s: float = 0.0
    storage_latency_s: float = 0.0
    verbose: bool = False
