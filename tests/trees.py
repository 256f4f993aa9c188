"""The subjects of the behaviour suite: the same dataset as a file system object, and as real mounts."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from lightlyfs import app, mountpoints
from lightlyfs.cli.group import run
from lightlyfs.errors import StartError, errno_of
from lightlyfs.fs.attributes import Attr
from lightlyfs.kernel import binding
from lightlyfs.settings import read_secrets, resolve
from lightlyfs.testing import LocalServer

REQUIRE_FUSE = os.environ.get("LIGHTLYFS_REQUIRE_FUSE") == "1"


@dataclass(frozen=True)
class Found:
    """What `stat` found."""

    ino: int
    is_directory: bool
    size: int
    mtime: int


class Tree(Protocol):
    """A dataset as a tree; errors are OSError, as a program sees them."""

    def names(self, path: str = "") -> list[str]: ...
    def stat(self, path: str) -> Found: ...
    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes: ...
    def xattrs(self, path: str) -> list[str]: ...
    def xattr(self, path: str, name: str) -> bytes: ...
    def refresh(self) -> None: ...


def is_by_path(tree: Tree) -> bool:
    """Whether a tree is a mount that hears of no open any more."""
    return isinstance(tree, MountedTree) and tree.by_path


class WritableFile(Protocol):
    """An open file."""

    def read(self, offset: int, size: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...
    def truncate(self, size: int) -> None: ...
    def close(self) -> None: ...


class WritableTree(Tree, Protocol):
    """A tree that may be changed. `write` makes what is missing of the directories above."""

    def write(self, path: str, data: bytes) -> None: ...
    def writing(
        self, path: str, *, create: bool = True
    ) -> contextlib.AbstractContextManager[WritableFile]: ...
    def mkdir(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def set_mtime(self, path: str, mtime: int) -> None: ...
    def set_xattr(self, path: str, name: str, value: bytes) -> None: ...
    def retry_uploads(self) -> None: ...


class InProcessFile:
    """An open file of the file system object."""

    def __init__(self, tree: InProcessTree, handle: int) -> None:
        self._call = tree._call
        self._fs = tree.parts.filesystem
        self._handle = handle
        self._closed = False

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._call(self._fs.read, self._handle, offset, size))

    def write(self, offset: int, data: bytes) -> None:
        self._call(self._fs.write, self._handle, offset, data)

    def truncate(self, size: int) -> None:
        self._call(self._fs.truncate, None, self._handle, size)

    def flush(self) -> None:
        self._call(self._fs.flush, self._handle)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                self._call(self._fs.flush, self._handle)
            finally:
                self._call(self._fs.release, self._handle)


class MountedFile:
    """An open file of a mount."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def write(self, offset: int, data: bytes) -> None:
        while data:
            count = os.pwrite(self._descriptor, data, offset)
            data, offset = data[count:], offset + count

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def environment(server: LocalServer, cache: Path) -> dict[str, str]:
    """The environment of a command that uses this server and keeps its files apart."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    for name in [name for name in kept if name.startswith("LIGHTLY_")]:
        del kept[name]
    runtime = cache / "run"
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    return kept | {
        "LIGHTLY_SERVER_LOCATION": server.url,
        "LIGHTLY_TOKEN": server.token,
        "LIGHTLY_PUBLIC_TOKEN": server.public_token,
        "XDG_CACHE_HOME": str(cache),
        "XDG_CONFIG_HOME": str(cache / "config"),
        "LIGHTLYFS_SMALL_CACHE": "1",
        "LIGHTLYFS_CACHE_MIN_FREE": "64M",  # whatever else fills the disk of the machine
        "XDG_STATE_HOME": str(cache / "state"),
        "XDG_RUNTIME_DIR": str(runtime),
    }


def use_here(server: LocalServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test's own process a user of a server, with directories below `cache`."""
    for name, value in environment(server, cache).items():
        if name.startswith(("LIGHTLY", "XDG")):
            monkeypatch.setenv(name, value)


