"""What the unlisted folder `.lightlyfs/` shows, from the parts of a mount."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from lightlyfs.fs.views import Views
from lightlyfs.visible import LineFormatter

# lines for people, here and in the log file
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_LOG_LINES = 2_000
# how long the kernel may go on with what it was shown
_HOLDS_S = 1.0


class RecentLog(logging.Handler):
    """The last lines of the log, in memory; as many as a person reads."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(LOG_FORMAT))
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(self.format(record))

    def text(self) -> bytes:
        """All of them."""
        return "".join(line + "\n" for line in self._lines.copy()).encode("utf-8", "backslashreplace")


class ViewForgetter:
    """Has the kernel forget, each second, what it was shown of the folder; `start` and `close` once."""

    def __init__(
        self,
        views: Views,
        forget: Callable[[tuple[str, ...] | None], bool],
        closing: threading.Event,
    ) -> None:
        self._views = views
        self._forget = forget
        self._closing = closing
        self._thread = threading.Thread(target=self._run, name="lightlyfs-views", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; the event of closing is set."""
        self._views.shown.set()

    def _run(self) -> None:
        while self._views.shown.wait() and not self._closing.wait(_HOLDS_S):
            for path in self._views.take_shown():
                # one by one, for several at once would drop every name the kernel knows
                self._forget((path,))
            if self._closing.is_set():
                return  # `take_shown` may have cleared what `close` set
