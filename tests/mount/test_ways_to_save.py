"""How programs save a file, and what each way leaves on the server: the image that is meant, or an error."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import shared_mount
from shared_mount import OVERWRITE, SharedMount, jpeg, need_tool, run_tool
from trees import mounted, refused, soon, start_mount, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

OLD, NEW = jpeg(1), jpeg(2)
NAME = "b.jpg"
Save = Callable[[Path, bytes], None]
Content = Callable[[bytes, bytes], bytes]


# the ways, each of which leaves `data` at `path` or raises OSError; on failure they clean up as programs do


def write_all(path: Path, data: bytes, flags: int) -> None:
    """Open with these flags, write in two pieces, close."""
    descriptor = os.open(path, flags, 0o644)
    try:
        half = len(data) // 2
        os.write(descriptor, data[:half])
        os.write(descriptor, data[half:])
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)


def opening(flags: int) -> Save:
    """Write through a file opened with these flags and O_CREAT."""
    return lambda path, data: write_all(path, data, flags | os.O_CREAT)


def move_over(temporary: Path, path: Path) -> None:
    """Rename over the target; where that fails the temporary is removed, as every careful program does."""
    try:
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def through(name: str, *, sync: bool = False) -> Save:
    """Write a file of this name beside the target and rename it over the target."""

    def save(path: Path, data: bytes) -> None:
        temporary = path.with_name(name)
        with temporary.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        move_over(temporary, path)
        if sync:
            sync_directory(path.parent)

    return save


def sync_directory(directory: Path) -> None:
    """Make a rename durable, as databases do."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def through_tempfile(suffix: str) -> Save:
    """Write a named temporary file of Python and replace the target by it."""

    def save(path: Path, data: bytes) -> None:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=suffix, delete=False) as file:
            file.write(data)
        move_over(Path(file.name), path)

    return save


def through_directory(name: str) -> Save:
    """Write a file of the same name in a directory of its own and move it up."""

    def save(path: Path, data: bytes) -> None:
        directory = path.parent / name
        directory.mkdir()
        try:
            (directory / path.name).write_bytes(data)
            move_over(directory / path.name, path)
        finally:
            directory.rmdir()

    return save


def after_truncate(path: Path, data: bytes) -> None:
    """Empty the file by name, then fill it."""
    if not path.exists():
        path.touch()
    os.truncate(path, 0)
    write_all(path, data, os.O_WRONLY)


def after_unlink(path: Path, data: bytes) -> None:
    """Remove the old file first."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def after_rename_to_backup(path: Path, data: bytes) -> None:
    """Move the old file to a backup, write the new one."""
    if path.exists():
        path.rename(path.with_name(path.name + ".bak"))
    path.write_bytes(data)


def after_copy_to_backup(path: Path, data: bytes) -> None:
    """Copy the old file to a backup, write over the old one."""
    if path.exists():
        shutil.copy2(path, path.with_name(path.name + ".bak"))
    path.write_bytes(data)


def after_link_to_backup(path: Path, data: bytes) -> None:
    """Link the old file as a backup, replace it by a finished one."""
    if path.exists():
        os.link(path, path.with_name(path.name + "~"))
    through(f".{NAME}.new")(path, data)


def after_link_or_copy_to_backup(path: Path, data: bytes) -> None:
    """Link the old file as a backup, or copy it where there are no links."""
    backup = path.with_name(path.name + "~")
    if path.exists():
        try:
            os.link(path, backup)
        except OSError:
            shutil.copy2(path, backup)
    through(f".{NAME}.new")(path, data)


def by_link(path: Path, data: bytes) -> None:
    """Write a hidden file, link it to its name, remove the first name: a name is never taken over."""
    temporary = path.with_name(f".{NAME}.lnk")
    temporary.write_bytes(data)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()


def from_nameless_file(path: Path, data: bytes) -> None:
    """Write a file without a name and link it under the target's."""
    descriptor = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o644)
    try:
        os.write(descriptor, data)
        directory = os.open("/proc/self/fd", os.O_RDONLY)
        try:
            os.link(str(descriptor), path, src_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(directory)
    finally:
        os.close(descriptor)


def from_nameless_file_or_temporary(path: Path, data: bytes) -> None:
    """Write a file without a name, or a temporary where there are none, as systemd and GLib do."""
    with contextlib.suppress(OSError):
        os.close(os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o644))
    through(f".#{NAME}AB12cd")(path, data)


