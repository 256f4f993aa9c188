"""Showing the first listing while one waits for it."""

from __future__ import annotations

import signal
import sys
import time

import click

from lightlyfs.cli.progress import progress_bar
from lightlyfs.errors import StartError
from lightlyfs.kernel.mount import STOP_SIGNALS
from lightlyfs.wiring import Parts
from lightlyfs.wiring.resolving import FoundDataset

# without a terminal a line of progress is worth printing this often
_LINE_EVERY_S = 5.0


def wait_for_listing(parts: Parts, found: FoundDataset, *, no_wait: bool) -> None:
    """Wait until the samples are listed, showing how far it is; StartError where that fails."""
    refresher = parts.catalog.refresher
    if refresher.complete or no_wait:
        return
    with progress_bar() as shown:
        task = shown.add_task(f"listing {found.name}", total=None)
        next_line = time.monotonic() + _LINE_EVERY_S
        while not refresher.complete:
            _stop_if_asked()
            refresher.wait_for_progress(0.2)
            if not refresher.active and not refresher.complete:
                raise StartError(f"the samples of {found.name} cannot be listed: {refresher.error}")
            listed, expected = refresher.progress
            shown.update(task, completed=listed, total=expected or None)
            if not sys.stderr.isatty() and time.monotonic() > next_line:
                click.echo(f"lightlyfs: listed {listed:,} of {expected:,} samples", err=True)
                next_line += _LINE_EVERY_S


def _stop_if_asked() -> None:
    """Ctrl-C during the listing ends it; the signals are blocked for the mount that follows."""
    if signal.sigtimedwait(STOP_SIGNALS, 0) is not None:
        raise StartError("interrupted while the samples were being listed")
