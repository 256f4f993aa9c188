"""The `Range` header as numbers. Pure."""

import re
from dataclasses import dataclass

_ONE_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
_DIGITS_MAX = 20  # no size has as many


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
        length = min(number(last), size)
        if length == 0:
            raise Unsatisfiable
        return ByteRange(size - length, length)
    start = number(first)
    if last and number(last) < start:
        return None
    if start >= size:
        raise Unsatisfiable
    end = min(number(last), size - 1) if last else size - 1
    return ByteRange(start, end - start + 1)


def number(digits: str) -> int:
    """Return any number of digits as an int, cut where it is past every size; Python refuses thousands."""
    return int(digits.lstrip("0")[:_DIGITS_MAX] or "0")
