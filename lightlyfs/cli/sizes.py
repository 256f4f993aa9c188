"""Sizes as people read them."""

from __future__ import annotations


def size_text(count: float) -> str:
    """A number of bytes with three digits or so."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.1f} {unit}" if unit != "bytes" else f"{count:,.0f} bytes"
        count /= 1000
    return f"{count:,.1f} TB"
