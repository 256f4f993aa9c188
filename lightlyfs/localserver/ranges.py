"""The `Range` header as numbers. Pure."""

import re
from dataclasses import dataclass

_ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class ByteRange:
    """`length` bytes from `start`, inside the object."""

    start: int
    length: int


class Unsatisfiable(Exception):
    """The range lies outside the object: answer 416."""


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the one range asked for, or None where the whole object is the answer.

    As on S3, several ranges or a header that cannot be read mean the whole object. Raises `Unsatisfiable`
    when the range starts at or past the end, which for an empty object is always.
    """
    match = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise Unsatisfiable
        return ByteRange(size - length, length)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    end = min(int(last), size - 1) if last else size - 1
    return ByteRange(start, end - start + 1)
