"""Random operations on one file of a mount and on a real file side by side, as fsx does."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest
from test_writing import stored
from trees import mounted

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

MAX_BYTES = 300_000


class Twins:
    """The same open file twice: on the mount and on the local disk."""

    def __init__(self, paths: tuple[Path, Path], seed: int) -> None:
        self.paths = paths
        self.random = random.Random(seed)
        self.log: list[str] = []
        self.files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644) for path in paths]

    def step(self) -> None:
        """One random operation on both."""
        operation = self.random.choices(
            [self.read, self.write, self.truncate, self.map_read, self.map_write, self.sync],
            weights=[30, 40, 10, 15, 10, 1],
        )[0]
        operation()

    def close(self) -> None:
        """Close both."""
        for descriptor in self.files:
            os.close(descriptor)

    def size(self) -> int:
        """The size, which both must agree on."""
        sizes = [os.fstat(descriptor).st_size for descriptor in self.files]
        assert sizes[0] == sizes[1], self.log[-20:]
        return sizes[0]

    def place(self, limit: int) -> tuple[int, int]:
        """A random offset and length below a limit."""
        offset = self.random.randrange(limit)
        return offset, self.random.randrange(1, min(70_000, limit - offset) + 1)

    def read(self) -> None:
        offset, length = self.place(MAX_BYTES)
        self.log.append(f"read {offset} {length}")
        one, other = (os.pread(descriptor, length, offset) for descriptor in self.files)
        assert one == other, self.log[-20:]

    def write(self) -> None:
        offset, length = self.place(MAX_BYTES)
        self.log.append(f"write {offset} {length}")
        data = self.random.randbytes(length)
        for descriptor in self.files:
            assert os.pwrite(descriptor, data, offset) == length

    def truncate(self) -> None:
        length = self.random.randrange(MAX_BYTES)
        self.log.append(f"truncate {length}")
        for descriptor in self.files:
            os.ftruncate(descriptor, length)
        self.size()

    def map_read(self) -> None:
        size = self.size()
        if size:
            offset, length = self.place(size)
            self.log.append(f"map_read {offset} {length}")
            one, other = (self._mapped(descriptor, size, offset, length) for descriptor in self.files)
            assert one == other, self.log[-20:]

    def map_write(self) -> None:
        size = self.size()
        if size:
            offset, length = self.place(size)
            self.log.append(f"map_write {offset} {length}")
            data = self.random.randbytes(length)
            for descriptor in self.files:
                with mmap.mmap(descriptor, size) as mapped:
                    mapped[offset : offset + length] = data

    def sync(self) -> None:
        self.log.append("fdatasync")
        for descriptor in self.files:
            os.fdatasync(descriptor)

    @staticmethod
    def _mapped(descriptor: int, size: int, offset: int, length: int) -> bytes:
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
            return mapped[offset : offset + length]


def run_fsx(server: LocalServer, directory: Path, operations: int, seed: int) -> None:
    """Some operations with the file open, then what the server holds."""
    with mounted(server, directory / "tree") as tree:
        twins = Twins((tree.mountpoint / "fsx.bin", directory / "real.bin"), seed)
        for _ in range(operations):
            twins.step()
        twins.write()
        twins.close()
        expected = (directory / "real.bin").read_bytes()
        assert (tree.mountpoint / "fsx.bin").read_bytes() == expected
        assert stored(server) == {"fsx.bin": expected}


def test_two_thousand_operations(own_server: LocalServer, tmp_path: Path) -> None:
    run_fsx(own_server, tmp_path, 2_000, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_thousand_operations(own_server: LocalServer, tmp_path: Path) -> None:
    run_fsx(own_server, tmp_path, 50_000, 2)
