"""The files of a spool: generations of one file, whole or damaged, kept and deleted."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import zlib
from pathlib import Path

import pytest

from lightlyfs.staging.spool import Spool

A, B = "a" * 32, "b" * 32


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "files")


def made(spool: Spool, key: str, generation: int, data: bytes = b"") -> Path:
    staged = spool.create(key, generation)
    staged.write_at(0, data)
    staged.close()
    return spool.path(key, generation)


def test_a_file_is_created_once_and_for_our_eyes_only(spool: Spool) -> None:
    path = made(spool, A, 0, b"data")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        spool.create(A, 0)
    assert path.read_bytes() == b"data"
    assert spool.has(A, 0)
    assert not spool.has(A, 1)
    staged = spool.recreate(A, 0)
    assert staged.size() == 0
    staged.close()


def test_a_link_is_not_followed(spool: Spool, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    spool.path(A, 0).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        spool.open(A, 0)
    with pytest.raises(FileExistsError):
        spool.create(A, 0)
    assert spool.generations() == []
    spool.remove(A, 0)
    assert victim.read_bytes() == b"theirs"


def test_a_deleted_spool_is_moved_and_goes_on(tmp_path: Path) -> None:
    told: list[int] = []

    def deleted() -> None:
        told.append(1)
        spool.move_to(tmp_path / "other")

    spool = Spool(tmp_path / "files", deleted)
    assert not spool.is_deleted()
    (tmp_path / "files").rmdir()
    assert spool.is_deleted()
    path = made(spool, A, 0)
    assert path.parent == tmp_path / "other"
    assert not spool.is_deleted()
    assert told == [1]


def test_only_generations_are_listed(spool: Spool) -> None:
    for key, generation in ((A, 0), (A, 12), (B, 3)):
        made(spool, key, generation)
    directory = spool.path(A, 0).parent
    for name in (f"{A}.x", f"{A}", f"{A}.1.damaged", "a.1", f"x{A}.1"):
        (directory / name).write_bytes(b"")
    (directory / f"{B}.9").mkdir()
    assert sorted(spool.generations()) == [(A, 0), (A, 12), (B, 3)]


def test_what_is_deleted_may_be_missing_or_no_file(spool: Spool) -> None:
    made(spool, A, 0)
    spool.remove(A, 0)
    spool.remove(A, 0)
    spool.path(A, 0).mkdir()
    (spool.path(A, 0) / "within").write_bytes(b"")
    spool.remove(A, 0)
    assert not spool.has(A, 0)


@pytest.mark.parametrize(
    ("there", "up_to", "left"),
    [
        ([0, 1, 2, 3], 2, [3]),
        ([0, 2, 5], 5, []),
        ([0, 16], 16, []),  # up to 15 are missing between two
        ([0, 17], 17, [0]),
        ([4], 3, [4]),
        ([0], 0, []),
    ],
)
def test_a_generation_and_those_before_it_are_deleted(
    spool: Spool, there: list[int], up_to: int, left: list[int]
) -> None:
    for generation in there:
        made(spool, A, generation)
    made(spool, B, 0)
    spool.remove_up_to(A, up_to)
    assert sorted(spool.generations()) == [*((A, generation) for generation in left), (B, 0)]


def test_a_generation_is_whole_by_its_size_and_checksum(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.staging.spool._COPY_BYTES", 4)
    made(spool, A, 0, b"0123456789")
    checksum = zlib.crc32(b"0123456789")
    assert spool.is_whole(A, 0, 10, checksum)
    assert spool.is_whole(A, 0, 10, -1)
    assert not spool.is_whole(A, 0, 9, -1)
    assert not spool.is_whole(A, 0, 11, checksum)
    assert not spool.is_whole(A, 0, 10, checksum ^ 1)
    assert not spool.is_whole(A, 1, 0, -1)


def test_a_file_that_cannot_be_read_is_not_whole_and_is_closed(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(spool, A, 0, b"0123456789")
    before = len(os.listdir("/proc/self/fd"))

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    assert not spool.is_whole(A, 0, 10, 5)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_generation_is_put_aside_or_given_to_another_file(spool: Spool) -> None:
    made(spool, A, 0, b"damaged")
    aside = spool.put_aside(A, 0)
    assert aside.name == f"{A}.0.damaged"
    assert aside.read_bytes() == b"damaged"
    assert spool.generations() == []
    made(spool, A, 1, b"moved")
    spool.move(A, 1, B)
    assert spool.generations() == [(B, 1)]
    assert spool.path(B, 1).read_bytes() == b"moved"
    spool.sync()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EIO])
def test_a_copy_is_made_where_blocks_cannot_be_shared(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    source = spool.create(A, 0)
    source.write_at(0, b"0123456789")
    if number == errno.EIO:
        with pytest.raises(OSError, match="refused"):
            spool.copy(source, A, 1)
        assert spool.generations() == [(A, 0)]
    else:
        copied = spool.copy(source, A, 1)
        assert copied.read_at(0, 100) == b"0123456789"
        copied.close()
    source.close()


def test_a_staged_file_is_read_and_written_at_any_place(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 3), offset))
    staged = spool.create(A, 0)
    assert staged.read_at(0, 5) == b""
    assert staged.write_at(5, b"0123456789") == 10
    assert staged.size() == 15
    assert staged.read_at(5, 8) == b"01234567"
    assert staged.read_at(0, 100) == b"\0" * 5 + b"0123456789"
    assert staged.checksum() == zlib.crc32(b"\0" * 5 + b"0123456789")
    staged.truncate(7)
    assert staged.read_at(5, 8) == b"01"
    staged.truncate(9)
    assert staged.read_at(5, 8) == b"01\0\0"
    staged.sync()
    descriptor = staged.descriptor
    assert not os.get_inheritable(descriptor)
    staged.close()
    staged.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
