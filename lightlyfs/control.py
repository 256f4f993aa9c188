"""How commands talk to a running mount: one line of JSON each way over a Unix socket."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightlyfs.errors import LightlyFsError

log = logging.getLogger(__name__)
_MAX_LINE = 1 << 20

Command = Callable[[], Mapping[str, Any]]


class ControlServer:
    """Answers commands of the mount's owner on a socket of mode 0600, one connection at a time each."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, name="lightlyfs-control", daemon=True)

    def start(self) -> None:
        """Begin to answer; takes the place of a socket that a killed mount left."""
        self._path.unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        finally:
            os.umask(previous)
        self._socket.listen(16)
        self._thread.start()

    def close(self) -> None:
        """Answer no more, and remove the socket."""
        self._path.unlink(missing_ok=True)
        # wakes the thread that accepts; closing alone would not
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            try:
                name = json.loads(stream.readline(_MAX_LINE))["command"]
                reply: dict[str, Any] = {"ok": True, **self._commands[name]()}
            except LightlyFsError as error:
                reply = {"ok": False, "error": str(error)}
            except (ValueError, KeyError, TypeError):
                reply = {"ok": False, "error": "this mount does not know that command"}
            except Exception:
                log.exception("a command failed")
                reply = {"ok": False, "error": "the mount failed; its log says why"}
            try:
                stream.write(json.dumps(reply) + "\n")
                stream.flush()
            except OSError:
                pass  # whoever asked has gone


def ask(path: Path, command: str, *, timeout_s: float = 10.0) -> dict[str, Any] | None:
    """Send a command to the mount behind a socket; None where no mount answers there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            with connection.makefile("rw", encoding="utf-8") as stream:
                stream.write(json.dumps({"command": command}) + "\n")
                stream.flush()
                line = stream.readline(_MAX_LINE)
        except OSError:
            return None
    return json.loads(line) if line else None
