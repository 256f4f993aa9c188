"""A certificate authority of the tests' own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own and the TLS side of a server it vouches for."""

    bundle: str
    server: ssl.SSLContext
