"""A Lightly v1 API over a folder, an S3 bucket or made-up samples, for demos, tests and offline teams.

Imports nothing else of lightlyfs, so that the client and the server it is tested on never share a mistake.

    __main__, server > assembly > application > *_api > dataset > catalog, tag_store > database
    storage (the contract), folder, s3, generated, objects (the bytes), signing, keys, ranges
    faults > fault_kinds > transport; stats
"""

from .errors import LocalServerError
from .fault_kinds import (
    BrokenJson,
    ChangedEtag,
    Chunked,
    DropReply,
    Empty,
    Expired,
    Gzip,
    Html,
    IgnoreRange,
    Latency,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
    WrongTotal,
)
from .faults import Faults
from .options import ServerOptions
from .server import LocalServer, run
from .stats import Stats

__all__ = [
    "BrokenJson",
    "ChangedEtag",
    "Chunked",
    "DropReply",
    "Empty",
    "Expired",
    "Faults",
    "Gzip",
    "Html",
    "IgnoreRange",
    "Latency",
    "LocalServer",
    "LocalServerError",
    "ServerOptions",
    "Stall",
    "Stats",
    "Status",
    "Truncate",
    "WrongContentRange",
    "WrongTotal",
    "run",
]