def by_mapping(path: Path, data: bytes) -> None:
    """Write through a shared mapping, in another process: Python keeps its lock while it flushes one."""
    program = """
        import mmap, os, sys
        data = sys.stdin.buffer.read()
        try:
            file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(file, len(data))
            with mmap.mmap(file, len(data)) as mapped:
                mapped[:] = data
                mapped.flush()
            os.close(file)
        except OSError as error:
            sys.exit(error.errno)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    code = subprocess.run(command, input=data, check=False, timeout=60).returncode
    if code:
        raise OSError(code, os.strerror(code))


def by_tool(package: str, *words: str) -> Save:
    """Save with a program; SOURCE is a file with the data, of the same name, PATH the target.

    Its error is the one that it tells of: no program may fail without saying why.
    """

    def save(path: Path, data: bytes) -> None:
        need_tool(words[0], package)
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, path.name)
            source.write_bytes(data)
            done = run_tool(
                *(word.replace("SOURCE", str(source)).replace("PATH", str(path)) for word in words)
            )
            if done.returncode:
                assert source.read_bytes() == data
                raise error_told(done.stderr)

    return save


def error_told(text: str) -> OSError:
    """The error that a program's message names."""
    for number in (errno.EPERM, errno.EEXIST, errno.ENOENT):
        if re.search(os.strerror(number), text, re.IGNORECASE):
            return OSError(number, os.strerror(number))
    raise AssertionError(f"no reason was given: {text}")


def stdin_to(*words: str) -> Save:
    """Save what is piped into a program."""

    def save(path: Path, data: bytes) -> None:
        command = [word.replace("PATH", str(path)) for word in words]
        environ = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(
            command, input=data, capture_output=True, check=False, timeout=60, env=environ, cwd=path.parent
        )
        if done.returncode:
            raise error_told(done.stderr.decode())

    return save


# what is left


def replaced_by_new(old: bytes, new: bytes) -> bytes:
    return new


def laid_over(old: bytes, new: bytes) -> bytes:
    return new + old[len(new) :]


def appended(old: bytes, new: bytes) -> bytes:
    return old + new


@dataclass(frozen=True)
class Left:
    """What a save answers and leaves behind: with an error, the old image alone."""

    error: int = 0
    content: Content = replaced_by_new
    samples: tuple[str, ...] = ()  # others that the program meant to be images
    local: tuple[str, ...] = ()  # files and directories that stay here, beside it
    replaced: int = 0  # samples put out of sight, since their bytes went to the target


