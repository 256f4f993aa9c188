"""Which names are those of something unfinished."""

from __future__ import annotations

import re

# names that programs give to what is not finished; they stay here until they get a real name. No more than
# these: a scratch file that is uploaded does less harm than a real one that is not. 4913 is vim's.
_SCRATCH = re.compile(
    r"\..*|.*~|.*\.(tmp|part|crdownload|swp|swx|swo|filepart)|4913", re.IGNORECASE | re.DOTALL
)


def is_scratch(path: str) -> bool:
    """Whether a path's last part is the name of something unfinished."""
    return _SCRATCH.fullmatch(path.rpartition("/")[2]) is not None
