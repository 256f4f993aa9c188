"""The options of a server: one frozen record without behaviour.

Every other module here receives the values it needs from this record; none reads the environment.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FileNameFilter = Literal["exact", "ignored", "prefix"]
SizeReport = Literal["true", "omitted", "wrong"]

RESPONSE_CAP_BYTES = 32 * 1024 * 1024
"""The history of the official client mentions a 32 MB limit on one response."""

URL_LIFETIME_S = 3600.0
"""Short enough that URLs expire during a long session, as with role sessions on S3."""


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of clients: total connections, seconds for headers, seconds between bytes of a body."""

    connections: int = 480  # with one file each, they fit into the usual 1,024 descriptors
    headers_s: float = 10.0
    body_s: float = 30.0


@dataclass(frozen=True)
class ServeOptions:
    """The source of one server, its address, and its limits.

    `source` is a folder or an `s3://bucket/prefix` URL; None only if an `Extension` supplies a dataset.
    Signed URLs lead to `s3_public_endpoint` where clients reach the S3 service by another address.
    With `state` None the samples live in memory: their ids survive a restart (they derive from the names),
    metadata and tags do not.
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
    s3_public_endpoint: str | None = None

    page_size_max: int | None = None
    response_cap_bytes: int = RESPONSE_CAP_BYTES
    file_name_filter: FileNameFilter = "exact"
    reported_sizes: SizeReport = "true"
    rescan_s: float | None = 2.0
    limits: ConnectionLimits = ConnectionLimits()

    verbose: bool = False
