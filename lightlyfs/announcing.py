"""Tells lightlyfs which files a program is about to read: over a mount's socket, or in this process.

A program that knows its order, as a training loop does, has each file fetched before it asks for it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from lightlyfs.control import Channel, dial
from lightlyfs.errors import StartError
from lightlyfs.library import mountpoint_of, path_in_mount
from lightlyfs.places import socket_of

log = logging.getLogger(__name__)

_PROTOCOL = "lightly://"
_ANSWER_WAIT_S = 10.0
# a mount hangs up on who says nothing for a minute
SIGN_OF_LIFE_S = 20.0
# paths in one message: few, so that a long order is asked for little by little
_PATHS_AT_ONCE = 64


class Closable(Protocol):
    """What ends with `close`."""

    def close(self) -> None:
        """End it."""
        ...


class Announced:
    """Files on their way ahead of the program that announced them; ends with `close`, as `with` does."""

    def __init__(self, running: Closable | None) -> None:
        self._running = running

    def close(self) -> None:
        """Fetch no more of them; idempotent."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def __enter__(self) -> Announced:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ahead(paths: Iterable[str | os.PathLike[str]], **storage_options: Any) -> Announced:
    """Have files fetched in this order before they are read; returns at once.

    `paths` are files of one mount, or addresses `lightly://DATASET/...` of one dataset, which are read in
    this process with `storage_options`. They may be an iterator of any length: it is asked for them as they
    are needed, in another thread. At most `--read-ahead-limit` bytes are fetched and not read yet. What names
    no sample is passed over. Raises ValueError where the first path is in no mount of this user, StartError
    where the mount does not answer. The fetching ends with what is returned.
    """
    left = iter(paths)
    first = next(left, None)
    if first is None:
        return Announced(None)
    name = os.fspath(first)
    names = chain([name], (os.fspath(path) for path in left))
    if name.startswith(_PROTOCOL):
        from lightlyfs.fsspec.driver import LightlyFileSystem

        return Announced(LightlyFileSystem(**storage_options).ahead(names))
    return Announced(OrderOverSocket(mountpoint_of(name), _some_at_once(names)))


def _some_at_once(names: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(names, _PATHS_AT_ONCE)):
        yield some


class OrderOverSocket:
    """An order that goes to a mount, some paths at once, in a thread of its own.

    The mount hangs up unless it is sent something each minute, if it be no path.
    """

    def __init__(self, mountpoint: Path, names: Iterator[list[str]]) -> None:
        self._mountpoint = mountpoint
        channel = dial(socket_of(self._mountpoint), timeout_s=_ANSWER_WAIT_S)
        if channel is None:
            raise StartError(f"the mount on {self._mountpoint} does not answer")
        self._channel: Channel = channel
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._send, args=(names,), name="lightlyfs-announcing", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._channel.hang_up()

    def _send(self, names: Iterator[list[str]]) -> None:
        try:
            self._channel.send({"command": "ahead"})
            for some in names:
                if self._closed.is_set():
                    return
                self._channel.send(
                    {"names": [path_in_mount(self._mountpoint, os.path.abspath(name)) for name in some]}
                )
                self._await_answer()
            while not self._closed.wait(SIGN_OF_LIFE_S):
                self._channel.send({"names": []})
                self._await_answer()
        except (OSError, ValueError) as error:
            if not self._closed.is_set():
                log.warning("the mount on %s takes no more of the order: %s", self._mountpoint, error)
        except Exception:
            log.exception("the order of the files to read failed")
        finally:
            self._channel.close()

    def _await_answer(self) -> None:
        """Wait until the mount has taken what was sent; it shows each few seconds that it is there."""
        while not self._closed.is_set():
            answer = self._channel.receive()
            if answer is None:
                raise ConnectionError("it hung up")
            if answer.get("taken"):
                return
