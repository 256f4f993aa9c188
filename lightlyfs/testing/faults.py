"""Faults on demand: while a fault is armed, it changes the response to each request that it matches.

    Latency     respond later                   Status             respond with 429, 500, 503...
    Stall       accept, then hang               Truncate           send less than Content-Length
    IgnoreRange respond to a range with 200     WrongContentRange  send a wrong Content-Range
    Gzip        compress the body               Chunked            send no Content-Length
    Expired     treat a signed URL as expired   ChangedEtag        present another version
    Html        a login page with status 200    BrokenJson         half a document
    DropReply   handle, send no response        Empty              status 200 with no content
    WrongTotal  send a wrong object length

Handlers do not depend on this module, and this module does not depend on what an endpoint does.
"""

import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from lightlyfs.server.asgi import App

from .fault_kinds import AnyFault, Fault, HeldRequests


@dataclass
class _Armed:
    fault: Fault
    left: int | None
    until: float | None


class Faults:
    """The faults that are armed. Any thread may arm and clear; requests already wrapped keep their faults."""

    def __init__(self) -> None:
        self.held = HeldRequests()
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._random = random.Random(7)

    def add(self, *faults: AnyFault) -> None:
        """Arm faults after those already armed; the first one armed is the outermost wrapper."""
        now = time.monotonic()
        with self._lock:
            for fault in faults:
                until = None if fault.seconds is None else now + fault.seconds
                self._armed.append(_Armed(fault, fault.count, until))

    def add_plain(self, document: Any) -> None:
        """Arm faults from `[{"kind": "status", "status": 503, "count": 2}, ...]`, parsed."""
        self.add(*msgspec.convert(document, list[AnyFault]))

    def clear(self) -> None:
        """Disarm all faults."""
        with self._lock:
            self._armed = []

    def armed(self) -> list[Fault]:
        """Return the faults that are armed and not used up."""
        with self._lock:
            return [one.fault for one in self._armed if self._alive_locked(one)]

    def left(self) -> list[int | None]:
        """Return the remaining count of each armed fault, None for a fault without a count."""
        with self._lock:
            return [one.left for one in self._armed if self._alive_locked(one)]

    def wrap_request(self, area: str, name: str, app: App) -> App:
        """Return `app` inside the faults that hit this request, each counted as used."""
        if not self._armed:
            return app
        for fault in reversed(self._take(area, name)):
            app = fault.wrap(app, self.held)
        return app

    def _take(self, area: str, name: str) -> list[Fault]:
        taken = []
        with self._lock:
            for one in self._armed:
                hit = one.fault.target in ("any", area, name) and self._alive_locked(one)
                if hit and self._random.random() < one.fault.probability:
                    taken.append(one.fault)
                    one.left = None if one.left is None else one.left - 1
            self._armed = [one for one in self._armed if self._alive_locked(one)]
        return taken

    def _alive_locked(self, one: _Armed) -> bool:
        return one.left != 0 and (one.until is None or time.monotonic() < one.until)