class InProcessTree:
    """The file system object itself, without a kernel."""

    def __init__(self, parts: app.Dataset) -> None:
        self.parts = parts
        self._fs = parts.filesystem

    def names(self, path: str = "") -> list[str]:
        return [name for name, _ in self._call(self._fs.list_directory, path).entries]

    def stat(self, path: str) -> Found:
        attr: Attr = self._call(self._fs.getattr, path)
        return Found(attr.ino, attr.is_directory, attr.size, attr.mtime)

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        opened = self._call(self._fs.open, path, os.O_RDONLY)
        try:
            if size < 0:
                size = self._call(self._fs.getattr_open, opened.handle).size
            return bytes(self._call(self._fs.read, opened.handle, offset, size))
        finally:
            self._fs.release(opened.handle)

    def xattrs(self, path: str) -> list[str]:
        return list(self._call(self._fs.list_xattrs, path))

    def xattr(self, path: str, name: str) -> bytes:
        return bytes(self._call(self._fs.get_xattr, path, name))

    def refresh(self) -> None:
        self.parts.refresh()

    def write(self, path: str, data: bytes) -> None:
        with self.writing(path) as file:
            file.truncate(0)
            file.write(0, data)

    @contextlib.contextmanager
    def writing(self, path: str, *, create: bool = True) -> Iterator[WritableFile]:
        flags = os.O_RDWR
        method = self._fs.create if create else self._fs.open
        file = InProcessFile(self, self._call(method, path, flags).handle)
        try:
            yield file
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            raise
        file.close()

    def mkdir(self, path: str) -> None:
        self._call(self._fs.make_directory, path)

    def rmdir(self, path: str) -> None:
        self._call(self._fs.remove_directory, path)

    def unlink(self, path: str) -> None:
        self._call(self._fs.unlink, path)

    def rename(self, old: str, new: str) -> None:
        self._call(self._fs.rename, old, new, 0)

    def set_mtime(self, path: str, mtime: int) -> None:
        time_ns = mtime * 1_000_000_000
        self._call(lambda: self._fs.set_times(path, None, atime_ns=time_ns, mtime_ns=time_ns))

    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        self._call(self._fs.set_xattr, path, name, value)

    def retry_uploads(self) -> None:
        assert self.parts.uploads is not None
        self.parts.uploads.uploader.retry_all()

    @staticmethod
    def _call(method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except Exception as error:
            number, _ = errno_of(error)
            raise OSError(number, os.strerror(number)) from error


@dataclass
class MountedTree:
    """A real mount by the real command, in the foreground, of one libfuse."""

    mountpoint: Path
    environ: Mapping[str, str]
    process: subprocess.Popen[str]
    log: Path
    ended: bool = field(default=False)
    by_path: bool = field(default=False)  # it hears of no open any more
    options: tuple[str, ...] = ()

    def names(self, path: str = "") -> list[str]:
        return sorted(os.listdir(self.mountpoint / path), key=os.fsencode)

    def stat(self, path: str) -> Found:
        found = os.stat(self.mountpoint / path)
        if found.st_mtime_ns % 1_000_000_000:  # samples and their directories have whole seconds
            assert not stat.S_ISREG(found.st_mode) or not self.xattrs(path)
        return Found(found.st_ino, stat.S_ISDIR(found.st_mode), found.st_size, int(found.st_mtime))

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        with open(self.mountpoint / path, "rb", buffering=0) as file:
            file.seek(offset)
            return file.read() if size < 0 else read_exactly(file.fileno(), size)

    def xattrs(self, path: str) -> list[str]:
        return os.listxattr(self.mountpoint / path)

    def xattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self.mountpoint / path, name)

    def refresh(self) -> None:
        self.run("refresh", str(self.mountpoint))

    def write(self, path: str, data: bytes) -> None:
        with self.writing(path) as file:
            file.truncate(0)
            file.write(0, data)

    @contextlib.contextmanager
    def writing(self, path: str, *, create: bool = True) -> Iterator[WritableFile]:
        target = self.mountpoint / path
        target.parent.mkdir(parents=True, exist_ok=True)
        file = MountedFile(os.open(target, os.O_RDWR | (os.O_CREAT if create else 0), 0o644))
        try:
            yield file
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            raise
        file.close()

    def mkdir(self, path: str) -> None:
        os.mkdir(self.mountpoint / path)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.mountpoint / path)

    def unlink(self, path: str) -> None:
        os.unlink(self.mountpoint / path)

    def rename(self, old: str, new: str) -> None:
        (self.mountpoint / new).parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.mountpoint / old, self.mountpoint / new)

    def set_mtime(self, path: str, mtime: int) -> None:
        os.utime(self.mountpoint / path, (mtime, mtime))

    def set_xattr(self, path: str, name: str, value: bytes) -> None:
        os.setxattr(self.mountpoint / path, name, value)

    def retry_uploads(self) -> None:
        self.run("uploads", "retry")

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of lightlyfs in this mount's environment."""
        return lightlyfs(*words, environ=self.environ, check=check)

    def end(self) -> None:
        """Unmount, and see that the process ends well."""
        if self.ended:
            return
        self.ended = True
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(20)
        finally:
            if mountpoints.mount_at(self.mountpoint) is not None:
                mountpoints.unmount(self.mountpoint, lazy=True)
        assert code == 0, (code, self.log.read_text())


