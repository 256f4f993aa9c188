"""What commands show on the terminal: the progress of a listing, sizes, messages."""

from __future__ import annotations

import signal
import sys
import time

from lightlyfs.api.redaction import visible
from lightlyfs.app import Dataset
from lightlyfs.app.resolving import FoundDataset
from lightlyfs.errors import StartError
from lightlyfs.kernel.runner import STOP_SIGNALS

# without a terminal a line of progress is worth printing this often
_LINE_EVERY_S = 5.0
# how long a mount waits for the check of the names that it has
_CHECK_S = 2.0


def wait_for_listing(parts: Dataset, found: FoundDataset, *, no_wait: bool) -> None:
    """Wait until the samples are listed, showing how far it is; StartError where that fails.

    Names of an earlier listing will do where they cannot be checked, or not soon.
    """
    refresher = parts.catalog.refresher
    if no_wait:
        return
    if refresher.complete:
        refresher.touch()
        end = time.monotonic() + _CHECK_S
        while refresher.active and refresher.error is None and time.monotonic() < end:
            _stop_if_asked()
            refresher.wait_for_check(0.05)
        return
    next_line = time.monotonic() + _LINE_EVERY_S
    with _Line(found.name) as line:
        while not refresher.complete:
            _stop_if_asked()
            refresher.wait_for_progress(0.2)
            if not refresher.active and not refresher.complete:
                raise StartError(f"the samples of {found.name} cannot be listed: {refresher.error}")
            listed, expected = refresher.progress
            if sys.stderr.isatty():
                line.show(listed, expected)
            elif time.monotonic() > next_line:
                tell(f"listed {listed:,} of {expected:,} samples")
                next_line += _LINE_EVERY_S


class _Line:
    """A line of a terminal that is written over; a bar of `rich` would stay in the mount's memory."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_shown = False

    def show(self, listed: int, expected: int) -> None:
        """Show how far the listing is."""
        self._is_shown = True
        printable = "".join(char if char.isprintable() else "?" for char in self._name)
        share = f" ({listed * 100 // expected} %)" if expected else ""
        sys.stderr.write(f"\r\033[Klisting {printable}: {listed:,} of {expected:,}{share}")
        sys.stderr.flush()

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def _stop_if_asked() -> None:
    """Ctrl-C during the listing ends it; the signals are blocked for the mount that follows."""
    if signal.sigtimedwait(STOP_SIGNALS, 0) is not None:
        raise StartError("interrupted while the samples were being listed")


def size_text(count: float) -> str:
    """A number of bytes with three digits or so."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.1f} {unit}" if unit != "bytes" else f"{count:,.0f} bytes"
        count /= 1000
    return f"{count:,.1f} TB"


def tell(text: str) -> None:
    """Say one line on stderr; nothing where that is closed."""
    try:
        print(f"lightlyfs: {visible(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
