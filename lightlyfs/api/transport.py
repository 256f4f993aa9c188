"""The door to the transports: their contract, and what users of one need besides.

The forms themselves, `over_requests` and `curl`, are imported by `app` alone, when they are needed: their
libraries are half of what a short-lived worker would import.
"""

from __future__ import annotations

from lightlyfs.api.addresses import Proxies
from lightlyfs.api.contract import (
    BodyFile,
    BodyObserver,
    Request,
    Response,
    StopTransfer,
    Timeouts,
    Transport,
    TransportConfig,
)
from lightlyfs.api.redaction import redact, shown_url
from lightlyfs.api.retry import NO_RETRIES, RetryPolicy
from lightlyfs.api.status import raise_for_status, retry_after_s

__all__ = [
    "NO_RETRIES",
    "BodyFile",
    "BodyObserver",
    "Proxies",
    "Request",
    "Response",
    "RetryPolicy",
    "StopTransfer",
    "Timeouts",
    "Transport",
    "TransportConfig",
    "raise_for_status",
    "redact",
    "retry_after_s",
    "shown_url",
]
