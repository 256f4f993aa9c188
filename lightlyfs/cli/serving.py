"""The process of a mount, which `lightlyfs mount` starts or becomes: from the settings to the unmount.

`python -m lightlyfs.cli.serving DATASET MOUNTPOINT [--setting NAME=VALUE]... [--kernel OPTION]...`

It imports nothing of what commands need, so that a mount takes less memory. It writes the log, as lines for
people or a JSON object a line for programs, and reports its state to systemd (sd_notify(3), without its
library).
"""

from __future__ import annotations

import gc
import json
import logging
import logging.handlers
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lightlyfs import app, mountpoints
from lightlyfs.api.redaction import LineFormatter, redact, visible
from lightlyfs.app.builders import LOG_FORMAT
from lightlyfs.app.resolving import find_dataset
from lightlyfs.cli import READY_VARIABLE
from lightlyfs.cli.output import tell
from lightlyfs.cli.sessions import sessions_of
from lightlyfs.control import ControlServer
from lightlyfs.cores import stay_on_one_core
from lightlyfs.errors import LightlyFsError, SettingsError, StartError, counted
from lightlyfs.fs.attributes import Ownership
from lightlyfs.fs.namespace import Part
from lightlyfs.kernel import binding
from lightlyfs.kernel.binding import READ_AHEAD_BYTES, Library, MountOptions
from lightlyfs.kernel.runner import STOP_SIGNALS, Mount, block_signals, share_arenas, trim_memory
from lightlyfs.mountpoints import mount_at
from lightlyfs.places import SpoolPlace, cache_root, lasting_name, socket_path
from lightlyfs.settings import SECRET_VARIABLES, Secrets, Settings, read_secrets, resolve

log = logging.getLogger("lightlyfs")
# while a mount starts, its user sees the warnings of this logger
_dataset_log = logging.getLogger(app.Dataset.__module__)
_early_log = logging.handlers.MemoryHandler(1_000, logging.CRITICAL + 1)

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
    stay_on_one_core()
    os.umask(0o077)  # whatever a library writes for us is ours alone
    told = int(os.environ.pop(READY_VARIABLE, "-1"))
    logging.basicConfig(level=settings.log_level.upper(), stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(formatter(settings.log_format))
    if told >= 0:
        _log_later()
    code = 0
    try:
        _serve(source, mountpoint, settings, secrets, library, kernel_options, told)
    except LightlyFsError as error:
        log.error("%s", error)
        tell(str(error))
        code = 1
    except Exception:
        log.exception("the mount failed")
        where = _keep_early_log(settings) if told >= 0 else "its log"
        tell(f"the mount failed, and this is a fault of lightlyfs; {where} says where")
        code = 1
    logging.shutdown()
    sys.stderr.flush()
    # threads may be in a request for up to a minute; everything that matters is written down by now
    os._exit(code)


def _keep_early_log(settings: Settings) -> str:
    """Write what a mount logged before it failed to a file, or else to stderr; return which."""
    if _early_log.target is not None:
        return "its log"
    try:
        path = settings.log_file or cache_root(settings.cache_dir) / "mount.log"
        target, where = file_handler(path, settings.log_format, ""), str(path)
    except (OSError, LightlyFsError):
        target, where = logging.StreamHandler(), "the text above"
        target.setFormatter(formatter(settings.log_format))
    _early_log.setTarget(target)
    _early_log.flush()
    return where


def _log_later() -> None:
    """Keep the log of a background mount until it has a file; show its user only warnings meanwhile."""
    logging.getLogger().handlers[:] = [_early_log]
    notes = logging.StreamHandler()
    notes.setLevel(logging.WARNING)
    notes.setFormatter(logging.Formatter("lightlyfs: %(message)s"))
    _dataset_log.addHandler(notes)


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
            memory=settings.memory,
        )
        mount = Mount(library, options, ownership)
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
        # objects that exist now stay; collecting them again and again would cost a fiftieth of every call
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        try:
            if not settings.no_wait:
                _wait_for_listing(parts, found.name)
            _look_at_chosen(parts, settings, found.name)
            if settings.metrics_port is not None:
                app.serve_metrics(parts, settings.metrics_port)
            _run(parts, mount, mountpoint, told, found.name)
        finally:
            parts.close()


def _look_at_chosen(parts: app.Dataset, settings: Settings, dataset: str) -> None:
    """Raise StartError if there is no such folder; print a line if patterns hide all that is in it."""
    parts.need_folder(dataset)
    if not settings.no_wait and parts.hides_all():
        rules = (("--include", settings.shown.include), ("--exclude", settings.shown.exclude))
        given = " and ".join(f"{flag} {','.join(patterns)}" for flag, patterns in rules if patterns)
        tell(f"no sample matches {given}; patterns look like *.jpg or cars/*")


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
        notify_systemd("READY=1")
        start_watchdog(lambda: _is_alive(parts))

    def on_stop() -> None:
        notify_systemd("STOPPING=1")
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
    """Read the token file again; False if there is none, and SIGHUP then ends the mount."""
    if parts.settings.token_file is None:
        return False
    parts.reload_token()
    return True


def _commands(parts: app.Dataset) -> Mapping[str, Any]:
    def refresh() -> Mapping[str, Any]:
        changes = parts.refresh()
        return {"added": changes.added, "changed": changes.changed, "gone": changes.gone}

    def retry() -> Mapping[str, Any]:
        return {"retried": 0 if parts.uploads is None else parts.uploads.retry_all()}

    return {"status": lambda: app.status_of(parts), "refresh": refresh, "retry": retry}


