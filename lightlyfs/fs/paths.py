"""What the names of local files say."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

# names that programs give to what is not finished; they stay here until they get a real name. No more than
# these: a scratch file that is uploaded does less harm than a real one that is not. 4913 is vim's.
_SCRATCH = re.compile(
    r"\..*|.*~|.*\.(tmp|part|crdownload|swp|swx|swo|filepart)|4913", re.IGNORECASE | re.DOTALL
)


def is_scratch(path: str) -> bool:
    """Whether a path's last part is the name of something unfinished."""
    return _SCRATCH.fullmatch(path.rpartition("/")[2]) is not None


def numbered(path: str) -> Iterator[str]:
    """A path, and then others like it: `x.jpg`, `x~2.jpg`, `x~3.jpg`."""
    yield path
    directory, slash, name = path.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not stem:
        stem, dot, extension = name, "", ""
    for number in itertools.count(2):
        ending = f"~{number}{dot}{extension}"
        # a part of a path has at most 255 bytes
        room = max(0, 255 - len(ending.encode()))
        yield f"{directory}{slash}{stem.encode()[:room].decode(errors='ignore')}{ending}"
