"""What a mount lets programs do."""

from __future__ import annotations

from dataclasses import dataclass

from lightlyfs.upload_rules import UploadRules

# an image whose name looks temporary is uploaded this long after its close
TEMPORARY_DELAY_S = 2.0


@dataclass(frozen=True)
class WritePolicy:
    """What becomes a sample, whether images of samples may be replaced, and when `close` returns."""

    rules: UploadRules
    allow_overwrite: bool = False
    write_back: bool = False