def _tell_owed(settings: Settings, dataset_id: str, spool_place: SpoolPlace | None) -> None:
    """Warn of what is owed on a mount that may not upload."""
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
    file = file_handler(path, parts.settings.log_format, dataset)
    root.handlers[:] = [file, parts.recent_log]
    _dataset_log.handlers.clear()
    _early_log.setTarget(file)
    _early_log.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    os.chdir("/")


def _source(name: str, folder: str, tag: str | None) -> str:
    """What `mount` and `df` show as the source: no blanks or commas, which their readers split at."""
    name = f"{name}/{folder}" if folder else name
    return "lightly:" + re.sub(r"[\s,\\]", "_", name if tag is None else f"{name}@{tag}")


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
    """A log file that is rotated before it fills the disk, and recreated if a cleaner deleted it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; until the directory is there again, into the deleted file."""
        if self.stream is not None and os.fstat(self.stream.fileno()).st_nlink == 0:
            with suppress(OSError):
                fresh = self._open()
                self.stream.close()
                self.stream = fresh
        super().emit(record)


def file_handler(path: Path, kind: str, dataset: str) -> logging.Handler:
    """Return a handler for a log file that is rotated before it fills the disk; StartError without one."""
    try:
        handler = _LogFile(
            path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise StartError(f"the log file {path} cannot be written: {error.strerror}") from error
    handler.setFormatter(formatter(kind, dataset))
    return handler


# without a terminal a line of progress is worth printing this often
_LINE_EVERY_S = 5.0
# how long a mount waits for the check of names that it has from before
_CHECK_S = 2.0


def _wait_for_listing(parts: app.Dataset, dataset: str) -> None:
    """Wait until the samples are listed, showing the progress; StartError if that fails.

    Names of an earlier listing will do where they cannot be checked, or not soon.
    """
    refresher = parts.catalog.refresher
    if refresher.complete:
        refresher.touch()
        end = time.monotonic() + _CHECK_S
        while refresher.active and refresher.error is None and time.monotonic() < end:
            _stop_if_asked()
            refresher.wait_for_check(0.05)
        return
    next_line = time.monotonic() + _LINE_EVERY_S
    with _Line(dataset) as line:
        while not refresher.complete:
            _stop_if_asked()
            refresher.wait_for_progress(0.2)
            if not refresher.active and not refresher.complete:
                raise StartError(f"the samples of {dataset} cannot be listed: {refresher.error}")
            listed, expected = refresher.progress
            if sys.stderr.isatty():
                line.show(listed, expected)
            elif time.monotonic() > next_line:
                tell(f"listed {listed:,} of {expected:,} samples")
                next_line += _LINE_EVERY_S


class _Line:
    """A line of a terminal that is written over; a bar of `rich` would stay in the mount's memory."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_shown = False

    def show(self, listed: int, expected: int) -> None:
        """Show the progress of the listing."""
        self._is_shown = True
        printable = "".join(char if char.isprintable() else "?" for char in self._name)
        share = f" ({listed * 100 // expected} %)" if expected else ""
        sys.stderr.write(f"\r\033[Klisting {printable}: {listed:,} of {expected:,}{share}")
        sys.stderr.flush()

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def _stop_if_asked() -> None:
    """Ctrl-C during the listing ends it; the signals are blocked for the mount that follows."""
    if signal.sigtimedwait(STOP_SIGNALS, 0) is not None:
        raise StartError("interrupted while the samples were being listed")


def notify_systemd(state: str) -> None:
    """Send a state such as `READY=1` to systemd, if it asked for that."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # "@" stands for the NUL of an abstract address
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), target)
    except OSError as error:
        log.warning("systemd was not told %s: %s", state.partition("=")[0], error)


def start_watchdog(is_alive: Callable[[], bool]) -> None:
    """Tell systemd twice in each interval of its watchdog that the mount answers, as long as it does."""
    wanted = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    interval_us = os.environ.get("WATCHDOG_USEC", "")
    if not wanted or not interval_us.isdigit() or int(interval_us) == 0:
        return

    def run() -> None:
        pause = threading.Event()
        while not pause.wait(int(interval_us) / 2e6):
            if is_alive():
                notify_systemd("WATCHDOG=1")

    threading.Thread(target=run, name="lightlyfs-watchdog", daemon=True).start()


def main(arguments: list[str]) -> None:
    """Serve a mount to its end; the checks of `lightlyfs mount` are done."""
    dataset, mountpoint, *rest = arguments
    pairs = list(zip(rest[::2], rest[1::2], strict=True))
    texts = dict(text.split("=", 1) for word, text in pairs if word == "--setting")
    try:
        settings = resolve(texts, os.environ)
        secrets = read_secrets(os.environ, settings.token_file, settings.read_mode)
        for name in SECRET_VARIABLES:
            os.environ.pop(name, None)  # no helper is to have them
        library = binding.find_library(settings.fuse)  # type: ignore[arg-type]
        kernel_options = tuple(text for word, text in pairs if word == "--kernel")
        serve_mount(dataset, Path(mountpoint), settings, secrets, library, kernel_options)
    except LightlyFsError as error:
        tell(str(error))
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
