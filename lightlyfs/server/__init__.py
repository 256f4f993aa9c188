"""A Lightly v1 API over a folder or an S3 bucket, for demos, offline teams and tests.

Imports nothing else of lightlyfs, so that the client and the server it is tested on never share a mistake.
`lightlyfs.testing` adds faults, counts and generated datasets through `Extension`.

    listener > application > endpoints > served_dataset > state_tables
    application > object_endpoint > storage (contract, folder, bucket)
    all of these > request_checks > asgi > serve_options
"""

from .application import Extension
from .asgi import LocalServerError
from .listener import ApiServer, serve_until_signal
from .serve_options import ConnectionLimits, ServeOptions

__all__ = [
    "ApiServer",
    "ConnectionLimits",
    "Extension",
    "LocalServerError",
    "ServeOptions",
    "serve_until_signal",
]
