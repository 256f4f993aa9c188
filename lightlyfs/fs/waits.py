"""Waiting for uploads, by a bounded number of calls."""

from __future__ import annotations

import threading

from lightlyfs.errors import TooManyWaiting
from lightlyfs.fs.patience import Patience
from lightlyfs.staging.files import Ticket

# calls that wait for uploads hold a thread of libfuse each, and metadata must not run out of them
MAX_WAITING = 64


class UploadWaits:
    """The calls that wait for uploads; any thread may call."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._free = threading.BoundedSemaphore(MAX_WAITING)

    def wait(self, ticket: Ticket) -> None:
        """Wait until an upload is done; raises why it is not."""
        if ticket.result.done():
            ticket.result.result()
            return
        if not self._free.acquire(blocking=False):
            raise TooManyWaiting("too many files wait for the server; this one stays pending")
        try:
            self._patience.turn().result(ticket.result, moved=lambda: ticket.moved)
        finally:
            self._free.release()