SAVED = Left()
EPERM = Left(errno.EPERM)
EEXIST = Left(errno.EEXIST)
NO_NAMELESS = Left(errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Way:
    """A way to save, and what it leaves: of a new name, over a sample, and over one where that is allowed.

    `on_disk` is what a local disk has at the new name and at the old one.
    """

    save: Save
    new: Left = SAVED
    over: Left = EPERM
    over_allowed: Left = SAVED
    on_disk: tuple[int, int] = (0, 0)


WRITE = os.O_WRONLY
WAYS = {
    # straight into the file
    "create-exclusive": Way(opening(WRITE | os.O_EXCL), SAVED, EEXIST, EEXIST, (0, errno.EEXIST)),
    "create-and-truncate": Way(opening(WRITE | os.O_TRUNC)),
    "read-write-and-truncate": Way(opening(os.O_RDWR | os.O_TRUNC)),
    "in-place": Way(opening(os.O_RDWR), over_allowed=Left(content=laid_over)),
    "append": Way(opening(WRITE | os.O_APPEND), over_allowed=Left(content=appended)),
    "mapping": Way(by_mapping),
    "truncate-by-name": Way(after_truncate),
    "cp": Way(by_tool("coreutils", "cp", "SOURCE", "PATH")),
    "install": Way(by_tool("coreutils", "install", "SOURCE", "PATH"), SAVED, EPERM, SAVED),
    "dd-without-truncate": Way(
        by_tool("coreutils", "dd", "if=SOURCE", "of=PATH", "conv=notrunc,fsync"),
        over_allowed=Left(content=laid_over),
    ),
    "shell-redirection": Way(stdin_to("sh", "-c", "cat > PATH")),
    "tee-append": Way(stdin_to("tee", "-a", "PATH"), over_allowed=Left(content=appended)),
    # a temporary that is renamed
    "rsync-name": Way(through(f".{NAME}.Xy12Ab")),
    "hidden-synced": Way(through(f".{NAME}.tmp", sync=True)),
    "tmp": Way(through(f"{NAME}.tmp")),
    "tmp-synced": Way(through(f"{NAME}.tmp", sync=True)),
    "qt-name": Way(through(f"{NAME}.aB12cD")),
    "bare-tempfile": Way(through_tempfile("")),
    "partial": Way(through(f"{NAME}.partial")),
    "tilde": Way(through(f"{NAME}~")),
    # a temporary that has the name of an image
    "tmp-before-extension": Way(through("b.tmp.jpg")),
    "tmp-before-extension-synced": Way(through("b.tmp.jpg", sync=True)),
    "tempfile-with-extension": Way(through_tempfile(".jpg")),
    "new-after-name": Way(through(f"{NAME}.new.jpg")),
    # an image under its own name that is then moved
    "other-image": Way(
        through("export.jpg"),
        over=Left(errno.EPERM, samples=("export.jpg",)),
        over_allowed=Left(replaced=1),
    ),
    # in another directory
    "hidden-directory": Way(through_directory(".saving")),
    "cache-directory": Way(through_directory(".cache")),
    "helper-directory": Way(through_directory("@eaDir")),
    # away with the old one first
    "unlink-first": Way(after_unlink, SAVED, EPERM, EPERM),
    "rename-to-backup": Way(after_rename_to_backup, SAVED, EPERM, EPERM),
    "copy-to-backup": Way(
        after_copy_to_backup,
        over=Left(errno.EPERM, local=(f"{NAME}.bak",)),
        over_allowed=Left(local=(f"{NAME}.bak",)),
    ),
    "link-to-backup": Way(after_link_to_backup, SAVED, EPERM, EPERM),
    "link-or-copy-to-backup": Way(
        after_link_or_copy_to_backup,
        over=Left(errno.EPERM, local=(f"{NAME}~",)),
        over_allowed=Left(local=(f"{NAME}~",)),
    ),
    # links: the kernel itself says that a name exists
    "link": Way(by_link, EPERM, EEXIST, EEXIST, (0, errno.EEXIST)),
    "nameless-file": Way(
        from_nameless_file, NO_NAMELESS, NO_NAMELESS, NO_NAMELESS, on_disk=(0, errno.EEXIST)
    ),
    "nameless-file-or-temporary": Way(from_nameless_file_or_temporary),
    # tools that do it their own way
    "rsync": Way(by_tool("rsync", "rsync", "-aI", "SOURCE", "PATH")),
    "rsync-delay-updates": Way(
        by_tool("rsync", "rsync", "-aI", "--delay-updates", "SOURCE", "PATH"),
        over=Left(errno.EPERM, local=(".~tmp~",)),
    ),
    "rsync-inplace": Way(by_tool("rsync", "rsync", "-aI", "--inplace", "SOURCE", "PATH")),
    # sed has nothing to edit under a new name; `r` and `d` make it write the source instead of the first line
    "sed-in-place": Way(
        by_tool("sed", "sed", "-i", "-s", "-e", "1r SOURCE", "-e", "d", "PATH"),
        new=Left(errno.ENOENT),
        on_disk=(errno.ENOENT, 0),
    ),
    # from another disk mv removes the old file before it writes the new one
    "mv-from-another-disk": Way(by_tool("coreutils", "mv", "-f", "SOURCE", "PATH"), SAVED, EPERM, SAVED),
}


def old_names() -> dict[str, bytes]:
    """The samples to save over, one for each way."""
    return {f"over/{way}/{NAME}": OLD for way in WAYS}


@pytest.fixture(scope="module", params=["default", OVERWRITE])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedMount]:
    """A mount for all the ways, with and without leave to replace images."""
    options = [OVERWRITE] if request.param == OVERWRITE else []
    with shared_mount.shared_mount(tmp_path_factory.mktemp("ways"), old_names(), *options) as subject:
        yield subject


