"""What commands show on the terminal: sizes and messages. Every command imports it, so it imports little."""

from __future__ import annotations

import sys

from lightlyfs.api.redaction import visible


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
