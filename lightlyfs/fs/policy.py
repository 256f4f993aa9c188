"""What a mount lets programs do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WritePolicy:
    """What writing may do: replace the image of a sample, return from `close` before the server has it."""

    allow_overwrite: bool = False
    write_back: bool = False