@pytest.fixture(scope="module")
def is_allowed(place: SharedMount) -> bool:
    """Whether the mount may replace images."""
    return OVERWRITE in place.tree.options


def error_of(save: Save, path: Path, data: bytes) -> int:
    """The errno that a save ends with, 0 for success."""
    try:
        save(path, data)
    except OSError as error:
        return error.errno or -1
    return 0


def told(number: int) -> str:
    """An errno by name, so that a difference can be read."""
    return errno.errorcode.get(number, "saved")


@pytest.mark.parametrize("way", WAYS)
def test_on_a_local_disk_each_way_leaves_what_is_said_of_it(tmp_path: Path, way: str) -> None:
    """The oracle: there the ways save, and leave the content that is expected of a sample."""
    if WAYS[way].save is from_nameless_file and not has_nameless_files(tmp_path):
        pytest.skip("the file system of the temporary directory has no O_TMPFILE")
    new, over = tmp_path / "new" / NAME, tmp_path / "over" / NAME
    for path in (new, over):
        path.parent.mkdir()
    over.write_bytes(OLD)

    errors = tuple(error_of(WAYS[way].save, path, NEW) for path in (new, over))

    assert [told(number) for number in errors] == [told(number) for number in WAYS[way].on_disk]
    if not errors[0]:
        assert new.read_bytes() == NEW
    assert over.read_bytes() == (OLD if errors[1] else WAYS[way].over_allowed.content(OLD, NEW))


