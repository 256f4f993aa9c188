"""Text from outside, as it may reach a terminal or a log: on one line, with nothing that acts.

Names of files and datasets, and what a server says, may hold anything: escape sequences that write over a
terminal, line breaks that forge a line of a log, signs that turn the reading order round.
"""

from __future__ import annotations

import logging

from lightlyfs.api.redaction import redact


def visible(text: str) -> str:
    """Return text on one line, with all that does not print as escapes (`\\x1b`, `\\u202e`)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class LineFormatter(logging.Formatter):
    """Formats each record as one line, and a traceback as lines of its own; no secret, nothing that acts."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        record.message = visible(redact(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        """Return the lines of a traceback."""
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(visible(redact(line)) for line in text.splitlines())

    def formatStack(self, stack_info: str) -> str:
        """Return the lines of a stack."""
        return "\n".join(visible(redact(line)) for line in stack_info.splitlines())
