"""The API token in a file, as it is now: tokens are rotated while programs run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from lightlyfs.errors import SettingsError, Unauthorized
from lightlyfs.settings import read_token

log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class TokenFile:
    """The token in a file; any thread may call. A `TokenSource` of the client.

    The file is looked at for each request, which costs two microseconds, and read when it is another one.
    While it cannot be read, or is empty, the last token counts. `on_change` is called after a change.
    """

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._token = token
        self._lock = threading.Lock()
        # guarded by _lock; nothing read yet, for the file may have changed since `token` was read from it
        self._stamp: _Stamp | None = None
        self.on_change: Callable[[], object] = lambda: None

    def __call__(self, refused: str | None = None) -> str:
        """The token to send. One that was `refused` is read again although the file looks the same."""
        self.look(refused is not None)
        return self._token

    def look(self, closely: bool = False) -> bool:
        """Read the file if it changed, or is to be looked at closely; whether the token is another one."""
        before = self._token
        with self._lock:
            stamp = self._stamp_now()
            if (stamp != self._stamp or closely) and not self._read_locked(stamp):
                return False
        return self._tell_change(before)

    def reload(self) -> bool:
        """Read the file because a person says so; False where that fails."""
        before = self._token
        with self._lock:
            done = self._read_locked(self._stamp_now())
        if done and not self._tell_change(before):
            log.info("the token was read again from %s: it is the same", self._path)
        return done

    def _read_locked(self, stamp: _Stamp | None) -> bool:
        self._stamp = stamp
        try:
            self._token = read_token(self._path)
        except SettingsError as error:
            log.error("%s; the old token stays in use", error)
            return False
        return True

    def _tell_change(self, before: str) -> bool:
        if self._token == before:
            return False
        log.info("the token was read again from %s", self._path)
        self.on_change()
        return True

    def _stamp_now(self) -> _Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def asked(token: Callable[[], str]) -> Callable[[str | None], str]:
    """A `TokenSource` of a program's own function; what that raises is a missing token."""

    def ask(_refused: str | None) -> str:
        try:
            return token()
        except Exception as error:
            text = f"the function that gives the token failed: {error!r}"
            raise Unauthorized(text, request_sent=False) from error

    return ask
