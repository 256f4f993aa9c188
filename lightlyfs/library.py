"""Mounts a dataset from Python in a separate process, opens cached files, and announces what will be read.

A mount inside the calling process would stop with it, and a program that reads its own mount can deadlock.
Nothing is printed to the caller's stdout.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol, TypedDict, Unpack

from lightlyfs.control import Channel, ask, dial, session
from lightlyfs.errors import Cancelled, LightlyFsError, Retryable, SettingsError, StartError, counted
from lightlyfs.mountpoints import mount_at
from lightlyfs.places import mount_above, socket_of
from lightlyfs.settings import BY_NAME, SETTINGS, text_of

log = logging.getLogger(__name__)

# called with the bytes that are cached, and the bytes of all files
Progress = Callable[[int, int], object]

CacheWork = Literal["check", "evict", "verify", "pin", "unpin"]
_SHOWN_FAILURES = 10
# a file that was being evicted when it was pinned is fetched once more
_PIN_ROUNDS = 5


class MountSettings(TypedDict, total=False):
    """The options of `lightlyfs mount` as keywords; `help(lightlyfs.mount)` says what each means."""

    profile: str
    server: str
    metadata_ttl: float | str
    cache_dir: str | os.PathLike[str]
    cache_size: int | str
    cache_min_free: int | str
    no_cache: bool
    read_mode: str
    jobs: int
    read_ahead: str
    read_ahead_limit: int | str
    memory_target: int | str
    page_size: int
    read_only: bool
    tag: str
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    thumbnails: str
    upload: str | Sequence[str]
    allow_overwrite: bool
    write_back: bool
    sole_writer: bool
    no_wait: bool
    index: str | os.PathLike[str]
    uid: int
    gid: int
    umask: str
    allow_other: bool
    fuse: str
    token_file: str | os.PathLike[str]
    ca_certs: str | os.PathLike[str]
    allow_private_storage: str | Sequence[str]
    s3_sse_kms_key: str
    log_file: str | os.PathLike[str]
    log_level: str
    log_format: str
    metrics_port: int | str


class Mounted:
    """A running mount; leaving the `with` block, or `unmount`, ends it.

    `path` is the directory it is mounted on. Any thread may call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Mounted:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the mount; one that a program still uses is detached, with a RuntimeWarning.

        An exception of the block stays the one that is raised; what else went wrong is a note to it.
        """
        try:
            self.unmount()
        except StartError as failure:
            busy = mount_at(self.path) is not None
            if busy:
                _run("umount", "--lazy", str(self.path))
            if error is not None:
                error.add_note(f"lightlyfs: {failure}")
            elif busy:
                warnings.warn(f"{failure}; it was detached", RuntimeWarning, stacklevel=2)
            else:
                raise

    def __repr__(self) -> str:
        return f"Mounted({str(self.path)!r})"

    def status(self) -> dict[str, Any]:
        """What `lightlyfs status --json` prints; StartError where the mount has ended."""
        return self._ask("status", 10.0)

    def refresh(self) -> dict[str, int]:
        """List the dataset again now, and return how many samples were added, changed and removed."""
        return self._ask("refresh", 600.0)

    def warm(
        self,
        *names: str | os.PathLike[str],
        jobs: int | None = None,
        tag: str | None = None,
        progress: Progress | bool = False,
    ) -> None:
        """Fetch files and directories, named as within the mount (none: everything), into its cache.

        Returns once they are there; StartError names those that cannot be had, and why. `progress` is called
        with the bytes that are there and those of all; True shows a bar on stderr.
        """
        self._fetch(names, {"command": "warm", "jobs": jobs, "tag": tag}, progress)

    def _fetch(
        self,
        names: Sequence[str | os.PathLike[str]],
        request: Mapping[str, object],
        progress: Progress | bool = False,
    ) -> None:
        within = [self._within(name) for name in names or ("",)]
        failed: list[tuple[str, str]] = []
        total = 0
        with _shown(progress) as show:
            for message in session(self.path, request, within):
                total = message["plan"]["bytes"] if "plan" in message else total
                failed += message.get("failed", ())
                if "progress" in message:
                    show(message["progress"]["bytes"], total)
                if "done" in message:
                    break
        if failed:
            lines = [f"{path}: {reason}" for path, reason in failed[:_SHOWN_FAILURES]]
            raise StartError("\n".join([f"{counted(len(failed), 'file')} not in the cache", *lines]))

    def cached(
        self, *names: str | os.PathLike[str], tag: str | None = None, do: CacheWork = "check"
    ) -> dict[str, int]:
        """Count what is cached of files and directories (none: everything), and do something to it.

        "evict" deletes it, "verify" compares it with its checksums, "pin" keeps what is cached whatever the
        budget, "unpin" no longer. Returns `files`, `bytes`, `cached_files`, `cached_bytes`,
        `done_files` and `pinned_files`.
        """
        within = [self._within(name) for name in names or ("",)]
        answers = session(self.path, {"command": "cache", "do": do, "tag": tag}, within)
        found = next(answer for answer in answers if "files" in answer)
        answers.close()
        return {name: count for name, count in found.items() if name != "ok"}

    def pin(self, *names: str | os.PathLike[str], tag: str | None = None) -> None:
        """Fetch files and directories, and keep them whatever the budget; StartError where that cannot be."""
        for _ in range(_PIN_ROUNDS):
            self._fetch(names, {"command": "warm", "jobs": None, "tag": tag, "pin": True})
            found = self.cached(*names, tag=tag)
            if found["pinned_files"] == found["files"]:
                return
        raise StartError("other files displace them again and again; see cache_size")

    def unmount(self) -> None:
        """End the mount; StartError where a program still uses it, or something is not on the server yet."""
        _run("umount", str(self.path))

    def _within(self, name: str | os.PathLike[str]) -> str:
        found = os.path.relpath(self.path / name, self.path)
        if found.split(os.sep)[0] == os.pardir:
            raise StartError(f"{name} is not in the mount on {self.path}")
        return "" if found == os.curdir else found

    def _ask(self, command: str, timeout_s: float) -> dict[str, Any]:
        answer = ask(socket_of(self.path), command, timeout_s=timeout_s)
        if answer is None:
            raise StartError(f"the mount on {self.path} does not answer")
        if not answer.pop("ok"):
            raise StartError(str(answer["error"]))
        return answer


def mount(dataset: str, mountpoint: str | os.PathLike[str], **settings: Unpack[MountSettings]) -> Mounted:
    """Mount a dataset (id or name) on an empty directory and return when it is usable.

    The token is taken from the environment, or from `token_file`. Raises StartError or SettingsError with the
    line that the command would print. The keywords are the options of `lightlyfs mount`:
    """
    path = Path(mountpoint).absolute()
    words = [word for name, value in settings.items() if value is not None for word in _words(name, value)]
    _run("mount", *words, "--", dataset, str(path))
    return Mounted(path)


mount.__doc__ = f"{mount.__doc__}\n" + "".join(f"        {row.name}: {row.help}\n" for row in SETTINGS)


def _words(name: str, value: object) -> Sequence[str]:
    if name == "profile":
        return [f"--profile={value}"]
    row = BY_NAME.get(name)
    if row is None:
        raise SettingsError(f"unknown setting {name}; it may be {', '.join(BY_NAME)}")
    text = text_of(row, value, name)
    return [f"-o{name}={text}"] if row.is_switch else [f"{row.flag}={text}"]


@contextmanager
def _shown(progress: Progress | bool) -> Iterator[Progress]:
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield lambda _done, _all: None
    else:
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("warming")
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _run(*words: str) -> None:
    command = [sys.executable, "-m", "lightlyfs", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = [line.removeprefix("lightlyfs: ") for line in done.stderr.splitlines()]
    if done.returncode:
        raise (SettingsError if done.returncode == 2 else StartError)("\n".join(lines))
    for line in lines:
        log.warning("%s", line)


# opens the cached file of a sample itself, past the mount

# a file that has to be fetched may take long; the mount ends its waits by itself, after a minute without
# a block
_ANSWER_WAIT_S = 120.0
# directories of which it is remembered in which mount they are
_MAX_KNOWN = 10_000


def open_cached(path: str | bytes | os.PathLike[str]) -> BinaryIO:
    """Open the cached file of a sample for reading, as a binary file; `path` is that of the file in a mount.

    It is fetched first where it is not in the cache, and every block is compared with its checksum once a
    mount. What is read is one version of the sample from the first byte to the last, whatever happens to
    the sample, the cache or the mount meanwhile; the disk space of a file that leaves the cache is free
    once it is closed. The offset is the caller's own. A file that the cache cannot keep, or that is on its
    way to the server, is opened through the mount instead.

    Raises the OSError that `open` and `read` on the mount would, and ValueError where the path is in no
    mount of this user. Any thread may call, also in a forked process.
    """
    name = os.fsdecode(path)
    mountpoint = mountpoint_of(name)
    answer = _ask(mountpoint, os.path.abspath(name))
    if isinstance(answer, int):
        return open(name, "rb", opener=lambda _path, _flags: answer)
    number = answer.get("errno")
    if number is None or number == errno.ENOENT:
        # through the mount: it has the file, or the error that belongs to the path
        return open(name, "rb")
    why = str(answer["error"])
    raise OSError(number, why, name) from (Retryable if answer.get("passes") else LightlyFsError)(why)


class _Connections(threading.local):
    """The calling thread's connections by mountpoint, and the process that made them."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._channels: dict[Path, Channel] = {}

    def get(self, mountpoint: Path) -> tuple[Channel | None, bool]:
        """The connection to a mount, and whether it is one that was used before; None where none can be."""
        if self._process != os.getpid():
            # they belong to the process this one was forked from: two must not talk on one
            self._process = os.getpid()
            for inherited in list(self._channels):
                self.drop(inherited)
        channel = self._channels.get(mountpoint)
        if channel is not None:
            return channel, True
        channel = dial(socket_of(mountpoint), timeout_s=_ANSWER_WAIT_S)
        if channel is not None:
            self._channels[mountpoint] = channel
        return channel, False

    def drop(self, mountpoint: Path) -> None:
        """Hang up on a mount."""
        channel = self._channels.pop(mountpoint, None)
        if channel is not None:
            channel.close()


