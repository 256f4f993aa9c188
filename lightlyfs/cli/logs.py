"""How the log is written: lines for people, or a JSON object a line for programs that collect logs."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import time
from contextlib import suppress
from pathlib import Path

from lightlyfs.api.redaction import LineFormatter, redact, visible
from lightlyfs.app.builders import LOG_FORMAT

_LOG_BYTES = 10 << 20


class JsonFormatter(logging.Formatter):
    """One JSON object a record: `time` (RFC 3339, UTC), `level`, `logger`, `message`, `dataset`, `error`."""

    def __init__(self, dataset: str) -> None:
        super().__init__()
        self._dataset = dataset

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        shown = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": visible(redact(record.getMessage())),
        }
        if self._dataset:
            shown["dataset"] = self._dataset
        if record.exc_info:
            shown["error"] = redact(self.formatException(record.exc_info))
        return json.dumps(shown, ensure_ascii=False)


def formatter(kind: str, dataset: str = "") -> logging.Formatter:
    """The formatter of the setting `log_format`; each line names the dataset, once that is known."""
    if kind == "json":
        return JsonFormatter(dataset)
    name = visible(dataset).replace("%", "%%")
    return LineFormatter(LOG_FORMAT.replace("%(message)s", f"[{name}] %(message)s") if name else LOG_FORMAT)


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log file that is turned over before it fills the disk, and begun again where a cleaner deleted it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; until the directory is there again, into the deleted file."""
        if self.stream is not None and os.fstat(self.stream.fileno()).st_nlink == 0:
            with suppress(OSError):
                fresh = self._open()
                self.stream.close()
                self.stream = fresh
        super().emit(record)


def file_handler(path: Path, kind: str, dataset: str) -> logging.Handler:
    """A log file that is turned over before it fills the disk."""
    handler = _LogFile(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(formatter(kind, dataset))
    return handler