def has_nameless_files(directory: Path) -> bool:
    """Whether a file system knows O_TMPFILE."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("way", WAYS)
def test_under_a_new_name(place: SharedMount, way: str) -> None:
    directory = f"new/{way}"
    path = place.path(directory) / NAME
    before, left = place.count(), WAYS[way].new

    number = error_of(WAYS[way].save, path, NEW)

    assert told(number) == told(left.error)
    expected = {} if left.error else {NAME: NEW}
    assert place.remember(directory) == expected
    assert place.count() == before + len(expected)
    assert sorted(os.listdir(path.parent)) == sorted(expected)
    if expected:
        assert path.read_bytes() == NEW
        assert os.getxattr(path, "user.lightly.upload") == b"uploaded"


@pytest.mark.parametrize("way", WAYS)
def test_over_a_sample(place: SharedMount, is_allowed: bool, way: str) -> None:
    directory = f"over/{way}"
    path = place.path(directory) / NAME
    left = WAYS[way].over_allowed if is_allowed else WAYS[way].over
    before, gone = place.count(), len(place.replaced())

    number = error_of(WAYS[way].save, path, NEW)

    assert told(number) == told(left.error)
    content = OLD if left.error else left.content(OLD, NEW)
    assert place.remember(directory) == {NAME: content} | dict.fromkeys(left.samples, NEW)
    place.check_old(directory)
    assert place.count() == before + len(left.samples) + left.replaced
    assert len(place.replaced()) == gone + left.replaced
    assert sorted(os.listdir(path.parent)) == sorted([NAME, *left.samples, *left.local])
    assert path.read_bytes() == content
    assert path.stat().st_size == len(content)


def test_nothing_else_is_sent_a_moment_later(place: SharedMount) -> None:
    """Temporaries that were renamed or removed are not sent when their time is over."""
    place.check_nothing_came_later()


def test_what_was_put_out_of_sight_stays_there(place: SharedMount) -> None:
    """A refresh brings no sample back into view whose bytes went to another one."""
    place.tree.refresh()
    assert not [name for name in os.listdir(place.tree.mountpoint) if name.startswith(".")]
    assert "export.jpg" not in os.listdir(place.path("new/other-image"))
    gone = place.replaced()
    assert len(gone) == len(set(gone))


# names that look like a temporary's

TEMPORARY_NAMES = ["tmpab12cd34.jpg", "b.tmp.jpg", f"{NAME}.new.jpg", f"{NAME}_tmp.jpg"]


@pytest.fixture
def small(own_server: LocalServer, tmp_path: Path) -> Iterator[SharedMount]:
    """A mount of one sample, for a test that waits or renames."""
    ids = {NAME: own_server.add_sample(NAME, OLD)}
    options = [*shared_mount.UPLOAD_IMAGES, OVERWRITE]
    with mounted(own_server, tmp_path / "tree", "3", *options) as tree:
        yield SharedMount(own_server, tree, ids, "")


def names_held(server: LocalServer) -> list[str]:
    """The names of all samples, in order."""
    return sorted(one["fileName"] for one in server.samples())


def test_a_temporary_name_that_nobody_changes_is_sent_a_moment_after_close(small: SharedMount) -> None:
    for name in TEMPORARY_NAMES:
        (small.tree.mountpoint / name).write_bytes(NEW)
    assert names_held(small.server) == [NAME]
    assert [(small.tree.mountpoint / name).read_bytes() for name in TEMPORARY_NAMES] == [NEW] * 4

    wait_until(lambda: len(names_held(small.server)) > len(TEMPORARY_NAMES), shared_mount.DELAY_S + 8)

    assert names_held(small.server) == sorted([NAME, *TEMPORARY_NAMES])
    for name in TEMPORARY_NAMES:
        upload = small.tree.mountpoint / name
        soon(lambda upload=upload: os.getxattr(upload, "user.lightly.upload") == b"uploaded")


def test_a_temporary_name_that_is_removed_in_time_is_never_sent(small: SharedMount) -> None:
    small.server.stats.reset()
    for name in TEMPORARY_NAMES:
        path = small.tree.mountpoint / name
        path.write_bytes(NEW)
        path.unlink()
    time.sleep(shared_mount.DELAY_S + 1)

    assert names_held(small.server) == [NAME]
    assert small.server.stats.count("storage.put") == 0
    assert os.listdir(small.tree.mountpoint) == [NAME]


def test_a_temporary_name_is_safe_on_disk_when_close_returns(own_server: LocalServer, tmp_path: Path) -> None:
    """A mount that dies within that moment leaves the file to the next one, which sends it once."""
    options = [*shared_mount.UPLOAD_IMAGES]
    with mounted(own_server, tmp_path / "tree", "3", *options) as tree:
        (tree.mountpoint / "b.tmp.jpg").write_bytes(NEW)
        tree.process.kill()
        tree.process.wait()
        tree.ended = True
        assert names_held(own_server) == []
        again = start_mount(
            own_server.dataset_id, tree.mountpoint, tree.environ, tree.log, "--fuse=3", *options
        )
        try:
            assert (tree.mountpoint / "b.tmp.jpg").read_bytes() == NEW
            wait_until(lambda: names_held(own_server) == ["b.tmp.jpg"], shared_mount.DELAY_S + 20)
        finally:
            again.end()
    (one,) = own_server.samples()
    assert own_server.object_bytes(one["id"]) == NEW


def test_a_temporary_name_is_not_forgotten_by_unmounting(own_server: LocalServer, tmp_path: Path) -> None:
    """The end of a mount does not wait for nothing: the image is there then, or after the next start."""
    options = [*shared_mount.UPLOAD_IMAGES]
    for _ in range(2):
        with mounted(own_server, tmp_path / "tree", "3", *options) as tree:
            path = tree.mountpoint / "b.tmp.jpg"
            if not path.exists():
                path.write_bytes(NEW)
            assert path.read_bytes() == NEW
    with mounted(own_server, tmp_path / "tree", "3", *options):
        wait_until(lambda: names_held(own_server) == ["b.tmp.jpg"], shared_mount.DELAY_S + 8)


# samples and names that they may not take

NOT_FOR_SAMPLES = [
    "b.jpg_original",
    "b.jpg.bak",
    "b.jpg.orig",
    "b.jpg.new",
    "b.jpg.part",
    "b.jpg.partial",
    "b.jpg.tmp",
    "b.jpg.swp",
    "b.jpg~",
    ".b.jpg",
    "b",
    "b.txt",
    "4913",
    "sedAb12Cd",
    "ziAb12Cd",
    ".Trash-0/files/b.jpg",
    ".Trash/b.jpg",
    "#recycle/b.jpg",
    "@eaDir/b.jpg",
    ".git/b.jpg",
    ".cache/b.jpg",
    "__MACOSX/b.jpg",
    "lost+found/b.jpg",
    "$RECYCLE.BIN/b.jpg",
    ".hidden/deep/b.jpg",
]


def test_a_sample_does_not_get_a_name_that_would_not_be_sent(small: SharedMount) -> None:
    """Nothing renames an image out of sight: neither backups nor a trash."""
    root = small.tree.mountpoint
    failed = {}
    for name in NOT_FOR_SAMPLES:
        target = root / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            (root / NAME).rename(target)
            failed[name] = "renamed"
        except OSError as error:
            failed[name] = told(error.errno or 0)
    assert failed == dict.fromkeys(NOT_FOR_SAMPLES, "EPERM")
    assert names_held(small.server) == [NAME]
    assert small.server.sample(small.ids[NAME])["fileName"] == NAME
    assert (root / NAME).read_bytes() == OLD


def test_a_directory_of_samples_does_not_get_such_a_name(small: SharedMount) -> None:
    root = small.tree.mountpoint
    cars = root / "cars"
    cars.mkdir()
    (cars / "x.jpg").write_bytes(NEW)
    for new in (".cars", "__MACOSX", "lost+found", ".Trash-0", "#recycle", "@eaDir", ".git/cars"):
        with refused(errno.EPERM):
            (root / new).parent.mkdir(exist_ok=True)
            cars.rename(root / new)
    assert names_held(small.server) == [NAME, "cars/x.jpg"]
    assert (cars / "x.jpg").read_bytes() == NEW


def test_a_sample_of_long_ago_is_not_renamed_over_another(own_server: LocalServer, tmp_path: Path) -> None:
    """Only what this mount sent a moment ago may turn out to have been another image's new content."""
    ids = {name: own_server.add_sample(name, name.encode()) for name in ("a.jpg", "b.jpg")}
    options = [*shared_mount.UPLOAD_IMAGES, OVERWRITE]
    with mounted(own_server, tmp_path / "tree", "3", *options) as tree:
        with refused(errno.EPERM):
            (tree.mountpoint / "a.jpg").rename(tree.mountpoint / "b.jpg")
        with refused(errno.EPERM):
            (tree.mountpoint / "a.jpg").unlink()
        assert tree.names() == ["a.jpg", "b.jpg"]
    assert {one["fileName"]: one["id"] for one in own_server.samples()} == ids


def test_a_replaced_sample_does_not_come_back_with_a_remount(own_server: LocalServer, tmp_path: Path) -> None:
    """Its bytes went to another sample; what is left of it is in no listing, now and later."""
    sample_id = own_server.add_sample(NAME, OLD)
    options = [*shared_mount.UPLOAD_IMAGES, OVERWRITE]
    with mounted(own_server, tmp_path / "tree", "3", *options) as tree:
        through("export.jpg")(tree.mountpoint / NAME, NEW)
        assert tree.names() == [NAME]
    with mounted(own_server, tmp_path / "tree", "3", *options) as tree:
        tree.refresh()
        assert tree.names() == [NAME]
        assert tree.read(NAME) == NEW
    assert own_server.sample(sample_id)["fileName"] == NAME
    assert own_server.object_bytes(sample_id) == NEW
    (other,) = (one["fileName"] for one in own_server.samples() if one["id"] != sample_id)
    assert other.startswith(shared_mount.REPLACED)