def lightlyfs(
    *words: str, environ: Mapping[str, str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command line and take what it prints."""
    command = [sys.executable, "-m", "lightlyfs", *words]
    done = subprocess.run(
        command, env=dict(environ), capture_output=True, text=True, timeout=100, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def lightlyfs_here(
    *words: str, environ: Mapping[str, str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, where another one would show nothing more; prints text alone."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environ.keys():
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with redirected[0], redirected[1], pytest.raises(SystemExit) as ended:
            run(words)
    code = ended.value.code
    assert isinstance(code, int)
    assert not check or code == 0, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def read_exactly(descriptor: int, size: int) -> bytes:
    """Read until `size` bytes or the end: one read may be short."""
    parts = []
    while size > 0 and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def need_fuse(version: str) -> binding.Library:
    """The library, or a skip that says exactly why not; a failure where CI wants no skip."""
    try:
        binding.check_device()
        return binding.find_library(version)  # type: ignore[arg-type]
    except StartError as error:
        if REQUIRE_FUSE:
            raise
        pytest.skip(str(error))


@contextlib.contextmanager
def in_process(server: LocalServer, cache: Path, **flags: str) -> Iterator[InProcessTree]:
    """The file system object over a server, listed."""
    environ = environment(server, cache)
    settings = resolve({"cache_dir": str(cache / "lightlyfs"), "upload": "all", **flags}, environ)
    connections = app.connect(settings, read_secrets(environ, None), environ)
    with app.open_place(settings, server.dataset_id) as place:
        spool = app.open_spool(settings, server.dataset_id)
        parts = app.Dataset(settings, connections, server.dataset_id, place, spool_place=spool)
        parts.start()
        try:
            yield InProcessTree(parts)
        finally:
            parts.close()


@contextlib.contextmanager
def mounted(server: LocalServer, directory: Path, version: str = "3", *options: str) -> Iterator[MountedTree]:
    """A mount of a server's dataset; `directory` holds mountpoint, cache and log."""
    need_fuse(version)
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    environ = environment(server, directory / "cache")
    tree = start_mount(
        server.dataset_id, mountpoint, environ, directory / "mount.log", f"--fuse={version}", *options
    )
    try:
        yield tree
    finally:
        tree.end()


@contextlib.contextmanager
def mounted_by_path(server: LocalServer, directory: Path, *options: str) -> Iterator[MountedTree]:
    """A read-only mount whose kernel opens files without telling it, as once all of them were read."""
    with mounted(server, directory, "3", "--read-only", *options) as tree:
        wait_until(lambda: reads_by_path(tree), 20)
        tree.by_path = True
        yield tree


def reads_by_path(tree: MountedTree) -> bool:
    """Whether a mount hears of no open any more, after reading a bit of every file."""
    for directory, _, names in os.walk(tree.mountpoint):
        for name in names:
            with open(os.path.join(directory, name), "rb", buffering=0) as file:
                file.read(1)
    return bool(json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)["reads_by_path"])


def start_mount(
    dataset: str, mountpoint: Path, environ: Mapping[str, str], log: Path, *options: str
) -> MountedTree:
    """Start the command in the foreground and wait until the kernel has the mount.

    All names are uploaded, unless the options say which.
    """
    if "--upload" not in options:
        options = ("--upload", "all", *options)
    command = [sys.executable, "-m", "lightlyfs", "mount", dataset, str(mountpoint), "--foreground", *options]
    with log.open("a") as out:
        process = subprocess.Popen(command, env=dict(environ), stdout=out, stderr=out, text=True)
    tree = MountedTree(mountpoint, environ, process, log, options=options)
    try:
        wait_until(lambda: process.poll() is not None or is_served(mountpoint), 60)
        assert process.poll() is None, log.read_text()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return tree


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_served(mountpoint: Path) -> bool:
    """Whether a mount is there and answers; what a killed one left does not."""
    try:
        os.statvfs(mountpoint)
    except OSError:
        return False
    return mountpoints.mount_at(mountpoint) is not None


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll for something another process does; fails when it does not come."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"did not happen within {timeout_s} s"
        time.sleep(0.02)


def soon(condition: Callable[[], bool]) -> None:
    """What is promised within 3 seconds; libfuse 2 has no way to tell the kernel at once."""
    wait_until(condition, 3)


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The block fails with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared below
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]
