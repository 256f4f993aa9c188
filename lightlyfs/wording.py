"""How a number and its noun are said, so that one is not "1 files"."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return "1 file", "2 files", "3,000 directories"; the plural where it does not only add an s."""
    if number == 1:
        return f"1 {noun}"
    made = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {plural or made}"