_connections = _Connections()
# single operations on it are atomic
_known: dict[str, Path] = {}


def _ask(mountpoint: Path, path: str) -> int | dict[str, Any]:
    """The descriptor, or the answer that there is none."""
    message = {"command": "open_cached", "path": path_in_mount(mountpoint, path)}
    while True:
        channel, used = _connections.get(mountpoint)
        if channel is None:
            _known.clear()
            raise OSError(errno.ENOTCONN, "the mount does not answer", path)
        try:
            channel.send(message)
            answer = channel.receive()
        except TimeoutError:
            _connections.drop(mountpoint)
            raise OSError(errno.ETIMEDOUT, "the mount does not answer", path) from None
        except OSError:
            answer = None
        if answer is not None:
            descriptor = channel.take_descriptor()
            return answer if descriptor is None else descriptor
        # a mount hangs up on who was silent for a minute; a new connection tells whether it is still there
        _connections.drop(mountpoint)
        if not used:
            return {}


def path_in_mount(mountpoint: Path, path: str) -> str:
    root = str(mountpoint)
    if not path.startswith(root + os.sep):
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return os.path.relpath(path, root)


def mountpoint_of(name: str) -> Path:
    directory = os.path.dirname(os.path.abspath(name))
    found = _known.get(directory)
    if found is None:
        found = mount_above(Path(directory)) or mount_above(Path(os.path.realpath(directory)))
        if found is None:
            raise ValueError(f"{name} is not in a dataset that you have mounted")
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[directory] = found
    return found


_PROTOCOL = "lightly://"
_ANNOUNCED_WAIT_S = 10.0
# a mount hangs up on who says nothing for a minute
SIGN_OF_LIFE_S = 20.0
# paths in one message: few, so that a long order is asked for little by little
_PATHS_AT_ONCE = 32
# a mount that is restarted is back in seconds; a program reads without it for a quarter of an hour at most
_AWAY_S = 900.0
_CALL_AGAIN_S = 1.0


class Closable(Protocol):
    """What ends with `close`."""

    def close(self) -> None:
        """End it."""
        ...


class Announced:
    """Files that are fetched ahead of the program that announced them; ends with `close`, as `with` does."""

    def __init__(self, running: Closable | None) -> None:
        self._running = running

    def close(self) -> None:
        """Stop fetching; idempotent."""
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
    if isinstance(paths, str | bytes | os.PathLike):
        raise ValueError(f"paths is one path; give a list: [{paths!r}]")
    left = iter(paths)
    first = next(left, None)
    if first is None:
        return Announced(None)
    name = os.fspath(first)
    names = chain([name], (os.fspath(path) for path in left))
    if name.startswith(_PROTOCOL):
        from lightlyfs.fsspec.driver import LightlyFileSystem

        return Announced(LightlyFileSystem(**storage_options).ahead(names))
    return Announced(OrderOverSocket(mountpoint_of(name), _as_they_come(names)))


