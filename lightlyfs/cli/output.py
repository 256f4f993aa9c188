"""What commands show on the terminal: sizes, messages, progress bars.

Every command imports it, so it imports little; `rich` only where a bar is shown.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from lightlyfs.api.redaction import visible

if TYPE_CHECKING:
    from rich.progress import Progress


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


def progress_bar(*, of_bytes: bool = False) -> Progress:
    """A bar on the terminal, with time left and a count, or bytes and their rate; none without a terminal."""
    from rich import progress
    from rich.console import Console

    counted = (
        (progress.DownloadColumn(), progress.TransferSpeedColumn())
        if of_bytes
        else (progress.MofNCompleteColumn(),)
    )
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        *counted,
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
