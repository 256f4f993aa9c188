"""The files of blocks: found and made, tidied, deleted by age; links and other things are not followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightlyfs.cache.block_files import BlockFiles, CachedFile, free_bytes, shed


def key(number: int) -> str:
    return f"{number:024x}.{0:016x}"


def made(files: BlockFiles, name: str, data: bytes = b"x", written: int = 0) -> Path:
    """A file of blocks, written at some time."""
    file = files.open(name, {}, create=True)
    assert file is not None
    file.write(0, data)
    path = Path(files._path(name))
    os.utime(path, (written, written))
    return path


def test_a_file_is_made_only_where_that_is_asked(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path / "blocks")
    assert files.open(key(1), {}, create=False) is None
    assert list(files.directory.iterdir()) == []
    path = made(files, key(1), b"abcdef")
    again = files.open(key(1), {0: 7}, create=False)
    assert again is not None
    assert again.read(2, 3) == b"cde"
    assert again.checksums == {0: 7}
    assert again.proven == set()
    assert not again.dropped
    assert path == files.directory / "01" / key(1)


def test_files_and_directories_are_for_our_eyes_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        path = made(BlockFiles(tmp_path / "blocks"), key(1))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("what", ["link", "directory"])
def test_what_stands_in_place_of_a_file_is_taken_away(tmp_path: Path, what: str, create: bool) -> None:
    files = BlockFiles(tmp_path / "blocks")
    path = made(files, key(1))
    path.unlink()
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    if what == "link":
        path.symlink_to(victim)
    else:
        path.mkdir()
        (path / "within").write_bytes(b"")
    file = files.open(key(1), {}, create=create)
    assert (file is not None) == create
    assert path.is_file() == create
    assert not path.is_symlink()
    assert not path.is_dir()
    assert victim.read_bytes() == b"theirs"


def test_a_pipe_in_place_of_a_file_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path / "blocks")
    path = made(files, key(1))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        files.open(key(1), {}, create=True)


def test_a_file_is_deleted_once(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path / "blocks")
    path = made(files, key(1))
    files.delete(key(1))
    assert not path.exists()
    files.delete(key(1))


def test_all_but_known_files_are_tidied_and_those_without_one_named(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path / "blocks")
    known, unknown = made(files, key(1)), made(files, key(2))
    linked = made(files, key(3))
    linked.unlink()
    linked.symlink_to(known)
    stray = files.directory / "stray"
    stray.write_bytes(b"")
    (known.parent / "directory").mkdir()
    (known.parent / "directory" / "file").write_bytes(b"")

    assert files.tidy({key(1), key(3), key(4)}) == {key(3), key(4)}

    assert known.exists()
    assert not unknown.exists()
    assert not linked.is_symlink()
    assert not stray.exists()
    assert os.listdir(known.parent) == [key(1)]


def test_files_are_listed_from_the_oldest(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path / "blocks")
    for number, written in ((1, 300), (2, 100), (0x102, 200)):
        made(files, key(number), written=written)
    assert files.by_age() == [key(2), key(0x102), key(1)]


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = BlockFiles(tmp_path / "blocks")
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    file = files.open(key(1), {}, create=True)
    assert file is not None
    file.write(5, b"0123456789")
    assert file.read(0, 100) == b"\0" * 5 + b"0123456789"


def test_a_descriptor_is_closed_with_its_file(tmp_path: Path) -> None:
    files = BlockFiles(tmp_path / "blocks")
    file = files.open(key(1), {}, create=True)
    assert file is not None
    fd = file.fd
    assert not os.get_inheritable(fd)
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def touched(file: CachedFile, at: int) -> None:
    """Let another process write into a file, at a time of its own."""
    os.pwrite(file.fd, b"other", 0)
    os.utime(file.fd, ns=(at, at))


def test_a_change_by_others_makes_proven_blocks_be_compared_again(tmp_path: Path) -> None:
    file = BlockFiles(tmp_path / "blocks").open(key(1), {}, create=True)
    assert file is not None
    file.write(0, b"ours")
    file.proven.add(0)
    assert not file.was_changed()
    file.write(0, b"ours again")
    assert not file.was_changed()
    assert file.proven == {0}
    touched(file, 1)
    assert file.was_changed()
    assert file.proven == set()
    assert not file.was_changed()


def test_own_writes_do_not_hide_a_change_by_others(tmp_path: Path) -> None:
    file = BlockFiles(tmp_path / "blocks").open(key(1), {}, create=True)
    assert file is not None
    file.write(0, b"ours")
    file.proven.add(0)
    touched(file, 1)
    file.write(10, b"ours")
    assert file.was_changed()
    assert file.proven == set()


def disk(monkeypatch: pytest.MonkeyPatch, free: list[int]) -> None:
    """A disk of which so many frames of 512 bytes are free, one look after the other."""

    def statvfs(_path: Any) -> Any:
        return SimpleNamespace(f_bavail=free[0] if len(free) == 1 else free.pop(0), f_frsize=512)

    monkeypatch.setattr("lightlyfs.cache.block_files.os.statvfs", statvfs)


def test_what_is_free_is_what_we_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, [7])
    assert free_bytes(Path("/")) == 7 * 512


@pytest.mark.parametrize(
    ("free", "left"),
    [([2], [1, 2, 3]), ([9], [1, 2, 3]), ([1, 2], [1, 3]), ([1, 9, 0], [1, 3]), ([0, 1, 2], [3]), ([0], [])],
    ids=["enough", "plenty", "one goes", "a large one goes", "two go", "all go"],
)
def test_files_go_by_age_until_enough_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: list[int], left: list[int]
) -> None:
    files = BlockFiles(tmp_path / "blocks")
    for number, written in ((1, 200), (2, 100), (3, 300)):
        made(files, key(number), written=written)
    disk(monkeypatch, free)
    shed(files.directory, 1024)
    assert sorted(files.by_age()) == [key(number) for number in left]


def test_where_no_cache_is_nothing_is_made_or_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, [0])
    shed(tmp_path / "blocks", 1024)
    assert not (tmp_path / "blocks").exists()
