"""What commands and mounts say on the terminal beside their result."""

from __future__ import annotations

import sys

from lightlyfs.visible import visible


def tell(text: str) -> None:
    """Say one line on stderr; nothing where that is closed."""
    try:
        print(f"lightlyfs: {visible(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass
