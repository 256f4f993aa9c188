"""Where files live on this machine, and that they are ours alone.

Blocks and the catalogue live in the user's cache directory, sockets in the runtime directory. A directory
that another user owns or may write to is refused: a user who can write there could make lightlyfs serve
bytes of theirs.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

import platformdirs

from lightlyfs.errors import SettingsError
from lightlyfs.locks import FLOCK, SharedLocks, open_lock
from lightlyfs.mountpoints import MountEntry, our_mounts, remote_kind

log = logging.getLogger(__name__)

# a socket is a file, or an abstract name that begins with a NUL
Address = Path | str

APP = "lightlyfs"
_MAX_RUNTIME_BYTES = 70
# the directories that mounts with a --cache-dir of their own have used, one a line
_STATE_ROOTS = "state-directories"
# more disks than are away at once; without a bound the list only grows
_GONE_KEPT = 16
# what a machine's own directory begins with, on a file system that others may use too
_OF_MACHINE = "machine-"
# there also where nothing of the disk can be written to
_MEMORY = Path("/dev/shm")
# where the unit of `lightlyfs deploy system-unit` has them
_SERVICES = Path("/run/lightlyfs") / APP
# a private cache needs this much of the disk to be useful
_LEAST_BYTES = 64 << 20
# errors that pass, or that are the disk's fault: reads continue without it
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# a mount that starts may need a moment to search the directories of other mounts
_CHOOSING_TIMEOUT_S = 10.0


class Root(NamedTuple):
    """A directory of ours, and why it is not the one that was to be used; "" where it is."""

    path: Path
    reason: str


def cache_root(chosen: Path | None) -> Path:
    """Return the directory for everything that may be lost; made if missing."""
    return _root(chosen, "cache").path


def state_root(chosen_cache: Path | None) -> Path:
    """Return the directory for what must not be lost; made if missing, and emptied by no cleaner."""
    return _root(chosen_cache, "state").path


def elsewhere(chosen_cache: Path | None) -> str:
    """Return one line on where files are kept if that is not the requested place; otherwise ""."""
    cache, state = _root(chosen_cache, "cache"), _root(chosen_cache, "state")
    if cache.reason and state.reason:
        both = os.path.commonpath((cache.path, state.path))
        return f"the cache and what is owed to the server are in {both}: {cache.reason}"
    if cache.reason:
        return f"the cache is in {cache.path}: {cache.reason}"
    if state.reason:
        return f"what is owed to the server is in {state.path}: {state.reason}"
    return ""


def wanted_directories(chosen: Path | None) -> list[Path]:
    """Return where the cache and what is owed would be kept, and make nothing."""
    if chosen is not None:
        return [chosen]
    with suppress(RuntimeError):  # without a home
        return [Path(platformdirs.user_cache_dir(APP)), Path(platformdirs.user_state_dir(APP))]
    return []


def _root(chosen: Path | None, kind: str) -> Root:
    """Return a usable directory: in the chosen one where others may use that too, or in the user's home.

    Without a home to write to, it is among temporary files.
    """
    if chosen is not None:
        root = _apart(_within(chosen))
        if kind == "state" or os.access(root.path, os.W_OK, effective_ids=True):
            return root
        return _among_temporaries(kind, f"{root.path} cannot be written to")
    reason = "this user has no home directory"
    with suppress(RuntimeError):
        wanted = Path(
            platformdirs.user_cache_dir(APP) if kind == "cache" else platformdirs.user_state_dir(APP)
        )
        if wanted.is_absolute():
            try:
                if not os.access(_own_directory(wanted), os.W_OK, effective_ids=True):
                    reason = f"{wanted} cannot be written to"
                elif kind == "cache" and (remote := remote_kind(wanted)):
                    reason = _seen_by_others(wanted, remote)
                else:
                    return _apart(Root(wanted, ""))
            except SettingsError as error:
                reason = str(error)
    return _among_temporaries(kind, f"{reason}; --cache-dir chooses another")


def _among_temporaries(kind: str, reason: str) -> Root:
    for directory in _temporaries():
        try:
            return Root(_own_directory(_own_directory(directory) / kind), reason)
        except SettingsError:
            continue
    raise SettingsError(f"{reason}, and there is no temporary directory; choose a directory with --cache-dir")


def _within(chosen: Path) -> Root:
    """Return the directory where it is ours alone, else one of ours in it, as in a group's volume."""
    try:
        return Root(_own_directory(chosen), "")
    except SettingsError as error:
        # what an earlier mount owes is not left behind
        is_shared = (
            # unlike `Path.is_dir`, which raises below a directory that this user may not search
            os.path.isdir(chosen)
            and not chosen.is_symlink()
            and os.access(chosen, os.W_OK, effective_ids=True)
        )
        if not is_shared or any(chosen.glob("*/*/uploads")):
            raise
        return Root(_own_directory(chosen / _name_of_user()), str(error).partition(";")[0])


def _apart(root: Root) -> Root:
    """Return a directory of this machine's own in one that other machines may use at the same time.

    No lock keeps them apart for sure, and databases in shared memory are damaged.
    """
    remote = remote_kind(root.path)
    if not remote:
        return root
    own = _own_directory(root.path / f"{_OF_MACHINE}{os.uname().nodename}")
    return Root(own, root.reason or _seen_by_others(root.path, remote))


def _seen_by_others(path: Path, remote: str) -> str:
    return f"{path} is on a file system that other machines may use ({remote})"


def remember_state_root(root: Path) -> None:
    """Note a directory that holds what is owed, so that `uploads` finds it whatever it is called with."""
    first = state_root(None)
    if root == first:
        return
    known = first / _STATE_ROOTS
    try:
        with _alone_in(first):
            noted = _noted(known)
            if str(root) not in noted:
                replace_file(known, "".join(f"{line}\n" for line in [*_without_gone(noted), str(root)]))
    except OSError as error:
        log.warning("%s cannot be written, so that `uploads` needs --cache-dir: %s", known, error)


def _without_gone(noted: list[str]) -> list[str]:
    """Leave out directories that were deleted, but for the latest: a disk that is away comes back."""
    if len(noted) <= _GONE_KEPT:
        return noted  # nothing is asked of disks that may hang
    gone = [line for line in noted if not os.path.lexists(line)]
    dropped = set(gone[:-_GONE_KEPT])
    return [line for line in noted if line not in dropped]


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep out other processes that change a file there, each for a moment."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: str) -> None:
    """Replace a small file of mode 0600: readers and a crash see the old text or the new; raises OSError."""
    # under a name of its own, because other processes may replace it now
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(os.fsencode(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _noted(known: Path) -> list[str]:
    lines = known.read_text("utf-8", "surrogateescape").splitlines() if known.exists() else []
    return [line for line in lines if line]


def state_roots() -> list[Path]:
    """Return every directory that holds, or held, what mounts of this user owe."""
    first = state_root(None)
    known = first / _STATE_ROOTS
    try:
        noted = _noted(known)
    except OSError as error:
        log.warning("%s cannot be read: %s", known, error)
        noted = []
    others = dict.fromkeys(map(Path, noted))
    if first.name.startswith(_OF_MACHINE):
        others[first.parent] = None  # where earlier versions kept it
    return [first, *(path for path in others if path != first and _is_own(path))]


def runtime_root() -> Path:
    """Return the directory for sockets; made if missing."""
    base = _session_directory()
    return _own_directory(_temporaries()[0] if base is None else base / APP)


def _session_directory() -> Path | None:
    base = os.environ.get("XDG_RUNTIME_DIR")
    # the path of a socket may have 107 bytes, of which the socket's own name takes some thirty
    if base and os.access(base, os.W_OK) and len(os.fsencode(base)) < _MAX_RUNTIME_BYTES:
        return Path(base)
    return None


def _temporaries() -> list[Path]:
    """Return the directories of this user among temporary files, the first one to be used."""
    try:
        first = [Path(tempfile.gettempdir())]
    except OSError:
        first = []  # as on a read-only root file system
    return [directory / _name_of_user() for directory in (*first, _MEMORY)]


def _name_of_user() -> str:
    return f"{APP}-{os.getuid()}"


def runtime_roots() -> list[Path]:
    """Return the directories in which mounts of this user may have their sockets, this session's own first.

    One that was made at boot, or by a service, knew of no session.
    """
    session = runtime_root()
    others = (_temporaries()[0], _SERVICES)
    return [session, *(path for path in others if path != session and _is_own(path))]


def socket_path(mountpoint: Path) -> Path:
    """Return where a new mount has its control socket."""
    return runtime_root() / _socket_name(mountpoint)


def socket_of(mountpoint: Path) -> Address:
    """Return where a running mount has its control socket; where a new one would, if there is none.

    The runtime directory goes with the session; the name that belongs to the mount itself stays.
    """
    name = _socket_name(mountpoint)
    found = next((root / name for root in runtime_roots() if (root / name).exists()), None)
    if found is not None:
        return found
    entry = our_mounts().get(mountpoint)
    return socket_path(mountpoint) if entry is None else lasting_name(entry)


def sockets() -> list[Address]:
    """Return the control sockets of this user's mounts."""
    found: list[Address] = [path for root in runtime_roots() for path in root.glob("*.sock")]
    mine = (entry for entry in our_mounts().values() if entry.owner == os.getuid())
    return found + [
        lasting_name(entry) for entry in mine if not isinstance(socket_of(entry.mountpoint), Path)
    ]


def lasting_name(entry: MountEntry) -> str:
    """Return the abstract name of a mount's control socket, which is there for as long as the mount is."""
    return f"\0{APP}-{entry.device}"


def _socket_name(mountpoint: Path) -> str:
    return f"{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]}.sock"


def mount_above(path: Path) -> Path | None:
    """Return the directory at or above a path on which a mount of this user answers, or None."""
    roots, mine = runtime_roots(), our_mounts()
    for directory in (path, *path.parents):
        name = _socket_name(directory)
        if any((root / name).exists() for root in roots):
            return directory
        if directory in mine and mine[directory].owner == os.getuid():
            return directory
    return None


def server_directory(root: Path, server: str) -> Path:
    """Return what is kept of one API host."""
    parts = urlsplit(server)
    host = "".join(c if c.isalnum() or c in ".-" else "_" for c in parts.netloc.rpartition("@")[2])
    return _own_directory(root / host)


def server_cache(chosen: Path | None, server: str) -> Path:
    """Return the cache directory of one API host; among temporary files where the disk takes none."""
    try:
        return server_directory(cache_root(chosen), server)
    except SettingsError as error:
        if not is_passing(error.__cause__):
            raise
        log.warning("nothing is kept in the cache: %s", error)
        return server_directory(_among_temporaries("cache", str(error)).path, server)


def is_passing(error: BaseException | None) -> bool:
    """Return whether an error is that of a full or read-only disk, or of missing permission."""
    return isinstance(error, OSError) and error.errno in _PASSING


def catalogue_name(tag: str | None) -> str:
    """Return the name of the catalogue file in a dataset's directory, of all samples or of one tag."""
    if tag is None:
        return "catalog.db"
    return f"catalog-{hashlib.blake2b(tag.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}.db"


class DatasetPlace:
    """The directory of one dataset, which the processes of a user share by its `locks`.

    A process that finds no other process there has exclusive use until `share`. With `temporary`, or if
    another process does not release the directory, a private one that is deleted at the end is used instead;
    `private_because` says why in the latter case.
    """

    def __init__(self, parent: Path, dataset_id: str, *, temporary: bool = False) -> None:
        self.private_because = ""
        self.temporary = temporary
        self._dataset_id = dataset_id
        # a cleaner may delete them, and another user create them
        self._above = [directory for directory in (parent.parent, parent) if _is_own(directory)]
        if temporary:
            self._be_private([parent, *_temporaries()])
            return
        try:
            self.path = _own_directory(parent / dataset_id)
            self.locks = SharedLocks(self.path, self._make_again)
        except (OSError, SettingsError) as error:
            if not (is_passing(error) or is_passing(error.__cause__)):
                raise
            self.private_because = str(error)
            self._be_private(_temporaries())
            return
        try:
            self.locks.join()
        except TimeoutError:
            self.locks.close()
            self.private_because = "another process does not let go of this dataset's cache"
            self._be_private([parent])
        except OSError as error:
            # databases need them, too
            self.leave(f"the file system of {self.path} has no locks ({error.strerror})")

    def leave(self, reason: str) -> None:
        """Use a private directory, among temporary files, from now on."""
        self.locks.close()
        self.private_because = reason
        self._be_private(_temporaries())

    def _be_private(self, parents: list[Path]) -> None:
        self.temporary = True
        self.path = Path(tempfile.mkdtemp(prefix=f"{self._dataset_id}.", dir=_roomiest(parents)))
        self.locks = SharedLocks(self.path, self._make_again)
        self.locks.join()

    @property
    def alone(self) -> bool:
        """Whether no other process uses the directory, or can come to use it, before `share`."""
        return self.locks.alone

    def share(self) -> None:
        """Let other processes in."""
        self.locks.share()

    def _make_again(self) -> None:
        """Make the directory where it was deleted; OSError where there is one that is not ours alone."""
        try:
            for directory in (*self._above, self.path):
                _own_directory(directory)
        except SettingsError as error:
            raise OSError(str(error)) from None

    def close(self) -> None:
        """Let go of the directory, and delete a private one."""
        self.locks.close()
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> DatasetPlace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SpoolPlace:
    """The directory of the files that one mount owes, locked as long as it is open.

    Directories that earlier mounts left are taken over, the first as it is: `path`. `others` are further
    ones, locked too, for their content to be taken over; `drop_others` comes after that.
    """

    def __init__(self, parent: Path, dataset_id: str) -> None:
        self._parent = parent
        self._dataset_id = dataset_id
        self._locks: dict[Path, int] = {}
        self.others: list[Path] = []
        with self._turn() as root:
            self.path = self._choose(root, take_over=True)

    def is_locked(self) -> bool:
        """Return whether the lock is at its path, where other mounts find it."""
        try:
            return os.path.samestat(os.fstat(self._locks[self.path]), os.lstat(self.path / "lock"))
        except FileNotFoundError:
            return False

    def renew(self, *, stands: bool) -> None:
        """Lock the directory again where a cleaner deleted the lock; where not all else `stands`, a new one.

        Raises OSError or SettingsError where there can be none.
        """
        deleted, self._locks = self._locks, {}
        try:
            if not stands:
                remember_state_root(_own_directory(self._parent.parent))
                with self._turn() as root:
                    self.path = self._choose(root, take_over=False)
            else:
                self._take(self.path, [])
        except BaseException:
            self._locks, deleted = deleted, {}
            raise
        for descriptor in deleted.values():
            os.close(descriptor)

    @contextmanager
    def _turn(self) -> Iterator[Path]:
        """Choose in the block, below the path it is given: two at one moment may both find the same directory
        free, or make the same.
        """
        root = _own_directory(_own_directory(_own_directory(self._parent) / self._dataset_id) / "uploads")
        turns = SharedLocks(root)
        try:
            with turns.name("choose a directory", _CHOOSING_TIMEOUT_S):
                yield root
        finally:
            turns.close()

    def _choose(self, root: Path, *, take_over: bool) -> Path:
        found: list[Path] = []
        names = sorted((path.name for path in root.iterdir() if path.name.isdigit()), key=int)
        for name in names if take_over else ():
            self._take(_own_directory(root / name), found)
        number = int(names[-1]) + 1 if names else 0
        while not found:
            self._take(_own_directory(root / str(number)), found)
            number += 1
        self.others = found[1:]
        return found[0]

    def _take(self, path: Path, found: list[Path]) -> None:
        lock = _try_lock(path)
        if lock is not None:
            self._locks[path] = lock
            found.append(path)

    def drop_others(self) -> None:
        """Delete the directories whose content was taken over; else each process leaves one to the next."""
        if not self.others:
            return
        with self._turn():
            for path in self.others:
                for name in ("journal.db", "journal.db-wal", "journal.db-shm", "lock"):
                    (path / name).unlink(missing_ok=True)
                for directory in (path / "files", path):
                    with suppress(OSError):  # bytes that no record speaks of stay
                        directory.rmdir()
                os.close(self._locks.pop(path))
        self.others = []

    def close(self) -> None:
        """Let go of the directories."""
        while self._locks:
            os.close(self._locks.popitem()[1])


def spools_of(parent: Path, dataset_id: str) -> list[Path]:
    """Return the directories in which mounts of a dataset keep what they owe."""
    root = parent / dataset_id / "uploads"
    return sorted(path for path in root.iterdir() if path.name.isdigit()) if root.is_dir() else []


def is_free(spool: Path) -> bool:
    """Return whether no mount uses a spool directory; asks without taking its lock."""
    try:
        descriptor = os.open(spool / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, IsADirectoryError):
        return True
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(descriptor)
    return bool(FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)


def _try_lock(directory: Path) -> int | None:
    """Take the lock of a spool directory; None where another process has it.

    Two kinds of lock are taken: mounts of earlier versions know of flock only, but that cannot be asked for.
    """
    descriptor = open_lock(directory / "lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise SettingsError(
            f"the file system of {directory} has no locks ({error.strerror}), which keep two mounts from "
            "sending the same files; choose a directory on another with --cache-dir"
        ) from None
    return descriptor


def _roomiest(parents: list[Path]) -> Path:
    """Return the first directory, made where it is missing, with room for a cache; else the one with most."""
    rooms: dict[Path, int] = {}
    for parent in parents:
        with suppress(SettingsError, OSError):
            disk = os.statvfs(_own_directory(parent))
            rooms[parent] = 0 if disk.f_flag & os.ST_RDONLY else disk.f_bavail * disk.f_frsize
    if not rooms:
        raise SettingsError("there is no directory for a private cache; choose one with --cache-dir")
    most = max(rooms, key=rooms.__getitem__)
    return next((parent for parent, room in rooms.items() if room >= _LEAST_BYTES), most)


def _is_own(path: Path) -> bool:
    """Return whether there is a directory that is ours alone."""
    try:
        _own_directory(path, make=False)
    except SettingsError:
        return False
    return True


def _own_directory(path: Path, *, make: bool = True) -> Path:
    try:
        if make:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise SettingsError(f"{path} cannot be used as a directory: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise SettingsError(f"{path} is not a directory; choose another with --cache-dir")
    if found.st_uid != os.getuid():
        raise SettingsError(f"{path} belongs to another user; choose another with --cache-dir")
    if found.st_mode & stat.S_ISVTX:
        raise SettingsError(f"{path} is shared with others; use a folder in it")
    if found.st_mode & 0o022:
        raise SettingsError(f"others may write to {path}; close it with: chmod 700 {shlex.quote(str(path))}")
    return path