def _as_they_come(names: Iterator[str]) -> Generator[list[str], None, None]:
    """What an iterator gave so far, some at once; now and then nothing, while it gives nothing."""
    given: Queue[str | None] = Queue(_PATHS_AT_ONCE)
    ended = threading.Event()

    def put(name: str | None) -> None:
        while not ended.is_set():
            with suppress(Full):
                given.put(name, timeout=_CALL_AGAIN_S)
                return

    def ask() -> None:
        try:
            for name in names:
                put(name)
                if ended.is_set():
                    return
        except Exception:
            log.exception("the order of the files to read failed")
        put(None)

    threading.Thread(target=ask, name="lightlyfs-order", daemon=True).start()
    try:
        while True:
            some: list[str | None] = []
            with suppress(Empty):
                some.append(given.get(timeout=SIGN_OF_LIFE_S))
                while len(some) < _PATHS_AT_ONCE:
                    some.append(given.get_nowait())
            yield [name for name in some if name is not None]
            if None in some:
                return
    finally:
        ended.set()


class OrderOverSocket:
    """An order that goes to a mount, some paths at once, in a thread of its own; StartError without a mount.

    The mount hangs up unless it gets a message each minute, even one without paths. A mount that hung up, or
    that ended and is mounted again, is called again.
    """

    def __init__(self, mountpoint: Path, names: Generator[list[str], None, None]) -> None:
        self._mountpoint = mountpoint
        channel = dial(socket_of(self._mountpoint), timeout_s=_ANNOUNCED_WAIT_S)
        if channel is None:
            raise StartError(f"the mount on {self._mountpoint} does not answer")
        self._channel: Channel = channel
        self._is_begun = False
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._send, args=(names,), name="lightlyfs-announcing", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._channel.hang_up()

    def _send(self, names: Generator[list[str], None, None]) -> None:
        try:
            for some in chain(names, self._signs_of_life()):
                if self._closed.is_set():
                    return
                self._hand_over([path_in_mount(self._mountpoint, os.path.abspath(name)) for name in some])
        except Cancelled:
            pass  # the program dropped the order
        except (OSError, ValueError, LightlyFsError) as error:
            if not self._closed.is_set():
                log.warning("the mount on %s takes no more of the order: %s", self._mountpoint, error)
        except Exception:
            log.exception("the order of the files to read failed")
        finally:
            names.close()
            self._channel.close()

    def _signs_of_life(self) -> Iterator[list[str]]:
        while not self._closed.wait(SIGN_OF_LIFE_S):
            yield []

    def _hand_over(self, names: list[str]) -> None:
        """Have the mount take some paths, when it is there."""
        while not self._closed.is_set():
            try:
                if not self._is_begun:
                    self._channel.send({"command": "ahead"})
                    self._is_begun = True
                self._deliver(names)
                return
            except OSError as error:
                self._call_again(error)

    def _deliver(self, names: list[str]) -> None:
        """Send paths, and wait until the mount has taken them; it signals every few seconds that it works."""
        self._channel.send({"names": names})
        while not self._closed.is_set():
            answer = self._channel.receive()
            if answer is None or answer.get("busy"):
                raise ConnectionError("it hung up")
            if not answer["ok"]:
                raise StartError(str(answer["error"]))
            if answer.get("taken"):
                return

    def _call_again(self, error: OSError) -> None:
        """Connect to the mount that is there by now; raises `error` where there is none for long."""
        end = time.monotonic() + _AWAY_S
        while not self._closed.wait(_CALL_AGAIN_S):
            channel = dial(socket_of(self._mountpoint), timeout_s=_ANNOUNCED_WAIT_S)
            if channel is not None:
                self._channel.close()
                self._channel, self._is_begun = channel, False
                return
            if time.monotonic() > end:
                raise error
