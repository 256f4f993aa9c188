"""A Lightly server for tests and benchmarks: `lightlyfs.server` with faults, counts and generated datasets.

    with LocalServer(ServerOptions(source=folder)) as server:
        server.faults.add(Status(status=503, count=2))

Imports nothing of lightlyfs but the server, as the server itself does.

    __main__ > local_server > instrumentation (counts, control endpoints) > faults
    generated (samples and bytes that are computed)
"""

from lightlyfs.server import ConnectionLimits, LocalServerError

from .faults import (
    BrokenJson,
    ChangedEtag,
    Chunked,
    DropReply,
    Empty,
    Expired,
    Fault,
    Gzip,
    HeldRequests,
    Html,
    IgnoreRange,
    Latency,
    NoVersion,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
    WrongTotal,
)
from .local_server import LocalServer, ServerOptions

__all__ = [
    "BrokenJson",
    "ChangedEtag",
    "Chunked",
    "ConnectionLimits",
    "DropReply",
    "Empty",
    "Expired",
    "Fault",
    "Gzip",
    "HeldRequests",
    "Html",
    "IgnoreRange",
    "Latency",
    "LocalServer",
    "LocalServerError",
    "NoVersion",
    "ServerOptions",
    "Stall",
    "Status",
    "Truncate",
    "WrongContentRange",
    "WrongTotal",
]
