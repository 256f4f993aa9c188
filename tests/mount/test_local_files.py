"""What is no image stays here, and is an ordinary file: one set of tests for a local disk and for a mount."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import shared_mount
from shared_mount import SharedMount, jpeg
from test_writing import stored
from trees import MountedTree, mounted, refused, soon, start_mount

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

TICK_S = 0.02  # longer than the clock of any file system stands still
ACCESSED_NS, MODIFIED_NS = 1_500_000_000_123_456_789, 1_600_000_000_987_654_321


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedMount]:
    """A mount for all the tests; at the end the server has heard of nothing."""
    with shared_mount.shared_mount(tmp_path_factory.mktemp("local"), {}) as subject:
        yield subject
        assert subject.server.samples() == []
        assert subject.server.stats.count("withWriteUrls") == 0


@pytest.fixture(params=["disk", "mount"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An empty directory for a test, on a local disk and on the mount."""
    if request.param == "disk":
        directory = tmp_path / "disk"
        directory.mkdir()
        return directory
    place: SharedMount = request.getfixturevalue("place")
    return place.path(request.node.name.partition("[")[0])


def apart(program: str, cwd: Path, *words: str) -> str:
    """Run Python in another process: it holds no lock that this one's server needs."""
    command = [sys.executable, "-c", textwrap.dedent(program), *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """Another mask for what is created."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def opened(path: Path, flags: int, permissions: int = 0o644) -> contextlib.AbstractContextManager[int]:
    """A descriptor that is closed."""

    @contextlib.contextmanager
    def manage() -> Iterator[int]:
        descriptor = os.open(path, flags, permissions)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    return manage()


# attributes


def test_a_file_is_a_file(root: Path) -> None:
    path = root / "x.txt"
    path.write_bytes(b"hello")
    found = path.stat()
    assert stat.S_ISREG(found.st_mode)
    assert (found.st_size, found.st_nlink, found.st_uid, found.st_gid) == (5, 1, os.geteuid(), os.getegid())
    assert os.listdir(root) == ["x.txt"]


def test_the_mode_is_the_one_that_was_asked_for(root: Path) -> None:
    asked = {"a": (0o777, 0o022), "b": (0o640, 0), "c": (0o600, 0o077), "d": (0o666, 0o002), "e": (0o400, 0)}
    for name, (permissions, mask) in asked.items():
        with umask(mask), opened(root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions):
            pass
    assert {name: mode(root / name) for name in asked} == {
        name: permissions & ~mask for name, (permissions, mask) in asked.items()
    }


def test_the_mode_is_set_by_name_and_by_descriptor(root: Path) -> None:
    path = root / "run.sh"
    path.write_text("#!/bin/sh\necho ran\n")
    for permissions in (0o755, 0o600, 0o444, 0o700):
        path.chmod(permissions)
        assert mode(path) == permissions
    with opened(path, os.O_RDWR) as file:
        os.fchmod(file, 0o751)
        assert stat.S_IMODE(os.fstat(file).st_mode) == 0o751
        os.write(file, b"#")
    assert mode(path) == 0o751
    assert subprocess.run([path], capture_output=True, text=True, check=True).stdout == "ran\n"
    path.rename(root / "moved.sh")
    assert mode(root / "moved.sh") == 0o751


def test_times_are_kept_to_the_nanosecond(root: Path) -> None:
    path = root / "x.bin"
    path.write_bytes(b"x")
    os.utime(path, ns=(ACCESSED_NS, MODIFIED_NS))
    found = path.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (ACCESSED_NS, MODIFIED_NS)
    with opened(path, os.O_RDWR) as file:
        os.utime(file, ns=(ACCESSED_NS + 1, MODIFIED_NS + 1))
        assert os.fstat(file).st_mtime_ns == MODIFIED_NS + 1
    path.rename(root / "y.bin")
    found = (root / "y.bin").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (ACCESSED_NS + 1, MODIFIED_NS + 1)


def test_a_time_that_is_set_before_close_stays(root: Path) -> None:
    """tar and cp write, set the time by descriptor, and close."""
    path = root / "x.bin"
    with opened(path, os.O_WRONLY | os.O_CREAT) as file:
        os.write(file, b"content")
        os.utime(file, ns=(ACCESSED_NS, MODIFIED_NS))
    assert path.stat().st_mtime_ns == MODIFIED_NS


def test_a_copy_has_mode_and_times_of_the_first(root: Path) -> None:
    path = root / "x.bin"
    path.write_bytes(b"content")
    path.chmod(0o640)
    os.utime(path, ns=(ACCESSED_NS, MODIFIED_NS))
    shutil.copy2(path, root / "copy.bin")
    assert (mode(root / "copy.bin"), (root / "copy.bin").stat().st_mtime_ns) == (0o640, MODIFIED_NS)
    assert (root / "copy.bin").read_bytes() == b"content"


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    # what moves the change time of a file, and whether it moves the one of its content
    "write": (lambda path: path.write_bytes(b"other"), True),
    "append": (lambda path: append(path, b"more"), True),
    "truncate": (lambda path: os.truncate(path, 1), True),
    "chmod": (lambda path: path.chmod(0o600), False),
}


def append(path: Path, data: bytes) -> None:
    """Write at the end."""
    with path.open("ab") as file:
        file.write(data)


def test_changes_move_the_times_that_they_should(root: Path) -> None:
    path = root / "x.bin"
    path.write_bytes(b"content")
    for name, (change, is_content) in CHANGES.items():
        before = path.stat()
        time.sleep(TICK_S)
        change(path)
        after = path.stat()
        assert after.st_ctime_ns > before.st_ctime_ns, name
        assert (after.st_mtime_ns > before.st_mtime_ns) == is_content, name


def test_reading_moves_no_time_of_the_content(root: Path) -> None:
    path = root / "x.bin"
    path.write_bytes(b"content")
    before = path.stat()
    time.sleep(TICK_S)
    assert path.read_bytes() == b"content"
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_a_file_keeps_its_inode(root: Path) -> None:
    path = root / "x.bin"
    path.write_bytes(b"content")
    inode = path.stat().st_ino
    (root / "d").mkdir()
    path.chmod(0o600)
    path.write_bytes(b"other")
    path = path.rename(root / "d" / "y.bin")
    assert path.stat().st_ino == inode
    path.rename(root / "z.bin")
    with opened(root / "z.bin", os.O_RDONLY) as file:
        assert os.fstat(file).st_ino == inode
    (root / "d" / "y.bin").write_bytes(b"another file")
    assert (root / "d" / "y.bin").stat().st_ino != inode


# content


def test_content_is_written_in_every_way(root: Path) -> None:
    path = root / "x.bin"
    path.write_bytes(b"0123456789")
    append(path, b"ABC")
    with opened(path, os.O_RDWR) as file:
        os.pwrite(file, b"--", 3)
        os.pwrite(file, b"end", 20)
        assert os.pread(file, 100, 0) == b"012--56789ABC" + b"\0" * 7 + b"end"
        os.ftruncate(file, 5)
        os.ftruncate(file, 7)
        assert os.fstat(file).st_size == 7
    assert path.read_bytes() == b"012--\0\0"
    os.truncate(path, 2)
    assert path.read_bytes() == b"01"
    os.truncate(path, 0)
    assert path.stat().st_size == 0
    path.write_bytes(b"again")
    assert path.read_bytes() == b"again"


def test_two_descriptors_append_without_loss(root: Path) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with opened(root / "log", flags) as first, opened(root / "log", flags) as second:
        for number in range(50):
            os.write(first, b"first %d\n" % number)
            os.write(second, b"second %d\n" % number)
    lines = (root / "log").read_text().splitlines()
    assert lines == [f"{who} {number}" for number in range(50) for who in ("first", "second")]


def test_processes_append_without_loss(root: Path) -> None:
    program = """
        import os, sys
        file = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number in range(100):
            os.write(file, f"{sys.argv[1]} {number:05}\\n".encode())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    writers = [subprocess.Popen([*command, str(number)], cwd=root) for number in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = (root / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{who} {number:05}" for who in range(3) for number in range(100))


def test_read_only_with_truncate_truncates(root: Path) -> None:
    """What POSIX leaves open, Linux does."""
    path = root / "x.bin"
    path.write_bytes(b"content")
    with opened(path, os.O_RDONLY | os.O_TRUNC) as file:
        assert os.fstat(file).st_size == 0
        with refused(errno.EBADF):
            os.write(file, b"x")
    assert path.read_bytes() == b""


def test_a_large_file_with_a_hole(root: Path) -> None:
    path = root / "sparse.bin"
    with opened(path, os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, b"end", 40_000_000)
        assert os.pread(file, 10, 20_000_000) == b"\0" * 10
    assert path.stat().st_size == 40_000_003
    with path.open("rb") as reader:
        reader.seek(-3, os.SEEK_END)
        assert reader.read() == b"end"


def test_room_is_made_for_a_file(root: Path) -> None:
    with opened(root / "x.bin", os.O_RDWR | os.O_CREAT) as file:
        os.posix_fallocate(file, 0, 100_000)
        assert os.fstat(file).st_size == 100_000
    assert (root / "x.bin").read_bytes() == b"\0" * 100_000


def test_a_mapping_is_shared_by_processes(root: Path) -> None:
    program = """
        import mmap, os, sys
        file = os.open("x.bin", os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(file, 10_000)
        with mmap.mmap(file, 10_000) as mapped:
            os.close(file)
            child = os.fork()
            if child == 0:
                other = os.open("x.bin", os.O_RDWR)
                with mmap.mmap(other, 10_000) as theirs:
                    theirs[5_000:5_005] = b"hello"
                os._exit(0)
            os.waitpid(child, 0)
            assert mapped[5_000:5_005] == b"hello"
            mapped[0:3] = b"abc"
            mapped.flush()
            assert open("x.bin", "rb").read(3) == b"abc"
            mapped[9_999] = 33
    """
    apart(program, root)
    expected = bytearray(10_000)
    expected[0:3], expected[5_000:5_005], expected[9_999:] = b"abc", b"hello", b"!"
    assert (root / "x.bin").read_bytes() == bytes(expected)


def test_a_removed_file_goes_on_while_it_is_open(root: Path) -> None:
    path = root / "x.bin"
    path.write_bytes(b"before")
    path.chmod(0o640)
    with opened(path, os.O_RDWR) as file:
        inode = os.fstat(file).st_ino
        path.unlink()
        assert os.listdir(root) == []
        os.pwrite(file, b" after", 6)
        os.fchmod(file, 0o600)
        found = os.fstat(file)
        assert (found.st_size, found.st_ino, stat.S_IMODE(found.st_mode)) == (12, inode, 0o600)
        assert os.pread(file, 100, 0) == b"before after"
        os.ftruncate(file, 3)
        assert os.pread(file, 100, 0) == b"bef"
        path.write_bytes(b"another")
        assert os.pread(file, 100, 0) == b"bef"
        with refused(errno.EEXIST):
            os.open(path, os.O_CREAT | os.O_EXCL)
    assert path.read_bytes() == b"another"


def test_a_replaced_file_goes_on_while_it_is_open(root: Path) -> None:
    path, other = root / "x.bin", root / "y.bin"
    path.write_bytes(b"old")
    other.write_bytes(b"new content")
    new_inode = other.stat().st_ino
    with opened(path, os.O_RDWR) as old, opened(other, os.O_RDWR) as new:
        other.replace(path)
        assert os.listdir(root) == ["x.bin"]
        assert os.fstat(old).st_size == 3
        assert os.pread(old, 100, 0) == b"old"
        os.pwrite(old, b"OLD!", 0)
        os.pwrite(new, b"NEW", 0)
        assert (os.pread(old, 100, 0), os.fstat(old).st_size) == (b"OLD!", 4)
    assert (path.read_bytes(), path.stat().st_ino) == (b"NEW content", new_inode)


# names and flags


def test_a_rename_of_a_file_replaces_files_alone(root: Path) -> None:
    for name in ("a", "b"):
        (root / name).write_text(name)
    (root / "d").mkdir()
    (root / "a").rename(root / "b")
    assert (os.listdir(root).count("a"), (root / "b").read_text()) == (0, "a")
    (root / "b").rename(root / "b")
    for old, new, number in [
        ("b", "d", errno.EISDIR),
        ("d", "b", errno.ENOTDIR),
        ("b", "none/x", errno.ENOENT),
        ("none", "x", errno.ENOENT),
        ("b", "b/x", errno.ENOTDIR),
    ]:
        with refused(number):
            os.rename(root / old, root / new)
    assert (sorted(os.listdir(root)), (root / "b").read_text()) == (["b", "d"], "a")


def test_what_cannot_be_is_refused_as_on_a_disk(root: Path) -> None:
    (root / "file").write_text("x")
    (root / "folder").mkdir()
    for path, flags, number in [
        ("file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, errno.EEXIST),
        ("file/x", os.O_CREAT | os.O_WRONLY, errno.ENOTDIR),
        ("none", os.O_RDWR, errno.ENOENT),
        ("none/x", os.O_CREAT | os.O_WRONLY, errno.ENOENT),
        ("folder", os.O_WRONLY, errno.EISDIR),
        ("file", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
    ]:
        with refused(number):
            os.open(root / path, flags)
    for remove, path, number in [
        (os.unlink, "folder", errno.EISDIR),
        (os.unlink, "none", errno.ENOENT),
        (os.rmdir, "file", errno.ENOTDIR),
        (os.rmdir, "none", errno.ENOENT),
        (os.mkdir, "file", errno.EEXIST),
        (os.mkdir, "none/x", errno.ENOENT),
    ]:
        with refused(number):
            remove(root / path)


def test_a_name_has_255_bytes_and_no_more(root: Path) -> None:
    for name in ("x" * 255, "ü" * 127 + "x"):
        path = root / name
        path.write_text("long")
        assert name in os.listdir(root)
        path.rename(root / "short")
        (root / "short").rename(path)
        path.unlink()
        path.mkdir()
        path.rmdir()
    for name in ("x" * 256, "ü" * 128):
        for make in (Path.touch, Path.mkdir, Path.stat):
            with refused(errno.ENAMETOOLONG):
                make(root / name)
        (root / "short").touch()
        with refused(errno.ENAMETOOLONG):
            (root / "short").rename(root / name)
    assert os.listdir(root) == ["short"]


# locks


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_a_lock_keeps_another_process_out(root: Path, kind: str) -> None:
    program = f"""
        import errno, fcntl
        with open("lock", "r+") as file:
            try:
                fcntl.{kind}(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                print("held")
            except BlockingIOError:
                print("refused")
    """
    with (root / "lock").open("w") as file:
        lock = fcntl.flock if kind == "flock" else fcntl.lockf
        lock(file, fcntl.LOCK_EX)
        assert apart(program, root) == "refused\n"
        lock(file, fcntl.LOCK_UN)
        assert apart(program, root) == "held\n"
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert apart(program, root) == "refused\n"
    assert apart(program, root) == "held\n"


# directories


def test_a_directory_has_the_mode_that_was_asked_for(root: Path) -> None:
    path = root / "d"
    with umask(0o022):
        path.mkdir(0o770)
    assert mode(path) == 0o750
    path.chmod(0o700)
    path = path.rename(root / "e")
    assert stat.S_ISDIR(path.stat().st_mode)
    assert mode(path) == 0o700
    os.utime(path, ns=(ACCESSED_NS, MODIFIED_NS))
    assert path.stat().st_mtime_ns == MODIFIED_NS


def test_directories_are_renamed_with_what_is_in_them(root: Path) -> None:
    (root / "a/deep/er").mkdir(parents=True)
    (root / "a/deep/x.txt").write_text("x")
    (root / "a/deep/x.txt").chmod(0o640)
    (root / "empty").mkdir()
    (root / "full").mkdir()
    (root / "full/y.txt").write_text("y")
    with refused(errno.ENOTEMPTY):
        (root / "a").rename(root / "full")
    with refused(errno.EINVAL):
        (root / "a").rename(root / "a/deep/a")
    with refused(errno.ENOTEMPTY):
        (root / "a").rmdir()
    (root / "a").rename(root / "empty")
    (root / "empty").rename(root / "full/moved")

    assert sorted(os.listdir(root)) == ["full"]
    assert sorted(os.listdir(root / "full/moved/deep")) == ["er", "x.txt"]
    assert mode(root / "full/moved/deep/x.txt") == 0o640
    shutil.rmtree(root / "full")
    assert os.listdir(root) == []


DIRECTORY_CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda d: (d / "new").touch(),
    "create-by-rename": lambda d: (d.parent / "other" / "x").rename(d / "from other"),
    "rename-within": lambda d: (d / "file").rename(d / "renamed"),
    "rename-away": lambda d: (d / "renamed").rename(d.parent / "other" / "renamed"),
    "replace": lambda d: (d / "new").replace(d / "from other"),
    "remove": lambda d: (d / "from other").unlink(),
    "mkdir": lambda d: (d / "folder").mkdir(),
    "rename-folder": lambda d: (d / "folder").rename(d / "folder 2"),
    "rmdir": lambda d: (d / "folder 2").rmdir(),
}


def test_the_times_of_a_directory_move_with_what_is_in_it(root: Path) -> None:
    directory = root / "d"
    directory.mkdir()
    (root / "other").mkdir()
    (root / "other/x").touch()
    (directory / "file").touch()
    still = {}
    for name, change in DIRECTORY_CHANGES.items():
        before = directory.stat()
        time.sleep(TICK_S)
        change(directory)
        after = directory.stat()
        if after.st_mtime_ns <= before.st_mtime_ns or after.st_ctime_ns <= before.st_ctime_ns:
            still[name] = (after.st_mtime_ns - before.st_mtime_ns, after.st_ctime_ns - before.st_ctime_ns)
    assert still == {}


def test_the_other_directory_of_a_rename_moves_too(root: Path) -> None:
    for name in ("from", "to"):
        (root / name).mkdir()
    (root / "from/x").touch()
    before = [(root / name).stat().st_mtime_ns for name in ("from", "to")]
    time.sleep(TICK_S)
    (root / "from/x").rename(root / "to/x")
    after = [(root / name).stat().st_mtime_ns for name in ("from", "to")]
    assert all(new > old for old, new in zip(before, after, strict=True))


# remounts, and what is an image


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """An empty dataset, mounted read-write."""
    with mounted(own_server, tmp_path / "tree", "3", *shared_mount.UPLOAD_IMAGES) as subject:
        yield subject


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    """Mode, times and content of every local file, mode of every directory."""
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        name, at = str(path.relative_to(root)), path.stat()
        if path.is_dir():
            found[name] = (at.st_mode,)
        else:
            found[name] = (at.st_mode, at.st_mtime_ns, at.st_atime_ns, at.st_size)
    return found


@pytest.mark.parametrize("is_killed", [False, True], ids=["unmounted", "killed"])
def test_local_files_and_directories_survive_a_remount(
    own_server: LocalServer, tree: MountedTree, is_killed: bool
) -> None:
    root = tree.mountpoint
    contents = {"a.txt": b"a", "deep/er/b.bin": os.urandom(300_000), ".git/HEAD": b"ref", "empty": b""}
    for number, (name, data) in enumerate(contents.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        (root / name).chmod(0o600 + number)
        os.utime(root / name, ns=(ACCESSED_NS + number, MODIFIED_NS + number))
    (root / "nothing/in it").mkdir(parents=True, mode=0o700)
    (root / "gone").mkdir()
    (root / "gone").rmdir()
    before = facts(root)

    if is_killed:
        tree.process.kill()
        tree.process.wait()
        tree.ended = True
    else:
        tree.end()
    again = remount(own_server, tree)
    try:
        assert facts(root) == before
        assert {name: (root / name).read_bytes() for name in contents} == contents
        assert mode(root / "nothing/in it") == 0o700
        shutil.rmtree(root / "nothing")
    finally:
        again.end()
    last = remount(own_server, tree)
    try:
        assert not (root / "nothing").exists()
        assert (root / "deep/er/b.bin").read_bytes() == contents["deep/er/b.bin"]
    finally:
        last.end()


def remount(server: LocalServer, tree: MountedTree) -> MountedTree:
    """The same mount again, in the same environment."""
    options = ("--fuse=3", *shared_mount.UPLOAD_IMAGES)
    return start_mount(server.dataset_id, tree.mountpoint, tree.environ, tree.log, *options)


SENT = [
    "a.jpg",
    "b.JPG",
    "c.jpeg",
    "d.png",
    "e.gif",
    "f.bmp",
    "g.webp",
    "h.tif",
    "i.tiff",
    "j.mp4",
    "k.mov",
    "l.avi",
    "m.PNG",
    "folder/a.jpg",
    "two.dots.jpg",
    "photo(1).jpg",
    "tmp/a.jpg",
    "backup/a.jpg",
    "Trash/a.jpg",
    "cache/a.jpg",
    "sedation.jpg",
    "zipped.jpg",
]

STAYS = [
    "a.txt",
    "a.csv",
    "a.json",
    "a.npy",
    "a.xml",
    "a.zip",
    "a.db",
    "noextension",
    "Makefile",
    "jpg",
    "4913",
    ".a.jpg",
    "._a.jpg",
    ".a.jpg.Xy12Ab",
    ".hidden/a.jpg",
    "x/.hidden/a.jpg",
    ".git/a.jpg",
    ".cache/a.jpg",
    "a.jpg~",
    "a.jpg.tmp",
    "a.jpg.part",
    "a.jpg.partial",
    "a.jpg.new",
    "a.jpg.bak",
    "a.jpg.orig",
    "a.jpg.swp",
    "a.jpg.crdownload",
    "a.jpg_original",
    "a.jpg.incomplete",
    "a.jpg.aria2",
    "sedAb12Cd",
    "ziAb12Cd",
    "__MACOSX/a.jpg",
    "@eaDir/a.jpg",
    "#recycle/a.jpg",
    "lost+found/a.jpg",
    "$RECYCLE.BIN/a.jpg",
    "x/@eaDir/y/a.jpg",
    "x.tmp/a.jpg",
    "x.part/a.jpg",
    "old~/a.jpg",
]


def test_images_are_sent_and_everything_else_stays_here(own_server: LocalServer, tree: MountedTree) -> None:
    for name in (*SENT, *STAYS):
        path = tree.mountpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())

    assert sorted(stored(own_server)) == sorted(SENT)
    assert all((tree.mountpoint / name).read_bytes() == name.encode() for name in (*SENT, *STAYS))
    for name in STAYS:
        (tree.mountpoint / name).unlink()
    assert sorted(stored(own_server)) == sorted(SENT)


def test_the_extension_counts_and_not_the_content(own_server: LocalServer, tree: MountedTree) -> None:
    for name in ("image.txt", "image.bin", "image"):
        (tree.mountpoint / name).write_bytes(jpeg(1))
    assert stored(own_server) == {}
    (tree.mountpoint / "image.txt").rename(tree.mountpoint / "image.jpg")
    assert stored(own_server) == {"image.jpg": jpeg(1)}


def test_an_image_that_is_written_synchronously_is_sent_once(
    own_server: LocalServer, tree: MountedTree
) -> None:
    """O_SYNC asks for each write to be safe, not for a request for each."""
    data = os.urandom(100_000)  # no picture: it goes without a thumbnail, in one PUT
    own_server.stats.reset()
    with opened(tree.mountpoint / "a.jpg", os.O_WRONLY | os.O_CREAT | os.O_SYNC) as file:
        for start in range(0, len(data), 10_000):
            os.write(file, data[start : start + 10_000])
    # the server counts a request a moment after its client has the answer
    soon(lambda: own_server.stats.snapshot()["in_flight"] == 0)
    assert own_server.stats.count("storage.put") == 1
    assert own_server.stats.count("withWriteUrls") == 1
    assert stored(own_server) == {"a.jpg": data}
