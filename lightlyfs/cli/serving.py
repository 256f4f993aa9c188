"""The process of a mount: from settings to a mount that has ended again."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lightlyfs import app
from lightlyfs.app.resolving import find_dataset
from lightlyfs.cli import READY_VARIABLE, systemd
from lightlyfs.cli.logs import file_handler, formatter
from lightlyfs.cli.output import tell, wait_for_listing
from lightlyfs.cli.sessions import sessions_of
from lightlyfs.control import ControlServer
from lightlyfs.errors import LightlyFsError
from lightlyfs.fs.attributes import Ownership
from lightlyfs.fs.part import Part
from lightlyfs.kernel import mountpoints
from lightlyfs.kernel.binding import READ_AHEAD_BYTES, Library, MountOptions
from lightlyfs.kernel.runner import Mount, block_signals, share_arenas, trim_memory
from lightlyfs.mountinfo import mount_at
from lightlyfs.places import SpoolPlace, elsewhere, lasting_name, socket_path
from lightlyfs.settings import Secrets, Settings
from lightlyfs.wording import counted

log = logging.getLogger("lightlyfs")

_DRAIN_STEP_S = 1.0
# allocations between two runs of the cyclic garbage collector
_GC_THRESHOLD = 20_000


def serve_mount(
    source: str,
    mountpoint: Path,
    settings: Settings,
    secrets: Secrets,
    library: Library,
    kernel_options: tuple[str, ...],
) -> NoReturn:
    """Mount and serve until the end; exits the process, with the code of how it went."""
    block_signals()
    share_arenas()
    os.umask(0o077)  # whatever a library writes for us is ours alone
    told = int(os.environ.pop(READY_VARIABLE, "-1"))
    logging.basicConfig(level=settings.log_level.upper(), stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(formatter(settings.log_format))
    if told >= 0:
        # until the mount is usable, the waiting command reads one line, not a log
        logging.getLogger().handlers[0].setLevel(logging.CRITICAL)
    code = 0
    try:
        _serve(source, mountpoint, settings, secrets, library, kernel_options, told)
    except LightlyFsError as error:
        log.error("%s", error)
        tell(str(error))
        code = 1
    except Exception:
        log.exception("the mount failed")
        tell("the mount failed, and this is a fault of lightlyfs; its log says where")
        code = 1
    logging.shutdown()
    sys.stderr.flush()
    # threads may sit in a request for up to a minute; everything that counts is written down by now
    os._exit(code)


def _serve(
    source: str,
    mountpoint: Path,
    settings: Settings,
    secrets: Secrets,
    library: Library,
    kernel_options: tuple[str, ...],
    told: int,
) -> None:
    settings = app.fit_descriptors(settings)
    counter = app.RequestCounter()
    closing = threading.Event()
    connections = app.connect(settings, secrets, os.environ, counter, closing.is_set)
    dataset, _, folder = source.partition("/")
    found = find_dataset(connections.client, settings, secrets, dataset, tell)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter(settings.log_format, found.name))
    with app.open_place(settings, found.id) as place:
        spool_place = app.open_spool(settings, found.id)
        settings = replace(settings, read_only=spool_place is None)
        ownership = Ownership(settings.uid, settings.gid, settings.umask, read_only=settings.read_only)
        options = MountOptions(
            mountpoint,
            _source(found.name, folder, settings.tag),
            timeout_s=settings.metadata_ttl_s,
            read_only=settings.read_only,
            allow_other=settings.allow_other,
            fuse_options=kernel_options,
            part=Part(folder),
        )
        mount = Mount(library, options, ownership)
        if where := elsewhere(settings.cache_dir):
            tell(where)
        if place.private_because:
            tell(f"{place.private_because}; this mount keeps a cache of its own")
        _tell_owed(settings, found.id, spool_place)
        parts = app.Dataset(
            settings,
            connections,
            found.id,
            place,
            kernel=mount,
            closing=closing,
            spool_place=spool_place,
        )
        parts.recent_log.setFormatter(formatter("text", found.name))
        logging.getLogger().addHandler(parts.recent_log)
        parts.start()
        # what is there now stays; looking through it over and over costs a fiftieth of every call
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        try:
            wait_for_listing(parts, found, no_wait=settings.no_wait)
            parts.need_folder(found.name)
            if settings.metrics_port is not None:
                app.serve_metrics(parts, settings.metrics_port)
            _run(parts, mount, mountpoint, told, found.name)
        finally:
            parts.close()


def _run(parts: app.Dataset, mount: Mount, mountpoint: Path, told: int, dataset: str) -> None:
    control = ControlServer(socket_path(mountpoint), _commands(parts), sessions_of(parts))

    def on_mounted() -> None:
        entry = mount_at(mountpoint)
        control.start(None if entry is None else lasting_name(entry))
        if told >= 0:
            _go_quiet(parts, dataset)
            os.write(told, b"ready")
            os.close(told)
        log.info("mounted on %s", mountpoint)
        trim_memory()
        mountpoints.set_read_ahead(mountpoint, READ_AHEAD_BYTES >> 10)
        systemd.notify("READY=1")
        systemd.start_watchdog(lambda: _is_alive(parts))

    def on_stop() -> None:
        systemd.notify("STOPPING=1")
        parts.drain()
        parts.stop_waiting()

    try:
        mount.run(parts.filesystem, on_mounted, on_stop, lambda: _reload(parts))
    finally:
        parts.drain()  # where it was unmounted from outside
        control.close()
    log.info("unmounted from %s", mountpoint)


def _is_alive(parts: app.Dataset) -> bool:
    """Whether names can still be looked up; the mount itself must not be touched from here."""
    try:
        parts.catalog.dataset()
    except Exception as error:
        log.error("the catalogue does not answer: %s", error)
        return False
    return True


def _reload(parts: app.Dataset) -> bool:
    """Read the token file again; False where there is none, and a hang-up means what it always did."""
    if parts.settings.token_file is None:
        return False
    parts.reload_token()
    return True


def _commands(parts: app.Dataset) -> Mapping[str, Any]:
    def refresh() -> Mapping[str, Any]:
        changes = parts.refresh()
        return {"added": changes.added, "changed": changes.changed, "gone": changes.gone}

    def drain() -> Mapping[str, Any]:
        left, moved = (0, 0) if parts.uploads is None else parts.uploads.wait_idle(_DRAIN_STEP_S)
        return {"under_way": left, "moved": moved}

    def retry() -> Mapping[str, Any]:
        return {"retried": 0 if parts.uploads is None else parts.uploads.retry_all()}

    return {"status": lambda: app.status_of(parts), "refresh": refresh, "drain": drain, "retry": retry}


def _tell_owed(settings: Settings, dataset_id: str, spool_place: SpoolPlace | None) -> None:
    """A mount that may not upload says what is owed, so that nobody thinks it done."""
    if spool_place is not None:
        return
    found = app.owed_files(settings.cache_dir)
    owed = [owed for owed in found if owed.dataset_id == dataset_id and owed.record.owed]
    if owed:
        files = counted(len(owed), "file is", "files are")
        text = f"{files} not on the server yet; mount without --read-only to upload them"
        tell(f"{text} (`lightlyfs uploads list` shows them)")


def _go_quiet(parts: app.Dataset, dataset: str) -> None:
    """Leave the terminal: from here on only the log file is written."""
    path = parts.settings.log_file or parts.place.path / "mount.log"
    root = logging.getLogger()
    root.handlers[:] = [file_handler(path, parts.settings.log_format, dataset), parts.recent_log]
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.chdir("/")


def _source(name: str, folder: str, tag: str | None) -> str:
    """What `mount` and `df` show as the source: no blanks or commas, which their readers split at."""
    name = f"{name}/{folder}" if folder else name
    return "lightly:" + re.sub(r"[\s,\\]", "_", name if tag is None else f"{name}@{tag}")
