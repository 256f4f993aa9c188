"""The datasets that this process uses through fsspec: opened on first use, let go of at its end."""

from __future__ import annotations

import atexit
import ctypes
import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace

from lightlyfs import app, profiles
from lightlyfs.app.resolving import find_dataset, list_datasets
from lightlyfs.fsspec.files import let_go_of_dropped
from lightlyfs.settings import Secrets, Settings, exposure_of, read_secrets, resolve

Token = Callable[[], str]

log = logging.getLogger(__name__)


class _Running:
    """The parts of each dataset that this process uses; made on first use, closed at its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock
        self._parts: dict[tuple[object, ...], app.Dataset] = {}
        self._starting: dict[tuple[object, ...], Future[app.Dataset]] = {}

    def get(self, dataset: str, flags: dict[str, str], token: Token | None) -> app.Dataset:
        """Return the parts of a dataset with these settings; threads that ask at once share one start."""
        key = (dataset, token, *sorted(flags.items()))
        with self._lock:
            if key in self._parts:
                return self._parts[key]
            started = self._starting.get(key)
            if started is None:
                self._close_with_worker()
                mine = self._starting[key] = Future()
        if started is not None:
            return started.result()
        try:
            parts = _start(dataset, flags, token)
        except BaseException as error:
            self._end_start(key, None)
            mine.set_exception(error)
            raise
        self._end_start(key, parts)
        mine.set_result(parts)
        return parts

    def _end_start(self, key: tuple[object, ...], parts: app.Dataset | None) -> None:
        with self._lock:
            del self._starting[key]
            if parts is not None:
                self._parts[key] = parts

    def _close_with_worker(self) -> None:
        """Where this is a worker of `multiprocessing`, whose end runs no `atexit`, be closed by it."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None and not self._parts and not self._starting:
            util.Finalize(None, self.close, exitpriority=0)

    def close(self) -> None:
        """Wait for uploads under way, and let go of everything."""
        let_go_of_dropped()
        with self._lock:
            starting = list(self._starting.values())
        wait(starting)
        with self._lock:
            parts = list(self._parts.values())
            self._parts.clear()
        for one in parts:
            one.drain()
            one.close()

    def end_reads(self) -> None:
        """End what is being fetched; nothing more can be once the interpreter has ended the pools."""
        for one in list(self._parts.values()):
            if not _is_uploading(one):
                one.connections.storage.close()

    def leave_locks(self) -> None:
        """In a forked child: the locks are the parent's, and end with it alone."""
        for one in self._parts.values():
            one.leave_locks()


_running = _Running()


def _forget_parents() -> None:
    """In a forked child: threads did not come along, so all is made new on first use."""
    global _running
    # kept for as long as the process lives: the end of a TLS connection is told to the server, which would
    # close it for the parent
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_running))
    _running.leave_locks()
    _running = _Running()


os.register_at_fork(after_in_child=_forget_parents)
atexit.register(lambda: _running.close())

# the interpreter waits for the threads of pools before it runs `atexit`: a check that gets no answer would
# keep the program for its minute, and a large file on a slow line for hours
_ending = threading.Event()


def _begin_end() -> None:
    _ending.set()
    if not any(map(_is_waited_for, threading.enumerate())):
        _running.end_reads()


def _is_waited_for(thread: threading.Thread) -> bool:
    """Whether the interpreter waits for a thread of the program, which may be reading."""
    ours = thread is threading.main_thread() or thread.name.startswith("lightlyfs-")
    return not ours and not thread.daemon


with suppress(AttributeError):  # it is private; without it such a program ends later
    threading._register_atexit(_begin_end)  # type: ignore[attr-defined]


def parts_of(dataset: str, flags: dict[str, str], token: Token | None = None) -> app.Dataset:
    """The parts of a dataset with these settings; any thread, process or forked child may ask."""
    return _running.get(dataset, flags, token)


def close_all() -> None:
    """Wait for running uploads and close every dataset; a dataset that is used afterwards is opened again."""
    _running.close()


def dataset_names(flags: dict[str, str], token: Token | None) -> list[str]:
    """The datasets that the token may see, sorted."""
    settings = _settings(flags)
    connections, _ = _connect(settings, token, app.RequestCounter(), _ending.is_set)
    return sorted({one.name or one.id for one in list_datasets(connections.client, settings)})


def _connect(
    settings: Settings, token: Token | None, counter: app.RequestCounter, cancelled: Callable[[], bool]
) -> tuple[app.Connections, Secrets]:
    if token is None:
        secrets = read_secrets(os.environ, settings.token_file, settings.read_mode)
        if exposed := exposure_of(settings.token_file):
            log.warning("%s", exposed)
    else:
        secrets = read_secrets({**os.environ, "LIGHTLY_TOKEN": token()}, None, settings.read_mode)

    connections = app.connect(settings, secrets, os.environ, counter, cancelled, keep_few=True, token=token)
    return connections, secrets


def _settings(flags: dict[str, str]) -> Settings:
    """The settings of a mount with these options: the configuration file of this machine counts, too."""
    given: dict[str, str | None] = {name: text for name, text in flags.items() if name != "profile"}
    return resolve(profiles.beneath(given, flags.get("profile"), os.environ), os.environ)


def _start(dataset: str, flags: dict[str, str], token: Token | None) -> app.Dataset:
    settings = _settings(flags)
    closing = threading.Event()
    counter = app.RequestCounter()
    made: list[app.Dataset] = []

    def cancelled() -> bool:
        return closing.is_set() or (_ending.is_set() and not any(map(_is_uploading, made)))

    connections, secrets = _connect(settings, token, counter, cancelled)
    found = find_dataset(
        connections.client,
        settings,
        secrets,
        dataset,
        log.warning,
        # a training's 256 workers begin with the names that one process listed
        trusts_stored=math.isinf(settings.metadata_ttl_s),
    )
    place = app.open_place(settings, found.id)
    try:
        spool = app.open_spool(settings, found.id)
        settings = replace(settings, read_only=spool is None)
        parts = app.Dataset(settings, connections, found.id, place, closing=closing, spool_place=spool)
    except BaseException:
        place.close()  # or this process keeps others from the cache
        raise
    made.append(parts)
    parts.start()
    return parts


def _is_uploading(parts: app.Dataset) -> bool:
    return parts.uploads is not None and parts.uploads.wait_idle(0)[0] > 0
