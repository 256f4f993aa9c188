"""In which directories programs read no more than the first bytes of files, as `file` and PIL's `.size` do.

There a whole file would be fetched for nothing. Pure policy; `closed` is called under the caller's lock.
"""

from __future__ import annotations

# what is fetched of a file there, and what a reader of a head reads at most
HEAD_BYTES = 128 << 10
# files of which only the head was read, in a row, before that is expected of the next
_ENOUGH = 3
# files below this size are fetched whole: that is one request either way
_WORTH_IT_BYTES = 4 * HEAD_BYTES
_MAX_DIRECTORIES = 1_000


class HeadReaders:
    """Counts how files are read, by directory."""

    def __init__(self) -> None:
        self._heads: dict[str, int] = {}  # the latest last; a look needs no lock

    def closed(self, path: str, read_to: int, size: int) -> None:
        """A file was closed of which the bytes up to `read_to` were read."""
        if size < _WORTH_IT_BYTES or not read_to:
            return
        directory = path.rpartition("/")[0]
        count = self._heads.pop(directory, 0)
        self._heads[directory] = count + 1 if read_to <= HEAD_BYTES else 0
        if len(self._heads) > _MAX_DIRECTORIES:
            del self._heads[next(iter(self._heads))]

    def expects_head(self, path: str, size: int | None) -> bool:
        """Whether no more than the head of a file is likely to be read."""
        if size is None or size < _WORTH_IT_BYTES or not self._heads:
            return False
        return self._heads.get(path.rpartition("/")[0], 0) >= _ENOUGH
